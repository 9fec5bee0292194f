"""Checkpoints in canonical form: the names of the reference network, checked against it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from reprlib import repr as short

import torch
from torch import Tensor, nn

from stdc_fast.calibration.record import Calibration
from stdc_fast.checkpoints import options as known_options
from stdc_fast.checkpoints.containers import Content
from stdc_fast.checkpoints.families import CANONICAL, OURS, Family, State, recognise
from stdc_fast.checkpoints.families.family import Said
from stdc_fast.checkpoints.rebuild import value_of
from stdc_fast.errors import UserError
from stdc_fast.placement import on_cpu
from stdc_fast.reference.networks import STAGES, STDCSeg

_CLASSIFIER = "conv_out.conv_out"
_STEM = "cp.backbone.features.0.conv.weight"
_LAST = "cp.backbone.conv_last."
# What torch's utilities leave in names, and what takes it out again before saving.
_REMEDIES = (
    ("parametrizations.", "call torch.nn.utils.parametrize.remove_parametrizations() before saving"),
    (".weight_mask", "call torch.nn.utils.prune.remove() before saving"),
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in canonical form.

    Attributes:
        state: the inference tensors, in the checkpoint's dtype; norms that were converted are float64.
        variant: "stdc1" or "stdc2".
        num_classes: of the classifier; 2 where a threshold made two of its one output.
        module: "cat" or "add", the form of the STDC modules.
        family: whose names the checkpoint had; "stdc_fast" for our own.
        metadata: what the checkpoint says of itself: classes, palette, and those options of the network, see
            ``docs/checkpoints.md``, that are not the published ones.
        report: one line about what was mapped and dropped.
        origins: where each option was read, by its name.
        notes: what the file does not say, and what was done about it.
        calibration: ranges of the network's maps, where the file has them.
    """

    state: State
    variant: str
    num_classes: int
    module: str
    family: str
    metadata: dict[str, object]
    report: str
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None

    @on_cpu
    def network(self, dtype: torch.dtype = torch.float32) -> STDCSeg:
        """The reference network with copies of these weights, in eval mode, on the CPU.

        Raises UserError for a weight that exceeds the range of ``dtype``.
        """
        network = _build(self, f"{_CLASSIFIER}.bias" in self.state).to(dtype)
        state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}
        state.update({k: v.to("cpu", state[k].dtype, copy=True) for k, v in self.state.items()})
        network.load_state_dict(state, assign=True)  # to_empty() imports torch's symbolic shapes: a second
        for key, value in state.items():
            if not finite(value):
                raise UserError(f"{key} exceeds the range of {dtype}; load it as bfloat16 or float32")
        return network.eval()


