"""What can run a network here, and the one function that chooses, with its reason."""

from __future__ import annotations

import dataclasses
import difflib
import os

import torch

from stdc_fast.errors import UserError


@dataclasses.dataclass(frozen=True)
class Status:
    """Whether a backend can be used in this process, and why or why not."""

    name: str
    available: bool
    reason: str


def statuses() -> list[Status]:
    """All backends, the preferred first."""
    absent = "not part of this version"
    return [
        Status("cuda", False, absent),
        Status("triton", False, absent),
        Status("cpu", False, absent),
        Status("eager", True, "plain PyTorch, on any device"),
    ]


def choose(backend: str = "auto") -> str:
    """Name of the backend to use for a request; "auto" is STDC_FAST_BACKEND or the best available.

    Raises UserError if it is unknown (with the nearest name) or not available (with the reason).
    """
    known = {s.name: s for s in statuses()}
    origin = ""
    if backend == "auto":
        backend = os.environ.get("STDC_FAST_BACKEND") or "auto"
        origin = " (from STDC_FAST_BACKEND)"
    if backend == "auto":
        return next(s.name for s in known.values() if s.available)
    usable = ", ".join(s.name for s in known.values() if s.available)
    if backend not in known:
        nearest = difflib.get_close_matches(backend, known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"available here: {usable}"
        raise UserError(f"unknown backend {backend!r}{origin}; {hint}")
    if not known[backend].available:
        raise UserError(
            f"backend {backend}{origin} is not available: {known[backend].reason}; available here: {usable}"
        )
    return backend


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is the GPU if there is one, else the CPU. UserError for what torch does not see here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"device {place} is not supported; use auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {place}: torch sees {torch.cuda.device_count()} GPUs; use cpu")
    return place
