"""What each op of a plan computes and moves at one input size."""

from __future__ import annotations

import dataclasses

from stdc_fast.plan.ops import Conv, Op, View
from stdc_fast.plan.plan import Plan

Shape = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Cost:
    """One op at one input size.

    Attributes:
        op: its name.
        inputs: ``[N, H, W, C]`` of the views that it reads; the small map where it doubles one.
        outputs: ``[N, H, W, C]`` of the views that it writes.
        macs: multiply-adds of its convolutions and matrix-vector products, taps in the padding too.
        read: bytes of what it reads, each channel of a buffer once.
        written: bytes of what it writes.
        weights: bytes of its weights and biases that this size needs.
    """

    op: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    macs: int
    read: int
    written: int
    weights: int

    @property
    def bytes(self) -> int:
        """Read, written, and of weights."""
        return self.read + self.written + self.weights

    @property
    def intensity(self) -> float:
        """Floating-point operations, two a multiply-add, over the bytes."""
        return 2 * self.macs / self.bytes


def costs(plan: Plan, batch: int, height: int, width: int, itemsize: int) -> list[Cost]:
    """The cost of each op, in order.

    Args:
        batch, height, width: of the input.
        itemsize: bytes a number of stored maps and of weights; vectors, logits and biases have at least 4.
    """

    def shape(view: View) -> Shape:
        return (batch, *plan.size(view.buffer, height, width), view.channels)

    def pixels(view: View) -> int:
        rows, columns = plan.size(view.buffer, height, width)
        return rows * columns

    def moved(views: list[View]) -> int:
        masks: dict[str, int] = {}
        for view in views:
            masks[view.buffer] = masks.get(view.buffer, 0) | view.mask
        total = 0
        for buffer, mask in masks.items():
            bytes_a_pixel = mask.bit_count() * plan.buffers[buffer].itemsize(itemsize)
            total += batch * pixels(plan.whole(buffer)) * bytes_a_pixel
        return total

    return [
        Cost(
            op=op.name,
            inputs=tuple(map(shape, op.reads)),
            outputs=tuple(map(shape, op.writes)),
            macs=batch * op.macs(plan.weights, pixels),
            read=moved(op.reads),
            written=moved(op.writes),
            weights=_weights(plan, op, height, width, itemsize),
        )
        for op in plan.ops
    ]


def _weights(plan: Plan, op: Op, height: int, width: int, itemsize: int) -> int:
    total = 0
    for name in op.weights:
        weight = plan.weights[name]
        size = itemsize if weight.ndim > 1 else max(4, itemsize)  # biases and batch norm are float32
        if getattr(op, "multipliers", None) and name == op.weight:
            size = 1
        count = weight.numel()
        if isinstance(op, Conv) and name == op.weight and op.kernel == 2:
            # Even and odd rows; those of an odd height end in a row with a set of its own. Columns alike.
            rows, columns = (min(n, 2 + n % 2) for n in plan.size(op.output.buffer, height, width))
            count = rows * columns * weight[0, 0].numel()
        total += count * size
    return total
