"""One allocation for all buffers between input and output: those of different lifetimes share memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from stdc_fast.plan.ops import Upsample
from stdc_fast.plan.plan import Plan

ALIGNMENT = 256


@dataclasses.dataclass(frozen=True)
class Arena:
    """Where each buffer lies.

    Attributes:
        spans: start and stop in bytes, multiples of the alignment, by buffer.
        shapes: ``[N, H, W, C]`` by buffer.
        lifetimes: index of the op that first writes it and of the one that last reads it.
        size: bytes in all.
        live: the most bytes that are alive at one time, below which no layout can be.
    """

    spans: Mapping[str, slice]
    shapes: Mapping[str, torch.Size]
    lifetimes: Mapping[str, tuple[int, int]]
    size: int
    live: int


def lifetimes(plan: Plan) -> dict[str, tuple[int, int]]:
    """(first op that writes, last op that reads or writes) of each buffer that is not the caller's."""
    found: dict[str, tuple[int, int]] = {}
    logits: list[str] = []
    theirs = set(plan.inputs) | {view.buffer for view in plan.outputs}
    for i, op in enumerate(plan.ops):
        for view in [*op.reads, *op.writes]:
            if view.buffer not in theirs:
                found[view.buffer] = (found.get(view.buffer, (i, i))[0], i)
        if isinstance(op, Upsample) and op.input.buffer not in theirs:
            logits.append(op.input.buffer)
    for buffer in logits:  # are asked for too, when all is done
        found[buffer] = (found[buffer][0], len(plan.ops) - 1)
    return found


def layout(
    plan: Plan,
    batch: int,
    height: int,
    width: int,
    itemsize: int = 4,
    alignment: int = ALIGNMENT,
    lives: Mapping[str, tuple[int, int]] | None = None,
) -> Arena:
    """Place the buffers for an input of that size, with maps of ``itemsize`` bytes a number.

    ``lives`` are others than :func:`lifetimes`, where ops do not run one after the other.

    Greedy by size: the largest first, each at the lowest place where no buffer that is alive at the same
    time lies. An op's outputs never share memory with its inputs.
    """
    spans: dict[str, slice] = {}
    lives = lifetimes(plan) if lives is None else lives
    shapes = {b: torch.Size((batch, *plan.size(b, height, width), plan.buffers[b].channels)) for b in lives}
    sizes = {}
    for name, shape in shapes.items():
        taken = shape.numel() * plan.buffers[name].itemsize(itemsize)
        sizes[name] = -(-taken // alignment) * alignment
    for name in sorted(sizes, key=lambda b: (-sizes[b], lives[b])):
        first, last = lives[name]
        start = 0
        together = [span for b, span in spans.items() if lives[b][0] <= last and first <= lives[b][1]]
        for other in sorted(together, key=lambda span: span.start):
            if other.start < start + sizes[name]:
                start = max(start, other.stop)
        spans[name] = slice(start, start + sizes[name])
    live = max(
        (
            sum(sizes[b] for b, (first, last) in lives.items() if first <= i <= last)
            for i in range(len(plan.ops))
        ),
        default=0,
    )
    return Arena(spans, shapes, lives, max((s.stop for s in spans.values()), default=0), live)
