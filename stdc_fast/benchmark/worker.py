"""One runner in a process of its own: its memory, its thread pool and its crashes are its own.

The parent (:class:`Worker`) sends a command and waits; all other workers sleep meanwhile.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from stdc_fast.benchmark import limits, memory
from stdc_fast.benchmark.clock import Clock
from stdc_fast.benchmark.runners import Missing, Runner, Spec
from stdc_fast.benchmark.workloads import Workload, ends

#: Seconds after which a worker that does not answer is given up.
PATIENCE = 900.0


class Lost(Exception):
    """The worker's process ended, or does not answer."""


class Profile(NamedTuple):
    """What a turn of the native engine found.

    Attributes:
        cold: seconds of the first call after the caches were overwritten.
        seconds: of the calls after it, the median.
        clocked: of calls with a clock around each op, the mean.
        isa: instruction set.
        ops: (name, kind, seconds of all threads together) of a call, the mean.
    """

    cold: float
    seconds: float
    clocked: float
    isa: str
    ops: list[tuple[str, str, float]]


class Failed(Exception):
    """The worker said that it can not do what it was told."""


class Worker:
    """The parent's handle of a process with one runner.

    Args:
        threads: that the runner may use.
    """

    def __init__(self, threads: int):
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, command: str, *arguments: object, patience: float = PATIENCE):
        """Have the worker do something; raises Missing, Failed or Lost."""
        try:
            self._pipe.send((command, arguments))
            if not self._pipe.poll(patience):
                self.close(kill=True)
                raise Lost(f"no answer to {command} within {patience:.0f} s")
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise Lost(_ending(self._process.exitcode)) from None
        if kind == "missing":
            raise Missing(answer)
        if kind == "failed":
            raise Failed(answer)
        return answer

    def close(self, kill: bool = False) -> None:
        if not kill:
            try:
                self._pipe.send(("exit", ()))
                self._process.join(5)
            except OSError:
                pass
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._pipe.close()


@functools.cache
def _context():
    """Workers are forked from a process that has torch and did nothing with it, where that is possible."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "stdc_fast.benchmark.torch_peers"])
    return context


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


def _serve(pipe, threads: int) -> None:
    """The worker's loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and ends its workers
    if not os.environ.get("STDC_FAST_BENCHMARK_DEBUG"):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (exporters warn a lot; errors go through the pipe)
    torch.set_num_threads(threads)
    held = _Held(threads)
    while True:
        try:
            command, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        if command == "exit":
            return
        try:
            answer = ("done", getattr(held, command)(*arguments))
        except Missing as error:
            answer = ("missing", str(error))
        except Exception as error:
            text = str(error).strip().split("\n")[0]
            answer = ("failed", f"{type(error).__name__}: {text}"[:300])
        pipe.send(answer)


class _Held:
    """What a worker holds; its public methods are the commands."""

    def __init__(self, threads: int):
        self.threads = threads
        self.runner: Runner | None = None
        self.calls: dict[str, Callable[[], object]] = {}
        self.clock: Clock | None = None
        self.before = 0

    def load(self, spec: Spec, workload: Workload, device: str) -> None:
        _select(device)
        self.before = memory.resident()
        self.clock = Clock(device)
        self.runner = spec.make(workload, device, self.threads)

    def prepare(self, scope: str) -> tuple[float, float, np.ndarray]:
        """Seconds to the first output, seconds of a call, and the output of the first and last image."""
        start = time.perf_counter()
        call = self.runner.prepare(scope)
        output = ends(self.runner.host(call())).numpy()  # waits for a GPU
        seconds = time.perf_counter() - start
        self.calls[scope] = call
        return seconds, statistics.median(self.clock.times(call, 2, scope == "frame")), output

    def settle(self) -> None:
        """Forget what only preparing needed, and start to watch the memory."""
        gc.collect()
        memory.trim()
        memory.reset_peak()

    def turn(self, scope: str, frames: int) -> tuple[float, float]:
        """(seconds of a frame after the caches were overwritten, median of the frames after it)."""
        call, clock = self.calls[scope], self.clock
        host = scope == "frame"  # ends in the host's memory: its time is the host's
        gc.disable()
        try:
            clock.flush()
            cold = clock.time(call, host)
            return cold, statistics.median(clock.times(call, frames, host))
        finally:
            gc.enable()

    def profile(self, scope: str, frames: int) -> Profile:
        """A turn of the native engine: its frames without, then with a clock around each op."""
        cold, seconds = self.turn(scope, frames)
        engine = self.runner.executable(scope).engine
        engine.profile(True)
        gc.disable()
        try:
            clocked = sum(self.clock.times(self.calls[scope], frames, host=True)) / frames
        finally:
            gc.enable()
            engine.profile(False)
        ops = [(name, kind, spent / frames) for name, kind, spent, _ in engine.profiled()]
        return Profile(cold, seconds, clocked, engine.isa, ops)

    def memory(self) -> dict[str, int | None]:
        return {
            "host_peak": memory.peak(),
            "host_before": self.before,
            "device_peak": self.clock.device_peak(),
            "arena": self.runner.arena,
            "weights": self.runner.weights,
        }

    def limits(self, device: str, dtypes: list[str], threads: list[int]) -> list[dict[str, object]]:
        _select(device)
        return limits.measure(device, dtypes, threads)


def _select(device: str) -> None:
    """Make a GPU the current one. Float32 means float32 there: TF32 would not pass the parity check."""
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
