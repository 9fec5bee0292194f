"""CUDA C++ kernels on NVIDIA GPUs: ``csrc/cuda``, compiled at install, a CUDA graph for each size.

What is in :mod:`stdc_fast.backends.gpu.graphs` holds. The kernels compute in float16 and bfloat16; float32 is
left to Triton's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from stdc_fast import _native
from stdc_fast.backends.base import unfit
from stdc_fast.backends.gpu.graphs import DEPENDENT, GraphExecutable, numbered
from stdc_fast.backends.gpu.model import DEVICES, Device, Work, device_class
from stdc_fast.plan.plan import Plan

if TYPE_CHECKING:
    from stdc_fast.backends.cuda.launches import Lowered
    from stdc_fast.backends.cuda.tiles import Tiles
    from stdc_fast.backends.gpu.placed import Request

DTYPES = (torch.float16, torch.bfloat16)


def native() -> ModuleType | None:
    """The module with the kernels, or None where they were not built."""
    try:
        module = _native.module()
    except Exception:
        return None
    return getattr(module, "gpu", None)


def available() -> tuple[bool, str]:
    """Whether this backend runs in this process, and with what or why not."""
    info = _native.cuda_info()
    module = native()
    if torch.version.hip is not None:
        return False, "torch was built for ROCm; the kernels are for NVIDIA GPUs"
    if not torch.cuda.is_available():
        return False, "torch sees no NVIDIA GPU"
    if module is None:
        built, reason = _native.available()
        if built:
            reason = f"not built: {info.get('reason', 'unknown')}; then install stdc_fast again"
        return False, reason
    made = f"{info.get('compiler', 'nvcc')}, for {', '.join(info.get('targets', []))}"
    have, need = module.driver_version(), module.runtime_version()
    # NOTE: within a major version newer binaries run on older drivers.
    if have // 1000 < need // 1000:
        return False, f"the driver has CUDA {_version(have)}, the kernels need {need // 1000}.0; update it"
    reasons = [unfit_device(torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
    if None in reasons:
        return True, made
    return False, str(reasons[0])


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@functools.cache
def unfit_device(
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
        return (
            f"built for {', '.join(targets)}, none of which runs on {name}; "
            "set STDC_FAST_CUDA_TARGETS and install again"
        )
    if found.endswith("+PTX") and ptx is False:
        return f"on {name} the kernels need a driver as new as their compiler; update it"
    return None


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
            # That for a minor version runs on later ones of the same major version.
            not target.endswith("a") and number[0] == capability[0] and number <= capability
        ):
            machine.append((number, target))
    return max(machine or later, default=(None, None))[1]


def version_of(target: str) -> tuple[int, int]:
    """(8, 6) of "86", (9, 0) of "90a" and of "90+PTX"."""
    number = target.removesuffix("+PTX").removesuffix("a")
    return int(number[:-1]), int(number[-1])


def refusal(device: torch.device | None, dtype: torch.dtype | None, plan: Plan | None) -> str | None:
    """Why this backend does not run this, or None; what is None is not asked."""
    if device is not None:
        if device.type != "cuda":
            return f"it does not run on {device}"
        if reason := unfit_device(torch.cuda.get_device_capability(device)):
            return reason
    if dtype is not None and dtype not in DTYPES:
        return f"it computes in float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
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
        dtype: float16 or bfloat16: of maps and weights. Sums, biases, vectors and logits are float32.
        tiles: chooses the tiles of each kernel; by default as shipped or modelled for the device.
        poisoned: fill all memory with NaN before each image, to prove that nothing dead is read.
        graphs: replay CUDA graphs; else launch kernel by kernel.

    Raises ValueError for a plan, dtype or device that it does not run.
    """
    runs, reason = available()
    if runs:
        device = numbered(device)
        reason = refusal(device, dtype, plan)
    if reason:
        raise ValueError(f"the CUDA backend can not run {plan.name}: {reason}")
    return Executable(plan, dtype, device, native(), tiles or chooser(device), poisoned, graphs)


def chooser(device: torch.device) -> Chooser:
    """What picks the tiles on a device: as tuned there, as shipped for its class, or by the model."""
    from stdc_fast.backends.cuda import tiles as cuda_tiles
    from stdc_fast.backends.gpu import tuned

    properties = torch.cuda.get_device_properties(device)
    kind = device_class((properties.major, properties.minor), properties.multi_processor_count)
    tables = tuned.load(tuned.environment(device, "cuda")), cuda_tiles.shipped(kind.key)
    return Chooser(native(), kind, properties.shared_memory_per_block_optin, tables)


class Executable(GraphExecutable):
    """A plan with packed weights, for inputs of any size, from any stream and thread.

    Args:
        native: the module with the kernels.
        tiles: chooses those of each kernel.
    """

    def __init__(
        self,
        plan: Plan,
        dtype: torch.dtype,
        device: torch.device,
        native: ModuleType,
        tiles: Callable[[Work], Tiles],
        poisoned: bool = False,
        graphs: bool = True,
    ):
        from stdc_fast.backends.cuda import fragments
        from stdc_fast.backends.cuda import launches as cuda_launches

        super().__init__(plan, dtype, device, fragments.pack(plan, dtype, device), poisoned, graphs)
        self._launches = cuda_launches
        self._native = native
        self._tiles = tiles
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
        tiles: Callable[[Work], Tiles] | None = None,
        apart: bool = False,
    ) -> Lowered:
        """The launches of a request, with new memory; with other ``tiles``, and ``apart`` as of Placed."""
        return self._launches.Lowered(
            self.plan, self._packed, request, self.dtype, self.device, tiles or self._tiles, self._native,
            self._dependent, apart,
        )  # fmt: skip


class Chooser:
    """Picks the tiles of a work on a class of GPUs: as in a table, or by the model.

    Args:
        native: the module with the kernels.
        device: the class.
        shared: bytes of shared memory that a block may have, by default what the class has.
        tables: those to look into, the first first; by default what is shipped for the class.
    """

    def __init__(
        self,
        native: ModuleType,
        device: Device = DEVICES["sm_90"],
        shared: int | None = None,
        tables: Sequence[Mapping[str, Tiles]] | None = None,
    ):
        from stdc_fast.backends.cuda import tiles as cuda_tiles

        self.device = device
        self.kernels = cuda_tiles.Kernels(native, min(shared or device.shared, device.shared))
        self.tables = (cuda_tiles.shipped(device.key),) if tables is None else tables
        self._ranked = cuda_tiles.ranked
        self._modelled: dict[Work, Tiles] = {}

    def __call__(self, work: Work) -> Tiles:
        for table in self.tables:
            found = table.get(work.key)
            if found is not None and self.kernels.form(work, found) is not None:
                return found
        if work not in self._modelled:
            self._modelled[work] = self._ranked(work, self.device, self.kernels)[0]
        return self._modelled[work]
