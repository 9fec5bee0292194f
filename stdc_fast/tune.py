"""Measures which tiles are fastest on this GPU, for the backends that have tiles; ``stdc-fast tune``."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Protocol

import torch
from tqdm import tqdm

from stdc_fast.backends import resolve_device
from stdc_fast.backends.gpu import tuned
from stdc_fast.backends.gpu.chooser import GpuBackend, TileModel
from stdc_fast.backends.gpu.graphs import captured
from stdc_fast.backends.gpu.model import Work
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.errors import UserError

#: Kernels, the longest first, whose second best tiles are tried in the whole network.
SWAPS = 10
#: Seconds of work before the first measurement: an idle GPU has low clocks.
WARM = 0.3


class Clock(Protocol):
    """Times launches; see :class:`GraphClock`."""

    def launches(self, lowered: Any, launches: list | None = None) -> float:
        """Seconds of these launches of a request in a row; None: of all, as they run."""


class GraphClock:
    """Times launches inside a CUDA graph, as they will run.

    Args:
        repeats: how often the launches are in one graph; four times at least.
        rounds: replays, of which the median counts.
    """

    def __init__(self, repeats: int = 50, rounds: int = 7):
        self.repeats, self.rounds = repeats, rounds
        self._warm = False

    def launches(self, lowered: Any, launches: list | None = None) -> float:
        # Of high priority, as those on which executables capture.
        main, side = torch.cuda.Stream(priority=-1), torch.cuda.Stream(priority=-1)

        def once() -> None:
            if launches is None:
                lowered.launch(side=side)
            else:
                start(lowered, launches)

        torch.cuda.current_stream().synchronize()  # a dependent launch might not wait for other streams
        repeats = max(4, self.repeats // len(launches or lowered.launches))
        main.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(main):
            once()  # compiled outside of the capture
            graph = captured(lambda: [once() for _ in range(repeats)])
            graph.replay()
            self._warm_up(graph)
            times = []
            for _ in range(self.rounds):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / 1e3 / repeats)
        torch.cuda.current_stream().wait_stream(main)
        return statistics.median(times)

    def _warm_up(self, graph: torch.cuda.CUDAGraph) -> None:
        end = time.monotonic() + (0 if self._warm else WARM)
        while time.monotonic() < end:
            graph.replay()
            torch.cuda.current_stream().synchronize()
        self._warm = True


def start(lowered: Any, launches: Iterable) -> None:
    """Starts some of a request's launches on the current stream."""
    native = getattr(lowered, "native", None)
    if native is None:  # Triton's are callable
        for launch in launches:
            launch()
        return
    stream = torch.cuda.current_stream(lowered.device).cuda_stream
    native.run([launch.arguments for launch in launches], stream, lowered.dependent, lowered.device.index)


def fill(lowered: Any) -> None:
    """Random numbers for all maps and inputs: zeros, and what memory held before, take other times."""
    arena = lowered.arena[: lowered.arena.numel() & -16].view(lowered.precision.maps)
    for x in (arena, *lowered.inputs.values()):
        _ = x.normal_() if x.is_floating_point() else x.random_(0, 256)


@dataclasses.dataclass
class Tuned:
    """What was found.

    Attributes:
        tiles: the best, by :attr:`Work.key`.
        before, after: seconds of the whole network with the tiles that were in use, and with these.
        finished: whether there was time for all.
        backend: whose tiles they are.
    """

    tiles: dict[str, Any]
    before: float
    after: float
    finished: bool
    backend: str = ""


