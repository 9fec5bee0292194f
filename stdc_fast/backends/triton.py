"""Triton kernels on NVIDIA GPUs: a plan is a list of launches, captured into a CUDA graph for each size.

Nothing is compiled at install. The first call of a size compiles the kernels that it needs (some tens of
seconds for a network; Triton keeps them on disk, so once a machine), and captures the graph.

A graph has memory of its own, into which inputs are copied and out of which results are: results never alias.
Calls go to the caller's current stream; those of one size from several streams and threads run one after the
other. Under somebody else's capture, after one call of that size, the kernels go into that graph one by one,
with memory of its own.

While a graph is captured here (a few milliseconds at the first call of a size), other threads should neither
synchronise the device nor draw random numbers on it: CUDA and torch refuse that.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from stdc_fast.backends.executable import NativeExecutable, presented
from stdc_fast.backends.packed import pack
from stdc_fast.backends.support import unfit
from stdc_fast.backends.tiles import Tiles, Work, device_class, power_of_two
from stdc_fast.plan.plan import Plan

if TYPE_CHECKING:
    from stdc_fast.backends.lowering import Lowered, Request

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST = (3, 5)  # version of Triton
TENSOR_CORES = (8, 0)  # capability from which on Triton has them
DEPENDENT = (9, 0)  # and has programmatic dependent launches
#: Sizes whose graphs are kept; the least recently used goes first.
GRAPHS = 8

_log = logging.getLogger("stdc_fast")
_capturing = threading.Lock()
_interpreting = threading.RLock()  # the interpreter runs one program at a time


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
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if reason := refusal(device, dtype, plan):
        raise ValueError(f"the Triton backend can not run {plan.name}: {reason}")
    return Executable(plan, dtype, device, tiles, poisoned, graphs)


def products(dtype: torch.dtype) -> str:
    """What a dtype is multiplied in: its name, or "tf32" where that was asked for."""
    # What set_float32_matmul_precision sets; torch refuses to read that back where somebody used this.
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


class Executable(NativeExecutable):
    """A plan with packed weights, for inputs of any size, from any stream and thread."""

    def __init__(self, plan, dtype, device, tiles=None, poisoned=False, graphs=True):
        from stdc_fast.backends import lowering

        super().__init__(plan, dtype, device)
        self._lowering = lowering
        self._packed = pack(plan, dtype, device)
        self._tiles = tiles or chooser(device)
        self._poisoned = poisoned
        self._dependent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= DEPENDENT
        self._use_graphs = graphs and device.type == "cuda"
        self._instances: collections.OrderedDict[tuple, _Instance] = collections.OrderedDict()
        self._pinned: list = []
        self._lock = threading.Lock()

    def lower(
        self,
        request: Request,
        precision: str | None = None,
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
            precision or products(self.dtype),
            self._dependent,
        )

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of packed weights, and of the arenas of all sizes that are kept."""
        weights = sum(
            w.numel() * w.itemsize
            for packed in self._packed.values()
            for value in vars(packed).values()
            for w in (value if isinstance(value, list) else [value])
        )
        return weights, sum(i.lowered.arena.numel() for i in list(self._instances.values()))

    def _compute(self, inputs, batch, seen, labels, exact) -> Tensor:
        if not batch:
            return presented(self._new(batch, seen, labels), labels is not None)
        given = tuple(inputs[0].shape[1:3])
        exact = exact or labels is None or labels == seen
        request = self._lowering.Request(batch, given, seen, labels, exact)
        with self._on_device():
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return self._captured(request)(inputs)
            while True:
                instance = self._instance(request)
                try:
                    return instance(inputs)
                except _Refused as error:
                    self._refuse(request, error)

    def _refuse(self, request: Request, error: _Refused) -> None:
        """Takes other tiles for this and all later sizes; raises the error if there is no choice."""
        launch = error.launch
        if not isinstance(self._tiles, Chooser) or launch.work is None:
            raise error
        _log.info("%s; taking the next best", error)
        with self._lock:
            self._tiles.refuse(launch.work, launch.tiles)
            self._instances.pop((request, products(self.dtype)), None)

    def _captured(self, request: Request) -> _Instance:
        """For a graph that the caller captures: its kernels, with memory that belongs to that graph."""
        with self._lock:
            known = (request, products(self.dtype)) in self._instances
        if not known:
            raise RuntimeError(
                f"{self.plan.name} at {request} is not compiled; call it once before the graph is captured"
            )
        instance = _Instance(self, request, products(self.dtype), graphs=False, ordered=False)
        # These do not belong to the graph's own memory: they stay as long as the weights, which it reads too.
        if instance.lowered.launches[-1].kernel is self._lowering.kernels.upsample:
            tables = ("row_base", "row_weight", "column_start", "column_weight")
            self._pinned.append([instance.lowered.launches[-1].arguments[name] for name in tables])
        return instance

    def _instance(self, request: Request) -> _Instance:
        key = request, products(self.dtype)
        with self._lock:
            instance = self._instances.get(key)
            if instance is None:
                instance = self._instances[key] = _Instance(self, *key, self._use_graphs)
                while len(self._instances) > GRAPHS:
                    self._instances.popitem(last=False)
            self._instances.move_to_end(key)
            return instance

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


