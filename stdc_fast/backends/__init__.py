"""What can run a plan here, and the one function that chooses, with its reason.

A backend is a module with ``compile(plan, dtype, device)``, which packs weights and returns an executable:
``executable(image)`` gives logits at 1/8 in float32, or a block's map; ``executable.labels(image, size)``
gives labels.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
from typing import TYPE_CHECKING

import torch

from stdc_fast import _native
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.cpu import program
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.backends.eager import Executable
    from stdc_fast.plan import Plan

ENVIRONMENT = "STDC_FAST_BACKEND"


@dataclasses.dataclass(frozen=True)
class Status:
    """Whether a backend can be used in this process, and why or why not.

    One ``by_name`` runs only for who asks for it.
    """

    name: str
    available: bool
    reason: str
    by_name: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The backend that runs something, why no other does, and whether somebody asked for it."""

    name: str
    reason: str
    asked: bool = dataclasses.field(default=False, compare=False)


def statuses() -> list[Status]:
    """All backends, the preferred first."""
    return [
        Status("cuda", *cuda.available()),
        Status("triton", *triton.available(), by_name=triton.interpreted()),
        Status("cpu", *_native.available()),
        Status("eager", True, "plain PyTorch, on any device"),
    ]


def refusal(
    name: str, device: torch.device | None, dtype: torch.dtype | None, plan: Plan | None
) -> str | None:
    """Why a backend that is available does not run this, or None; what is None is not asked."""
    if name in ("cuda", "triton"):
        return (cuda if name == "cuda" else triton).refusal(device, dtype, plan)
    if name != "cpu":
        return None
    if device is not None and device.type != "cpu":
        return f"it does not run on {device}"
    if plan is not None and dtype is not None:
        return program.unsupported(plan, dtype)
    return None if dtype is None else program.unsupported_dtype(dtype)


def best(
    device: torch.device | None = None, dtype: torch.dtype | None = None, plan: Plan | None = None
) -> Choice:
    """The fastest backend for this, whatever STDC_FAST_BACKEND asks for; eager runs everything.

    Raises UserError if STDC_FAST_CPU_ISA names no instruction set of this machine.
    """
    passed = []
    for status in statuses():
        reason = refusal(status.name, device, dtype, plan) if status.available else status.reason
        if status.available and status.by_name:
            reason = f"{status.reason}; ask for it by name"
        if reason is None:
            if status.name == "cpu":
                _native.isa()  # a mistake in STDC_FAST_CPU_ISA is said, not passed over
            others = f" ({'; '.join(passed)})" if passed else ""
            return Choice(status.name, f"{status.reason}{others}")
        passed.append(f"{status.name}: {reason}")
    raise AssertionError("eager refuses nothing")


def choose(
    backend: str = "auto",
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    plan: Plan | None = None,
) -> Choice:
    """The backend to use for a request; "auto" is STDC_FAST_BACKEND or the best available.

    Raises UserError if it is unknown (with the nearest name), not available, or does not run this plan in
    this dtype on this device (with the reason).
    """
    known = {s.name: s for s in statuses()}
    origin = ""
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT) or "auto"
        origin = f" (from {ENVIRONMENT})"
    if backend == "auto":
        return best(device, dtype, plan)
    usable = ", ".join(s.name for s in known.values() if s.available)
    if not isinstance(backend, str) or backend not in known:
        nearest = difflib.get_close_matches(str(backend), known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"available here: {usable}"
        raise UserError(f"unknown backend {backend!r}{origin}; {hint}")
    if not known[backend].available:
        raise UserError(
            f"backend {backend}{origin} is not available: {known[backend].reason}; available here: {usable}"
        )
    reason = refusal(backend, device, dtype, plan)
    if reason is not None:
        raise UserError(f"backend {backend}{origin} can not run this: {reason}; use another, or auto")
    if backend == "cpu":
        _native.isa()
    return Choice(backend, f"asked for{origin}", True)


def compile(plan: Plan, dtype: torch.dtype, device: torch.device, backend: str = "auto") -> Executable:
    """The plan's executable on the backend that :func:`choose` takes."""
    chosen = choose(backend, torch.device(device), dtype, plan)
    return importlib.import_module(f"stdc_fast.backends.{chosen.name}").compile(plan, dtype, device)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is the GPU if there is one, else the CPU. UserError for what torch does not see here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"device {place} is not supported; use auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {place}: torch sees {torch.cuda.device_count()} GPUs; use cpu")
    return place
