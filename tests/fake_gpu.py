"""A card that is not there: streams, events, graphs and copies of which tests see the order, on the CPU.

What is put on a stream waits until the card is told to work; :meth:`Card.work` does it in any order that
streams and events allow.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import random
import weakref
from collections import deque
from types import SimpleNamespace

import torch

from stdc_fast import flight
from stdc_fast.backends.base import Backend
from stdc_fast.backends.gpu import graphs
from stdc_fast.segmenter import Segmenter


class Event:
    """Recorded again and again; what waits, waits for the last record before it, as in CUDA."""

    def __init__(self, card):
        self.card, self.place = card, None
        self.cuda_event = card.number(self)

    def record(self, stream=None):
        stream = stream or self.card.current
        self.place = stream, stream.put(lambda: None)

    def query(self):
        self.card.asked += 1
        return self.place is None or self.place[0].done >= self.place[1]

    def synchronize(self):
        self.card.work(lambda: self.query())


class Stream:
    def __init__(self, card):
        self.card, self.waiting, self.put_so_far, self.done = card, deque(), 0, 0
        self.cuda_stream = card.number(self)

    def put(self, work, after=None):
        """``work`` in its turn, and not before ``after``, a place on another stream."""
        self.put_so_far += 1
        self.waiting.append((work, after))
        return self.put_so_far

    def ready(self):
        after = self.waiting[0][1] if self.waiting else None
        return bool(self.waiting) and (after is None or after[0].done >= after[1])

    def step(self):
        self.waiting.popleft()[0]()
        self.done += 1

    def wait_event(self, event):
        self.put(lambda: None, event.place)

    def wait_stream(self, other):
        self.put(lambda: None, (other, other.put_so_far))

    def synchronize(self):
        self.card.work(lambda: not self.waiting)


class Card:
    """Streams that do nothing until :meth:`work`, which takes them in an order by chance.

    Attributes:
        current: the stream that work is put on.
        capturing: whether somebody captures it.
        launches: replays of graphs so far.
        asked: how often somebody asked an event.
        memory: what copies may still read or write; an allocator of a GPU gives it to nobody yet.
    """

    def __init__(self, seed=0):
        self._random, self.streams = random.Random(seed), []
        self._numbered, self._numbers = weakref.WeakValueDictionary(), itertools.count(1)
        self.capturing, self.launches, self.asked, self.memory = False, 0, 0, []
        self.current = self.stream()

    def number(self, thing):
        number = next(self._numbers)
        self._numbered[number] = thing
        return number

    def named(self, number):
        return self._numbered[number]

    def stream(self, *_, **options):
        self.streams.append(Stream(self))
        return self.streams[-1]

    def event(self, **options):
        return Event(self)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def work(self, until=lambda: False):
        """Some of what is ready, one by one, until a condition holds or nothing is left."""
        while not until():
            ready = [stream for stream in self.streams if stream.ready()]
            if not ready:
                assert not any(stream.waiting for stream in self.streams), "streams wait for each other"
                return
            self._random.choice(ready).step()

    def copy(self, stream, target, source, count):
        stream.put(lambda: ctypes.memmove(target, source, count))


class Graph:
    """What ``launch`` does, at the time when its turn comes; it must not have been destroyed until then."""

    def __init__(self, card, launch):
        self.card, self.launch = card, launch
        self.number = card.number(self)

    def raw_cuda_graph_exec(self):
        return self.number

    def replay(self):
        self.put(self.card.current)

    def put(self, stream):
        self.card.launches += 1
        stream.put(functools.partial(_run, weakref.ref(self)))


def _run(graph):
    assert graph() is not None, "a graph was destroyed before its turn came"
    graph().launch()


class Instance(graphs._Instance):
    """As on a GPU, though its memory is the CPU's: nothing is done before the card works."""

    card: Card

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.ordered = True
        self._record()

    def _capture(self):
        return graph_of(self, self.card)

    def __call__(self, inputs):
        """Copies go to the stream; torch's own would be done at once."""
        with self.lock:
            self._wait()
            card, stream, frames = self.card, self.card.current, inputs[0].contiguous()
            frame, result = self.lowered.inputs["image"], self.lowered.result
            card.copy(stream, frame.data_ptr(), frames.data_ptr(), frame.numel())
            if self.graph is None:
                stream.put(self.lowered.launch)
                self.graph, self.replay = self._capture(), None
                self.replay = self._one_call()
            else:
                self.graph.replay()
            labels = torch.empty_like(result)
            card.memory += [frame, result, frames, labels]
            card.copy(stream, labels.data_ptr(), result.data_ptr(), result.numel())
            self._record()
        return labels

    def again(self, frames):
        labels = super().again(frames)
        self.card.memory += [frames, labels]
        return labels