@on_cpu
def from_content(
    content: Content, told: Mapping[str, object] | None = None, certain: bool = True
) -> Checkpoint:
    """The checkpoint that a state dict holds; UserError if it is not exactly one STDC-Seg network's.

    ``told`` are options of the network, which must not contradict what the file says. Where they are not
    ``certain`` to the last, that is an error too; it does not matter to somebody who wants the backbone only.
    """
    told = known_options.check(told or {})
    tensors = content.tensors
    family = recognise(tensors) if content.metadata is None else OURS
    if not family.holds(tensors):
        raise UserError(
            f"has metadata, so canonical names are expected, but its first keys are "
            f"{', '.join(list(tensors)[:3])}; give another family's state dict without metadata"
        )
    kept = {k: v for k, v in tensors.items() if not family.trains_only(k)}
    renamed = family.rename(kept)
    said = family.said(content, renamed) if content.metadata is None else _says(content.metadata)
    options = known_options.agree(known_options.check(_without_channels(said.options)), told)
    if told.get("batch_norm") == "in-place" and family is not CANONICAL:
        raise UserError(
            f"has plain norms, as {family.name} has, but batch_norm='in-place' was asked for, which official "
            "files may have; leave that out"
        )
    for name, why in said.unsure.items():
        if name not in told and certain:
            raise _untold(name, why)
    plain = {k: v.detach() for k, v in renamed.items() if not _counts_batches(k)}
    state = _with_conv_last(plain, family, options)
    converted, note = family.convert(state, options)
    unused = [k for k in (*tensors, *content.unread) if k not in kept and not _counts_batches(k)]
    dropped = len(unused) + len(plain) - len(state)
    if said.options.get("channels") == "bgr":
        converted = _as_rgb(converted)
        note = f"{note}; " * bool(note) + "reads BGR: channels of the first layer exchanged"
    converted, options = _two_outputs(converted, options, said.options.get("threshold"))
    metadata = _metadata(content.metadata, said, options, converted)
    notes = [*content.notes, *said.notes, *metadata.pop("", [])]
    result = Checkpoint(
        converted,
        str(metadata.get("variant") or _variant(converted)),
        _outputs(converted),
        "add" if any(re.match(r"cp\.backbone\.features\.\d+\.skip\.", k) for k in converted) else "cat",
        family.name,
        metadata,
        "; ".join(
            (
                f"{family.name} ({content.container}): mapped {len(converted)} of {len(converted)} tensors, "
                f"dropped {dropped} training-only ones",
                *([note] if note else []),
                *(f"{k}={v}" for k, v in known_options.differing(options).items() if k != "batch_norm"),
                *notes,
            )
        ),
        {**said.origins, **dict.fromkeys(told, "argument")},
        tuple(notes),
        content.calibration,
    )
    _check(result, family)
    return result


def inference_state(network: nn.Module) -> State:
    """The network's state dict without training-only heads and batch counters."""
    return {
        k: v
        for k, v in network.state_dict().items()
        if not CANONICAL.trains_only(k) and not _counts_batches(k)
    }


def check_metadata(metadata: dict[str, object], state: State) -> None:
    """Raise UserError unless what :func:`stdc_fast.load` builds on has the right types and fits ``state``."""
    check_names(metadata, _outputs(state))
    known_options.check({k: metadata[k] for k in known_options.OPTIONS if k in metadata})
    side = metadata.get("short_side")
    if side is not None and not (isinstance(side, int) and side >= 32):
        raise UserError(f"its metadata 'short_side' is not a number of pixels from 32 on, but {short(side)}")
    scale = metadata.get("scale")
    if scale is not None and not (isinstance(scale, (int, float)) and 0 < scale <= 16):
        raise UserError(f"its metadata 'scale' is not a number above 0 and up to 16, but {short(scale)}")


def check_names(metadata: Mapping[str, object], count: int) -> None:
    """UserError unless 'classes' and 'palette' in ``metadata``, where there, are of ``count`` classes."""
    classes, palette = metadata.get("classes"), metadata.get("palette")
    if classes is not None and not isinstance(classes, (list, tuple)):
        raise UserError(f"its classes are {short(classes)}, not a list of names")
    if classes is not None and not (
        all(isinstance(n, str) for n in classes) and len(set(classes)) == len(classes)
    ):
        raise UserError("its classes are not all different names")
    if palette is not None and not (
        classes
        and isinstance(palette, (list, tuple))
        and len(palette) == len(classes)
        and all(isinstance(c, (list, tuple)) and len(c) == 3 and all(map(_is_byte, c)) for c in palette)
    ):
        raise UserError("its metadata 'palette' is not one [R, G, B] of 0..255 for each class")
    if classes is not None and len(classes) != count:
        raise UserError(f"names {len(classes)} classes but its classifier has {count}")


def _is_byte(value: object) -> bool:
    return type(value) is int and value in range(256)


def finite(tensor: Tensor) -> bool:
    """Whether all values are; of any dtype, where torch has no such test for some of 8 bits."""
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(torch.isfinite(tensor).all())
    # The extremes are NaN where a value is, and take a thirtieth of the time of a look at each.
    return all(map(math.isfinite, torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float())))


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _outputs(state: State) -> int:
    classifier = state.get(f"{_CLASSIFIER}.weight")
    return len(classifier) if classifier is not None and classifier.ndim and len(classifier) else 1


