"""What can run a plan, and the one function that decides what does, with its reason."""

from __future__ import annotations

import dataclasses
import difflib
import os

import torch

from stdc_fast.backends import cpu, cuda, eager, triton
from stdc_fast.backends.base import Backend, Executable
from stdc_fast.backends.gpu import preference
from stdc_fast.errors import UserError
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Like, Precision, precision_of

ENVIRONMENT = "STDC_FAST_BACKEND"

#: All backends, the preferred first; a table says whether Triton goes before CUDA, see
#: :mod:`stdc_fast.backends.gpu.preference`. The last one runs everything.
BACKENDS: tuple[Backend, ...] = (cuda.BACKEND, triton.BACKEND, cpu.BACKEND, eager.BACKEND)


@dataclasses.dataclass(frozen=True)
class Decision:
    """The backend that runs something, why it is that one and no other, and whether somebody asked for it.

    ``choice`` is the part of the reason that a table of times gave, "" where none decided.
    """

    backend: Backend
    reason: str
    asked: bool = dataclasses.field(default=False, compare=False)
    choice: str = dataclasses.field(default="", compare=False)

    @property
    def name(self) -> str:
        return self.backend.name


def select(
    plan: Plan | None,
    precision: Like,
    device: torch.device | str,
    asked: str = "auto",
    environment: bool = True,
) -> Decision:
    """The backend that runs a plan.

    Args:
        plan: None stands for STDC-Seg as published.
        asked: name of a backend; "auto" is what STDC_FAST_BACKEND names, else the first one that runs it.
        environment: whether STDC_FAST_BACKEND counts.

    Raises UserError if the backend that was asked for is unknown (with the nearest name), not available, or
    does not run this (with the reason); and if STDC_FAST_CPU_ISA names no instruction set of this machine.
    """
    device, precision, origin = torch.device(device), precision_of(precision), ""
    if environment and isinstance(asked, str) and asked == "auto" and os.environ.get(ENVIRONMENT):
        asked, origin = os.environ[ENVIRONMENT], f" (from {ENVIRONMENT})"
    if isinstance(asked, str) and asked == "auto":
        return _first(plan, precision, device)
    backend = named(asked, origin)
    if (reason := backend.why_not(plan, precision, device)) is not None:
        raise UserError(f"backend {asked}{origin} can not run this: {reason}; use another, or auto")
    return Decision(backend, f"asked for{origin}", True)


def named(name: str, origin: str = "") -> Backend:
    """The backend of a name, which came from ``origin``. UserError if it is unknown or not available here."""
    known = {backend.name: backend for backend in BACKENDS}
    usable = ", ".join(name for name, backend in known.items() if backend.why_not_here() is None)
    if not isinstance(name, str) or name not in known:
        nearest = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"available here: {usable}"
        raise UserError(f"unknown backend {name!r}{origin}; {hint}")
    if (reason := known[name].why_not_here()) is not None:
        raise UserError(f"backend {name}{origin} is not available: {reason}; available here: {usable}")
    return known[name]


def _first(plan: Plan | None, precision: Precision, device: torch.device) -> Decision:
    passed = []
    order, choice = _order(precision, device)
    for backend in order:
        reason = (
            backend.why_not_here() or backend.why_not_by_default() or backend.why_not(plan, precision, device)
        )
        if reason is None:
            choice = "" if passed else choice
            others = f"; {choice}" if choice else f" ({'; '.join(passed)})" if passed else ""
            return Decision(backend, f"{backend.about()}{others}", choice=choice)
        passed.append(f"{backend.name}: {reason}")
    raise AssertionError("the last backend runs everything")


def _order(precision: Precision, device: torch.device) -> tuple[list[Backend], str]:
    """(All backends in the order in which "auto" asks them, why so where a table of times says it)."""
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return list(BACKENDS), ""
    names, why = preference.fastest_first(torch.cuda.get_device_capability(device), precision)
    return sorted(BACKENDS, key=lambda one: names.index(one.name) if one.name in names else len(names)), why


def compile(plan: Plan, precision: Like, device: torch.device | str, asked: str = "auto") -> Executable:
    """The plan's executable on the backend that :func:`select` takes."""
    device, precision = torch.device(device), precision_of(precision)
    return select(plan, precision, device, asked).backend.compile(plan, precision, device)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is the GPU if there is one, else the CPU. UserError for what torch does not see here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    number = isinstance(device, int) or (isinstance(device, str) and device.isdecimal())
    try:
        place = torch.device(f"cuda:{device}" if number else device)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"device {place} is not supported; use auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {place}: torch sees {torch.cuda.device_count()} GPUs; use cpu")
    return place
