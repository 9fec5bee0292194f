"""Checkpoints in canonical form: the names of the reference network, checked against it."""

from __future__ import annotations

import dataclasses
import json
import re

import torch
from torch import Tensor, nn

from stdc_fast.checkpoints.containers import Content
from stdc_fast.checkpoints.families import CANONICAL, OURS, Family, State, recognise
from stdc_fast.errors import UserError
from stdc_fast.reference.networks import STAGES, STDCSeg

_CLASSIFIER = "conv_out.conv_out"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in canonical form.

    Attributes:
        state: the inference tensors, in the checkpoint's dtype; norms that were converted are float64.
        variant: "stdc1" or "stdc2".
        num_classes: of the classifier.
        module: "cat" or "add", the form of the STDC modules.
        family: whose names the checkpoint had; "stdc_fast" for our own.
        metadata: what the checkpoint says of itself, empty for foreign ones.
        report: one line about what was mapped and dropped.
        origins: where each option of the network was read, by its name.
        notes: what the file does not say, and what was done about it.
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

    def network(self, dtype: torch.dtype = torch.float32) -> STDCSeg:
        """The reference network with copies of these weights, in eval mode, on the CPU.

        Raises UserError for a weight that exceeds the range of ``dtype``.
        """
        network = _build(self, f"{_CLASSIFIER}.bias" in self.state).to(dtype)
        state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}
        state.update({k: v.to("cpu", state[k].dtype, copy=True) for k, v in self.state.items()})
        network.load_state_dict(state, assign=True)  # to_empty() imports torch's symbolic shapes: a second
        for key, value in state.items():
            if not torch.isfinite(value).all():
                raise UserError(f"{key} exceeds the range of {dtype}; load it as bfloat16 or float32")
        return network.eval()


def from_content(content: Content) -> Checkpoint:
    """The checkpoint that a state dict holds; UserError if it is not exactly one STDC-Seg network's."""
    tensors, metadata = content.tensors, content.metadata or {}
    family = recognise(tensors) if content.metadata is None else OURS
    if not family.holds(tensors):
        raise UserError(
            f"has metadata, so canonical names are expected, but its first keys are "
            f"{', '.join(list(tensors)[:3])}; give another family's state dict without metadata"
        )
    kept = {k: v for k, v in tensors.items() if not family.trains_only(k)}
    dropped = sum(k not in kept and not _counts_batches(k) for k in tensors)
    converted, note = family.convert(family.rename(kept))
    state = {k: v.detach() for k, v in converted.items() if not _counts_batches(k)}
    classifier = state.get(f"{_CLASSIFIER}.weight")
    result = Checkpoint(
        state,
        str(metadata.get("variant") or _variant(state)),
        len(classifier) if classifier is not None and classifier.ndim and len(classifier) else 1,
        "add" if any(re.match(r"cp\.backbone\.features\.\d+\.skip\.", k) for k in state) else "cat",
        family.name,
        metadata,
        f"{family.name} ({content.container}): mapped {len(state)} of {len(state)} tensors, "
        f"dropped {dropped} training-only ones{'; ' if note else ''}{note}",
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
    try:
        plain = json.loads(json.dumps({k: metadata.get(k) for k in ("classes", "palette")}))
    except (TypeError, ValueError) as error:
        raise UserError(f"its metadata 'classes' and 'palette' must be JSON values ({error})") from None
    classes, palette = plain["classes"], plain["palette"]
    if classes is not None and not isinstance(classes, list):
        raise UserError(f"its classes are {classes!r}, not a list of names")
    if classes is not None and not (
        all(isinstance(n, str) for n in classes) and len(set(classes)) == len(classes)
    ):
        raise UserError("its classes are not all different names")
    if palette is not None and not (
        classes
        and isinstance(palette, list)
        and len(palette) == len(classes)
        and all(isinstance(c, list) and len(c) == 3 and all(v in range(256) for v in c) for c in palette)
    ):
        raise UserError("its metadata 'palette' is not one [R, G, B] of 0..255 for each class")
    count = len(state[f"{_CLASSIFIER}.weight"])
    if classes is not None and len(classes) != count:
        raise UserError(f"names {len(classes)} classes but its classifier has {count}")
    side = metadata.get("short_side")
    if side is not None and not (isinstance(side, int) and side >= 32):
        raise UserError(f"its metadata 'short_side' is not a number of pixels from 32 on, but {side!r}")


def finite(tensor: Tensor) -> bool:
    """Whether all values are; of any float dtype, where torch has no such test for some of 8 bits."""
    return bool(torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float()).all())


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _variant(state: State) -> str:
    blocks = {int(m[1]) for k in state if (m := re.match(r"cp\.backbone\.features\.(\d+)\.", k))}
    for name, stages in STAGES.items():
        if max(blocks, default=0) == 1 + sum(stages):
            return name
    counts = " or ".join(f"{2 + sum(s)} ({n})" for n, s in STAGES.items())
    raise UserError(f"its backbone has {len(blocks)} blocks; known are {counts}")


def _build(checkpoint: Checkpoint, classifier_bias: bool) -> STDCSeg:
    """On "meta": its weights are about to be replaced."""
    include_pad = bool(checkpoint.metadata.get("count_include_pad", True))
    form = (checkpoint.variant, checkpoint.num_classes, checkpoint.module, include_pad)
    with torch.device("meta"):
        return STDCSeg(*form, classifier_bias=classifier_bias)


def _check(checkpoint: Checkpoint, family: Family) -> None:
    """Names, shapes, dtypes and values must be exactly those of the network."""
    state = checkpoint.state
    if checkpoint.variant not in STAGES:
        raise UserError(f"says it is a {checkpoint.variant!r}; known are {', '.join(STAGES)}")
    bias = family.classifier_bias or f"{_CLASSIFIER}.bias" in state
    expected = inference_state(_build(checkpoint, bias))
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UserError(f"does not match {checkpoint.variant} of {family.name}: {'; '.join(parts)}")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}, "
                f"{checkpoint.variant} needs {list(expected[key].shape)}"
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
    check_metadata(checkpoint.metadata, state)
