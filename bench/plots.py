"""Plots of the benchmark report: latency, throughput, roofline, scaling, predictions. Needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.measured import SCOPES, Device, Found, Prediction, Workload, search
from bench.words import amount, listed, runs_of, significant
from stdc_fast.viewer.save import FIXED

_OURS = "#c8452b"
_PEER = "#8fa3b8"
_GREY = "#555555"
_GRID = "#e4e4e4"
# Far apart also for the colour-blind (Okabe and Ito), without the red that is ours.
_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#7a5c2e", "#444444", "#9a8fd0")
_DTYPES = {
    "float32": "#0072b2",
    "bfloat16": "#009e73",
    "float16": "#cc79a7",
    "float64": "#7a5c2e",
    "int8": "#e69f00",
}
_DASHES = {"float32": "-", "bfloat16": (0, (5, 1.6)), "float16": (0, (3, 1.2, 1, 1.2)), "int8": ":"}
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")


class Plot(NamedTuple):
    """A drawn figure: file name, text for those who do not see it, chapter it belongs to, SVG."""

    name: str
    alt: str
    place: str
    svg: bytes


def draw(devices: list[Device], predictions: list[Prediction]) -> list[Plot]:
    """Every plot that there is data for; the same data give the same bytes, with the same matplotlib."""
    found = []
    with matplotlib.style.context(["default", FIXED]):
        for device in devices:
            for name, make in _PLOTS.items():
                for figure, alt in make(device):
                    stem = f"benchmark_{name}_{slug(device.name)}.svg"
                    found.append(Plot(stem, alt, f"{device.name} {name}", _svg(figure, alt)))
        for target in dict.fromkeys(p.device for p in predictions):
            figure, alt = _ladder(target, [p for p in predictions if p.device == target], devices)
            stem = f"benchmark_predictions_{slug(target)}.svg"
            found.append(Plot(stem, alt, f"{target} predictions", _svg(figure, alt)))
    return found


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _svg(figure: Figure, alt: str) -> bytes:
    # Neither the day nor the version: a committed figure changes with the records only.
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "stdc-fast", "Title": alt})
    return file.getvalue()


# ---------------------------------------------------------------- latency


def _latency(device: Device) -> Iterator[tuple[Figure, str]]:
    """Bars of one workload, a panel for each scope, fastest first."""
    timed = [found for found in device.rows if found.row.measured]
    if not timed:
        return
    workload = _typical(timed)
    timed = [found for found in timed if found.row.workload == workload]
    panels = {scope: [f for f in timed if f.row.scope == scope] for scope in SCOPES}
    panels = {scope: sorted(rows, key=_by_time) for scope, rows in panels.items() if rows}
    several = len({f.row.threads for f in timed}) > 1
    bases = sorted({str(f.row.baseline) for f in timed if f.row.ratio and f.row.baseline})
    notes = f"medians, whiskers p20 to p80 of rounds; {runs_of(timed)}"
    if len(bases) == 1:
        notes += f"; x: time over that of {bases[0]}, round by round"
    page, below = _page(
        f"{workload} on {device.name}", notes, 0.21 * len(timed) + 0.42 * len(panels) - 0.15, 0.45,
        left=_inches(_name(f.row, several) for f in timed),
    )  # fmt: skip
    longest = 1e3 * max(found.row.seconds.p80 for found in timed)
    at = 0.0
    for scope, rows in panels.items():
        tall = 0.21 * len(rows)
        axes = below(at + 0.15, tall)
        at += tall + 0.42
        for i, (_, row) in enumerate(rows):
            middle = 1e3 * row.seconds.p50
            low, high = 1e3 * row.seconds.p20, 1e3 * row.seconds.p80
            axes.barh(i, middle, 0.74, color=_OURS if row.ours else _PEER, zorder=2)
            axes.plot([low, high], [i, i], color="#111111", lw=1, zorder=3, marker="|", ms=4)
            text = f"{significant(middle)} ms"
            if row.ratio and not row.ours:
                text += f"   {row.ratio.p50:.2f}x" + (f" {row.baseline}" if len(bases) > 1 else "")
            axes.annotate(
                text, (max(middle, high), i), (4, 0), textcoords="offset points", va="center", fontsize=7
            )
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels([_name(row, several) for _, row in rows])
        for label, (_, row) in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.ours else "normal")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, longest * (1.6 if len(bases) > 1 else 1.25))
        axes.set_title(scope, loc="left", fontsize=8.5, fontweight="bold", pad=3)
        axes.grid(axis="x", color=_GRID, lw=0.7, zorder=0)
        _plain(axes)
        axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("ms (less is better)")
    fastest = "; ".join(
        f"{scope}: {_name(rows[0].row)} {significant(1e3 * rows[0].row.seconds.p50)} ms"
        for scope, rows in panels.items()
    )
    yield page, f"Bars: median time of each runner for {workload} on {device.name}. Fastest: {fastest}."


def _typical(timed: list[Found]) -> Workload:
    """The workload with the most rows, where possible of batch 1 and 512x1024."""
    counts: dict[Workload, int] = {}
    for found in timed:
        counts[found.row.workload] = counts.get(found.row.workload, 0) + 1
    return min(
        counts,
        key=lambda w: (w.batch != 1, (w.height, w.width) != (512, 1024), -counts[w], w.height * w.width, w),
    )


# ---------------------------------------------------------------- throughput against batch


def _throughput(device: Device) -> Iterator[tuple[Figure, str]]:
    """Images a second of the model, size and scope that has the most points, if there are several batches.

    From scaling runs where there are any, as points of different runs make bends of their own.
    """
    groups: dict[tuple, dict[tuple, Found]] = {}
    for rows in ([found for found in device.scaling if found.row.axis == "batch"], device.rows):
        for found in rows:
            row = found.row
            if row.measured:
                group = groups.setdefault((*row.workload[:3], row.scope), {})
                group[(*_sort(row), row.threads, row.workload.batch)] = found
        for key, group in groups.items():  # one point is no line
            lengths = Counter(k[:-1] for k in group)
            groups[key] = {k: found for k, found in group.items() if lengths[k[:-1]] > 1}
        groups = {key: group for key, group in groups.items() if group}
        if groups:
            break
    else:
        return
    (model, height, width, scope), group = min(groups.items(), key=lambda g: (-len(g[1]), g[0]))
    lines: dict[tuple, list[Found]] = {}
    for key in sorted(group, key=lambda k: k[-1]):
        lines.setdefault(key[:-1], []).append(group[key])
    title = f"{model} {height}x{width}, {scope}, on {device.name}"
    notes = f"images a second, bars p20 to p80 of rounds; {runs_of(group.values())}"
    several = len({f.row.threads for f in group.values()}) > 1
    names = [_name(line[0].row, several) for line in lines.values()]
    page, below = _page(title, notes, 3.2, 0.5, right=0.45 + _inches(names))
    axes = below(0.05, 3.15)
    order = sorted(lines.values(), key=lambda found: -found[-1].row.images)
    styles = _styles([line[0].row for line in order])
    for line in order:
        rows = [found.row for found in line]
        ranges = [(r.workload.batch / r.seconds.p80, r.workload.batch / r.seconds.p20) for r in rows]
        x, y = [r.workload.batch for r in rows], [r.images for r in rows]
        _series(axes, x, y, ranges, _name(rows[0], several), styles[_sort(rows[0])])
    batches = sorted({key[-1] for key in group})
    _ticks(axes, batches)
    axes.set_xlabel("batch")
    axes.set_ylabel("images/s (more is better)")
    axes.set_ylim(bottom=0)
    _legend(axes)
    best = max(group.values(), key=lambda found: found.row.images).row
    yield (
        page,
        (
            f"Lines: images a second against batch for {title}. Most: {_name(best)}, "
            f"{significant(best.images)} at batch {best.workload.batch}."
        ),
    )


# ---------------------------------------------------------------- time against pixels


def _pixels(device: Device) -> Iterator[tuple[Figure, str]]:
    """Time against pixels with the fitted power, a line for each fit of the model and scope with the most."""
    groups: dict[tuple, list] = {}
    for run, fit, rows in device.fits:
        sort = {(r.workload.model, r.workload.batch, r.scope) for r in rows}
        if fit.axis == "pixels" and len(sort) == 1 and len(rows) > 1:
            groups.setdefault(sort.pop(), []).append((run, fit, rows))
    if not groups:
        return
    (model, batch, scope), fits = min(groups.items(), key=lambda g: (-len(g[1]), g[0]))
    title = f"{model} batch {batch}, {scope}, on {device.name}"
    every = [Found(run, row) for run, _, rows in fits for row in rows]
    notes = f"points: medians, bars p20 to p80 of rounds; lines: fitted powers; {runs_of(every)}"
    labels = [f"{_name(rows[0])}: pixels^{fit.exponent:.2f}" for _, fit, rows in fits]
    page, below = _page(title, notes, 3.2, 0.5, right=0.45 + _inches(labels))
    axes = below(0.05, 3.15)
    fits = sorted(fits, key=lambda f: -f[2][-1].seconds.p50)
    styles = _styles([rows[0] for _, _, rows in fits])
    for _, fit, rows in fits:
        x, y = [row.value for row in rows], [1e3 * row.seconds.p50 for row in rows]
        style = styles[_sort(rows[0])]
        # A fit of logarithms goes through their means.
        middle = [math.exp(sum(map(math.log, values)) / len(values)) for values in (x, y)]
        fitted = [middle[1] * (value / middle[0]) ** fit.exponent for value in x]
        ranges = [(1e3 * row.seconds.p20, 1e3 * row.seconds.p80) for row in rows]
        label = f"{_name(rows[0])}: pixels^{fit.exponent:.2f}"
        _series(axes, x, y, ranges, None, {**style, "ls": ""})
        axes.plot(x, fitted, **{**style, "marker": "", "zorder": 2})
        axes.plot([], [], label=label, **style)
    axes.set_yscale("log")
    _log(axes.yaxis)
    sizes = {row.value: f"{row.workload.height}x{row.workload.width}" for _, _, rows in fits for row in rows}
    _ticks(axes, sorted(sizes), lambda value: sizes[value])
    axes.tick_params(axis="x", rotation=30)
    axes.set_ylabel("ms")
    _legend(axes)
    powers = "; ".join(f"{_name(rows[0])} {fit.exponent:.2f}" for _, fit, rows in fits)
    yield page, f"Lines: time against pixels for {title}, both axes logarithmic. Fitted exponents: {powers}."


# ---------------------------------------------------------------- roofline


def _roofline(device: Device) -> Iterator[tuple[Figure, str]]:
    """Roofs and points of one run, since only limits of the same minutes say anything about a time."""
    timed = [f for f in device.rows if f.row.measured and f.row.flop and f.row.bytes and f.run.limits]
    if not timed:
        return
    run = max((f.run for f in timed), key=lambda r: (sum(f.run is r for f in timed), r.number))
    timed = [f for f in timed if f.run is run]
    scope = next(s for s in SCOPES if any(f.row.scope == s for f in timed))
    timed = [f for f in timed if f.row.scope == scope]
    widest: dict[tuple, float] = {}  # the most threads win
    for limit in sorted(run.limits, key=lambda limit: limit.threads or 0):
        widest[limit.what, limit.dtype] = limit.value
    bandwidth = next((value for (what, _), value in widest.items() if what == "bandwidth"), None)
    roofs = {dtype: value for (what, dtype), value in widest.items() if what == "matrix"}
    if not bandwidth or not roofs:
        return
    notes = f"{scope}; operations over compulsory bytes; roofs and points of the same run; {runs_of(timed)}"
    runners = sorted({f.row.runner for f in timed if not f.row.ours})
    right = 0.2 + _inches([*runners, "ours (all backends)"])
    page, below = _page(f"Roofline of {device.name}", notes, 3.4, 0.5, right=right)
    axes = below(0.05, 3.35)
    intensities = [f.row.flop / f.row.bytes for f in timed]
    ridges = [value / bandwidth for value in roofs.values()]
    left, right = 0.5 * min(intensities + ridges), 2 * max(intensities + ridges)
    for dtype, roof in roofs.items():
        colour = _DTYPES.get(dtype, _GREY)
        axes.plot(
            [left, roof / bandwidth, right], [left * bandwidth, roof, roof], color=colour, lw=1.4, zorder=2
        )
        axes.annotate(
            f"{dtype} {amount(roof, 'flop/s')}", (roof / bandwidth, roof), (6, -3),
            textcoords="offset points", fontsize=7, color=colour, va="top",
        )  # fmt: skip
    shapes = {runner: _MARKERS[i % len(_MARKERS)] for i, runner in enumerate(runners)}
    for _, row in sorted(timed, key=lambda f: f.row.ours):
        colour = _DTYPES.get(row.dtype, _GREY)
        axes.plot(
            row.flop / row.bytes, row.flop / row.seconds.p50, ls="", color=colour,
            marker="o" if row.ours else shapes[row.runner], ms=6.5 if row.ours else 4.5,
            mfc=colour if row.ours else "white", mec="white" if row.ours else colour, mew=0.9, zorder=5,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    lowest = min(row.flop / row.seconds.p50 for _, row in timed)
    axes.set_ylim(0.5 * min(lowest, *roofs.values()), 2 * max(roofs.values()))
    _log(axes.xaxis)
    _log(axes.yaxis, lambda value: amount(value, "flop/s"))
    axes.grid(color=_GRID, lw=0.7, zorder=0)
    _plain(axes)
    axes.set_xlabel(f"floating-point operations a byte; memory {amount(bandwidth, 'byte/s')}")
    handles = [Line2D([], [], ls="", marker="o", ms=6, color=_GREY, label="ours (all backends)")]
    handles += [
        Line2D([], [], ls="", marker=shape, ms=5, mfc="white", mec=_GREY, label=runner)
        for runner, shape in shapes.items()
    ]
    handles += [
        Line2D([], [], lw=5, color=_DTYPES.get(dtype, _GREY), label=dtype)
        for dtype in sorted({f.row.dtype for f in timed})
    ]
    _legend(axes, handles)
    best = max(timed, key=lambda f: f.row.flop / f.row.seconds.p50).row
    heights = listed(f"{dtype} {amount(roof, 'flop/s')}" for dtype, roof in roofs.items())
    yield (
        page,
        (
            f"Roofline of {device.name}, both axes logarithmic: {heights} and {amount(bandwidth, 'byte/s')} "
            f"as measured. Most reached: {_name(best)} at {best.workload}, "
            f"{amount(best.flop / best.seconds.p50, 'flop/s')}."
        ),
    )


# ---------------------------------------------------------------- predictions


def _ladder(target: str, predictions: list[Prediction], devices: list[Device]) -> tuple[Figure, str]:
    """Predicted intervals as bars, hollow where nothing was measured, with the measured medians."""
    groups: dict[tuple, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault((prediction.workload, prediction.dtype, prediction.scope), []).append(prediction)
    count = len(predictions)
    page, below = _page(
        f"Predictions for {target}",
        "bars: predicted, hollow where nothing was measured; diamonds: measured medians",
        0.26 * count + 0.5 * len(groups) - 0.15, 0.45, left=_inches(p.rung for p in predictions),
    )  # fmt: skip
    at, done = 0.0, 0
    times = [t for p in predictions for t in (p.low, p.high)]
    hits = {p: [f.row for _, f in search(devices, p) if f.row.measured] for p in predictions}
    times += [row.seconds.p50 for rows in hits.values() for row in rows]
    for (workload, dtype, scope), rungs in groups.items():
        tall = 0.26 * len(rungs)
        axes = below(at + 0.15, tall)
        at += tall + 0.5
        for i, rung in enumerate(rungs):
            rows = hits[rung]
            done += bool(rows)
            low, high = 1e6 * rung.low, 1e6 * rung.high
            fill = {"color": _PEER} if rows else {"fc": "none", "ec": _PEER, "ls": (0, (3, 2))}
            axes.barh(i, high - low, 0.55, left=low, lw=1.1, zorder=2, **fill)
            text = f"{low:g} to {high:g}" + ("" if rows else ", not measured")
            middles = [1e6 * row.seconds.p50 for row in rows]
            for row, middle in zip(rows, middles, strict=True):
                axes.plot(
                    [1e6 * row.seconds.p20, 1e6 * row.seconds.p80], [i, i], color=_OURS, lw=1.2, zorder=3
                )
                axes.plot(middle, i, marker="D", ms=5, mfc=_OURS, mec="white", mew=0.7, zorder=4)
            if rows:
                text += ", measured " + listed(significant(middle) for middle in middles)
            axes.annotate(
                text, (max(high, *(1e6 * r.seconds.p80 for r in rows), 0), i), (6, 0),
                textcoords="offset points", va="center", fontsize=7, color="#111111" if rows else _GREY,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(0.8e6 * min(times), 1.2e6 * max(times) * (max(times) / min(times)) ** 0.45)
        _log(axes.xaxis)
        axes.set_yticks(range(len(rungs)))
        axes.set_yticklabels([rung.rung for rung in rungs])
        axes.set_ylim(len(rungs) - 0.5, -0.5)
        axes.set_title(f"{workload}, {dtype}, {scope}", loc="left", fontsize=8.5, fontweight="bold", pad=3)
        axes.grid(axis="x", color=_GRID, lw=0.7, zorder=0)
        _plain(axes)
        axes.tick_params(axis="x", labelbottom=False, which="both", length=0)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("microseconds (logarithmic)")
    low, high = (
        significant(1e6 * t) for t in (min(p.low for p in predictions), max(p.high for p in predictions))
    )
    return page, (
        f"Bars: predicted times of {count} steps for {target}, from {low} to {high} microseconds; "
        f"{done} of them measured."
    )


# ---------------------------------------------------------------- what they share

_PLOTS: dict[str, Callable[[Device], Iterator[tuple[Figure, str]]]] = {
    "latency": _latency,
    "roofline": _roofline,
    "throughput": _throughput,
    "pixels": _pixels,
}


def _page(
    title: str, notes: str, tall: float, foot: float, left: float = 1.9, right: float = 0.25
) -> tuple[Figure, Callable[[float, float], Axes]]:
    """A page with a heading, and what puts axes on it: inches below the heading, and height."""
    across, head = 8.4, 0.55
    whole = head + tall + foot
    page = Figure(figsize=(across, whole))
    FigureCanvasAgg(page)
    page.patch.set_facecolor("white")
    page.text(0.012, 1 - 0.1 / whole, title, fontsize=11, fontweight="bold", va="top")
    page.text(0.012, 1 - 0.33 / whole, notes, fontsize=7.5, color=_GREY, va="top")
    if right > 1:
        left = 0.85

    def below(at: float, high: float) -> Axes:
        box = left / across, 1 - (head + at + high) / whole, (across - left - right) / across, high / whole
        return page.add_axes(box)

    return page, below


def _styles(rows: list) -> dict[tuple, dict]:
    """How the line of each runner and dtype looks: a colour for each runner, dashes for the dtype."""
    runners = sorted({row.runner for row in rows if not row.ours})
    ours = sorted({row.runner for row in rows if row.ours})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(runners)}
    reds = {name: (_OURS, "#7d1d0d", "#ee8a62")[i % 3] for i, name in enumerate(ours)}
    return {
        _sort(row): {
            "color": reds[row.runner] if row.ours else colours[row.runner],
            "lw": 2.2 if row.ours else 1.2,
            "ls": _DASHES.get(row.dtype, "-"),
            "marker": "o",
            "ms": 4.5 if row.ours else 3.2,
            "zorder": 4 if row.ours else 3,
        }
        for row in rows
    }


def _series(axes: Axes, x: list, y: list, ranges: list, label: str | None, style: dict) -> None:
    axes.plot(x, y, label=label, **style)
    axes.vlines(x, *zip(*ranges, strict=True), color=style["color"], lw=0.8, zorder=2)


def _ticks(axes: Axes, values: list, text: Callable = str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values)
    axes.set_xticklabels([text(value) for value in values])
    axes.grid(color=_GRID, lw=0.7, zorder=0)
    _plain(axes)


def _log(axis, text: Callable = "{:g}".format) -> None:
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def _legend(axes: Axes, handles: list | None = None) -> None:
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=7,
        handlelength=2.6, borderaxespad=0,
    )  # fmt: skip


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(labelsize=7.5, length=2, color="#999999")
    axes.set_axisbelow(True)


def _inches(names: Iterable[str]) -> float:
    """Width of the longest of some labels of 7 to 8 points."""
    return min(3.6, 0.2 + 0.072 * max(map(len, names)))


def _sort(row) -> tuple[str, str]:
    return row.runner, row.dtype


def _name(row, threads: bool = False) -> str:
    return f"{row.runner} {row.dtype}" + (f", {row.threads} threads" if threads else "")


def _by_time(found: Found) -> tuple:
    return found.row.seconds.p50, found.row.runner, found.row.dtype, str(found.row.threads)