def _says(metadata: Mapping[str, object]) -> Said:
    options = {k: metadata[k] for k in known_options.OPTIONS if k in metadata}
    return Said(options, dict.fromkeys(options, "metadata"))


def _untold(name: str, why: str) -> UserError:
    command = f"stdc-fast convert SOURCE TARGET.safetensors --option {name}=VALUE"
    return UserError(f'{why}; or say it once, on the command line, with "{command}"')


def _without_channels(options: Mapping[str, object]) -> dict[str, object]:
    """The options of the network; where it reads BGR, mean and std come in that order."""
    given = {k: v for k, v in options.items() if k != "channels"}
    if options.get("channels") == "bgr":
        given.update({k: given[k][::-1] for k in ("mean", "std")})
    return given


def _as_rgb(state: State) -> State:
    stem = state.get(_STEM)
    return state if stem is None or stem.ndim != 4 else {**state, _STEM: stem.flip(1)}


def _with_conv_last(state: State, family: Family, options: dict[str, object]) -> State:
    """``state`` with conv_last only where the network applies it, which ``options`` then says.

    The official code stores it always and applies it seldom; the others store it where they apply it.
    """
    stored = any(k.startswith(_LAST) for k in state)
    if options.get("conv_last") and not stored:
        raise UserError("has no conv_last, but conv_last=True was asked for; leave that out")
    if options.get("conv_last") is False and stored and family is not CANONICAL:
        raise UserError(
            f"applies its conv_last, as {family.name} does, but conv_last=False was asked for; leave that out"
        )
    used = bool(options.get("conv_last", stored and family is not CANONICAL))
    options["conv_last"] = used
    return state if used else {k: v for k, v in state.items() if not k.startswith(_LAST)}


def _constant(threshold: float) -> Tensor:
    return torch.full((1,), math.log(threshold / (1 - threshold)), dtype=torch.float64)


def _two_outputs(state: State, options: dict[str, object], before: object) -> tuple[State, dict[str, object]]:
    """One output that is compared with a threshold as two outputs, of which the larger counts.

    sigmoid(x) > p is x > log(p / (1 - p)): that is the first output, a constant. A file of ours has both
    already, for the threshold ``before``.
    """
    weight, bias = state.get(f"{_CLASSIFIER}.weight"), state.get(f"{_CLASSIFIER}.bias")
    if weight is None or weight.ndim != 4 or not len(weight) or not weight.is_floating_point():
        return state, options
    threshold = options.get("threshold")
    if len(weight) > 1:
        if threshold == before:
            return state, options
        if before is None:
            raise UserError(
                f"has {len(weight)} classes, of which the most probable counts, but threshold={threshold} "
                "was asked for; leave that out"
            )
        return {**state, f"{_CLASSIFIER}.bias": torch.cat([_constant(threshold), bias[1:].double()])}, options
    if threshold is None:
        raise _untold(
            "threshold",
            "has one output, which is compared with a threshold that it does not name; say threshold=0.3, as "
            "mmsegmentation has it by default, or the one it was trained for",
        )
    second = torch.zeros(1, dtype=torch.float64) if bias is None else bias.double()
    return {
        **state,
        f"{_CLASSIFIER}.weight": torch.cat([torch.zeros_like(weight), weight]),
        f"{_CLASSIFIER}.bias": torch.cat([_constant(threshold), second]),
    }, options


