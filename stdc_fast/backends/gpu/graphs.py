"""Executables of GPU backends: memory, streams, threads and CUDA graphs, whatever the kernels are written in.

Each graph owns its buffers: inputs are copied in, results are copied out, so results never alias.
Frames like earlier ones take one native call for both copies and the graph (:meth:`GraphExecutable.again`).
Calls go to the caller's current stream; those of one size from several streams and threads run one after the
other. Under somebody else's capture, after one call of that size, the kernels go into that graph one by one,
with memory of its own.

While a graph is captured here (a few milliseconds at the first call of a size), other threads should neither
synchronise the device nor draw random numbers on it: CUDA and torch refuse that. A capture that fails is
tried again at the next calls; results are right all the same.

On the CPU, where kernels are interpreted or emulated for tests, they run one after the other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stdc_fast import _native
from stdc_fast.backends.base import NativeExecutable, presented
from stdc_fast.backends.gpu.placed import Lowered, Refused, Request, weights
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision

DEPENDENT = (9, 0)  # capability from which on there are programmatic dependent launches
#: Sizes whose graphs are kept; the least recently used goes first.
GRAPHS = 8
#: How often the capture of a graph is tried.
ATTEMPTS = 3

_NO_MODE = contextlib.nullcontext()
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

    repeats = True

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
        self._instances: dict[tuple[Request, Hashable], _Instance] = {}
        #: Those of `_instances` that replay in one call, by what is asked of them.
        self._known: dict[tuple, _Instance] = {}
        self._calls = itertools.count()
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

    def labels(self, image, size=None, *, seen=None, exact=True) -> Tensor:
        found = self.again(image, size, seen) if exact and type(image) is Tensor else None
        return super().labels(image, size, seen=seen, exact=exact) if found is None else found

    def again(self, frames, size=None, seen=None) -> Tensor | None:
        key = frames.shape, size, seen, self.variant()
        try:
            instance = self._known.get(key)
        except TypeError:  # sizes in lists
            return None
        if instance is None and (instance := self._know(key)) is None:
            return None
        if frames.dtype != torch.uint8 or frames.device != self.device or not frames.is_contiguous():
            return None
        instance.used = next(self._calls)
        return instance.again(frames)

    def _know(self, key: tuple) -> _Instance | None:
        """For :meth:`again`: the instance of such frames, where there is one that replays in one call."""
        shape, size, seen, variant = key
        if len(shape) != 4 or not (self._frames and self._of_network and self._align_corners):
            return None
        given = tuple(shape[1:3])
        request = Request(shape[0], given, seen or given, size or given)
        with self._lock:
            instance = self._instances.get((request, variant))
            if instance is None or instance.replay is None:
                return None
            self._known[key] = instance
        return instance

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
                        self._forget(key)

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
                _retired.settle()
                with contextlib.suppress(*([torch.OutOfMemoryError] if self._instances else [])):
                    instance = _Instance(self, *key, self._use_graphs)
                if instance is None:  # NOTE: here, where the error no longer holds what there was memory for
                    self._forget(*self._instances)  # other sizes can be made again
                    instance = _Instance(self, *key, self._use_graphs)
                self._instances[key] = instance
                if len(self._instances) > GRAPHS:
                    others = (k for k in self._instances if k != key)
                    self._forget(min(others, key=lambda k: self._instances[k].used))
            instance.used = next(self._calls)
            return instance

    def _forget(self, *keys: tuple[Request, Hashable]) -> None:
        """No longer keep instances; who computes with one still has it."""
        gone = [self._instances.pop(key, None) for key in keys]
        self._known = {k: i for k, i in self._known.items() if i not in gone}

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
        self.used = 0
        self.what = f"{executable.plan.name} at {request} in {executable.precision}"
        self.device = executable.device
        self.map = request.labels is None and not executable._of_network
        self.poisoned = executable._poisoned
        self.attempts = ATTEMPTS if graphs else 0
        self.ordered = ordered and self.device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.replay: Any = None  # as of csrc/cuda/replay.cu
        self.done: torch.cuda.Event | None = None
        self.stream: torch.cuda.Stream | None = None
        self.handle: int | None = None  # of that stream
        self.streams: set[torch.cuda.Stream] = set()
        self.handles: set[int] = set()  # of these
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
                if self.replay is not None:
                    self.replay.reset()
                self.graph.replay()
            else:
                self.lowered.launch(first=not self.ready)
                self.ready = True
                if self.attempts:
                    self.attempts -= 1
                    self.graph = self._capture()
                    self.replay = self._one_call()
            result = self.lowered.result
            # Dense and fresh, whatever view of the arena it was.
            result = result.clone(memory_format=torch.contiguous_format)
            self._record()
        return result.permute(0, 3, 1, 2) if self.map else result

    def again(self, frames: Tensor) -> Tensor | None:
        """Labels of dense frames by one native call; None where the stream has changed, or is captured."""
        shape = self.lowered.result.shape
        with self.lock:
            stream = _current_handle(self.device.index)
            if stream != self.handle and not self._changed(stream):
                return None
            inference = torch.is_inference_mode_enabled()  # an ordinary tensor all the same
            with torch.inference_mode(False) if inference else _NO_MODE:
                labels = torch.empty(shape, dtype=torch.uint8, device=self.device)
            return labels if self.replay(stream, frames.data_ptr(), labels.data_ptr()) else None

    def _changed(self, stream: int) -> bool:
        """Whether the current stream, another than the last one, now waits for that; False for a new one."""
        if stream not in self.handles or torch.cuda.is_current_stream_capturing():
            return False
        self.stream, self.handle = torch.cuda.current_stream(self.device), stream
        self.stream.wait_event(self.done)
        return True

    def _one_call(self) -> Any:
        """What replays the graph with both copies; None where torch must do it, or for other things than
        labels of frames.
        """
        made, places = _native_replay(), list(self.lowered.inputs.values())
        handle = getattr(self.graph, "raw_cuda_graph_exec", None)
        if None in (made, handle, self.done) or self.poisoned or len(places) > 1:
            return None
        frames, labels = places[0], self.lowered.result
        if frames.dtype != torch.uint8 or labels.dtype != torch.uint8:
            return None
        about = (
            handle(), self.done.cuda_event, self.device.index, (frames.data_ptr(), frames.numel()),
            (labels.data_ptr(), labels.numel()),
        )  # fmt: skip
        try:
            return made(*about, self.lowered.nodes)
        except (ValueError, RuntimeError) as error:  # nodes that are not what they were taken for
            _log.warning("%s copies frames and labels: %s", self.what, error)
            return made(*about, [])

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
            self.handles.add(stream.cuda_stream)
            for x in self.lowered.tensors():
                if x.numel():
                    x.record_stream(stream)

    def _record(self) -> None:
        if self.ordered:
            self.stream = torch.cuda.current_stream()
            self.handle = self.stream.cuda_stream
            self.done = self.done or torch.cuda.Event()
            self.done.record(self.stream)

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        try:
            with torch.cuda.stream(_capture_stream(self.device)):
                side = _side_stream(self.device)
                graph = captured(lambda: self.lowered.launch(side=side), self.lowered.direct)
        except RuntimeError as error:  # another thread did what no capture allows
            when = " yet" if self.attempts else ", from now on"
            _log.warning("no graph of %s%s: %s", self.what, when, error)
            return None
        if self.done is not None:
            _keep(self.done, graph, self)
        return graph


def _keep(done: torch.cuda.Event, graph: torch.cuda.CUDAGraph, owner: object) -> None:
    """A graph as long as its owner, and as ``done`` is not reached after it."""
    weakref.finalize(owner, _retired.append, done, graph).atexit = False


class _Retired:
    """Graphs that nobody will launch again, until the work of their last launch is done.

    CUDA does not say that a graph may be destroyed while it runs. And they come from wherever an executable
    is forgotten, which may be the garbage collector under somebody's capture, where nobody may ask or wait.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[torch.cuda.Event, torch.cuda.CUDAGraph]] = []

    def append(self, done: torch.cuda.Event, graph: torch.cuda.CUDAGraph) -> None:
        self._waiting.append((done, graph))

    def settle(self) -> None:
        """Destroy those that are done; called where memory is about to be asked for."""
        waiting, self._waiting = self._waiting, []
        self._waiting += [(done, graph) for done, graph in waiting if not done.query()]

    def __len__(self) -> int:
        return len(self._waiting)


