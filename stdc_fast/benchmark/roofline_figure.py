"""The figure of ``stdc-fast benchmark --roofline``: ops below measured roofs. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from stdc_fast.benchmark.table import ms
from stdc_fast.viewer.facts import short
from stdc_fast.viewer.kinds import COLOURS

#: Of the ops in the list beside a panel, which have their number at their point.
LISTED = 14

_ROOFS = {"float32": "#0072b2", "bfloat16": "#009e73", "float16": "#cc79a7", "int8": "#e69f00"}
_GREY = "#555555"
#: Square points of a point's area, of all the time.
_AREA = 2600
_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7))
# All in inches.
_ACROSS, _LEFT, _RIGHT, _HEAD, _TALL, _GAP, _FOOT = 10.0, 0.8, 3.6, 0.72, 3.9, 0.75, 0.72


def figure(record: dict, rows: list[dict]) -> Figure:
    """A panel for each of ``rows``, which were measured."""
    whole = _HEAD + len(rows) * (_TALL + _GAP) - _GAP + _FOOT
    page = Figure(figsize=(_ACROSS, whole))
    FigureCanvasAgg(page)
    page.patch.set_facecolor("white")
    first = rows[0]
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    title = f"{first['model']} {first['height']}x{first['width']}, batch {first['batch']}, {first['scope']}"
    where = f"{record['header']['device_name']}, {threads}, commit {record['header']['commit']}"
    page.text(0.012, 1 - 0.1 / whole, title, fontsize=11, fontweight="bold", va="top")
    page.text(0.012, 1 - 0.34 / whole, where, fontsize=7.5, color=_GREY, va="top")
    notes = (
        "A point is an op, its area the share of a frame's time. Roofs: torch's matrix products and a copy, "
        "in the same run. FLOP are those of direct\nconvolution, bytes those of the plan, each map and "
        "weight once. Points above a roof: maps that stay in caches; fewer products than direct convolution."
    )
    page.text(0.012, 0.07 / whole, notes, fontsize=7, color=_GREY, va="bottom")
    for i, row in enumerate(rows):
        low = whole - _HEAD - (i + 1) * _TALL - i * _GAP
        box = _LEFT / _ACROSS, low / whole, (_ACROSS - _LEFT - _RIGHT) / _ACROSS, (_TALL - 0.2) / whole
        _panel(page.add_axes(box), row, _roofs(record, rows, row["threads"]))
    return page


def _roofs(record: dict, rows: list[dict], threads: int) -> tuple[float | None, dict[str, float]]:
    """Bandwidth, and the matrix rate of each dtype that a row has."""
    limits = [entry for entry in record["limits"] if entry["threads"] == threads]
    dtypes = {dtype for row in rows for dtype in _dtypes(row)}
    bandwidth = next((e["value"] for e in limits if e["what"] == "bandwidth"), None)
    return bandwidth, {e["dtype"]: e["value"] for e in limits if e["dtype"] in dtypes}


def _dtypes(row: dict) -> set[str]:
    """In which dtypes the ops of a row multiply."""
    return {op.get("dtype", row["dtype"]) for op in row["ops"]}


def _panel(axes: Axes, row: dict, limits: tuple[float | None, dict[str, float]]) -> None:
    bandwidth, roofs = limits
    whole = row["totals"]["clocked"]["seconds"]
    points = [
        (number, op)
        for number, op in enumerate(row["ops"])
        if op["flop"] and op["bytes"] and op["seconds"]["p50"] > 0
    ]
    x = [op["flop"] / op["bytes"] for _, op in points]
    y = [op["flop"] / op["seconds"]["p50"] for _, op in points]
    ridges = [roof / bandwidth for roof in roofs.values()] if bandwidth else []
    left, right = 0.4 * min(x + ridges, default=1), 2.5 * max(x + ridges, default=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    heights = [*y, *roofs.values()]
    axes.set_ylim(0.4 * min(heights, default=1), 2.2 * max(heights, default=1))
    for dtype, roof in roofs.items():
        own = dtype in _dtypes(row)
        style = {"color": _ROOFS.get(dtype, _GREY), "lw": 1.8 if own else 0.8, "zorder": 2}
        corner = roof / bandwidth if bandwidth else left
        start = [left * bandwidth, roof, roof] if bandwidth else [roof] * 3
        axes.plot([left, corner, right], start, ls="-" if own else (0, (4, 2)), **style)
        axes.annotate(
            f"{dtype}\n{roof / 1e9:.0f} GFLOP/s", (right, roof), (4, 0), textcoords="offset points",
            fontsize=7, color=style["color"], va="center", fontweight="bold" if own else "normal",
        )  # fmt: skip
    shares = [op["seconds"]["p50"] / whole for _, op in points]
    small = [op.get("dtype") == "int8" for _, op in points]  # these have an edge in the colour of their roof
    axes.scatter(
        x, y, s=[3.14 * _radius(share) ** 2 for share in shares], c=[_colour(op["kind"]) for _, op in points],
        alpha=0.75, edgecolors=[_ROOFS["int8"] if one else "#111111" for one in small],
        linewidths=[2.0 if one else 0.5 for one in small], zorder=4,
    )  # fmt: skip
    of_memory = f"; memory {bandwidth / 1e9:.1f} GB/s" if bandwidth else ""
    axes.set_xlabel(f"FLOP a byte{of_memory}", fontsize=8, labelpad=2)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    _scale(axes.xaxis, "{:g}".format)
    _scale(axes.yaxis, lambda value: f"{value / 1e9:g}")
    axes.grid(color="#e4e4e4", lw=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=7.5, length=2)
    frame = row["totals"]["frame"]
    reached = f", {frame['limit']['percent']:.0f} % of the matrix rate" if frame["limit"] else ""
    heading = f"{row['dtype']} ({row['isa']}): {ms(frame['seconds'])} ms, "
    heading += f"{frame['flop'] / frame['seconds'] / 1e9:.0f} GFLOP/s{reached}"
    axes.set_title(heading, loc="left", fontsize=8.5, fontweight="bold", pad=4)
    main = {number for number, _ in sorted(points, key=lambda p: -p[1]["seconds"]["p50"])[:LISTED]}
    _number(axes, [(n, a, b, s) for (n, _), a, b, s in zip(points, x, y, shares, strict=True) if n in main])
    _list(axes, row, main, whole)


def _number(axes: Axes, points: list[tuple[int, float, float, float]]) -> None:
    """Numbers beside points (number, x, y, share), where they hide nothing: the largest choose first."""
    renderer = axes.figure.canvas.get_renderer()
    pixels = axes.figure.dpi / 72
    taken: list[Bbox] = []
    for _, x, y, share in points:
        middle, half = axes.transData.transform((x, y)), 0.8 * _radius(share) * pixels
        taken.append(Bbox([middle - half, middle + half]))
    for number, x, y, share in sorted(points, key=lambda p: -p[3]):
        away = 2 + _radius(share)
        for far in (0, 7, 14, 21, 28):
            for dx, dy in _AROUND:
                at = (away + far) * dx, (away + far) * dy
                text = axes.annotate(
                    str(number), (x, y), at, textcoords="offset points", fontsize=7, zorder=6,
                    ha="left" if dx > 0 else "right" if dx < 0 else "center",
                    va="bottom" if dy > 0 else "top" if dy < 0 else "center",
                    arrowprops={"arrowstyle": "-", "lw": 0.4, "color": _GREY} if far else None,
                )  # fmt: skip
                box = text.get_window_extent(renderer)
                if not any(box.overlaps(other) for other in taken):
                    break
                text.remove()
            else:
                continue
            taken.append(box)
            break


def _list(axes: Axes, row: dict, main: set[int], whole: float) -> None:
    """At the right: kinds by colour, numbered ops with their share, and what has no place in the panel."""
    kinds = dict.fromkeys(op["kind"] for op in row["ops"] if op["flop"])
    handles = [
        Line2D([], [], ls="", marker="o", ms=5, mfc=_colour(kind), mec="#111111", mew=0.5, label=kind)
        for kind in kinds
    ]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.14, 1.02), frameon=False, fontsize=7, ncols=2,
        borderaxespad=0, handletextpad=0.3, columnspacing=1,
    )  # fmt: skip
    lines = [
        f"{number:2d}  {100 * op['seconds']['p50'] / whole:4.1f} %  {short(op['name'])}"
        for number, op in enumerate(row["ops"])
        if number in main
    ]
    bare: dict[str, float] = {}
    for op in row["ops"]:
        if not op["flop"]:
            bare[op["kind"]] = bare.get(op["kind"], 0) + op["seconds"]["p50"]
    others = sum(op["seconds"]["p50"] for i, op in enumerate(row["ops"]) if op["flop"] and i not in main)
    lines += ["", f"    {100 * others / whole:4.1f} %  points without a number"]
    lines += [f"    {100 * spent / whole:4.1f} %  {kind} (no FLOP: no point)" for kind, spent in bare.items()]
    rest = row["totals"]["rest"]["seconds"]
    lines.append(f"    {100 * rest / whole:4.1f} %  waiting, Python")
    axes.text(
        1.15, 0.97 - 0.055 * -(-len(kinds) // 2), "\n".join(lines), transform=axes.transAxes, fontsize=6.5,
        family="DejaVu Sans Mono", va="top", linespacing=1.25,
    )  # fmt: skip


def _radius(share: float) -> float:
    """Of a point, in typographic points."""
    return (max(6, _AREA * share) / 3.14) ** 0.5


def _colour(kind: str) -> str:
    return COLOURS.get(kind, _GREY)


def _scale(axis, text: Callable[[float], str]) -> None:
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
