"""A plan as the graph of a foreign runtime: one walk over its ops, for every one that builds graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from stdc_fast.exporters.settings import Settings
from stdc_fast.plan import build
from stdc_fast.plan.ops import Add, Concat, Conv, Mean, Op, Pool, Scale, Stem, Upsample, View
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.rewrites import (
    drop_training,
    fold_batch_norm,
    fold_normalisation,
    fuse_prologues,
    subpixel_weights,
)
from stdc_fast.reference.networks import STDCSeg

#: Of what foreign runtimes have no use for, or do themselves, nothing: buffers stay tensors of their own.
REWRITES = (drop_training, fold_batch_norm, fold_normalisation, fuse_prologues)

#: What an emitter calls a tensor of its graph.
Value: TypeAlias = Any


class Emitter(Protocol):
    """What builds a graph. Maps are NCHW in the dtype of the settings, unless said otherwise."""

    def image(self) -> Value:
        """The input as float32 ``[N, 3, H, W]``: raw frames keep their values."""

    def subtract(self, x: Value, offset: tuple[float, ...], name: str) -> Value:
        """A number less for each channel, in float32."""

    def narrow(self, x: Value) -> Value:
        """Float32 to the dtype of the settings."""

    def widen(self, x: Value) -> Value:
        """The dtype of the settings to float32."""

    def convolve(
        self, x: Value, name: str, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
    ) -> Value: ...

    def activate(self, x: Value, act: str, name: str) -> Value:
        """One of :data:`stdc_fast.plan.ops.ACTIVATIONS`."""

    def concatenate(self, parts: list[Value], name: str) -> Value: ...

    def multiply(self, x: Value, y: Value, name: str) -> Value: ...

    def add(self, x: Value, y: Value, name: str) -> Value: ...

    def pool(self, x: Value, count_include_pad: bool, name: str) -> Value:
        """Average of 3x3 with stride 2 and padding 1."""

    def mean(self, x: Value, name: str) -> Value:
        """Average of each image, ``[N, C, 1, 1]``."""

    def shuffle(self, x: Value, name: str) -> Value:
        """``[N, 4 C, h, w]`` to ``[N, C, 2 h, 2 w]``: channel ``4 c + 2 i + j`` to (2 y + i, 2 x + j)."""

    def crop(self, x: Value, start: int, size: tuple[int, int], name: str) -> Value:
        """Rows and columns from ``start``, as many as ``size``."""

    def double(self, x: Value, channels: int, size: tuple[int, int] | None, like: Value, name: str) -> Value:
        """Every pixel twice in rows and columns; ``size`` of them is left, or as many as ``like`` has."""

    def resize(
        self, x: Value, channels: int, size: tuple[int, int] | None, align_corners: bool, name: str
    ) -> Value:
        """Bilinear, float32, to ``size`` or, where that is None, to the input's."""

    def labels(self, x: Value) -> Value:
        """The lowest class of the largest logit, uint8 ``[N, H, W]``."""


def plan_of(network: STDCSeg, settings: Settings) -> Plan:
    """The plan of a network with batch norms folded and everything else as foreign runtimes know it."""
    plan = build(network, frames=settings.raw)
    for rewrite in REWRITES:
        plan = rewrite(plan)
    return plan


def emit(plan: Plan, settings: Settings, e: Emitter) -> Value:
    """Build the graph of :func:`plan_of` and give its output."""
    walk = _Walk(plan, settings, e)
    for op in plan.ops:
        run = _KINDS.get(type(op))
        if run is None:
            raise ValueError(f"there is no graph for {op.kind} {op.name}")
        run(walk, op)
    return walk.result