class Tuner:
    """Chooses tiles for all kernels of one request, timing the few that the model thinks best.

    Args:
        executable: of a GPU backend, whose tiles it starts from.
        request: what to run.
        model: of its backend's tiles.
        clock: what measures.
        seconds: after which no further tiles are tried.
        known: times of kernels alone from a run that was not finished; they are not measured again.
        keep: is told each time that is measured: the work's key, tiles, seconds.
    """

    def __init__(
        self,
        executable,
        request,
        model: TileModel,
        clock: Clock,
        seconds: float = 300,
        known: Mapping[str, Mapping[Any, float]] | None = None,
        keep: Callable[[str, Any, float], None] = lambda key, t, seconds: None,
    ):
        self.executable, self.request, self.model, self.clock = executable, request, model, clock
        self.known, self.keep = known or {}, keep
        self.end = time.monotonic() + seconds
        self.chosen: dict[str, Any] = {}
        self.times: dict[str, dict[Any, float]] = {}

    def run(self, quiet: bool = False) -> Tuned:
        """Times kernels alone, then the best alternatives in the whole network."""
        first = self._lowered({})
        works = {launch.work.key: launch.work for launch in first.launches if launch.work is not None}
        current = {launch.work.key: launch.tiles for launch in first.launches if launch.work is not None}
        before = self.clock.launches(first)
        del first
        for work in tqdm(works.values(), "timing kernels", unit="kernel", disable=quiet or None):
            if self._late():
                break
            self._alone(work, current[work.key])
        best = self.clock.launches(self._lowered(self.chosen))
        best = self._together(best)
        if best > before:  # times alone mislead: what ran before left other things in the caches
            return Tuned({key: current[key] for key in self.chosen}, before, before, not self._late())
        return Tuned(self.chosen, before, best, not self._late())

    def _late(self) -> bool:
        return time.monotonic() > self.end

    def _lowered(self, changed: dict[str, Any]):
        usual = self.executable._tiles
        lowered = self.executable.lower(self.request, tiles=lambda w: changed.get(w.key) or usual(w))
        fill(lowered)
        return lowered

    def _alone(self, work: Work, current: Any) -> None:
        timed = self.times[work.key] = {}
        shapes: dict[Hashable, list] = {}
        for t in self.model.ranked(work):
            shapes.setdefault(self.model.shape(t), []).append(t)
        best_of_each = (group[0] for group in itertools.islice(shapes.values(), self.model.shapes))
        for t in (current, *best_of_each):
            self._time(work, t, timed)
        best = min(timed, key=timed.get)
        group = shapes.get(self.model.shape(best), [])
        for t in [t for t in group if t not in timed][: self.model.variants]:
            self._time(work, t, timed)
        self.chosen[work.key] = min(timed, key=timed.get)

    def _time(self, work: Work, t: Any, timed: dict[Any, float]) -> None:
        if t in timed:
            return
        if (before := self.known.get(work.key, {}).get(t)) is not None:
            timed[t] = before
            return
        if timed and self._late():
            return
        lowered = self._lowered({work.key: t})
        launch = next(one for one in lowered.launches if one.work == work)
        try:
            timed[t] = self.clock.launches(lowered, [launch])
        except Exception as error:
            if not self.model.too_large(error):
                raise
            timed[t] = math.inf
        self.keep(work.key, t, timed[t])

    def _together(self, best: float) -> float:
        """Second bests in the place of the best, one after the other, where that makes the whole faster."""
        longest = sorted(self.chosen, key=lambda key: -self.times[key][self.chosen[key]])
        for key in longest[:SWAPS]:
            times = {t: s for t, s in self.times[key].items() if t != self.chosen[key] and s < math.inf}
            others = sorted(times, key=times.get)[:1]
            for other in others:
                if self._late():
                    return best
                trial = self.chosen | {key: other}
                seconds = self.clock.launches(self._lowered(trial))
                if seconds < best:
                    best, self.chosen = seconds, trial
        return best


def tune_network(
    model: str = "stdc1_camvid",
    sizes: Iterable[tuple[int, int]] = ((512, 1024),),
    batch: int = 1,
    dtype: str = "auto",
    device: str = "auto",
    seconds: float = 300,
    quiet: bool = True,
    backend: str = "auto",
) -> list[Tuned]:
    """Tune a network at these sizes and store what was found; see :mod:`stdc_fast.backends.gpu.tuned`.

    Args:
        model: embedded name or checkpoint file.
        sizes: (H, W) that the network sees.
        batch: images at a time.
        dtype, device: as of :func:`stdc_fast.load`.
        seconds: of each size, after which what was found so far counts. The next call goes on from there.
        backend: "cuda", "triton", or "auto" for the one that would run this.

    UserError where that backend does not run, or has no tiles.
    """
    from stdc_fast import zoo

    place = resolve_device(device)
    if place.type != "cuda":
        raise UserError(f"tuning measures a GPU, and there is none to be seen: the device is {place}")
    loaded = zoo.load(model, device=place, dtype=dtype, backend=backend)
    of = loaded.decision.backend
    if not isinstance(of, GpuBackend):
        raise UserError(f"backend {of.name} has no tiles to tune ({loaded.reason})")
    found = []
    with torch.cuda.device(loaded.device):
        about = check_writable(loaded.device, of)
        for size in sizes:
            plan = loaded.compiled_plan() if loaded.precision.levels else loaded.plan()
            executable = of.compile(plan, loaded.precision, loaded.device)
            request = Request(batch, tuple(size), tuple(size), tuple(size))
            times, model = tuned.Times(about, of.tiles), of.model(loaded.device)
            tuner = Tuner(executable, request, model, GraphClock(), seconds, times.load(), times.add)
            result = tuner.run(quiet)
            result.backend = of.name
            tuned.save(about, result.tiles, of.tiles)
            if result.finished:
                times.forget()
            found.append(result)
    return found


def check_writable(device: torch.device, backend: GpuBackend) -> dict[str, str]:
    """The environment of a device, whose file of tuned tiles can be written; UserError if it can not."""
    about = backend.environment(device)
    try:
        tuned.save(about, {}, backend.tiles)
    except UserError as error:
        raise UserError(f"{error}; set STDC_FAST_CACHE to a folder for tuned tiles") from None
    return about