class _Instance:
    """One size: memory, launches and their graph. Made on the stream and device of its first call."""

    def __init__(
        self, executable: Executable, request: Request, precision: str, graphs: bool, ordered: bool = True
    ):
        # No reference to the executable: with a cycle its memory would wait for the garbage collector.
        self.lowered = executable.lower(request, precision)
        self.what = f"{executable.plan.name} at {request} in {executable.dtype}"
        self.size = str(request)
        self.device = executable.device
        self.map = request.labels is None and not executable._logits
        self.poisoned = executable._poisoned
        self.graphs = graphs
        self.ordered = ordered and self.device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.done: torch.cuda.Event | None = None
        self.stream: torch.cuda.Stream | None = None
        self.streams: set[torch.cuda.Stream] = set()
        self.ready = False
        self._record()  # counters are set to zero on this stream: others wait for it
        self.lock = threading.Lock() if self.device.type == "cuda" else _interpreting

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        with self.lock:
            self._wait()
            if self.poisoned:
                self._poison()
            for x, place in zip(inputs, self.lowered.inputs.values(), strict=True):
                place.copy_(x)
            if self.graph is not None:
                self.graph.replay()
            else:
                self._launch()
                if self.graphs:
                    try:
                        self.graph = self._capture()
                    except RuntimeError as error:  # another thread did what no capture allows
                        _log.warning("no graph of %s yet: %s", self.what, error)
            result = self.lowered.result
            # Dense and fresh, whatever view of the arena it was.
            result = result.clone(memory_format=torch.contiguous_format)
            self._record()
        return result.permute(0, 3, 1, 2) if self.map else result

    def _wait(self) -> None:
        """Whoever used this memory last, on another stream, goes first."""
        if not self.ordered:
            return
        stream = torch.cuda.current_stream()
        if self.done is not None and self.stream != stream:
            stream.wait_event(self.done)
        if stream not in self.streams:
            # Given back only when the work of all of these is done.
            self.streams.add(stream)
            for x in (*self.lowered.tensors(), *self.lowered.inputs.values(), self.lowered.result):
                if x.numel():
                    x.record_stream(stream)

    def _record(self) -> None:
        if self.ordered:
            self.stream = torch.cuda.current_stream()
            self.done = self.done or torch.cuda.Event()
            self.done.record(self.stream)

    def _launch(self) -> None:
        launches = self.lowered.launches
        if not self.ready and self.device.type == "cuda":
            _log.info("preparing Triton kernels for %s", self.what)
            # Shown on a terminal only, and only where there was something to compile.
            text = f"stdc_fast: compiling kernels for {self.size}, once"
            launches = tqdm(launches, text, leave=False, disable=None, delay=1)
        from triton.runtime.errors import OutOfResources, PTXASError

        for launch in launches:
            try:
                launch()
            except (OutOfResources, PTXASError) as error:
                raise _Refused(launch, error) from error
        self.ready = True

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # One at a time. Others' allocations may go on meanwhile: nothing is allocated here.
        with _capturing, torch.cuda.stream(_capture_stream(self.device)):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for launch in self.lowered.launches:
                    launch()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the capture's, which hides what it comes from
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def _poison(self) -> None:
        lowered = self.lowered
        inputs = {x.data_ptr() for x in lowered.inputs.values()}
        for x in (lowered.arena, lowered.result, *lowered.buffers.values()):
            if x.data_ptr() not in inputs:
                x.fill_(255 if x.dtype == torch.uint8 else float("nan"))


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device's graphs are captured: always one that nobody else is given by default."""
    return torch.cuda.Stream(device, priority=-1)


class Chooser:
    """Picks the tiles of a work on a GPU: as tuned there, as shipped for its class, or by the model."""

    def __init__(self, device: torch.device):
        from stdc_fast.backends import tiles, tuned

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


class _Refused(Exception):
    """Tiles that can not be launched here."""

    def __init__(self, launch, cause: Exception):
        super().__init__(f"{launch.op.name} with tiles {launch.tiles}: {cause}")
        self.launch = launch


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
