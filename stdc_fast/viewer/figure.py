"""The figure of :func:`stdc_fast.viewer.show.draw`: data flow above, arena below. Needs matplotlib."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke

from stdc_fast.plan.ops import View
from stdc_fast.plan.plan import Plan, overlap
from stdc_fast.viewer.facts import Facts, kilo, short, sort_of
from stdc_fast.viewer.kinds import COLOURS

# Of maps, by resolution: warm, as the colours of ops are cool.
_STRIDES = {
    1: "#e0b000",
    2: "#f59b2f",
    4: "#e0592f",
    8: "#b32d5c",
    16: "#6f1d74",
    32: "#2b1247",
    0: "#808080",
}
_INK = "#111111"

# Ops are 1 apart, and so are rows.
_BOX = 0.72  # width of an op
_TALL = 0.68  # height of the op with the most multiply-adds
_LOW = 0.14  # of one with none
_LANE = 0.075  # from lane to lane


class Box(NamedTuple):
    """Where an op is: its centre and height."""

    x: float
    y: float
    tall: float


class Wire(NamedTuple):
    """A line through ``points`` for a buffer of that stride."""

    points: list[tuple[float, float]]
    stride: int
    thick: bool = False


class Note(NamedTuple):
    """Channels of a concatenation, written below (x, y)."""

    x: float
    y: float
    stride: int
    channels: int


def figure(facts: Facts) -> Figure:
    """Both panels over the same axis of ops, with title, totals and legend."""
    plan, count = facts.plan, len(facts.plan.ops)
    rows = _rows(plan)
    present = {sort_of(op) for op in plan.ops}
    patches = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in present]
    # All in inches.
    across = max(9.0, 1.6 + 0.275 * count)
    step, columns = (across - 1) / (count + 1.5), min(len(patches), int(across - 1))
    flow, memory, foot = 0.3 + 0.56 * len(rows), 2.9, 0.78
    head = 1.3 + 0.18 * -(-len(patches) // columns)
    tall = head + flow + 0.12 + memory + foot
    page = Figure(figsize=(across, tall))
    FigureCanvasAgg(page)
    left, wide = 0.85 / across, (across - 1) / across
    lower = page.add_axes((left, foot / tall, wide, memory / tall))
    upper = page.add_axes((left, (foot + memory + 0.12) / tall, wide, flow / tall), sharex=lower)
    lower.set_xlim(-1.8, count - 0.3)
    for i, (first, last, name) in enumerate(_stages(plan)):
        if i % 2 == 0:
            for axes in (upper, lower):
                axes.axvspan(first - 0.5, last + 0.5, color="#f2f2f2", lw=0, zorder=0)
        fits = len(name) * 0.075 < (last - first + 1) * step
        upper.annotate(
            name, ((first + last) / 2, 1), (0, 3), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="bottom", rotation=0 if fits else 90, fontsize=7.5,
        )  # fmt: skip
    _draw_flow(upper, facts, rows)
    _draw_arena(lower, facts)
    arena = facts.arena
    summary = (
        f"{2 * facts.macs / 1e9:.2f} GFLOP, {facts.weights / 1e6:.2f} million weights, "
        f"{facts.bytes / 1e6:.1f} MB moved; arena {arena.size / 1e6:.2f} MB "
        f"(lower bound {arena.live / 1e6:.2f}, unshared {facts.unshared / 1e6:.2f})"
    )
    caption = (
        "Above: a box is as high as the square root of its multiply-adds; small numbers are channels; thick "
        "lines are\nbuffers that several ops write, or that wait for a later op. "
        "Below: the black line is the bytes alive."
    )
    grey = {"color": "#444444", "fontsize": 8.5}
    page.text(left, 1 - 0.1 / tall, facts.title, fontsize=12, fontweight="bold", va="top")
    page.text(left, 1 - 0.35 / tall, summary, va="top", **grey)
    page.text(left, 0.06 / tall, caption, va="bottom", **{**grey, "fontsize": 7.5})
    page.legend(
        handles=patches, loc="upper left", bbox_to_anchor=(left, 1 - 0.56 / tall), ncols=columns,
        frameon=False, fontsize=8, handlelength=1.1, handleheight=1.1, columnspacing=1.2, handletextpad=0.5,
        borderaxespad=0, borderpad=0,
    )  # fmt: skip
    return page


def _rows(plan: Plan) -> dict[int, int]:
    """The row of each stride, vectors last."""
    strides = sorted({b.stride for b in plan.buffers.values()}, key=lambda s: (s == 0, s))
    return {stride: row for row, stride in enumerate(strides)}


def _stages(plan: Plan) -> list[tuple[int, int, str]]:
    """(first op, last op, name) of neighbours that begin alike."""
    names = []
    for op in plan.ops:
        parts = short(op.name).split(".")
        names.append(".".join(parts[: 2 if parts[0] == "features" else 1]))
    found, first = [], 0
    for name, same in itertools.groupby(names):
        last = first + len(list(same)) - 1
        found.append((first, last, name))
        first = last + 1
    return found


def _draw_flow(axes: Axes, facts: Facts, rows: dict[int, int]) -> None:
    plan = facts.plan
    most = max([cost.macs for cost in facts.costs] + [1])
    boxes: dict[int, Box] = {}
    for i, (op, cost) in enumerate(zip(plan.ops, facts.costs, strict=True)):
        y = rows[plan.buffers[op.writes[0].buffer].stride]
        tall = max(_LOW, _TALL * (cost.macs / most) ** 0.5)
        boxes[i] = Box(i, y, tall)
        corner, colour = (i - _BOX / 2, y - tall / 2), COLOURS[sort_of(op)]
        axes.add_patch(Rectangle(corner, _BOX, tall, fc=colour, ec=_INK, lw=0.5, zorder=4))
        axes.annotate(
            str(op.writes[0].channels), (i, y - tall / 2), (0, 1.2), textcoords="offset points", ha="center",
            va="bottom", fontsize=6, color="#444444", zorder=5,
        )  # fmt: skip
    for k, name in enumerate(plan.inputs):
        y = rows[plan.buffers[name].stride] + 0.3 * (k - (len(plan.inputs) - 1) / 2)
        boxes[-1 - k] = Box(-1, y, 0)
        axes.text(-1.05, y, name, ha="center", va="center", fontsize=7, zorder=5,
                  bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": _INK, "lw": 0.5})  # fmt: skip
    wires, notes = _wires(plan, rows, boxes)
    for wire in wires:
        _draw_wire(axes, wire)
    for note in notes:
        axes.annotate(
            str(note.channels), (note.x, note.y), (0, -1.8), textcoords="offset points", ha="left", va="top",
            fontsize=6.5, fontweight="bold", color=_STRIDES.get(note.stride, _INK), zorder=5,
        )  # fmt: skip
    axes.set_ylim(len(rows) - 0.42, -0.55)
    axes.set_yticks(list(rows.values()))
    labels = []
    for stride in rows:
        size = "x".join(str(-(-n // stride)) for n in (facts.height, facts.width)) if stride else ""
        labels.append(f"1/{stride}\n{size}" if stride else "vector")
    axes.set_yticklabels(labels)
    for stride, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_color(_STRIDES.get(stride, _INK))
        label.set_fontweight("bold")
    axes.tick_params(length=0, labelbottom=False)
    _frame(axes)


def _wires(plan: Plan, rows: dict[int, int], boxes: dict[int, Box]) -> tuple[list[Wire], list[Note]]:
    """Lines for all that is read. ``boxes`` has the ops by number, and the inputs as -1, -2, ...

    A line runs along a row and changes rows between two ops. Where ops are in its way, and for what
    several ops write, it runs in a lane beside the row, to which writers and readers have stubs.
    """

    def clear(y: float, after: int, before: int) -> bool:
        return not any(boxes[i][1] == y for i in range(after + 1, before))

    def writers(view: View) -> list[int]:
        if view.buffer in plan.inputs:
            return [-1 - plan.inputs.index(view.buffer)]
        return [i for i, op in enumerate(plan.ops) if any(overlap(view, v) for v in op.writes)]

    ends: dict[int, list[Wire]] = {}  # by reader, up to the gap before it
    lanes: dict[str, tuple[set[int], list[int]]] = {}
    for i, op in enumerate(plan.ops):
        for view in dict.fromkeys(op.reads):
            found, stride = writers(view), plan.buffers[view.buffer].stride
            (x0, y0, _), y1 = boxes[found[0]], boxes[i].y
            right = x0 + _BOX / 2 if found[0] >= 0 else x0
            if len(found) == 1 and clear(y0, found[0], i):
                points = [(right, y0), (i - 0.5, y0)]
            elif len(found) == 1 and clear(y1, found[0], i):
                points = [(right, y0), (x0 + 0.42, y0), (x0 + 0.42, y1), (i - 0.5, y1)]
            else:
                sources, readers = lanes.setdefault(view.buffer, (set(), []))
                sources.update(found)
                readers.append(i)
                continue
            ends.setdefault(i, []).append(Wire(points, stride))

    wires: list[Wire] = []
    notes: list[Note] = []
    taken: dict[int, list[float]] = {}  # by stride, where each lane is free from
    for buffer, (sources, readers) in lanes.items():
        stride = plan.buffers[buffer].stride
        start, stop = boxes[min(sources)].x + 0.18, readers[-1] - 0.5
        used = taken.setdefault(stride, [])
        slot = next((k for k, end in enumerate(used) if end < start), len(used))
        used[slot : slot + 1] = [stop]
        lane = rows[stride] + (0.39 + _LANE * slot) * (1 if stride else -1)
        wires.append(Wire([(start, lane), (stop, lane)], stride, True))
        for x, y, tall in (boxes[source] for source in sources):
            edge = y + (tall / 2 if lane > y else -tall / 2)
            wires.append(Wire([(x + 0.18, edge), (x + 0.18, lane)], stride, True))
        for reader in readers:
            end = Wire([(reader - 0.6, lane), (reader - 0.5, lane)], stride, True)
            ends.setdefault(reader, []).append(end)
        if len(sources) > 1 and stride:
            notes.append(Note(start + 0.06, lane, stride, plan.buffers[buffer].channels))
    for k, note in enumerate(notes):
        beside = [
            w.points[0][1] for w in wires
            if w.stride == note.stride and w.points[0][1] == w.points[1][1]
            and w.points[0][0] < note.x + 0.9 and w.points[1][0] > note.x
        ]  # fmt: skip
        notes[k] = note._replace(y=max(beside))

    for i, incoming in ends.items():
        x, y, tall = boxes[i]
        incoming.sort(key=lambda wire: wire.points[-1][1])
        above = sum(wire.points[-1][1] < y for wire in incoming)
        apart = min(0.08, 0.8 * tall / len(incoming))
        for k, wire in enumerate(incoming):
            # What comes from furthest turns last, so that no two cross.
            turn = x - 0.5 + min(0.12, 0.06 * (above - 1 - k if k < above else k - above))
            port = y + apart * (k - (len(incoming) - 1) / 2)
            *points, (_, level) = wire.points
            wires.append(wire._replace(points=[*points, (turn, level), (turn, port), (x - _BOX / 2, port)]))
    return wires, notes


def _draw_wire(axes: Axes, wire: Wire) -> None:
    """With rounded corners."""

    def towards(a: float, b: float, most: float) -> float:
        return a + max(-most, min(most, (b - a) / 2))

    points = wire.points
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x, y), (x1, y1) in zip(points, points[1:], points[2:], strict=False):
        before = towards(x, x0, 0.12), towards(y, y0, 0.08)
        after = towards(x, x1, 0.12), towards(y, y1, 0.08)
        vertices += [before, (x, y), after]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
    width = (2.0 if wire.thick else 1.3) if wire.stride else 1.0
    colour = _STRIDES.get(wire.stride, _INK)
    patch = PathPatch(path, fc="none", ec=colour, lw=width, capstyle="round", joinstyle="round", zorder=2)
    axes.add_patch(patch)


def _draw_arena(axes: Axes, facts: Facts) -> None:
    arena, plan, count = facts.arena, facts.plan, len(facts.plan.ops)
    axes.set_ylim(0, max(arena.size, 1) / 1e3 * 1.1)
    alive = [0.0] * count
    for name, span in arena.spans.items():
        first, last = arena.lifetimes[name]
        for i in range(first, last + 1):
            alive[i] += (span.stop - span.start) / 1e3
    for name, span in arena.spans.items():
        (first, last), stride = arena.lifetimes[name], plan.buffers[name].stride
        place = first - 0.5, span.start / 1e3, last - first + 1, (span.stop - span.start) / 1e3
        colour = _STRIDES.get(stride, _INK)
        axes.add_patch(Rectangle(place[:2], *place[2:], fc=colour, ec="white", lw=0.6, zorder=2))
        label = short(name).removesuffix(".bn")
        texts = [f"{label}\n{kilo(span.stop - span.start)} KB", label]
        _write_into(axes, place, texts, _INK if 0 < stride < 4 else "white", alive)
    edges = [i - 0.5 for i in range(count + 1)]
    line = axes.stairs(alive, edges, color=_INK, lw=1.2, zorder=4, baseline=None)
    line.set_path_effects([Stroke(linewidth=2.6, foreground="white"), Normal()])
    axes.axhline(arena.size / 1e3, color=_INK, lw=0.8, ls=(0, (4, 3)), zorder=3)
    axes.annotate(
        f"arena {kilo(arena.size)} KB, lower bound {kilo(arena.live)} KB", (1, arena.size / 1e3), (-2, 2),
        xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="bottom", fontsize=7.5,
    )  # fmt: skip
    axes.set_xticks(range(0, count, 1 if count <= 120 else 5))
    axes.tick_params(length=2, labelsize=7)
    axes.set_xlabel("op number", labelpad=1)
    axes.set_ylabel("offset, KB")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _frame(axes)


def _write_into(
    axes: Axes, place: tuple[float, float, float, float], texts: list[str], colour: str, alive: list[float]
) -> None:
    """The first text that fits into the rectangle (x, y, width, height), beside the line of bytes alive."""
    x, y, wide, tall = place
    low, high = axes.transData.transform([(x, y), (x + wide, y + tall)])
    if min(high - low) < 8:
        return
    invert = axes.transData.inverted()
    thirds = (0.5, 0.25, 0.75)
    for size, text, turn, across, up in itertools.product((6.5, 5.5), texts, (0, 90), thirds, thirds):
        label = axes.text(
            x + across * wide, y + up * tall, text, color=colour, fontsize=size, rotation=turn, zorder=5,
            ha="center", va="center", linespacing=1.1,
        )  # fmt: skip
        box = label.get_window_extent(axes.figure.canvas.get_renderer()).padded(2)
        (x0, y0), (x1, y1) = invert.transform([(box.x0, box.y0), (box.x1, box.y1)])
        levels = alive[max(0, round(x0)) : round(x1) + 1]
        inside = x <= x0 and x1 <= x + wide and y <= y0 and y1 <= y + tall
        if inside and (min(levels) > y1 or max(levels) < y0):
            return
        label.remove()


def _frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
