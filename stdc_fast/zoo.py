"""Weights that come with the package, and :func:`load`."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

import torch

from stdc_fast import backends, checkpoints
from stdc_fast.backends.eager.ranges import fp16_overflow
from stdc_fast.classes import ClassSet, class_set
from stdc_fast.errors import UserError
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT64, Like, choose
from stdc_fast.segmenter import InputSize, Segmenter

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "stdc1_camvid"


def list_models() -> list[str]:
    """Names of the embedded weights."""
    return sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))


def model_info(name: str = DEFAULT) -> dict[str, object]:
    """What the embedded weights say of themselves: recipe, mIoU, classes, terms, ..."""
    return checkpoints.read(find(name)).metadata


@torch.inference_mode(False)  # tensors made in that mode do not count their changes
def load(
    pretrained: str | Path = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: Like = "auto",
    backend: str = "auto",
    memory: str = "fast",
) -> Segmenter:
    """Load STDC-Seg weights for inference.

    Args:
        pretrained: an embedded name (:func:`list_models`) or a checkpoint file of any family that
            :func:`stdc_fast.checkpoints.read` knows, told apart by content.
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: "auto" (float16 on a GPU with tensor cores, bfloat16 on a CPU with instructions for it, else
            float32), or "float32", "float64", "float16", "bfloat16", or a torch dtype. A network whose values
            float16 can not hold runs in bfloat16 instead, and a warning says so.
        backend: "auto" or a name that ``stdc-fast info`` lists as available; the environment
            variable STDC_FAST_BACKEND stands in for "auto".
        memory: "fast", or "small" for less than half the weights, which takes longer; both are the same
            outside of the CPU engine.

    Returns a :class:`Segmenter` in eval mode, parameters frozen (``model.requires_grad_()`` to train them);
    ``report`` says what was mapped and dropped, ``reason`` why it runs in this dtype on this backend.
    Raises UserError for unknown names (with the nearest one), files that do not match exactly,
    and devices, dtypes or backends that are not available here.
    """
    place = backends.resolve_device(device)
    precision, why = choose(dtype, place)
    if backend != "auto":
        backends.named(backend)  # a misspelt name is said before anything is read
    checkpoint = checkpoints.read(find(pretrained))
    log.info("%s: %s", pretrained, checkpoint.report)
    meta = checkpoint.metadata
    if meta.get("classes") is not None:
        names = tuple(meta["classes"])
        palette = tuple(tuple(c) for c in meta.get("palette") or ())
        classes = ClassSet(names, palette) if palette else ClassSet.from_names(names)
    else:
        classes = class_set(checkpoint.num_classes)
    size = InputSize(short_side=meta["short_side"]) if "short_side" in meta else InputSize()
    try:
        network = checkpoint.network(torch.float64 if precision == FLOAT64 else torch.float32)
    except UserError as error:
        raise UserError(f"{pretrained}: {error}") from None
    network.requires_grad_(False)
    name = Path(pretrained).stem
    model = Segmenter(network.to(place), classes, size, backend, name, precision, why, memory)
    if precision == FLOAT16 and (problem := fp16_overflow(model.kept_plan(), place)) is not None:
        model.precision, model.why_precision = BFLOAT16, f"float16 would overflow: {problem}"
        log.warning("%s: runs in bfloat16: %s", pretrained, model.why_precision)
    model.report = checkpoint.report
    model.decide()
    log.info("%s: %s", pretrained, model.reason)
    return model


def find(pretrained: str | Path) -> Path:
    """The weights file of an embedded name, or the file itself. UserError, with the nearest name, if none."""
    path = Path(pretrained)
    embedded = WEIGHTS / f"{pretrained}.safetensors"
    if path.name == str(pretrained) and os.path.isfile(embedded):
        return embedded
    if os.path.exists(path):
        return path
    text = str(pretrained)
    known = list_models()
    if "/" in text or "\\" in text or path.suffix in (".pth", ".pt", ".tar", ".safetensors"):
        raise UserError(f"{text}: no such file; embedded weights are {', '.join(known) or 'none'}")
    nearest = difflib.get_close_matches(text, known, 1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known) or 'none'}"
    raise UserError(f"unknown model {text!r}, and no such file; {hint}")
