"""Run a workload on all runners in turn and make a record of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from stdc_fast.benchmark import header, memory, parity, workloads
from stdc_fast.benchmark.limits import merge
from stdc_fast.benchmark.runners import Missing, Spec
from stdc_fast.benchmark.worker import Failed, Lost, Worker
from stdc_fast.benchmark.workloads import FRAME, Workload
from stdc_fast.precision import PRECISIONS

#: Seconds of frames in a turn; at least one frame, at most a hundred.
TURN = 0.3
#: Rounds that are done even when the time is up.
LEAST_ROUNDS = 3
#: Seconds between turns in which thread pools of the last runner stop spinning.
REST = 0.02
#: Memory that a worker takes, for deciding how many run at once: fixed, and per pixel of input and of frame.
_WORKER, _PER_PIXEL, _PER_FRAME_PIXEL = 500 << 20, 300, 150
#: Share of the free memory that workers may fill.
_FILL = 0.7


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a workload is measured.

    Attributes:
        device: "cpu" or a CUDA device.
        scopes: some of :data:`stdc_fast.benchmark.workloads.SCOPES`.
        threads: of every runner.
        rounds: each runner has one turn a round.
        seconds: no further round begins that would end later than these, from the start on; three are done
            in any case.
        say: called with a line when something begins.
    """

    device: str = "cpu"
    scopes: tuple[str, ...] = ("logits", "labels")
    threads: int = dataclasses.field(default_factory=lambda: torch.get_num_threads())
    rounds: int = 9
    seconds: float = 150.0
    say: Callable[[str], None] = lambda line: None


