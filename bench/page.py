"""What the benchmark report's plots share: colours, pages, axes, legends and names of runners."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.measured import Found

OURS = "#c8452b"
PEER = "#8fa3b8"
GREY = "#555555"
GRID = "#e4e4e4"
# Far apart also for the colour-blind (Okabe and Ito), without the red that is ours.
_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#7a5c2e", "#444444", "#9a8fd0")
_DASHES = {"float32": "-", "bfloat16": (0, (5, 1.6)), "float16": (0, (3, 1.2, 1, 1.2)), "int8": ":"}


def new_page(
    title: str, notes: str, tall: float, foot: float, left: float = 1.9, right: float = 0.25
) -> tuple[Figure, Callable[[float, float], Axes]]:
    """A page with a heading, and what puts axes on it: inches below the heading, and height."""
    across, head = 8.4, 0.55
    whole = head + tall + foot
    page = Figure(figsize=(across, whole))
    FigureCanvasAgg(page)
    page.patch.set_facecolor("white")
    page.text(0.012, 1 - 0.1 / whole, title, fontsize=11, fontweight="bold", va="top")
    page.text(0.012, 1 - 0.33 / whole, notes, fontsize=7.5, color=GREY, va="top")
    if right > 1:
        left = 0.85

    def below(at: float, high: float) -> Axes:
        box = left / across, 1 - (head + at + high) / whole, (across - left - right) / across, high / whole
        return page.add_axes(box)

    return page, below


def line_styles(rows: list) -> dict[tuple, dict]:
    """How the line of each runner and dtype looks: a colour for each runner, dashes for the dtype."""
    runners = sorted({row.runner for row in rows if not row.ours})
    ours = sorted({row.runner for row in rows if row.ours})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(runners)}
    reds = {name: (OURS, "#7d1d0d", "#ee8a62")[i % 3] for i, name in enumerate(ours)}
    return {
        runner_and_dtype(row): {
            "color": reds[row.runner] if row.ours else colours[row.runner],
            "lw": 2.2 if row.ours else 1.2,
            "ls": _DASHES.get(row.dtype, "-"),
            "marker": "o",
            "ms": 4.5 if row.ours else 3.2,
            "zorder": 4 if row.ours else 3,
        }
        for row in rows
    }


def draw_series(axes: Axes, x: list, y: list, ranges: list, label: str | None, style: dict) -> None:
    axes.plot(x, y, label=label, **style)
    axes.vlines(x, *zip(*ranges, strict=True), color=style["color"], lw=0.8, zorder=2)


def set_ticks(axes: Axes, values: list, text: Callable = str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values)
    axes.set_xticklabels([text(value) for value in values])
    axes.grid(color=GRID, lw=0.7, zorder=0)
    plain_axes(axes)


def log_axis(axis, text: Callable = "{:g}".format) -> None:
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def add_legend(axes: Axes, handles: list | None = None) -> None:
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=7,
        handlelength=2.6, borderaxespad=0,
    )  # fmt: skip


def plain_axes(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(labelsize=7.5, length=2, color="#999999")
    axes.set_axisbelow(True)


def inches(names: Iterable[str]) -> float:
    """Width of the longest of some labels of 7 to 8 points."""
    return min(3.6, 0.2 + 0.072 * max(map(len, names)))


def runner_and_dtype(row) -> tuple[str, str]:
    return row.runner, row.dtype


def row_name(row, threads: bool = False) -> str:
    return f"{row.runner} {row.dtype}" + (f", {row.threads} threads" if threads else "")


def by_time(found: Found) -> tuple:
    return found.row.seconds.p50, found.row.runner, found.row.dtype, str(found.row.threads)