def graph_of(instance, card):
    lowered = instance.lowered
    graph = Graph(card, lowered.launch)
    graphs._keep(instance.done, graph, instance)
    return graph


def replay(card):
    """The type that stands for the native module's."""

    class Replay:
        def __init__(self, graph, event, device, frame, labels, nodes):
            self.graph, self.event = card.named(graph), card.named(event)
            self.frame, self.labels = frame, labels

        def __call__(self, stream, frame, labels):
            if card.capturing:
                return False
            stream = card.named(stream)
            card.copy(stream, self.frame[0], frame, self.frame[1])
            self.graph.put(stream)
            card.copy(stream, labels, self.labels[0], self.labels[1])
            self.event.record(stream)
            return True

        def reset(self):
            pass

    return Replay


class Executable(graphs.GraphExecutable):
    """Labels by a rule that tells frames, pixels and weights apart."""

    def __init__(self, plan, precision):
        super().__init__(plan, precision, torch.device("cpu"), {}, graphs=False)
        self._use_graphs = True
        self.weight = int(sum(float(w.double().abs().sum()) for w in plan.weights.values()) * 1000) % 97

    def lower(self, request, variant=None):
        frames = torch.zeros((request.batch, *request.given, 3), dtype=torch.uint8)
        labels = torch.zeros((request.batch, *request.labels), dtype=torch.uint8)
        size, weight = request.labels, self.weight
        return SimpleNamespace(
            inputs={"image": frames}, result=labels, nodes=[], tensors=list, pinned=list,
            launch=lambda **how: labels.copy_(expected(frames, size, weight)),
        )  # fmt: skip


def expected(frames, size, weight):
    rows = torch.arange(size[0]) * frames.shape[1] // size[0]
    columns = torch.arange(size[1]) * frames.shape[2] // size[1]
    picked = frames[:, rows][:, :, columns].int()
    return ((picked * torch.tensor([1, 3, 7])).sum(3) + weight).remainder(251).to(torch.uint8)


class FakeBackend(Backend):
    name = "cuda"

    def why_not(self, plan, precision, device):
        return None

    def compile(self, plan, precision, device, small=False):
        return Executable(plan, precision)


def install(monkeypatch, seed=0):
    """The card; from now on executables of GPU backends run on it."""
    card = Card(seed)
    instance = type("Instance", (Instance,), {"card": card})
    for name, value in {
        "_Instance": instance, "_native_replay": lambda: replay(card), "_retired": graphs._Retired(),
        "_current_handle": lambda device: card.current.cuda_stream,
    }.items():  # fmt: skip
        monkeypatch.setattr(graphs, name, value)
    for name, value in {
        "current_stream": lambda device=None: card.current, "Event": card.event, "Stream": card.stream,
        "stream": card.on, "is_current_stream_capturing": lambda: card.capturing,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return card


def install_flights(monkeypatch, card):
    """Copies of frames and labels wait on the card, too; pinned memory is what they read and write then."""

    def sent(host, device):
        there = torch.empty_like(host)
        card.memory += [host, there]
        card.copy(card.current, there.data_ptr(), host.data_ptr(), host.numel() * host.itemsize)
        return there

    def fetch(host, x):
        assert host.is_contiguous() and x.is_contiguous() and host.dtype == x.dtype
        card.memory += [host, x]
        card.copy(card.current, host.data_ptr(), x.data_ptr(), x.numel() * x.itemsize)

    for name, value in {"_locked": torch.empty_like, "_sent": sent, "_fetch": fetch}.items():
        monkeypatch.setattr(flight, name, value)
    monkeypatch.setattr(Segmenter, "_ring", lambda self: flight.Ring(torch.device("cpu")))
