"""Plots of the benchmark report: bars, throughput, roofline, scaling, predictions. Needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.bars import latency, six
from bench.measured import SCOPES, Device, Found, Prediction, search
from bench.page import (
    GREY,
    GRID,
    OURS,
    PEER,
    add_legend,
    draw_series,
    inches,
    line_styles,
    log_axis,
    new_page,
    plain_axes,
    row_name,
    runner_and_dtype,
    set_ticks,
)
from bench.words import amount, listed, runs_of, significant
from stdc_fast.viewer.save import FIXED

_DTYPES = {
    "float32": "#0072b2",
    "bfloat16": "#009e73",
    "float16": "#cc79a7",
    "float64": "#7a5c2e",
    "int8": "#e69f00",
}
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
                group[(*runner_and_dtype(row), row.threads, row.workload.batch)] = found
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
    names = [row_name(line[0].row, several) for line in lines.values()]
    page, below = new_page(title, notes, 3.2, 0.5, right=0.45 + inches(names))
    axes = below(0.05, 3.15)
    order = sorted(lines.values(), key=lambda found: -found[-1].row.images)
    styles = line_styles([line[0].row for line in order])
    for line in order:
        rows = [found.row for found in line]
        ranges = [(r.workload.batch / r.seconds.p80, r.workload.batch / r.seconds.p20) for r in rows]
        x, y = [r.workload.batch for r in rows], [r.images for r in rows]
        draw_series(axes, x, y, ranges, row_name(rows[0], several), styles[runner_and_dtype(rows[0])])
    batches = sorted({key[-1] for key in group})
    set_ticks(axes, batches)
    axes.set_xlabel("batch")
    axes.set_ylabel("images/s (more is better)")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    best = max(group.values(), key=lambda found: found.row.images).row
    yield (
        page,
        (
            f"Lines: images a second against batch for {title}. Most: {row_name(best)}, "
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
    labels = [f"{row_name(rows[0])}: pixels^{fit.exponent:.2f}" for _, fit, rows in fits]
    page, below = new_page(title, notes, 3.2, 0.5, right=0.45 + inches(labels))
    axes = below(0.05, 3.15)
    fits = sorted(fits, key=lambda f: -f[2][-1].seconds.p50)
    styles = line_styles([rows[0] for _, _, rows in fits])
    for _, fit, rows in fits:
        x, y = [row.value for row in rows], [1e3 * row.seconds.p50 for row in rows]
        style = styles[runner_and_dtype(rows[0])]
        # A fit of logarithms goes through their means.
        middle = [math.exp(sum(map(math.log, values)) / len(values)) for values in (x, y)]
        fitted = [middle[1] * (value / middle[0]) ** fit.exponent for value in x]
        ranges = [(1e3 * row.seconds.p20, 1e3 * row.seconds.p80) for row in rows]
        label = f"{row_name(rows[0])}: pixels^{fit.exponent:.2f}"
        draw_series(axes, x, y, ranges, None, {**style, "ls": ""})
        axes.plot(x, fitted, **{**style, "marker": "", "zorder": 2})
        axes.plot([], [], label=label, **style)
    axes.set_yscale("log")
    log_axis(axes.yaxis)
    sizes = {row.value: f"{row.workload.height}x{row.workload.width}" for _, _, rows in fits for row in rows}
    set_ticks(axes, sorted(sizes), lambda value: sizes[value])
    axes.tick_params(axis="x", rotation=30)
    axes.set_ylabel("ms")
    add_legend(axes)
    powers = "; ".join(f"{row_name(rows[0])} {fit.exponent:.2f}" for _, fit, rows in fits)
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
    right = 0.2 + inches([*runners, "ours (all backends)"])
    page, below = new_page(f"Roofline of {device.name}", notes, 3.4, 0.5, right=right)
    axes = below(0.05, 3.35)
    intensities = [f.row.flop / f.row.bytes for f in timed]
    ridges = [value / bandwidth for value in roofs.values()]
    left, right = 0.5 * min(intensities + ridges), 2 * max(intensities + ridges)
    for dtype, roof in roofs.items():
        colour = _DTYPES.get(dtype, GREY)
        axes.plot(
            [left, roof / bandwidth, right], [left * bandwidth, roof, roof], color=colour, lw=1.4, zorder=2
        )
        axes.annotate(
            f"{dtype} {amount(roof, 'flop/s')}", (roof / bandwidth, roof), (6, -3),
            textcoords="offset points", fontsize=7, color=colour, va="top",
        )  # fmt: skip
    shapes = {runner: _MARKERS[i % len(_MARKERS)] for i, runner in enumerate(runners)}
    for _, row in sorted(timed, key=lambda f: f.row.ours):
        colour = _DTYPES.get(row.dtype, GREY)
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
    log_axis(axes.xaxis)
    log_axis(axes.yaxis, lambda value: amount(value, "flop/s"))
    axes.grid(color=GRID, lw=0.7, zorder=0)
    plain_axes(axes)
    axes.set_xlabel(f"floating-point operations a byte; memory {amount(bandwidth, 'byte/s')}")
    handles = [Line2D([], [], ls="", marker="o", ms=6, color=GREY, label="ours (all backends)")]
    handles += [
        Line2D([], [], ls="", marker=shape, ms=5, mfc="white", mec=GREY, label=runner)
        for runner, shape in shapes.items()
    ]
    handles += [
        Line2D([], [], lw=5, color=_DTYPES.get(dtype, GREY), label=dtype)
        for dtype in sorted({f.row.dtype for f in timed})
    ]
    add_legend(axes, handles)
    best = max(timed, key=lambda f: f.row.flop / f.row.seconds.p50).row
    heights = listed(f"{dtype} {amount(roof, 'flop/s')}" for dtype, roof in roofs.items())
    yield (
        page,
        (
            f"Roofline of {device.name}, both axes logarithmic: {heights} and {amount(bandwidth, 'byte/s')} "
            f"as measured. Most reached: {row_name(best)} at {best.workload}, "
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
    page, below = new_page(
        f"Predictions for {target}",
        "bars: predicted, hollow where nothing was measured; diamonds: measured medians",
        0.26 * count + 0.5 * len(groups) - 0.15, 0.45, left=inches(p.rung for p in predictions),
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
            fill = {"color": PEER} if rows else {"fc": "none", "ec": PEER, "ls": (0, (3, 2))}
            axes.barh(i, high - low, 0.55, left=low, lw=1.1, zorder=2, **fill)
            text = f"{low:g} to {high:g}" + ("" if rows else ", not measured")
            middles = [1e6 * row.seconds.p50 for row in rows]
            for row, middle in zip(rows, middles, strict=True):
                axes.plot(
                    [1e6 * row.seconds.p20, 1e6 * row.seconds.p80], [i, i], color=OURS, lw=1.2, zorder=3
                )
                axes.plot(middle, i, marker="D", ms=5, mfc=OURS, mec="white", mew=0.7, zorder=4)
            if rows:
                text += ", measured " + listed(significant(middle) for middle in middles)
            axes.annotate(
                text, (max(high, *(1e6 * r.seconds.p80 for r in rows), 0), i), (6, 0),
                textcoords="offset points", va="center", fontsize=7, color="#111111" if rows else GREY,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(0.8e6 * min(times), 1.2e6 * max(times) * (max(times) / min(times)) ** 0.45)
        log_axis(axes.xaxis)
        axes.set_yticks(range(len(rungs)))
        axes.set_yticklabels([rung.rung for rung in rungs])
        axes.set_ylim(len(rungs) - 0.5, -0.5)
        axes.set_title(f"{workload}, {dtype}, {scope}", loc="left", fontsize=8.5, fontweight="bold", pad=3)
        axes.grid(axis="x", color=GRID, lw=0.7, zorder=0)
        plain_axes(axes)
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


# ---------------------------------------------------------------- all of them

_PLOTS: dict[str, Callable[[Device], Iterator[tuple[Figure, str]]]] = {
    "six": six,
    "latency": latency,
    "roofline": _roofline,
    "throughput": _throughput,
    "pixels": _pixels,
}
