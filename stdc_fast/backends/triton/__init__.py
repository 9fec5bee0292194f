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
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from stdc_fast.backends.base import why_not_native
from stdc_fast.backends.gpu.chooser import Chooser, GpuBackend
from stdc_fast.backends.gpu.graphs import GraphExecutable, numbered
from stdc_fast.backends.gpu.model import Work, device_class
from stdc_fast.backends.gpu.weights import moved, pack
from stdc_fast.backends.triton.tiles import TritonModel, TritonTiles
from stdc_fast.backends.triton.tiles import interpreted as tiles_of_interpreter
from stdc_fast.plan.ops import Conv, Down
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.quantise import candidates
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT32, INT8, INT8_FLOAT32, Like, Precision, precision_of

if TYPE_CHECKING:
    from stdc_fast.backends.gpu.placed import Refused, Request
    from stdc_fast.backends.triton.launches import TritonLowered

PRECISIONS = (FLOAT16, BFLOAT16, FLOAT32, INT8, INT8_FLOAT32)
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


class Triton(GpuBackend):
    """Triton's kernels, on NVIDIA GPUs from sm_80 on; for tests in its interpreter, on the CPU."""

    name = "triton"
    tiles = TritonTiles

    def why_not_here(self) -> str | None:
        if torch.version.hip is not None:
            return "torch was built for ROCm; the kernels are for NVIDIA GPUs"
        found = version()
        if found is None:
            return "Triton is not installed; pip install triton"
        if _numbers(found) < OLDEST:
            return f"Triton {found} is too old; pip install 'triton>={OLDEST[0]}.{OLDEST[1]}'"
        if importlib.util.find_spec("stdc_fast.kernels") is None:
            return "its kernels are not installed; pip install -e . in the source tree"
        if interpreted():
            return _why_not_interpreted(found, importlib.metadata.version("numpy"))
        if not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU"
        if torch.version.cuda is None:
            return "torch was not built with CUDA"
        reasons = [_why_not_device(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
        return _why_not_built() if None in reasons else reasons[0]

    def about(self) -> str:
        how = ", interpreted on the CPU (TRITON_INTERPRET=1): for tests" if interpreted() else ""
        return f"Triton {version()}{how}"

    def why_not_by_default(self) -> str | None:
        return f"{self.about()}; ask for it by name" if interpreted() else None

    def why_not(self, plan: Plan | None, precision: Precision, device: torch.device) -> str | None:
        if device.type != ("cpu" if interpreted() else "cuda"):
            return f"it does not run on {device}"
        if device.type == "cpu" and (reason := self.why_not_here()):
            return reason
        if device.type == "cuda" and (reason := _why_not_device(device)):
            return reason
        if precision not in PRECISIONS:
            return f"it computes in float16, bfloat16, float32 and int8, not {precision}"
        return None if plan is None else why_not_native(plan, levels=True)

    def levels(self, plan: Plan, precision: Precision, small: bool) -> list[str]:
        return candidates(plan)

    def compile(
        self, plan: Plan, precision: Precision, device: torch.device, small: bool = False
    ) -> TritonExecutable:
        return compile(plan, precision, device)

    def model(self, device: torch.device) -> TritonModel:
        properties = torch.cuda.get_device_properties(device)
        capability = properties.major, properties.minor
        return TritonModel(device_class(capability, properties.multi_processor_count))

    def versions(self) -> dict[str, str]:
        return {"cuda": str(torch.version.cuda), "torch": torch.__version__, "triton": str(version())}


BACKEND = Triton()


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(p) if p.isdigit() else 0 for p in version.split("+")[0].split(".")[:2])


def _why_not_interpreted(triton: str, numpy: str) -> str | None:
    """Why Triton's interpreter does not run with a version of NumPy, or None."""
    if _numbers(triton) < (3, 7) and _numbers(numpy) >= (2, 4):
        return (
            f"Triton {triton} does not interpret kernels with NumPy {numpy}; "
            "pip install 'triton>=3.7', or 'numpy<2.4'"
        )
    return None


@functools.cache
def _why_not_built() -> str | None:
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


def _why_not_device(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability >= TENSOR_CORES:
        return None
    return f"{device} is sm_{capability[0]}{capability[1]}; Triton has no tensor cores below sm_80"


def compile(
    plan: Plan,
    precision: Like = FLOAT16,
    device: torch.device | str = "cuda",
    *,
    tiles: Callable[[Work], TritonTiles] | None = None,
    poisoned: bool = False,
    graphs: bool = True,
) -> TritonExecutable:
    """Pack a plan's weights for the kernels.

    Args:
        plan: optimised.
        precision: float16, bfloat16 or float32. Products of float32 are TF32 only after
            ``torch.set_float32_matmul_precision("high")``.
        tiles: chooses the tiles of each kernel; by default as tuned, shipped or modelled for the device.
        poisoned: fill all memory with NaN before each image, to prove that nothing dead is read.
        graphs: replay CUDA graphs; else launch kernel by kernel.

    Raises ValueError for a plan, precision or device that it does not run.
    """
    device, precision = numbered(device), precision_of(precision)
    if reason := BACKEND.why_not(plan, precision, device):
        raise ValueError(f"the Triton backend can not run {plan.name}: {reason}")
    return TritonExecutable(plan, precision, device, tiles, poisoned, graphs)


def products(precision: Precision) -> str:
    """What maps are multiplied in: their dtype, or "tf32" where that was asked for."""
    # What set_float32_matmul_precision sets; torch refuses to read that back where somebody used this.
    if precision.maps == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(precision.maps).removeprefix("torch.")


def packed(plan: Plan, precision: Precision, device: torch.device) -> dict[str, SimpleNamespace]:
    """The weights of each op as its kernel reads them: those for levels with a row for each output."""
    found = pack(plan, precision, torch.device("cpu"))
    for op in plan.ops:
        if isinstance(op, Down) and op.multipliers:
            found[op.name].weight = found[op.name].weight.T.contiguous()
        if isinstance(op, Conv) and op.multipliers:
            weight, columns = found[op.name].weight, found[op.name].weight.shape[-1]
            taps = op.kernel**2 * (9 if op.kernel == 2 else 1)
            parts = weight.reshape(-1, columns).split([taps * view.channels for view in op.inputs])
            parts = [part.view(taps, -1, columns).transpose(1, 2).flatten() for part in parts]
            found[op.name].weight = torch.cat(parts)
    return moved(found, device)


class TritonExecutable(GraphExecutable):
    """A plan with weights packed for Triton's kernels."""

    def __init__(self, plan, precision, device, tiles=None, poisoned=False, graphs=True):
        super().__init__(plan, precision, device, packed(plan, precision, device), poisoned, graphs)
        if tiles is None:
            tiles = BACKEND.chooser(device) if device.type == "cuda" else tiles_of_interpreter
        self._tiles = tiles

    def lower(
        self,
        request: Request,
        variant: str | None = None,
        tiles: Callable[[Work], TritonTiles] | None = None,
    ) -> TritonLowered:
        """The launches of a request, with new memory; ``tiles`` other than its own."""
        from stdc_fast.backends.triton.launches import TritonLowered  # imports Triton

        return TritonLowered(
            self.plan, self._packed, request, self.precision, self.device, tiles or self._tiles,
            variant or self.variant(), self._dependent,
        )  # fmt: skip

    def variant(self) -> str:
        return products(self.precision)

    def refuse(self, error: Refused) -> None:
        if not isinstance(self._tiles, Chooser) or error.work is None:
            raise error
        _log.info("%s; taking the next best", error)
        self._tiles.refuse(error.work, error.tiles)
