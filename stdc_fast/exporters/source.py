"""The network that is exported, with all that a file says of it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch

from stdc_fast import checkpoints, pretrained, registry, zoo
from stdc_fast.calibration.frames import Frames
from stdc_fast.calibration.record import Calibration
from stdc_fast.classes import ClassSet
from stdc_fast.errors import UserError
from stdc_fast.exporters.settings import INPUTS, OUTPUTS, Settings
from stdc_fast.placement import on_cpu
from stdc_fast.reference.networks import STDCSeg
from stdc_fast.segmenter import Segmenter
from stdc_fast.version import __version__

#: Of a checkpoint's metadata, what an exported file says, too.
_KEPT = ("terms", "source", "miou", "miou_split", "short_side", "scale")


@dataclasses.dataclass(frozen=True)
class Source:
    """A network in float32 on the CPU, in eval mode, its class names, and what its checkpoint says of it.

    ``calibration`` has ranges for int8: our own safetensors keep them, and plans in int8 are made with them.
    ``frames`` are pictures that ONNX in int8 takes its own from. ``small`` is of ``load(memory="small")``.
    """

    name: str
    network: STDCSeg
    classes: ClassSet
    said: dict[str, object] = dataclasses.field(default_factory=dict)
    calibration: Calibration | None = None
    frames: Frames | None = None
    small: bool = False

    @staticmethod
    def of(model: Segmenter | str | Path, **options: object) -> Source:
        """Of a model that is loaded, or of a name or file as :func:`stdc_fast.load` takes it.

        ``options`` are as there. UserError for another kind of model, and for weights that are not finite.
        """
        if isinstance(model, Segmenter):
            if options:
                raise UserError(f"options {', '.join(options)} are for a file; this model is loaded already")
            network, size = _plain(model.network), model.input_size
            pretrained.check_sayable(model.network, pretrained.as_published(model.network))
            said = pretrained.of_weights(model) | {"short_side": size.short_side}
            said["scale"] = None if size.scale == 1 else size.scale
            said = {k: said[k] for k in _KEPT if said.get(k) is not None}
            small = model.memory == "small"
            source = Source(model.name, network, model.classes, said, model.calibration, small=small)
        elif isinstance(model, (str, Path)):
            path = zoo.find(model)
            checkpoint = checkpoints.read(path, **options)
            record = registry.RECORDS.get(str(model))
            meta = (record.defaults() if record else {}) | checkpoint.metadata
            classes = zoo.named_classes(model, checkpoint, meta)
            said = {k: meta[k] for k in _KEPT if meta.get(k) is not None}
            network = _plain(checkpoint.network())
            ranges = zoo.own_ranges(checkpoint.calibration, path, False)
            source = Source(zoo.title(model), network, classes, said, ranges)
        else:
            raise UserError(f"expected a loaded model, a name or a file, not {type(model).__name__}")
        for name, tensor in checkpoints.inference_state(source.network).items():
            if not bool(tensor.isfinite().all()):
                raise UserError(f"{source.name}: {name} holds NaN or infinite values; load other weights")
        return source

    def metadata(self, settings: Settings) -> dict[str, object]:
        """What a graph's file says of itself; texts, and JSON values."""
        return {
            "stdc_fast": __version__,
            "name": self.name,
            "variant": self.network.variant,
            "classes": list(self.classes.names),
            "palette": [list(colour) for colour in self.classes.palette],
            "mean": list(self.network.mean),
            "std": list(self.network.std),
            "align_corners": self.network.align_corners,
            "input": INPUTS[settings.input],
            "output": OUTPUTS[settings.output],
            "dtype": settings.dtype,
            **self.said,
        }


@on_cpu
def _plain(network: STDCSeg) -> STDCSeg:
    """A copy in float32 on the CPU, without gradients and training heads."""
    if type(network) is not STDCSeg:
        raise UserError(f"expected a network of STDC-Seg, not {type(network).__name__}")
    with torch.inference_mode(False):
        copied = copy.deepcopy(network).to("cpu", torch.float32, memory_format=torch.contiguous_format)
    copied.training_heads = False
    return copied.eval().requires_grad_(False)
