"""Weights on disk and in memory: our safetensors, and reading the other families' checkpoints.

Every family becomes one canonical state dict: the names of :class:`stdc_fast.reference.STDCSeg`,
which are those of the paper's own code without its aliases. Nothing in a file is executed or imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from stdc_fast.calibration import record
from stdc_fast.calibration.record import Calibration
from stdc_fast.checkpoints import families
from stdc_fast.checkpoints.canonical import (
    Checkpoint,
    check_metadata,
    check_names,
    finite,
    from_content,
    inference_state,
)
from stdc_fast.checkpoints.containers import (
    FORMAT,
    FORMAT_OPTIONS,
    FORMAT_RANGES,
    RANGES,
    open_file,
    open_ranges,
    unwrap,
)
from stdc_fast.checkpoints.fingerprint import fingerprint
from stdc_fast.checkpoints.options import differing
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic

_log = logging.getLogger(__name__)
# Options of a network that are its backbone's, too.
_OF_BACKBONES = ("count_include_pad", "eps", "mean", "std")

__all__ = [
    "Checkpoint",
    "check_metadata",
    "check_names",
    "fingerprint",
    "from_state",
    "inference_state",
    "read",
    "read_backbone",
    "read_ranges",
    "save",
    "save_ranges",
]


def read(path: str | Path, **options: object) -> Checkpoint:
    """Read a segmentation checkpoint of any known family, strictly.

    Families: official STDC-Seg, mmsegmentation, super-gradients, PaddleSeg, and our safetensors.
    ``docs/checkpoints.md`` says how each is recognised and what is converted.

    Args:
        path: the file.
        options: what the file does not say of its network, such as ``conv_last=True``; the same page lists
            them. What it does say must not be contradicted.

    Raises UserError, naming the file, for anything that is not exactly one STDC-Seg network with
    finite weights; the first missing and unexpected keys are listed.
    """
    with _named(path):
        return from_content(open_file(Path(path), whole=False), options)


def from_state(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None, **options: object
) -> Checkpoint:
    """The checkpoint that a state dict in memory is, with the same checks as :func:`read`.

        checkpoint = checkpoints.from_state(torch.load("iter_80000.pth", weights_only=True))
        network = checkpoint.network()
        checkpoint = checkpoints.from_state(checkpoint.state, {"classes": names})

    Args:
        tensors: names and tensors of any float dtype on any device, or the dict that training code keeps
            them in, such as ``{"state_dict": ...}``. Neither changed nor, where a value stays, copied.
        metadata: None for names of another family, told apart as in files. Otherwise the names are
            canonical, as in :attr:`Checkpoint.state` or :func:`inference_state`, and the values are taken
            as they are; ``docs/checkpoints.md`` lists the keys, ``{}`` is enough. Canonical names are the
            official ones, so metadata alone tells that no in-place batch norm is to be converted.
        options: as for :func:`read`.

    Raises UserError for anything that is not exactly one STDC-Seg network with finite weights.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UserError(f"metadata must be a dict or None, not {type(metadata).__name__}")
    with _named("state dict"):
        return from_content(unwrap(tensors, None if metadata is None else dict(metadata)), options)


def read_backbone(path: str | Path) -> families.State:
    """Backbone tensors (``features.*``) of a classification or segmentation checkpoint.

    Takes the official ImageNet files and every family of :func:`read`; for fine-tuning.
    Raises UserError, naming the file, as :func:`read` does.
    """
    with _named(path):
        content = open_file(Path(path), whole=False)
        found = families.backbone(content.tensors) if content.metadata is None else None
        if found is None:
            prefix, whole = "cp.backbone.", from_content(content, certain=False)
            lost = differing({k: v for k, v in whole.metadata.items() if k in _OF_BACKBONES})
            if lost:
                text = ", ".join(f"{k}={v}" for k, v in lost.items())
                _log.warning("%s: its backbone expects %s, which is not part of its tensors", path, text)
            return {k.removeprefix(prefix): v for k, v in whole.state.items() if k.startswith(prefix)}
        state = found[1]
        for key, tensor in state.items():
            if not finite(tensor):
                raise UserError(f"{key} holds NaN or infinite values; copy the file again")
        return state


def read_ranges(path: str | Path) -> Calibration:
    """The ranges of a file that ``stdc-fast calibrate`` wrote. UserError, naming the file, if it has none."""
    with _named(path):
        return open_ranges(Path(path))


def save_ranges(calibration: Calibration, path: str | Path) -> None:
    """Write ranges alone, atomically. UserError if the file can not be written."""
    tensors = {k: v.contiguous() for k, v in calibration.tensors().items()}
    text = {"format": RANGES, record.KEY: json.dumps(calibration.facts())}
    write_atomic(path, lambda p: safetensors.torch.save_file(tensors, p, metadata=text))


def save(
    state: families.State,
    path: str | Path,
    metadata: dict[str, object],
    half: bool = False,
    calibration: Calibration | None = None,
) -> None:
    """Write a canonical state dict and its metadata as safetensors, atomically.

    Args:
        state: inference tensors of :class:`~stdc_fast.reference.STDCSeg`, any float dtype.
        path: file to write.
        metadata: JSON-able values; ``docs/checkpoints.md`` lists the keys.
        half: store convolution weights as fp16; norm statistics stay float32.
        calibration: ranges of the network's maps, which go into the file, too. With ``half`` they count as
            those of the weights as stored. Those of other weights are left out, and a warning says so.

    Raises UserError if the file can not be written, or a weight does not fit fp16.
    """
    tensors = {}
    for name, tensor in state.items():
        small = half and tensor.ndim == 4
        stored = tensor.detach().to("cpu", torch.float16 if small else torch.float32).contiguous()
        if small and not finite(stored):
            raise UserError(f"{path}: {name} exceeds the range of fp16; save it without half")
        tensors[name] = stored
    mark = FORMAT_OPTIONS if differing(metadata) else FORMAT
    if calibration is not None and calibration.fingerprint != _mark(state, metadata):
        _log.warning("%s: %s are of other weights, and are left out", path, calibration)
        calibration = None
    if calibration is not None:
        if half:
            calibration = dataclasses.replace(calibration, fingerprint=_mark(tensors, metadata))
        metadata = {**metadata, record.KEY: calibration.facts()}
        mark, tensors = FORMAT_RANGES, {**tensors, **calibration.tensors()}
    text = {"format": mark, **{k: json.dumps(v) for k, v in metadata.items()}}
    write_atomic(path, lambda p: safetensors.torch.save_file(tensors, p, metadata=text))


def _mark(state: families.State, metadata: dict[str, object]) -> str:
    return fingerprint(from_state(state, metadata).network())


@contextlib.contextmanager
def _named(subject: str | Path) -> Iterator[None]:
    """Say in every UserError what it is about."""
    try:
        yield
    except UserError as error:
        text = str(error)  # names of tensors in it may have any length
        text = text if len(text) < 1000 else f"{text[:600]} ... {text[-300:]}"
        raise UserError(f"{subject}: {text}") from None
