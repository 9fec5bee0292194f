"""A plan to look at: a dict for scripts, a table of text, a figure. KB and MB are 10^3 and 10^6 bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from stdc_fast.plan.cost import Cost
from stdc_fast.plan.ops import Op
from stdc_fast.plan.plan import Plan
from stdc_fast.viewer.facts import COLUMNS, Facts, kilo, short, survey
from stdc_fast.viewer.kinds import WORDS
from stdc_fast.viewer.save import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(plan: Plan, op: Op) -> str:
    """What an op does, in a few words: ``3x3 s2 relu``, ``2x2 up relu, *scale +map``."""
    return WORDS[op.kind](plan, op)


def to_dict(plan: Plan, batch: int, height: int, width: int, itemsize: int) -> dict[str, object]:
    """Everything that :func:`table` and :func:`draw` show, for ``json.dumps``.

    Shapes are ``[N, H, W, C]``, sizes bytes, offsets and channels of views numbers of channels. Buffers that
    belong to the caller have no ``arena`` and no ``lifetime`` (first op that writes, last that reads).

    Args:
        batch, height, width: of the input.
        itemsize: bytes a number of stored maps.
    """
    facts = survey(plan, batch, height, width, itemsize, None)
    buffers = {}
    for name, buffer in plan.buffers.items():
        shape = facts.shape(name)
        span, life = facts.arena.spans.get(name), facts.arena.lifetimes.get(name)
        buffers[name] = {
            "shape": shape,
            "stride": buffer.stride,
            "store": buffer.store,
            "bytes": shape[0] * shape[1] * shape[2] * shape[3] * plan.buffers[name].itemsize(itemsize),
            "arena": span and {"offset": span.start, "bytes": span.stop - span.start},
            "lifetime": life and list(life),
        }
    return {
        "name": plan.name,
        "batch": batch,
        "height": height,
        "width": width,
        "itemsize": itemsize,
        "inputs": list(plan.inputs),
        "outputs": [dataclasses.asdict(view) for view in plan.outputs],
        "buffers": buffers,
        "ops": [_op(facts, op, cost) for op, cost in zip(plan.ops, facts.costs, strict=True)],
        "totals": {
            "macs": facts.macs,
            "weights": facts.weights,
            "bytes": facts.bytes,
            "intensity": facts.intensity,
            "arena": facts.arena.size,
            "live": facts.arena.live,
            "unshared": facts.unshared,
        },
    }


def _op(facts: Facts, op: Op, cost: Cost) -> dict[str, object]:
    settings: dict[str, object] = {}
    views: dict[str, list] = {"read": [], "write": []}
    for field in dataclasses.fields(op):
        role, value = field.metadata.get("role"), getattr(op, field.name)
        if role is None and field.name != "name":
            settings[field.name] = list(value) if isinstance(value, tuple) else value
        elif role in views and value is not None:
            views[role] += [
                {
                    "as": field.name,
                    **dataclasses.asdict(view),
                    "shape": [*facts.shape(view.buffer)[:3], view.channels],
                }
                for view in (value if isinstance(value, tuple) else (value,))
            ]
    return {
        "kind": op.kind,
        "name": op.name,
        "settings": settings,
        "reads": views["read"],
        "writes": views["write"],
        "weights": {name: list(facts.plan.weights[name].shape) for name in op.weights},
        "macs": cost.macs,
        "bytes": cost.bytes,
        "bytes_read": cost.read,
        "bytes_written": cost.written,
        "bytes_weights": cost.weights,
        "intensity": cost.intensity,
    }


def table(plan: Plan, batch: int, height: int, width: int, itemsize: int, *, title: str | None = None) -> str:
    """The ops one a line, plain ASCII of at most 120 columns.

    Columns: number, kind, name, what it does, height x width x channels of its (first) output, millions of
    multiply-adds, KB moved (read, written and of weights), floating-point operations a byte.

    Args:
        batch, height, width: of the input.
        itemsize: bytes a number of stored maps.
        title: in place of the plan's name and the item size.
    """
    facts = survey(plan, batch, height, width, itemsize, title)
    rows = [["#", "kind", "op", "what", "output", "MMAC", "KB", "FLOP/B"]]
    for i, (op, cost) in enumerate(zip(plan.ops, facts.costs, strict=True)):
        shape = "x".join(map(str, cost.outputs[0][1:]))
        rows.append([str(i), op.kind, short(op.name), describe(plan, op), shape, *_numbers(cost)])
    rows.append(["", "", "", "", "", *_numbers(facts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[2] = max(6, widths[2] - max(0, sum(widths) + 2 * (len(widths) - 1) - COLUMNS))
    lines = []
    for row in rows:
        row[2] = row[2] if len(row[2]) <= widths[2] else row[2][: widths[2] - 2] + ".."
        cells = zip("><<<>>>>", row, widths, strict=True)
        lines.append("  ".join(f"{text:{side}{width}}" for side, text, width in cells))
    rule = "-" * len(lines[0])
    total = f"total: {2 * facts.macs / 1e9:.2f} GFLOP, {facts.weights / 1e6:.2f} million weights"
    lines[-1] = total + lines[-1][len(total) :]
    arena = facts.arena
    end = (
        f"arena: {kilo(arena.size)} KB, lower bound (most alive at one time) {kilo(arena.live)} KB, "
        f"unshared {kilo(facts.unshared)} KB"
    )
    return "\n".join([facts.title, "", lines[0], rule, *lines[1:-1], rule, lines[-1], end])


def _numbers(cost: Cost | Facts) -> list[str]:
    return [f"{cost.macs / 1e6:.1f}", kilo(cost.bytes), f"{cost.intensity:.1f}"]


def draw(
    plan: Plan,
    path: str | Path,
    batch: int,
    height: int,
    width: int,
    itemsize: int,
    *,
    title: str | None = None,
) -> None:
    """Write a figure, SVG or PNG by the suffix of ``path``: data flow above, memory below.

    Above, each op is a box at the resolution of its output, as high as the square root of its
    multiply-adds; lines are what it reads, thick ones buffers that several ops write (concatenations) or that
    wait for a later op. Below, each buffer is a rectangle from the first op that writes it to the last that
    reads it, at its place in the arena.

    The same plan gives the same bytes, with the same matplotlib.

    Args:
        batch, height, width: of the input.
        itemsize: bytes a number of stored maps.
        title: in place of the plan's name and the item size.

    Raises UserError without matplotlib, for another suffix, and where ``path`` can not be written.
    """

    def make() -> Figure:
        from stdc_fast.viewer.figure import figure

        return figure(survey(plan, batch, height, width, itemsize, title))

    save_figure(path, make)