class _Walk:
    def __init__(self, plan: Plan, settings: Settings, e: Emitter):
        self.plan, self.settings, self.e = plan, settings, e
        x = e.image()
        if settings.frame is not None and settings.frame != settings.size:
            # Normalisation and interpolation can be exchanged: weights of an interpolation add up to one.
            x = e.resize(x, plan.buffers[plan.inputs[0]].channels, settings.size, True, "resize_image")
        self.values: dict[str, Value] = {plan.inputs[0]: x}
        self.result: Value = None

    def read(self, view: View) -> Value:
        if view != self.plan.whole(view.buffer):
            raise ValueError(f"{view} is a part of a buffer, which this plan should not have")
        return self.values[view.buffer]

    def write(self, view: View, value: Value) -> None:
        if view != self.plan.whole(view.buffer):
            raise ValueError(f"{view} is a part of a buffer, which this plan should not have")
        self.values[view.buffer] = value

    def size(self, view: View) -> tuple[int, int] | None:
        """Of a map, where it is known."""
        return self.settings.size and self.plan.size(view.buffer, *self.settings.size)

    def sibling(self, view: View) -> Value:
        """A map of the same size that is there already."""
        stride = self.plan.buffers[view.buffer].stride
        return next(v for name, v in self.values.items() if self.plan.buffers[name].stride == stride)

    def weight(self, name: str | None) -> Tensor | None:
        return None if name is None else self.plan.weights[name]

    def stem(self, op: Stem) -> None:
        x = self.read(op.input)
        if op.offset is not None:
            x = self.e.subtract(x, op.offset, f"{op.name}.offset")
        x = self.e.narrow(x)
        x = self.e.convolve(x, op.name, self.weight(op.weight), self.weight(op.bias), 2, 1, 1)
        self.write(op.output, self.e.activate(x, op.act, op.name))

    def conv(self, op: Conv) -> None:
        e, name = self.e, op.name
        parts = [self.read(view) for view in op.inputs]
        x = parts[0] if len(parts) == 1 else e.concatenate(parts, f"{name}.input")
        if op.scale:
            x = e.multiply(x, self.read(op.scale), f"{name}.scale")
        if op.add:
            x = e.add(x, self.read(op.add), f"{name}.add")
        weight, bias = self.weight(op.weight), self.weight(op.bias)
        size = self.size(op.output)
        if op.up and size is not None and not any(side % 2 for side in size):
            weight, bias = shuffled(weight, bias)
            x = e.convolve(x, name, weight, bias, 1, 1, 1)
            x = e.crop(e.shuffle(x, f"{name}.shuffle"), 1, size, f"{name}.crop")
        else:
            if op.up:
                # An odd map has no such form: its last row and column would need weights of their own.
                x = e.double(
                    x,
                    op.inputs[0].channels,
                    size,
                    None if size else self.sibling(op.output),
                    f"{name}.double",
                )
            groups = op.output.channels if op.depthwise else 1
            x = e.convolve(x, name, weight, bias, op.stride, op.kernel // 2, groups)
        self.write(op.output, e.activate(x, op.act, name))

    def upsample(self, op: Upsample) -> None:
        settings, e = self.settings, self.e
        x = e.widen(self.read(op.input))
        if settings.output != "logits8":
            x = e.resize(x, op.input.channels, settings.size, op.align_corners, "resize_logits")
            if settings.frame is not None and settings.frame != settings.size:
                x = e.resize(x, op.input.channels, settings.frame, op.align_corners, "resize_to_frame")
        self.result = e.labels(x) if settings.output == "labels" else x


def _simple(compute: Callable[[Emitter, Op, list[Value]], Value]) -> Callable[[_Walk, Op], None]:
    def run(walk: _Walk, op: Op) -> None:
        walk.write(op.writes[0], compute(walk.e, op, [walk.read(view) for view in op.reads]))

    return run


_KINDS: dict[type[Op], Callable[[_Walk, Any], None]] = {
    Stem: _Walk.stem,
    Conv: _Walk.conv,
    Upsample: _Walk.upsample,
    Pool: _simple(lambda e, op, x: e.pool(x[0], op.count_include_pad, op.name)),
    Mean: _simple(lambda e, op, x: e.mean(x[0], op.name)),
    Concat: _simple(lambda e, op, x: e.concatenate(x, op.name)),
    Scale: _simple(lambda e, op, x: e.multiply(*x, op.name)),
    Add: _simple(lambda e, op, x: e.add(*x, op.name)),
}


def shuffled(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights of a 3x3 on a map that nearest neighbours double, as a 2x2 of padding 1 on the map itself.

    ``[out, in, 3, 3]`` to ``[4 out, in, 2, 2]``. Its pixel p reads rows p - 1 and p. These give row 2 p - 1
    of the output, by the set of odd rows, and row 2 p, by the set of even ones. So after
    :meth:`Emitter.shuffle` row k of the output is row k + 1, and a crop of one at each side is left. It is
    exact for maps of even sides.
    """
    sets = subpixel_weights(weight)[[1, 0]][:, [1, 0]]  # [2, 2, out, in, 2, 2]
    weight = sets.permute(2, 0, 1, 3, 4, 5).reshape(-1, *weight.shape[1:2], 2, 2)
    return weight, None if bias is None else torch.repeat_interleave(bias, 4)
