"""CUDA C++ kernels on NVIDIA GPUs: ``csrc/cuda``, compiled at install, a CUDA graph for each size.

What is in :mod:`stdc_fast.backends.gpu.graphs` holds. The kernels compute in float16, bfloat16 and 8 bits;
float32 is left to Triton's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import ModuleType

import torch

from stdc_fast import _native
from stdc_fast.backends.base import why_not_native
from stdc_fast.backends.cuda.fragments import pack
from stdc_fast.backends.cuda.fusion import Fusion
from stdc_fast.backends.cuda.launches import CudaLowered
from stdc_fast.backends.cuda.tiles import CudaModel, CudaTiles
from stdc_fast.backends.gpu.chooser import GpuBackend
from stdc_fast.backends.gpu.graphs import DEPENDENT, GraphExecutable, numbered
from stdc_fast.backends.gpu.model import Device, Work, device_class
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.errors import UserError
from stdc_fast.plan.ops import Conv, Down
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.quantise import candidates
from stdc_fast.precision import BFLOAT16, FLOAT16, INT8, Like, Precision, precision_of

PRECISIONS = (FLOAT16, BFLOAT16, INT8)


def native() -> ModuleType | None:
    """The module with the kernels, or None where they were not built."""
    try:
        module = _native.module()
    except Exception:
        return None
    return getattr(module, "gpu", None)


class Cuda(GpuBackend):
    """The CUDA kernels, on NVIDIA GPUs from sm_80 on."""

    name = "cuda"
    tiles = CudaTiles

    def why_not_here(self) -> str | None:
        module = native()
        if torch.version.hip is not None:
            return "torch was built for ROCm; the kernels are for NVIDIA GPUs"
        if not torch.cuda.is_available():
            return "torch sees no NVIDIA GPU"
        if module is None:
            missing = _native.why_not()
            reason = _native.cuda_info().get("reason", "unknown")
            return missing or f"not built: {reason}; then install stdc_fast again"
        have, need = module.driver_version(), module.runtime_version()
        # NOTE: within a major version newer binaries run on older drivers.
        if have // 1000 < need // 1000:
            return f"the driver has CUDA {_version(have)}, the kernels need {need // 1000}.0; update it"
        devices = range(torch.cuda.device_count())
        reasons = [why_not_device(torch.cuda.get_device_capability(i)) for i in devices]
        return None if None in reasons else reasons[0]

    def about(self) -> str:
        info = _native.cuda_info()
        options = "".join(f", {option}" for option in info.get("options", []))
        return f"{info.get('compiler', 'nvcc')}, for {', '.join(info.get('targets', []))}{options}"

    def why_not(self, plan: Plan | None, precision: Precision, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"it does not run on {device}"
        if reason := why_not_device(torch.cuda.get_device_capability(device)):
            return reason
        if precision not in PRECISIONS:
            return f"it computes in float16, bfloat16 and int8, not {precision}"
        if plan is None or (reason := why_not_native(plan, levels=True)):
            return None if plan is None else reason
        odd = [op.name for op in plan.ops if getattr(op, "multipliers", None) and not in_pairs(plan, op)]
        return f"{odd[0]} reads levels of an odd number of channels" if odd else None

    def levels(self, plan: Plan, precision: Precision, small: bool) -> list[str]:
        names = candidates(plan)
        return [op.name for op in plan.ops if op.name in names and in_pairs(plan, op)]

    def compile(
        self, plan: Plan, precision: Precision, device: torch.device, small: bool = False
    ) -> CudaExecutable:
        return compile(plan, precision, device)

    def model(self, device: torch.device) -> CudaModel:
        properties = torch.cuda.get_device_properties(device)
        kind = device_class((properties.major, properties.minor), properties.multi_processor_count)
        return CudaModel(native(), kind, properties.shared_memory_per_block_optin)

    def versions(self) -> dict[str, str]:
        info = _native.cuda_info()
        targets = ",".join(map(str, info.get("targets", ()))) or "none"
        found = {"compiler": str(info.get("compiler")), "targets": targets}
        options = ",".join(info.get("options", ()))
        return found | ({"options": options} if options else {})


BACKEND = Cuda()


def in_pairs(plan: Plan, op: Conv | Down) -> bool:
    """Whether the buffers that an op reads have even numbers of channels: kernels move pairs of levels."""
    views = op.inputs if isinstance(op, Conv) else (op.input,)
    return all(plan.buffers[view.buffer].channels % 2 == 0 for view in views)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def why_not_device(
    capability: tuple[int, int], targets: tuple[str, ...] | None = None, ptx: bool | None = None
) -> str | None:
    """Why there is no code for a GPU of a capability among the targets that were built, or None.

    Args:
        targets: such as "86", "90a" and "90+PTX"; by default what this installation was built for.
        ptx: whether the driver is new enough to compile PTX; by default whether this one is, for this
            installation's.
    """
    if targets is None:
        targets = tuple(_native.cuda_info().get("targets", []))
        module = native()
        if ptx is None:
            ptx = module is not None and module.driver_version() >= module.runtime_version()
    name = f"sm_{capability[0]}{capability[1]}"
    if capability < (8, 0):
        return f"{name} is too old; the kernels need sm_80"
    found = code(capability, targets)
    if found is None:
        wanted = f"{capability[0]}{capability[1]}{'a' if capability == (9, 0) else ''}"
        return (
            f"built for {', '.join(targets)}, none of which runs on {name}; "
            f"set STDC_FAST_CUDA_TARGETS={wanted} and install again"
        )
    if found.endswith("+PTX") and ptx is False:
        return f"on {name} the kernels need a driver as new as their compiler; update it"
    return None


#: Compute capabilities of Jetson's and DRIVE's processors: Xavier, Orin, Thor.
TEGRA = {(7, 2), (8, 7), (10, 1), (11, 0)}


def code(capability: tuple[int, int], targets: Sequence[str]) -> str | None:
    """Of the targets, such as "86", "90a" and "90+PTX", the one that a GPU of a capability runs, or None.

    Machine code goes before PTX, which the driver compiles.
    """
    machine, later = [], []
    for target in targets:
        number = version_of(target)
        if target.endswith("+PTX"):
            later += [(number, target)] if number <= capability else []
        elif number == capability or (
            # That for a minor version runs on later ones of the same major version. CUDA's programming guide,
            # "Binary Compatibility", promises that for the desktop alone, and not between it and Tegra.
            not target.endswith("a")
            and number[0] == capability[0]
            and number <= capability
            and not TEGRA & {number, capability}
        ):
            machine.append((number, target))
    return max(machine or later, default=(None, None))[1]


def version_of(target: str) -> tuple[int, int]:
    """(8, 6) of "86", (9, 0) of "90a" and of "90+PTX"."""
    number = target.removesuffix("+PTX").removesuffix("a")
    return int(number[:-1]), int(number[-1])


def compile(
    plan: Plan,
    precision: Like = FLOAT16,
    device: torch.device | str = "cuda",
    *,
    tiles: Callable[[Work], CudaTiles] | None = None,
    poisoned: bool = False,
    graphs: bool = True,
    dependent: bool = True,
    fused: bool | Callable[[Plan], Iterable[Fusion]] = True,
    direct: bool | None = None,
) -> CudaExecutable:
    """Pack a plan's weights for the kernels.

    Args:
        plan: optimised.
        precision: float16, bfloat16 or int8.
        tiles: chooses the tiles of each kernel; by default as tuned, shipped or modelled for the device.
        poisoned: fill all memory with NaN before each image, to prove that nothing dead is read.
        graphs: replay CUDA graphs; else launch kernel by kernel.
        dependent: let kernels start before the ones before them end, where the GPU can; what
            ``bench.gpu_repeats`` compares with does without.
        fused: leave out kernels that others can do the work of, where the model says that it pays; else each
            op has a kernel of its own. Needs ``tiles`` with a model, as the default has. Or what chooses
            for a plan, such as :func:`stdc_fast.backends.cuda.fusion.possible`.
        direct: graphs read the caller's frames and write fresh labels, instead of copies before and after; by
            default what STDC_FAST_DIRECT says, "1" or "0", which is what holds without it.

    Raises ValueError for a plan, precision or device that it does not run.
    """
    precision, reason = precision_of(precision), BACKEND.why_not_here()
    if reason is None:
        device = numbered(device)
        reason = BACKEND.why_not(plan, precision, device)
    if reason:
        raise ValueError(f"the CUDA backend can not run {plan.name}: {reason}")
    tiles = tiles or BACKEND.chooser(device)
    made = CudaExecutable(plan, precision, device, native(), tiles, poisoned, graphs, dependent, fused)
    made.direct = direct_by_default() if direct is None else direct
    return made


def direct_by_default() -> bool:
    """What STDC_FAST_DIRECT says; UserError for what it does not take."""
    asked = os.environ.get("STDC_FAST_DIRECT") or "0"
    if asked not in ("0", "1"):
        raise UserError(f"STDC_FAST_DIRECT is 1 or 0, not {asked!r}")
    return asked == "1"


class CudaExecutable(GraphExecutable):
    """A plan with packed weights, for inputs of any size, from any stream and thread.

    Args:
        native: the module with the kernels.
        tiles: chooses those of each kernel.
        fused: as of :func:`compile`.

    Attributes:
        direct: as of :func:`compile`, for graphs that are captured from now on.
    """

    lowered = CudaLowered
    direct = False

    def __init__(
        self,
        plan: Plan,
        precision: Precision,
        device: torch.device,
        native: ModuleType,
        tiles: Callable[[Work], CudaTiles],
        poisoned: bool = False,
        graphs: bool = True,
        dependent: bool = True,
        fused: bool | Callable[[Plan], Iterable[Fusion]] = True,
    ):
        super().__init__(plan, precision, device, pack(plan, precision, device), poisoned, graphs)
        self._native = native
        self._tiles = tiles
        #: By request what is fused, the same with all tiles that are tried.
        self._fused: dict[Request, Sequence[Fusion] | Device] = {}
        model = getattr(tiles, "model", None)
        usual = model.device if fused and model is not None else ()
        self._usual = tuple(fused(plan)) if callable(fused) else usual
        self._dependent &= dependent
        if self._dependent:
            # NOTE: code for older GPUs, which a newer one may run too, would start early and not wait.
            used = code(torch.cuda.get_device_capability(device), _native.cuda_info().get("targets", []))
            self._dependent = used is not None and version_of(used) >= DEPENDENT
            # Graphs have them from 12.3 on.
            self._dependent &= min(native.driver_version(), native.runtime_version()) >= 12030

    def lower(
        self,
        request: Request,
        variant: Hashable = None,
        tiles: Callable[[Work], CudaTiles] | None = None,
        apart: bool = False,
    ) -> CudaLowered:
        """The launches of a request, with new memory; with other ``tiles``, and ``apart`` as of Lowered."""
        lowered = self.lowered(
            self.plan, self._packed, request, self.precision, self.device, tiles or self._tiles,
            self._native, self._dependent, apart, self._fused.get(request, self._usual),
        )  # fmt: skip
        self._fused[request] = lowered.fused
        lowered.direct = self.direct
        return lowered
