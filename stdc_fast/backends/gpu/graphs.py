"""Executables of GPU backends: memory, streams, threads and CUDA graphs, whatever the kernels are written in.

Each graph owns its buffers: inputs are copied in, results are copied out, so results never alias.
Calls go to the caller's current stream; those of one size from several streams and threads run one after the
other. Under somebody else's capture, after one call of that size, the kernels go into that graph one by one,
with memory of its own.

While a graph is captured here (a few milliseconds at the first call of a size), other threads should neither
synchronise the device nor draw random numbers on it: CUDA and torch refuse that. A capture that fails is
tried again at the next calls; results are right all the same.

On the CPU, where kernels are interpreted or emulated for tests, they run one after the other.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from stdc_fast.backends.base import NativeExecutable, presented
from stdc_fast.backends.gpu.placed import Lowered, Refused, Request, weights
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision

DEPENDENT = (9, 0)  # capability from which on there are programmatic dependent launches
#: Sizes whose graphs are kept; the least recently used goes first.
GRAPHS = 8
#: How often the capture of a graph is tried.
ATTEMPTS = 3

_log = logging.getLogger("stdc_fast")
_capturing = threading.Lock()
_failed: list[torch.cuda.CUDAGraph] = []
_on_cpu = threading.RLock()  # what stands for a GPU there runs one program at a time


def numbered(device: torch.device | str) -> torch.device:
    """With the current GPU's number, where a GPU has none."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class GraphExecutable(NativeExecutable):
    """A plan with packed weights, for inputs of any size, from any stream and thread.

    A backend implements :meth:`lower`, and may :meth:`variant` and :meth:`refuse`.

    Args:
        packed: the weights by op, tensors and lists of them.
        poisoned: fill all memory with NaN before each image, to prove that nothing dead is read.
        graphs: replay CUDA graphs; else launch kernel by kernel.
    """

    def __init__(
        self,
        plan: Plan,
        precision: Precision,
        device: torch.device,
        packed: Mapping[str, SimpleNamespace],
        poisoned: bool = False,
        graphs: bool = True,
    ):
        super().__init__(plan, precision, device)
        self._packed = packed
        self._poisoned = poisoned
        self._dependent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= DEPENDENT
        self._use_graphs = graphs and device.type == "cuda"
        self._instances: collections.OrderedDict[tuple[Request, Hashable], _Instance] = (
            collections.OrderedDict()
        )
        self._pinned: list[list[Tensor]] = []
        self._lock = threading.Lock()

    # What a backend implements.

    def lower(self, request: Request, variant: Hashable = None) -> Lowered:
        """What runs a request, with new memory, set up on the current stream."""
        raise NotImplementedError

    def variant(self) -> Hashable:
        """What decides on the kernels of a call besides its request: settings that may change at any time."""
        return None

    def refuse(self, error: Refused) -> None:
        """Take other tiles from now on; raises the error if there is no choice. No other thread lowers."""
        raise error

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of packed weights, and of the arenas of all sizes that are kept."""
        packed = sum(w.numel() * w.itemsize for w in weights(self._packed))
        return packed, sum(i.lowered.arena.numel() for i in list(self._instances.values()))

    def _compute(self, inputs, batch, seen, labels, exact) -> Tensor:
        if not batch:
            return presented(self._new(batch, seen, labels), labels is not None)
        given = tuple(inputs[0].shape[1:3])
        exact = exact or labels is None or labels == seen
        request = Request(batch, given, seen, labels, exact)
        with self._on_device():
            if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return self._captured(request)(inputs)
            while True:
                key = request, self.variant()
                instance = self._instance(key)
                try:
                    return instance(inputs)
                except Refused as error:
                    with self._lock:
                        self.refuse(error)
                        self._instances.pop(key, None)

    def _captured(self, request: Request) -> _Instance:
        """For a graph that the caller captures: its kernels, with memory that belongs to that graph."""
        key = request, self.variant()
        with self._lock:
            known = key in self._instances
        if not known:
            raise RuntimeError(
                f"{self.plan.name} at {request} is not compiled; call it once before the graph is captured"
            )
        instance = _Instance(self, *key, graphs=False, ordered=False)
        # These do not belong to the graph's own memory: they stay as long as the weights, which it reads too.
        if pinned := instance.lowered.pinned():
            self._pinned.append(pinned)
        return instance

    def _instance(self, key: tuple[Request, Hashable]) -> _Instance:
        with self._lock:
            instance = self._instances.get(key)
            if instance is None:
                with contextlib.suppress(*([torch.OutOfMemoryError] if self._instances else [])):
                    instance = _Instance(self, *key, self._use_graphs)
                if instance is None:  # NOTE: here, where the error no longer holds what there was memory for
                    self._instances.clear()  # other sizes can be made again
                    instance = _Instance(self, *key, self._use_graphs)
                self._instances[key] = instance
                while len(self._instances) > GRAPHS:
                    self._instances.popitem(last=False)
            self._instances.move_to_end(key)
            return instance

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


class _Instance:
    """One size: memory, launches and their graph. Made on the stream and device of its first call."""

    def __init__(
        self,
        executable: GraphExecutable,
        request: Request,
        variant: Hashable,
        graphs: bool,
        ordered: bool = True,
    ):
        # No reference to the executable: with a cycle its memory would wait for the garbage collector.
        self.lowered = executable.lower(request, variant)
        self.what = f"{executable.plan.name} at {request} in {executable.precision}"
        self.device = executable.device
        self.map = request.labels is None and not executable._of_network
        self.poisoned = executable._poisoned
        self.attempts = ATTEMPTS if graphs else 0
        self.ordered = ordered and self.device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.done: torch.cuda.Event | None = None
        self.stream: torch.cuda.Stream | None = None
        self.streams: set[torch.cuda.Stream] = set()
        self.ready = False
        self._record()  # counters are set to zero on this stream: others wait for it
        self.lock = threading.Lock() if self.device.type == "cuda" else _on_cpu

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        with self.lock:
            self._wait()
            if self.poisoned:
                self.lowered.poison()
            for x, place in zip(inputs, self.lowered.inputs.values(), strict=True):
                place.copy_(x)
            if self.graph is not None:
                self.graph.replay()
            else:
                self.lowered.launch(first=not self.ready)
                self.ready = True
                if self.attempts:
                    self.attempts -= 1
                    self.graph = self._capture()
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
            for x in self.lowered.tensors():
                if x.numel():
                    x.record_stream(stream)

    def _record(self) -> None:
        if self.ordered:
            self.stream = torch.cuda.current_stream()
            self.done = self.done or torch.cuda.Event()
            self.done.record(self.stream)

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        try:
            with torch.cuda.stream(_capture_stream(self.device)):
                return captured(lambda: self.lowered.launch(side=_side_stream(self.device)))
        except RuntimeError as error:  # another thread did what no capture allows
            when = " yet" if self.attempts else ", from now on"
            _log.warning("no graph of %s%s: %s", self.what, when, error)
            return None


def captured(launch: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The graph of what is launched on the current stream meanwhile, of which nothing may allocate memory.

    One is captured at a time; others' allocations may go on. If it fails, others can go on as before.

    Raises:
        RuntimeError: where another thread did what no capture allows.
    """
    with _capturing:
        try:
            return _recorded(launch)
        except BaseException:
            # torch refuses random numbers after a capture that failed, until one has not.
            with contextlib.suppress(RuntimeError):
                _recorded(torch.zeros(1, device="cuda").zero_)
            raise


def _recorded(launch: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            launch()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the capture's, which hides what it comes from
                graph.capture_end()
            raise
        graph.capture_end()
    except BaseException:
        # NOTE: before torch 2.12, capture_end leaves its pool in use when it raises. Memory that other
        # streams used would not be given back any more, and allocators go on asking the graph which stream
        # it captures. Later ones have done it, or may have no such function.
        _failed.append(graph)
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
    return graph


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device's graphs are captured: always one that nobody else is given by default."""
    return torch.cuda.Stream(device, priority=-1)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """What runs beside the kernels of :func:`_capture_stream`; used by one capture at a time, too."""
    return torch.cuda.Stream(device, priority=-1)