@dataclasses.dataclass
class Entry:
    """One runner on one workload, and what becomes of it.

    Attributes:
        status: "measured", "missing", "refused" (by the parity check) or "failed", and the reason.
        frames: of a turn, by scope.
        cold, hot: seconds of each round, by scope.
    """

    spec: Spec
    workload: Workload
    threads: int
    worker: Worker | None = None
    status: str = "measured"
    reason: str | None = None
    outputs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    prepared: dict[str, float] = dataclasses.field(default_factory=dict)
    parity: dict[str, float | None] | None = None
    memory: dict[str, int | None] | None = None
    frames: dict[str, int] = dataclasses.field(default_factory=dict)
    cold: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    hot: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.worker is not None and self.status == "measured"

    def drop(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def ask(self, command: str, *arguments: object):
        """The worker's answer, or None if it has none; then the entry is dropped."""
        try:
            return self.worker.ask(command, *arguments)
        except Missing as error:
            self.drop("missing", str(error))
        except (Failed, Lost) as error:
            self.drop("failed", str(error))
        return None

    def turn(self, scope: str) -> None:
        """Time one turn."""
        answer = self.ask("turn", scope, self.frames[scope])
        if answer is not None:
            self.cold.setdefault(scope, []).append(answer[0])
            self.hot.setdefault(scope, []).append(answer[1])

    def start(self, settings: Settings) -> None:
        """Load the runner and prepare it for all scopes."""
        absent = self.spec.missing(settings.device)
        if absent is not None:
            self.drop("missing", absent)
            return
        settings.say(f"prepare {' '.join(self.spec.key)}")
        self.worker = Worker(self.threads)
        self.ask("load", self.spec, self.workload, settings.device)
        # The parity check looks at the logits of ours in any case.
        extra = ("logits",) if self.spec.ours and "logits" not in settings.scopes else ()
        for scope in (*settings.scopes, *extra):
            if self.running and (answer := self.ask("prepare", scope)) is not None:
                self.prepared[scope], seconds, self.outputs[scope] = answer
                self.frames[scope] = int(min(100, max(1, round(TURN / seconds))))
        if self.running:
            self.ask("settle")


def measure(
    workload: Workload, specs: list[Spec], settings: Settings, dtypes: list[str]
) -> dict[str, object]:
    """A record (see :mod:`stdc_fast.benchmark.records`) of kind "latency": all runners on one workload.

    The first of ``specs`` that is ours is the one that peers are compared with. Runners that do not fit into
    memory together are measured in groups, each with ours.

    Args:
        dtypes: whose matrix peak is measured.
    """
    began = time.monotonic()
    record = opened("latency", settings)
    record["rows"] = []
    groups = grouped(specs, workload, settings)
    with contextlib.closing(Meter(settings, dtypes)) as meter:
        compared: list[Compared] = []
        for i, group in enumerate(groups):
            entries = [Entry(spec, workload, settings.threads) for spec in group]
            in_turns(entries, settings, began + settings.seconds * (i + 1) / len(groups), meter)
            # Ours runs in every group, but is one row: that of the first.
            compared += _with_ratios(entries, i == 0)
    record["limits"] = meter.best
    for one in compared:
        record["rows"] += rows(one, settings, meter.best)
    return record


def opened(kind: str, settings: Settings) -> dict[str, object]:
    """A record with what is known before anything is measured."""
    head = header.header(settings.device, settings.threads)
    if (busy := head["load"]["busy"] or 0) > 0.1:
        settings.say(f"this machine is busy ({busy:.0%}) with other things: times will be too long, and vary")
    return header.identity() | {"kind": kind, "header": head}


class Meter:
    """The machine's limits, measured in a process of their own: at the start, and again in every round."""

    def __init__(self, settings: Settings, dtypes: list[str]):
        settings.say("limits of this machine")
        self._device, self._threads = settings.device, settings.threads
        self._dtypes = sorted({*(kind for dtype in dtypes for kind in multiplied(dtype)), "int8"})
        self._worker = Worker(settings.threads)
        self.best: list[dict[str, object]] = []
        self._measure(sorted({1, settings.threads}))

    def again(self) -> None:
        """Measure with all threads once more; the best stays."""
        self._measure([self._threads])

    def _measure(self, threads: list[int]) -> None:
        self.best = merge(self.best, self._worker.ask("limits", self._device, self._dtypes, threads))

    def close(self) -> None:
        self._worker.close()


def grouped(specs: list[Spec], workload: Workload, settings: Settings) -> list[list[Spec]]:
    """Runners that fit into memory together; what is ours is in each group."""
    room = memory.available()
    if settings.device != "cpu":
        room = min(room or 1 << 60, torch.cuda.mem_get_info()[0])
    pixels = workload.batch * workload.height * workload.width * _PER_PIXEL
    frame = workload.batch * FRAME[0] * FRAME[1] * _PER_FRAME_PIXEL if "frame" in settings.scopes else 0
    fit = len(specs) if room is None else int(room * _FILL / (_WORKER + pixels + frame))
    own = [spec for spec in specs if spec.ours]
    others = [spec for spec in specs if not spec.ours]
    step = max(1, fit - len(own))
    return [own + others[i : i + step] for i in range(0, len(others), step)] or [own]


def in_turns(entries: list[Entry], settings: Settings, deadline: float, meter: Meter) -> None:
    """Start all, let the parity check look at them, and time them in turns.

    Those that compile are started two at a time on a CPU, since compilers have one thread. All others start
    one by one: they would wait for each other's cores, and on a GPU some tune themselves by the clock.
    """
    pool = ThreadPoolExecutor(min(2, os.cpu_count() or 1) if settings.device == "cpu" else 1)
    try:
        for entry in entries:
            if not entry.spec.compiles:
                entry.start(settings)
        slow = [entry for entry in entries if entry.spec.compiles]
        list(pool.map(lambda entry: entry.start(settings), slow))
        _check(entries, settings)
        _rounds(entries, settings, deadline, meter)
        for entry in entries:
            if entry.running:
                entry.memory = entry.ask("memory")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for entry in entries:
            if entry.worker is not None:
                entry.worker.close()


def _check(entries: list[Entry], settings: Settings) -> None:
    settings.say("parity with the reference")
    want: dict[Workload, workloads.Expected] = {}
    for entry in entries:
        if entry.running:
            spec, workload = entry.spec, entry.workload
            if workload not in want:
                want[workload] = workloads.expected(workload, list(settings.scopes))
            entry.parity, broken = parity.check(entry.outputs, spec.dtype, want[workload])
            if broken:
                entry.drop("refused", "; ".join(broken))


def _rounds(entries: list[Entry], settings: Settings, deadline: float, meter: Meter) -> None:
    """Each runner has a turn in each round, in rotating order; scopes take turns too."""
    order, longest = list(entries), 0.0
    for done in range(settings.rounds):
        began = time.monotonic()
        if done >= LEAST_ROUNDS and began + longest > deadline:
            break
        settings.say(f"round {done + 1} of at most {settings.rounds}")
        meter.again()
        for scope in settings.scopes:
            order.append(order.pop(0))
            for entry in order:
                if not entry.running:
                    continue
                time.sleep(REST)
                entry.turn(scope)
        longest = max(longest, time.monotonic() - began)


def quantiles(values: list[float]) -> dict[str, float]:
    """p20, p50, p80 and n."""
    low, middle, high = np.percentile(values, [20, 50, 80]).tolist()
    return {"p20": low, "p50": middle, "p80": high, "n": len(values)}


@dataclasses.dataclass
class Compared:
    """An entry with the ratios to ours, by scope."""

    entry: Entry
    ratios: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    same: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    baseline: tuple[str, str] | None = None


def _with_ratios(entries: list[Entry], first: bool) -> list[Compared]:
    own = [entry for entry in entries if entry.spec.ours and entry.status == "measured"]
    baseline = next((entry for entry in own if entry.hot), None)
    found = []
    for entry in entries:
        if entry.spec.ours and not first:
            continue
        alike = next((o for o in own if o.hot and o.spec.dtype == entry.spec.dtype), None)
        found.append(
            Compared(
                entry,
                _ratios(entry, baseline),
                _ratios(entry, alike),
                None if baseline is None else baseline.spec.key,
            )
        )
    return found


def _ratios(entry: Entry, baseline: Entry | None) -> dict[str, dict[str, float]]:
    """Time over the baseline's in the same round, by scope."""
    if baseline is None:
        return {}
    return {
        scope: quantiles([a / b for a, b in zip(times, baseline.hot[scope], strict=False)])
        for scope, times in entry.hot.items()
        if scope in baseline.hot
    }


def rows(one: Compared, settings: Settings, measured: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row a scope; an entry that was not measured has no figures."""
    entry = one.entry
    workload, spec = entry.workload, entry.spec
    flop, moved = workload.work()
    found = []
    for scope in settings.scopes:
        timed = entry.status == "measured" and scope in entry.hot
        row = {
            "model": workload.model,
            "height": workload.height,
            "width": workload.width,
            "batch": workload.batch,
            "scope": scope,
            "runner": spec.name,
            "ours": spec.ours,
            "dtype": spec.dtype,
            "threads": entry.threads,
            "status": entry.status,
            "reason": entry.reason,
            "parity": entry.parity,
            "prepare_seconds": entry.prepared.get(scope),
            "flop": flop,
            "bytes": moved,
        }
        row |= dict.fromkeys(("seconds", "cold", "ratio", "ratio_same_dtype", "baseline", "limit", "memory"))
        if timed:
            hot = quantiles(entry.hot[scope])
            row |= {
                "seconds": hot,
                "cold": quantiles(entry.cold[scope]),
                "ratio": one.ratios.get(scope),
                "ratio_same_dtype": one.same.get(scope),
                "baseline": _baseline(one.baseline),
                "limit": percent(hot["p50"], flop, moved, spec.dtype, entry.threads, settings, measured),
                "memory": entry.memory,
            }
        found.append(row)
    return found


def _baseline(key: tuple[str, str] | None) -> dict[str, str] | None:
    return None if key is None else {"runner": key[0], "dtype": key[1]}


def multiplied(dtype: str) -> list[str]:
    """In which dtypes a precision multiplies: 8 bits, which is one of several, comes first."""
    known = PRECISIONS.get(dtype)
    if known is None or not known.levels:
        return [dtype]
    return ["int8", str(known.maps).removeprefix("torch.")]


def percent(
    seconds: float,
    flop: int | Mapping[str, int],
    moved: int,
    dtype: str,
    threads: int,
    settings: Settings,
    measured: list[dict[str, object]],
) -> dict[str, object] | None:
    """Time that the limits leave, and its share of the time taken. None where no limit was measured.

    The operations are those of direct convolution, by the dtype that they are multiplied in where there are
    several; the bytes those that even one fused kernel must move.
    """
    flops = flop if isinstance(flop, Mapping) else {multiplied(dtype)[0]: flop}
    count = threads if settings.device == "cpu" else None
    values = {(e["what"], e["dtype"]): e["value"] for e in measured if e["threads"] == count}
    peaks, bandwidth = {kind: values.get(("matrix", kind)) for kind in flops}, values.get(("bandwidth", None))
    if None in peaks.values() or bandwidth is None:
        return None
    matrix = sum(count / peaks[kind] for kind, count in flops.items())
    times = {"matrix": matrix, "bandwidth": moved / bandwidth}
    by = max(times, key=times.get)
    return {"seconds": times[by], "percent": 100 * times[by] / seconds, "by": by}