def _metadata(
    ours: Mapping[str, object] | None, said: Said, options: Mapping[str, object], state: State
) -> dict[str, object]:
    """Ours with the options, or what a foreign file says; what is wrong with its names, under ""."""
    differing = {k: v for k, v in known_options.differing(options).items() if k != "batch_norm"}
    if ours is not None:
        return {**ours, **differing}
    metadata: dict[str, object] = {}
    if said.classes is not None:
        names = list(said.classes) if isinstance(said.classes, (list, tuple)) else said.classes
        colours = said.palette
        if isinstance(colours, (list, tuple)):
            colours = [list(c) if isinstance(c, tuple) else value_of(c) for c in colours]
        for given in ({"classes": names, "palette": colours}, {"classes": names}):
            try:
                check_names(given, _outputs(state))
            except UserError as error:
                metadata.setdefault("", []).append(f"{error}: passed over")
            else:
                metadata.update({k: v for k, v in given.items() if v is not None})
                break
    return {**metadata, **differing}


def _variant(state: State) -> str:
    blocks = {int(m[1]) for k in state if (m := re.match(r"cp\.backbone\.features\.(\d+)\.", k))}
    for name, stages in STAGES.items():
        if max(blocks, default=0) == 1 + sum(stages):
            return name
    counts = " or ".join(f"{2 + sum(s)} ({n})" for n, s in STAGES.items())
    raise UserError(f"its backbone has {len(blocks)} blocks; known are {counts}")


@functools.lru_cache(maxsize=16)
def _shapes(
    variant: str, classes: int, module: str, classifier_bias: bool, fusion_bias: bool, conv_last: bool
) -> dict[str, torch.Size]:
    """Of the inference tensors of such a network."""
    with torch.device("meta"):
        network = STDCSeg(
            variant, classes, module,
            classifier_bias=classifier_bias, fusion_bias=fusion_bias, conv_last=conv_last,
        )  # fmt: skip
    return {k: v.shape for k, v in inference_state(network).items()}


def _build(checkpoint: Checkpoint, classifier_bias: bool) -> STDCSeg:
    """On "meta": its weights are about to be replaced."""
    given = {
        k: checkpoint.metadata[k]
        for k in ("align_corners", "conv_last", "count_include_pad", "mean", "std")
        if k in checkpoint.metadata
    }
    with torch.device("meta"):
        network = STDCSeg(
            checkpoint.variant,
            checkpoint.num_classes,
            checkpoint.module,
            classifier_bias=classifier_bias,
            fusion_bias="ffm.conv1.bias" in checkpoint.state,
            **given,
        )
    eps = checkpoint.metadata.get("eps", 1e-5)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = known_options.eps_of(eps, name)
    return network


def _check(checkpoint: Checkpoint, family: Family) -> None:
    """Names, shapes, dtypes and values must be exactly those of the network."""
    state = checkpoint.state
    check_metadata(checkpoint.metadata, state)
    if checkpoint.variant not in STAGES:
        raise UserError(f"says it is a {short(checkpoint.variant)}; known are {', '.join(STAGES)}")
    bias = family.classifier_bias or f"{_CLASSIFIER}.bias" in state
    conv_last, fusion_bias = bool(checkpoint.metadata.get("conv_last")), "ffm.conv1.bias" in state
    form = (checkpoint.variant, checkpoint.num_classes, checkpoint.module)
    expected = _shapes(*form, bias, fusion_bias, conv_last)
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        hint = next((f"; {remedy}" for part, remedy in _REMEDIES if any(part in k for k in unexpected)), "")
        raise UserError(f"does not match {checkpoint.variant} of {family.name}: {'; '.join(parts)}{hint}")
    for key, tensor in state.items():
        if tensor.shape != expected[key]:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}, {checkpoint.variant} needs {list(expected[key])}"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{key} is {tensor.dtype}, not a float tensor")
        if tensor.is_meta:
            raise UserError(f"{key} is on the meta device, without values; give the loaded weights")
        if not finite(tensor):
            raise UserError(
                f"{key} holds NaN or infinite values; the checkpoint is damaged or its training diverged"
            )
    if checkpoint.num_classes > 256:
        raise UserError(f"has {checkpoint.num_classes} classes; labels are bytes, so at most 256")
