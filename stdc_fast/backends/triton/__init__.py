"""Triton kernels on NVIDIA GPUs: a plan is a list of launches, captured into a CUDA graph for each size.

Nothing is compiled at install. The first call of a size compiles the kernels that it needs (some tens of
seconds for a network; Triton keeps them on disk, so once a machine), and captures the graph.
The graphs, and what else any GPU backend has, are in :mod:`stdc_fast.backends.gpu.graphs`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stdc_fast.backends.base import unfit
from stdc_fast.backends.gpu.graphs import GraphExecutable, numbered
from stdc_fast.backends.gpu.model import Work, device_class, power_of_two
from stdc_fast.backends.gpu.weights import pack
from stdc_fast.backends.triton.tiles import Tiles
from stdc_fast.plan.plan import Plan

if TYPE_CHECKING:
    from stdc_fast.backends.gpu.placed import Refused, Request
    from stdc_fast.backends.triton.launches import Lowered

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST = (3, 5)  # version of Triton
TENSOR_CORES = (8, 0)  # capability from which on Triton has them

_log = logging.getLogger("stdc_fast")


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: for tests, and thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def version() -> str | None:
    """Triton's version, or None if it is not installed."""
    for name in ("triton", "pytorch-triton", "triton-windows"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def available() -> tuple[bool, str]:
    """Whether this backend runs in this process, and with what or why not."""
    if torch.version.hip is not None:
        return False, "torch was built for ROCm; the kernels are for NVIDIA GPUs"
    found = version()
    if found is None:
        return False, "Triton is not installed; pip install triton"
    parts = found.split("+")[0].split(".")
    if tuple(int(p) if p.isdigit() else 0 for p in parts[:2]) < OLDEST:
        return False, f"Triton {found} is too old; pip install 'triton>={OLDEST[0]}.{OLDEST[1]}'"
    if importlib.util.find_spec("stdc_fast.kernels") is None:
        return False, "its kernels are not installed; pip install -e . in the source tree"
    if interpreted():
        return True, f"Triton {found}, interpreted on the CPU (TRITON_INTERPRET=1): for tests"
    if not torch.cuda.is_available():
        return False, "torch sees no NVIDIA GPU"
    if torch.version.cuda is None:
        return False, "torch was not built with CUDA"
    reasons = [_unfit_device(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    if None in reasons:
        missing = _unbuildable()
        return missing is None, missing or f"Triton {found}"
    return False, str(reasons[0])


@functools.cache
def _unbuildable() -> str | None:
    """Why Triton can not make its own launcher, which it compiles at first use and keeps; or None."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), None)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if compiler and shutil.which(compiler) and header.is_file():
        return None
    try:
        import triton

        triton.runtime.driver.active.utils  # noqa: B018 - made by an earlier process, perhaps
    except Exception:
        what = f"{header}" if compiler else "a C compiler"
        return f"Triton needs {what} at its first use; apt install gcc python3-dev"
    return None


def _unfit_device(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability >= TENSOR_CORES:
        return None
    return f"{device} is sm_{capability[0]}{capability[1]}; Triton has no tensor cores below sm_80"


def refusal(device: torch.device | None, dtype: torch.dtype | None, plan: Plan | None) -> str | None:
    """Why this backend does not run this, or None; what is None is not asked."""
    if device is not None:
        if device.type != ("cpu" if interpreted() else "cuda"):
            return f"it does not run on {device}"
        if device.type == "cuda" and (reason := _unfit_device(device)):
            return reason
    if dtype is not None and dtype not in DTYPES:
        return f"it computes in float16, bfloat16 and float32, not {str(dtype).removeprefix('torch.')}"
    return None if plan is None else unfit(plan)


def compile(
    plan: Plan,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cuda",
    *,
    tiles: Callable[[Work], Tiles] | None = None,
    poisoned: bool = False,
    graphs: bool = True,
) -> Executable:
    """Pack a plan's weights for the kernels.

    Args:
        plan: optimised.
        dtype: float16, bfloat16 or float32: of maps and weights. Sums, biases, vectors and logits are
            float32. Products of float32 are TF32 only after ``torch.set_float32_matmul_precision("high")``.
        tiles: chooses the tiles of each kernel; by default as tuned, shipped or modelled for the device.
        poisoned: fill all memory with NaN before each image, to prove that nothing dead is read.
        graphs: replay CUDA graphs; else launch kernel by kernel.

    Raises ValueError for a plan, dtype or device that it does not run.
    """
    device = numbered(device)
    if reason := refusal(device, dtype, plan):
        raise ValueError(f"the Triton backend can not run {plan.name}: {reason}")
    return Executable(plan, dtype, device, tiles, poisoned, graphs)


def products(dtype: torch.dtype) -> str:
    """What a dtype is multiplied in: its name, or "tf32" where that was asked for."""
    # What set_float32_matmul_precision sets; torch refuses to read that back where somebody used this.
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


class Executable(GraphExecutable):
    """A plan with weights packed for Triton's kernels."""

    def __init__(self, plan, dtype, device, tiles=None, poisoned=False, graphs=True):
        from stdc_fast.backends.triton import launches as lowering

        super().__init__(plan, dtype, device, pack(plan, dtype, device), poisoned, graphs)
        self._lowering = lowering
        self._tiles = tiles or chooser(device)

    def lower(
        self,
        request: Request,
        variant: str | None = None,
        tiles: Callable[[Work], Tiles] | None = None,
    ) -> Lowered:
        """The launches of a request, with new memory; ``tiles`` other than its own."""
        return self._lowering.Lowered(
            self.plan,
            self._packed,
            request,
            self.dtype,
            self.device,
            tiles or self._tiles,
            variant or self.variant(),
            self._dependent,
        )

    def variant(self) -> str:
        return products(self.dtype)

    def refuse(self, error: Refused) -> None:
        if not isinstance(self._tiles, Chooser) or error.work is None:
            raise error
        _log.info("%s; taking the next best", error)
        self._tiles.refuse(error.work, error.tiles)


class Chooser:
    """Picks the tiles of a work on a GPU: as tuned there, as shipped for its class, or by the model."""

    def __init__(self, device: torch.device):
        from stdc_fast.backends.gpu import tuned
        from stdc_fast.backends.triton import tiles

        self._tiles = tiles
        properties = torch.cuda.get_device_properties(device)
        capability = properties.major, properties.minor
        self.kind = device_class(capability, properties.multi_processor_count)
        self.tables = [tuned.load(tuned.environment(device)), tiles.shipped(self.kind.key)]
        self.refused: dict[str, set[Tiles]] = {}

    def __call__(self, work: Work) -> Tiles:
        refused = self.refused.get(work.key, ())
        for table in self.tables:
            found = table.get(work.key)
            if found is not None and found not in refused and self._tiles.sane(found):
                return found
        if not refused:
            return self._tiles.modelled(work, self.kind)
        return next(t for t in self._tiles.ranked(work, self.kind) if t not in refused)

    def refuse(self, work: Work, found: Tiles) -> None:
        """The compiler or the device did not take these: what they need is only estimated."""
        self.refused.setdefault(work.key, set()).add(found)


def chooser(device: torch.device) -> Callable[[Work], Tiles]:
    """What picks the tiles of a work on a device."""
    return Chooser(device) if device.type == "cuda" else interpreted_tiles


def interpreted_tiles(work: Work) -> Tiles:
    """Tiles no larger than they must be: the interpreter's time goes by the programs, then by their size."""
    shapes = [(n >> i, 1 << i) for n in (16, 32, 64, 128, 256) for i in range(n.bit_length())]
    height, width = min(
        shapes,
        key=lambda s: (
            -(-work.height // s[0]) * -(-work.width // s[1]),
            s[0] * s[1],
            abs(s[0] - s[1]),
        ),
    )
    channels = min(128, power_of_two(max(16, work.outputs)))
    depth = 32 if work.kind == "stem" else min(128, power_of_two(max(16, *work.inputs)))
    return Tiles(height, width, channels, depth, stages=1)
