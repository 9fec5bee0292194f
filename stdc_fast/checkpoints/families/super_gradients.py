"""super-gradients 3.x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING

from torch import Tensor

from stdc_fast.checkpoints.families.family import Family, KeyMap, Said, State
from stdc_fast.checkpoints.rebuild import Array, value_of
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.checkpoints.containers import Content


def _said(content: Content, state: State) -> Said:
    """Names and normalisation that its trainer keeps of the data set."""
    about = content.around.get("processing_params")
    if not isinstance(about, Mapping):
        return Said(notes=("no processing_params in the file: mean and std as published",))
    options = _normalisation(about.get("image_processor"))
    notes = () if options else ("no NormalizeImage in its processing_params: mean and std as published",)
    origins = dict.fromkeys(options, "its processing_params")
    return Said(options, origins, value_of(about.get("class_names")), notes=notes)


def _normalisation(processor: object) -> dict[str, object]:
    """mean and std in RGB of 0..1; in the order of the file's channels where the network reads BGR."""
    divisor, reverses = 1.0, False
    for name, given in _steps(processor):
        if name == "StandardizeImage":
            divisor *= float(given.get("max_value", 255))
        elif name == "ReverseImageChannels":
            reverses = not reverses
        elif name == "NormalizeImage":
            options = {k: [v * divisor / 255 for v in _numbers(given.get(k))] for k in ("mean", "std")}
            return {**options, "channels": "bgr"} if reverses else options
    return {}


def _steps(processor: object) -> Iterator[tuple[object, Mapping]]:
    """Names and arguments of what is done to an image, in order; a processor is a name with its arguments."""
    composed = processor.get("ComposeProcessing") if isinstance(processor, Mapping) else None
    steps = composed.get("processings") if isinstance(composed, Mapping) else None
    for step in steps if isinstance(steps, (list, tuple)) else (processor,):
        for name, given in step.items() if isinstance(step, Mapping) else ():
            yield name, given if isinstance(given, Mapping) else {}


def _numbers(value: object) -> list[float]:
    """Three numbers, of single precision as they were written down; UserError for others."""
    array = value.array() if isinstance(value, Array) else None
    try:
        # The shortest decimal of 0.485 in single precision is 0.485 again.
        numbers = value if array is None else [float(str(v)) for v in array.ravel()]
        if len(numbers) == 3:
            return [float(v) for v in numbers]
    except (TypeError, ValueError):
        pass
    raise UserError(f"its NormalizeImage has {short(value_of(value))}, not three numbers")


def _backbone(tensors: Mapping[str, Tensor]) -> State:
    return {
        k.removeprefix(_PREFIX): v
        for k, v in FAMILY.rename({f"cp.{k}": v for k, v in tensors.items()}).items()
        if k.startswith(_PREFIX + "features.")
    }


_PREFIX = "cp.backbone."

FAMILY = Family(
    name="super-gradients",
    names=r"cp\.backbone\.stages\.block_s",
    training_only=r"aux_head_s(16|32)\.|detail_head8\.",
    said=_said,
    rename=KeyMap(
        block=r"cp\.backbone\.stages\.(block_s\d+)\.(\d+)\.",
        stages=("block_s2", "block_s4", "block_s8", "block_s16", "block_s32"),
        rules=(
            (r"conv_list\.1\.0\.seq\.conv\.", "avd_layer.0."),
            (r"conv_list\.1\.0\.seq\.bn\.", "avd_layer.1."),
            (r"conv_list\.1\.1\.seq\.", "conv_list.1."),
            (r"^(cp\.backbone\..*)\.seq\.", r"\1."),
            (r"^(cp\.arm\d+)\.conv_first\.seq\.", r"\1.conv."),
            (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.conv\.", r"\1.conv_atten."),
            (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.bn\.", r"\1.bn_atten."),
            (r"^cp\.upsample(16|32)\.1\.seq\.", r"cp.conv_head\1."),
            (r"^cp\.context_embedding\.context_embedding\.1\.seq\.", "cp.conv_avg."),
            (r"^ffm\.pw_conv\.seq\.", "ffm.convblk."),
            (r"^ffm\.attention_block\.1\.seq\.conv\.", "ffm.conv1."),
            (r"^ffm\.attention_block\.2\.", "ffm.conv2."),
            (r"^segmentation_head\.0\.seg_head\.0\.seq\.", "conv_out.conv."),
            (r"^segmentation_head\.0\.seg_head\.2\.", "conv_out.conv_out."),
        ),
    ),
    backbone_names=r"backbone\.stages\.block_s",
    backbone=_backbone,
)
