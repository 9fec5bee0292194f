"""From a plan to one that multiplies whole numbers of 8 bits in some of its ops.

What such an op reads is rounded to levels: 0 to 255 where nothing is negative, else -127 to 127. Each channel
has a step, what one level is worth. The steps are multiplied into the weights. These are then rounded to
-127..127 with a multiplier for each output channel (Jacob et al., arXiv 1712.05877). Sums of products are
exact integers. Everything else stays as it was: the ops that are left out, biases, averages, gates, logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stdc_fast.plan.ops import LEVELS, Buffer, Conv, Down, Gate, Op, Quantise, Stem, View
from stdc_fast.plan.plan import Plan, overlap

#: Channels that a product of levels takes at once: an op reads multiples of these.
UNIT = 4
#: Products that a sum may have: levels up to 255 by weights of at most 128, in 32 bits.
MOST = (2**31 - 1) // (255 * 128)
#: Least step of a channel over the greatest of its map: a channel that was small in the frames of the
#: calibration may not stay so. Less made errors on other frames larger, and more made all errors larger.
LEAST = 1 / 4


@dataclasses.dataclass(frozen=True)
class Range:
    """Which values a map takes, by channel: float64 ``[C]`` each.

    Attributes:
        low, high: least and greatest value that levels tell apart; what is beyond is clipped.
        mean: the average, by which biases make up for what rounded weights lose.
    """

    low: Tensor
    high: Tensor
    mean: Tensor


#: By name of a buffer, or ``OP:input`` for what the prologue of a convolution makes of its input.
Ranges = Mapping[str, Range]


def candidates(plan: Plan) -> list[str]:
    """Names of the ops that can multiply levels, in order."""
    return [op.name for op in plan.ops if _fits(plan, op)]


def wanted(plan: Plan, names: Collection[str]) -> dict[str, int]:
    """Keys of the ranges that :func:`quantise` needs for these ops, with their channels, in order."""
    return {
        key: plan.buffers[view.buffer].channels if key == view.buffer else view.channels
        for op in plan.ops
        if op.name in names
        for key, view in _sources(op)
    }


def quantise(plan: Plan, ranges: Ranges, names: Collection[str]) -> Plan:
    """The plan with these ops on levels.

    Args:
        plan: optimised.
        ranges: those of :func:`wanted` at least.
        names: ops among :func:`candidates`; none at all leaves the plan as it is.

    Raises ValueError for other ops, and for ranges that are missing, not finite, or of other channels.
    """
    unknown = sorted(set(names) - set(candidates(plan)))
    if unknown:
        raise ValueError(f"{plan.name} has no op {unknown[0]} that can run in 8 bits")
    for key, channels in wanted(plan, names).items():
        if key not in ranges:
            raise ValueError(f"there is no range of {key}")
        found = ranges[key]
        for values in (found.low, found.high, found.mean):
            if values.shape != (channels,) or not bool(values.isfinite().all()):
                raise ValueError(f"the range of {key} is not of {channels} channels, or not finite")
    return _Rewrite(plan, ranges, frozenset(names)).plan()


def _fits(plan: Plan, op: Op) -> bool:
    if not isinstance(op, (Conv, Down)) or getattr(op, "depthwise", False) or op.multipliers:
        return False
    views = _inputs(op)
    stores = {plan.buffers[view.buffer].store for view in (*views, op.output)}
    units = all(view.channels % UNIT == 0 and view.offset % UNIT == 0 for view in views)
    # Of one output.
    products = sum(view.channels for view in views) * getattr(op, "kernel", 1) ** 2
    units = units and products <= MOST
    return stores == {"act"} and units and not (isinstance(op, Conv) and op.up and op.kernel == 3)


def mixed(plan: Plan, op: Conv | Down) -> bool:
    """Whether of several inputs some may be levels of 0 to 255, and others of -127 to 127."""
    views = _inputs(op)
    kept = {_positive(plan, v) for view in views for v in (view, plan.whole(view.buffer))}
    return len(views) > 1 and len(kept) > 1


def _inputs(op: Conv | Down) -> tuple[View, ...]:
    return op.inputs if isinstance(op, Conv) else (op.input,)


def _prologue(op: Op) -> bool:
    return bool(getattr(op, "scale", None) or getattr(op, "add", None))


def _sources(op: Conv | Down) -> list[tuple[str, View]]:
    """(Key of the range, view) of what an op multiplies."""
    views = _inputs(op)
    return [(f"{op.name}:input", views[0])] if _prologue(op) else [(view.buffer, view) for view in views]


def _positive(plan: Plan, view: View) -> bool:
    """Whether nothing in it can be negative, whatever the image is."""
    for op in plan.writers(view):
        if isinstance(op, Down):
            if op.pooled is None or plan.writers(op.pooled) != [op] or overlap(op.output, view):
                return False
        elif (op.acts[-1] if isinstance(op, Gate) else getattr(op, "act", "none")) == "none":
            return False
    return view.buffer not in plan.inputs


class _Rewrite:
    def __init__(self, plan: Plan, ranges: Ranges, names: frozenset[str]):
        self.old, self.ranges, self.names = plan, ranges, names
        self.buffers: dict[str, Buffer] = {}
        self.weights: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}  # of buffers of levels
        self.means: dict[str, Tensor] = {}
        self.made: dict[View, View] = {}  # of maps: where their levels are
        self.ops: list[Op] = []

    def plan(self) -> Plan:
        for name in self.old.buffers:
            if self._only_levels(name):
                whole = self.old.whole(name)
                self._levels(name, name, whole, _positive(self.old, whole))
        for op in self.old.ops:
            self.ops.append(self._writer(self._reader(op) if op.name in self.names else op))
        return self.old.replace(self.ops, weights=self.weights, buffers=self.buffers)

    def _only_levels(self, buffer: str) -> bool:
        """Whether all that read a buffer multiply its levels, so that it can hold just these."""
        whole = self.old.whole(buffer)
        readers, writers = self.old.readers(whole), self.old.writers(whole)
        return (
            self.old.buffers[buffer].store == "act"
            and bool(readers)
            and all(isinstance(op, (Conv, Stem, Down)) for op in writers)
            and buffer not in self.old.inputs
            and self.old.only_read_by(whole, *readers)
            and all(op.name in self.names and not _prologue(op) for op in readers)
        )

    def _writer(self, op: Op) -> Op:
        """The op with the steps of what it writes of levels."""
        changes = {}
        for field, output in (("levels", "output"), ("pooled_levels", "pooled")):
            view = getattr(op, output, None)
            if view is not None and view.buffer in self.steps and view.buffer in self.old.buffers:
                changes[field] = f"{op.name}.{field}"
                self.weights[changes[field]] = _part(self.steps, view).clone()
        return replace(op, **changes) if changes else op

    def _reader(self, op: Conv | Down) -> Op:
        """The op on levels; what makes these goes before it."""
        if _prologue(op):
            (view,) = _inputs(op)
            positive = all(_positive(self.old, v) for v in (view, op.scale, op.add) if v)
            views = (self._quantised(op.name, f"{op.name}:input", view, positive, op.scale, op.add),)
            op = replace(op, scale=None, add=None)
        else:
            views = tuple(map(self._levels_of, _inputs(op)))
        op = self._weighted(op, views)
        return replace(op, inputs=views) if isinstance(op, Conv) else replace(op, input=views[0])

    def _levels_of(self, view: View) -> View:
        if view.buffer in self.steps:
            return view
        if view not in self.made:
            name = f"{view.buffer}:{view.offset}:{view.channels}"
            self.made[view] = self._quantised(name, view.buffer, view, _positive(self.old, view))
        return self.made[view]

    def _quantised(
        self,
        name: str,
        key: str,
        view: View,
        positive: bool,
        scale: View | None = None,
        add: View | None = None,
    ) -> View:
        """The levels of a map, after an op that makes them."""
        output = View(f"{name}:levels", 0, view.channels)
        self._levels(output.buffer, key, view, positive)
        weight = f"{output.buffer}.steps"
        self.weights[weight] = self.steps[output.buffer]
        self.ops.append(
            Quantise(name=output.buffer, input=view, output=output, scale=scale, add=add, levels=weight)
        )
        return output

    def _levels(self, buffer: str, key: str, view: View, positive: bool) -> None:
        """A buffer of levels for a map whose range has this key, and their steps."""
        store = "u8" if positive else "s8"
        self.buffers[buffer] = Buffer(buffer, view.channels, self.old.buffers[view.buffer].stride, store)
        found = self.ranges[key]
        part = slice(view.offset, view.offset + view.channels) if key == view.buffer else slice(None)
        reach = found.high if positive else torch.maximum(found.high, -found.low)
        steps = reach[part].double().clamp_min(0) / LEVELS[store][1]
        least = max(LEAST * float(steps.max()), torch.finfo(torch.float32).tiny)
        self.steps[buffer], self.means[buffer] = steps.clamp_min(least), found.mean[part].double()

    def _weighted(self, op: Conv | Down, views: tuple[View, ...]) -> Op:
        """With weights that contain the steps of what it reads, rounded to whole numbers."""
        steps = torch.cat([_part(self.steps, view) for view in views]).view(-1, 1, 1)
        means = torch.cat([_part(self.means, view) for view in views])
        weight = self.old.weights[op.weight]
        scaled = weight * steps
        multipliers = scaled.abs().amax([d for d in range(weight.ndim) if d != weight.ndim - 4])
        multipliers = (multipliers / LEVELS["s8"][1]).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (scaled / multipliers.view(-1, 1, 1, 1)).round()
        # What rounding adds to an average pixel goes from the bias.
        error = (rounded * multipliers.view(-1, 1, 1, 1) / steps - weight).sum((-2, -1))
        if error.ndim == 4:  # sub-pixel: of the four parities, as the other sets are for a row and a column
            error = error[:2, :2].mean((0, 1))
        bias = op.bias or f"{op.name}.bias"
        before = self.old.weights[op.bias] if op.bias else torch.zeros(len(multipliers), dtype=torch.float64)
        self.weights |= {
            op.weight: rounded, f"{op.name}.multipliers": multipliers, bias: before - error @ means,
        }  # fmt: skip
        return replace(op, bias=bias, multipliers=f"{op.name}.multipliers")


def _part(values: Mapping[str, Tensor], view: View) -> Tensor:
    return values[view.buffer][view.offset : view.offset + view.channels]
