"""A plan: ops in order over named buffers, with their weights; checked whenever one is made."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from stdc_fast.plan.check import problems
from stdc_fast.plan.ops import FUSED, Buffer, Op, View


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a backend compiles and runs.

    Attributes:
        name: of the network or block.
        buffers: by name.
        ops: in the order in which they run.
        inputs: buffers that the caller fills.
        outputs: views that the caller gets, the main one first.
        weights: float64 tensors on the CPU by name, each used by one op.

    Raises ValueError if an op reads what has not been written, writes what has been, or its views,
    strides or weights do not fit each other.
    """

    name: str
    buffers: Mapping[str, Buffer]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[View, ...]
    weights: Mapping[str, Tensor] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        for name in self.inputs:
            if name not in self.buffers:
                raise ValueError(f"input {name} is no buffer")
        written = dict.fromkeys(self.buffers, 0)
        for name in self.inputs:
            written[name] = self.whole(name).mask
        owners: dict[str, str] = {}
        names: set[str] = set()
        for op in self.ops:
            if op.name in names:
                raise ValueError(f"several ops have the same name {op.name}")
            names.add(op.name)
            for view in [*op.reads, *op.writes]:
                if view.buffer not in self.buffers:
                    raise ValueError(f"{op.name}: {view} is of no buffer")
                end = view.offset + view.channels
                if view.channels < 1 or view.offset < 0 or end > self.buffers[view.buffer].channels:
                    raise ValueError(f"{op.name}: {view} is outside of {self.buffers[view.buffer]}")
            for view in op.reads:
                if view.mask & ~written[view.buffer]:
                    raise ValueError(f"{op.name} reads {view}, which has not been written")
            for view in op.writes:
                if view.mask & written[view.buffer]:
                    raise ValueError(f"{op.name} writes {view}, which has been written")
                written[view.buffer] |= view.mask
            for name in op.weights:
                if name not in self.weights:
                    raise ValueError(f"{op.name}: there is no weight {name}")
                if owners.setdefault(name, op.name) != op.name:
                    raise ValueError(f"{op.name}: weight {name} is also of {owners[name]}")
            for problem in problems(op, self.buffers, self.weights):
                raise ValueError(f"{op.kind} {op.name}: {problem}")
        for view in self.outputs:
            if view.mask & ~written.get(view.buffer, 0):
                raise ValueError(f"output {view} has not been written")

    # Looking things up.

    def whole(self, buffer: str) -> View:
        return View(buffer, 0, self.buffers[buffer].channels)

    def writers(self, view: View) -> list[Op]:
        """Ops that write some of the channels of ``view``."""
        return [op for op in self.ops if any(overlap(v, view) for v in op.writes)]

    def readers(self, view: View) -> list[Op]:
        """Ops that read some of the channels of ``view``."""
        return [op for op in self.ops if any(overlap(v, view) for v in op.reads)]

    def only_read_by(self, view: View, *ops: Op) -> bool:
        """Whether nobody but these ops sees ``view``: no other op, and not the caller."""
        names = {op.name for op in ops}
        seen = any(overlap(v, view) for v in self.outputs)
        return not seen and {op.name for op in self.readers(view)} == names

    def source(self, view: View) -> Op | None:
        """The op whose one output is exactly ``view``, if there is one."""
        found = self.writers(view)
        return found[0] if len(found) == 1 and found[0].writes == [view] else None

    def primitives(self) -> list[str]:
        """Kinds that only plans have which were not rewritten, or which the rewrites do not cover."""
        return sorted({op.kind for op in self.ops} - FUSED)

    def size(self, buffer: str, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of a buffer for an input of that size."""
        stride = self.buffers[buffer].stride
        return (-(-height // stride), -(-width // stride)) if stride else (1, 1)

    # Making another one of it.

    def replace(
        self,
        ops: Iterable[Op] | None = None,
        *,
        outputs: tuple[View, ...] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        buffers: Mapping[str, Buffer] | None = None,
    ) -> Plan:
        """A plan with some parts replaced, without the buffers and weights that nothing uses any more."""
        ops = self.ops if ops is None else tuple(ops)
        outputs = self.outputs if outputs is None else outputs
        used = {view.buffer for op in ops for view in [*op.reads, *op.writes]}
        used |= {view.buffer for view in outputs} | set(self.inputs)
        names = {name for op in ops for name in op.weights}
        buffers = {**self.buffers, **(buffers or {})}
        weights = {**self.weights, **(weights or {})}
        return Plan(
            self.name,
            {k: v for k, v in buffers.items() if k in used},
            ops,
            self.inputs,
            outputs,
            {k: v for k, v in weights.items() if k in names},
        )

    def bare(self) -> Plan:
        """The same without weights: what an executable keeps of it."""
        plan = copy.copy(self)
        object.__setattr__(plan, "weights", {})
        return plan

    def substitute(self, changes: Mapping[str, Op | None], **kwargs) -> Plan:
        """A plan in which the ops of these names are replaced, or gone where None."""
        ops = (changes.get(op.name, op) for op in self.ops)
        return self.replace([op for op in ops if op is not None], **kwargs)


def overlap(a: View, b: View) -> bool:
    return a.buffer == b.buffer and bool(a.mask & b.mask)
