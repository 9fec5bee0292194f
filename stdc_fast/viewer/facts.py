"""What a plan holds at one input size, for its table, JSON and figure; and short names of its ops."""

from __future__ import annotations

import dataclasses

from stdc_fast.plan.arena import Arena, layout
from stdc_fast.plan.cost import Cost, costs
from stdc_fast.plan.ops import Conv, Op
from stdc_fast.plan.plan import Plan

#: Columns that a table and a title have at most.
COLUMNS = 120


def short(name: str) -> str:
    """Name of an op without what its neighbours have too: ``features.2.conv_list.0``, ``arm32.conv``."""
    for prefix in ("cp.backbone.", "cp."):
        name = name.removeprefix(prefix)
    return name.removesuffix(".conv")


def sort_of(op: Op) -> str:
    """What sort of op it is, for legends: ``conv 3x3``, ``conv 2x2 up``, ``down``."""
    if not isinstance(op, Conv):
        return op.kind
    return "conv depthwise" if op.depthwise else f"conv {op.kernel}x{op.kernel}{' up' * (op.kernel == 2)}"


def kilo(size: float) -> str:
    return f"{size / 1e3:.1f}"


@dataclasses.dataclass(frozen=True)
class Facts:
    """A plan at one input size, as all three forms show it. Sizes in bytes."""

    plan: Plan
    batch: int
    height: int
    width: int
    itemsize: int
    title: str
    costs: list[Cost]
    arena: Arena

    @property
    def macs(self) -> int:
        return sum(cost.macs for cost in self.costs)

    @property
    def bytes(self) -> int:
        return sum(cost.bytes for cost in self.costs)

    @property
    def intensity(self) -> float:
        return 2 * self.macs / self.bytes

    @property
    def weights(self) -> int:
        return sum(weight.numel() for weight in self.plan.weights.values())

    @property
    def unshared(self) -> int:
        return sum(span.stop - span.start for span in self.arena.spans.values())

    def shape(self, buffer: str) -> list[int]:
        size = self.plan.size(buffer, self.height, self.width)
        return [self.batch, *size, self.plan.buffers[buffer].channels]


def survey(plan: Plan, batch: int, height: int, width: int, itemsize: int, title: str | None) -> Facts:
    """Gather them; ``title`` takes the place of the plan's name and the item size in the heading."""
    # Names of files may hold anything, also what a terminal would obey.
    title = ascii(title or f"{plan.name}, {8 * itemsize}-bit maps")[1:-1]
    end = f", {height}x{width}, batch {batch}"
    return Facts(
        plan, batch, height, width, itemsize, title[: COLUMNS - len(end)] + end,
        costs(plan, batch, height, width, itemsize), layout(plan, batch, height, width, itemsize),
    )  # fmt: skip