_retired = _Retired()


def captured(launch: Callable[[], object], nodes: bool = False) -> torch.cuda.CUDAGraph:
    """The graph of what is launched on the current stream meanwhile, of which nothing may allocate memory.

    With ``nodes`` its nodes stay, so that they can be changed. One is captured at a time; others' allocations
    may go on. If it fails, others can go on as before.

    Raises:
        RuntimeError: where another thread did what no capture allows.
    """
    with _capturing:
        try:
            return _recorded(launch, nodes)
        except BaseException:
            # torch refuses random numbers after a capture that failed, until one has not.
            with contextlib.suppress(RuntimeError):
                _recorded(torch.zeros(1, device="cuda").zero_)
            raise


def _recorded(launch: Callable[[], object], nodes: bool = False) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph(keep_graph=True) if nodes else torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            launch()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the capture's, which hides what it comes from
                graph.capture_end()
            raise
        graph.capture_end()
        if nodes:
            graph.instantiate()
    except BaseException:
        # NOTE: before torch 2.12, capture_end leaves its pool in use when it raises. Memory that other
        # streams used would not be given back any more, and allocators go on asking the graph which stream
        # it captures. Later ones have done it, or may have no such function.
        _failed.append(graph)
        with contextlib.suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
    return graph


def _native_replay() -> Any:
    """The type of what replays in one call, of the native module; None without its CUDA part."""
    module = None if _native.why_not() else _native.module()
    return getattr(getattr(module, "gpu", None), "Replay", None)


def _current_handle(device: int) -> int:
    """cudaStream_t of the current stream; without an object of torch's, where it has that."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return torch.cuda.current_stream(device).cuda_stream if raw is None else raw(device)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device's graphs are captured: always one that nobody else is given by default."""
    return torch.cuda.Stream(device, priority=-1)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """What runs beside the kernels of :func:`_capture_stream`; used by one capture at a time, too."""
    return torch.cuda.Stream(device, priority=-1)
