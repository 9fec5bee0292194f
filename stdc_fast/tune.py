"""``stdc-fast tune``: measures which tiles are the fastest on this GPU, for the Triton backend."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterable
from typing import Annotated, Optional, Protocol

import torch
import typer
from tqdm import tqdm

from stdc_fast.backends import tiles
from stdc_fast.backends.tiles import Device, Tiles, Work
from stdc_fast.errors import UserError

#: How many shapes of tiles are timed for each kernel, and how many variants of the best of them.
SHAPES, VARIANTS = 6, 4
#: Kernels, the longest first, whose second best tiles are tried in the whole network.
SWAPS = 10


class Clock(Protocol):
    """Times launches; see :class:`GraphClock`."""

    def launches(self, launches: list) -> float:
        """Seconds of these launches in a row."""


class GraphClock:
    """Times launches inside a CUDA graph, as they will run.

    Args:
        repeats: how often the launches are in one graph.
        rounds: replays, of which the median counts.
    """

    def __init__(self, repeats: int = 50, rounds: int = 5):
        self.repeats, self.rounds = repeats, rounds

    def launches(self, launches: list) -> float:
        for launch in launches:  # compiled outside of the capture
            launch()
        repeats = max(1, self.repeats // len(launches))
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            for _ in range(repeats):
                for launch in launches:
                    launch()
            graph.capture_end()
            graph.replay()
            times = []
            for _ in range(self.rounds):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graph.replay()
                stop.record()
                stop.synchronize()
                times.append(start.elapsed_time(stop) / 1e3 / repeats)
        torch.cuda.current_stream().wait_stream(side)
        return statistics.median(times)


@dataclasses.dataclass
class Tuned:
    """What was found.

    Attributes:
        tiles: the best, by :attr:`Work.key`.
        before, after: seconds of the whole network with the tiles that were in use, and with these.
        finished: whether there was time for all.
    """

    tiles: dict[str, Tiles]
    before: float
    after: float
    finished: bool


class Tuner:
    """Chooses tiles for all kernels of one request, timing the few that the model thinks best.

    Args:
        executable: of the Triton backend, whose tiles it starts from.
        request: what to run.
        device: class of the GPU, for the model.
        clock: what measures.
        seconds: after which no further tiles are tried.
    """

    def __init__(self, executable, request, device: Device, clock: Clock, seconds: float = 300):
        self.executable, self.request, self.device, self.clock = executable, request, device, clock
        self.end = time.monotonic() + seconds
        self.chosen: dict[str, Tiles] = {}
        self.times: dict[str, dict[Tiles, float]] = {}

    def run(self, quiet: bool = False) -> Tuned:
        """Times kernels alone, then the best alternatives in the whole network."""
        first = self._lowered({})
        works = {launch.work.key: launch.work for launch in first.launches if launch.work is not None}
        current = {launch.work.key: launch.tiles for launch in first.launches if launch.work is not None}
        before = self.clock.launches(first.launches)
        del first
        for work in tqdm(works.values(), "timing kernels", unit="kernel", disable=quiet or None):
            if self._late():
                break
            self._alone(work, current[work.key])
        best = self.clock.launches(self._lowered(self.chosen).launches)
        best = self._together(best)
        if best > before:  # times alone mislead: what ran before left other things in the caches
            return Tuned({key: current[key] for key in self.chosen}, before, before, not self._late())
        return Tuned(self.chosen, before, best, not self._late())

    def _late(self) -> bool:
        return time.monotonic() > self.end

    def _lowered(self, changed: dict[str, Tiles]):
        usual = self.executable._tiles
        return self.executable.lower(self.request, tiles=lambda w: changed.get(w.key) or usual(w))

    def _alone(self, work: Work, current: Tiles) -> None:
        timed = self.times[work.key] = {}
        ranked = tiles.ranked(work, self.device)
        shapes: dict[tuple, list[Tiles]] = {}
        for t in ranked:
            shapes.setdefault((t.pixels, t.channels, t.split), []).append(t)
        for t in (current, *(group[0] for group in itertools.islice(shapes.values(), SHAPES))):
            self._time(work, t, timed)
        best = min(timed, key=timed.get)
        group = shapes.get((best.pixels, best.channels, best.split), [])
        for t in [t for t in group if t not in timed][:VARIANTS]:
            self._time(work, t, timed)
        self.chosen[work.key] = min(timed, key=timed.get)

    def _time(self, work: Work, t: Tiles, timed: dict[Tiles, float]) -> None:
        from triton.runtime.errors import OutOfResources, PTXASError

        if t in timed or (timed and self._late()):
            return
        lowered = self._lowered({work.key: t})
        launch = next(one for one in lowered.launches if one.work == work)
        try:
            timed[t] = self.clock.launches([launch])
        except (OutOfResources, PTXASError):  # what the compiler makes of tiles is only estimated here
            timed[t] = math.inf

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
                seconds = self.clock.launches(self._lowered(trial).launches)
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
) -> list[Tuned]:
    """Tune a network at these sizes and store what was found; see :mod:`stdc_fast.backends.tuned`.

    Args:
        model: embedded name or checkpoint file.
        sizes: (H, W) that the network sees.
        batch: images at a time.
        dtype, device: as of :func:`stdc_fast.load`.
        seconds: of each size, after which what was found so far counts.

    UserError where the Triton backend does not run.
    """
    import stdc_fast
    from stdc_fast.backends import triton, tuned
    from stdc_fast.backends.placed import Request

    loaded = stdc_fast.load(model, device=device, dtype=dtype, backend="triton")
    if loaded.device.type != "cuda":
        raise UserError("tuning measures a GPU; Triton's interpreter has nothing to measure")
    found = []
    with torch.cuda.device(loaded.device):
        properties = torch.cuda.get_device_properties(loaded.device)
        kind = tiles.device_class((properties.major, properties.minor), properties.multi_processor_count)
        about = check_writable(loaded.device)
        for size in sizes:
            executable = triton.compile(loaded.plan(), loaded.dtype, loaded.device)
            request = Request(batch, tuple(size), tuple(size), tuple(size))
            result = Tuner(executable, request, kind, GraphClock(), seconds).run(quiet)
            tuned.save(about, result.tiles)
            found.append(result)
    return found


def check_writable(device: torch.device) -> dict[str, str]:
    """The environment of a device, whose file of tuned tiles can be written; UserError if it can not."""
    from stdc_fast.backends import tuned

    about = tuned.environment(device)
    try:
        tuned.save(about, {})
    except UserError as error:
        raise UserError(f"{error}; set STDC_FAST_CACHE to a folder for tuned tiles") from None
    return about


def tune(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Embedded name or checkpoint file.")
    ] = "stdc1_camvid",
    size: Annotated[
        Optional[list[str]], typer.Option(help="HEIGHTxWIDTH that the network sees; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda or cuda:N.")] = "auto",
    seconds: Annotated[float, typer.Option(min=1, help="Limit for each size.")] = 300,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Measure which tiles are fastest for the Triton backend on this GPU; it uses them from then on.

    Example: stdc-fast tune --size 512x1024 --size 768x1536
    """
    from stdc_fast.cli import exact_size

    texts = size or ["512x1024"]
    results = tune_network(model, [exact_size(text) for text in texts], batch, dtype, device, seconds, quiet)
    for text, result in zip(texts, results, strict=True):
        ended = "" if result.finished else " (stopped at the limit)"
        print(
            f"{text}, batch {batch}: {result.before * 1e6:.0f} us before, {result.after * 1e6:.0f} us after, "
            f"{len(result.tiles)} kernels{ended}; used where the network sees just this size and batch"
        )
