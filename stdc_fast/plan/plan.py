"""A plan: ops in order over named buffers, with their weights; checked whenever one is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor

from stdc_fast.plan.ops import ACTIVATIONS, CORE, Buffer, Conv, Down, Gate, Op, View


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
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        written = dict.fromkeys(self.buffers, 0)
        for name in self.inputs:
            written[name] = self.whole(name).mask
        owners: dict[str, str] = {}
        if len({op.name for op in self.ops}) != len(self.ops):
            raise ValueError("several ops have the same name")
        for op in self.ops:
            for view in [*op.reads, *op.writes]:
                if view.buffer not in self.buffers:
                    raise ValueError(f"{op.name}: {view} is of no buffer")
                if view.channels < 1 or view.offset + view.channels > self.buffers[view.buffer].channels:
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
            self._check(op)
        for view in self.outputs:
            if view.mask & ~written[view.buffer]:
                raise ValueError(f"output {view} has not been written")

    def _check(self, op: Op) -> None:
        """Strides, channels and weights of one op against each other."""

        def need(true: bool, what: str) -> None:
            if not true:
                raise ValueError(f"{op.kind} {op.name}: {what}")

        acts = {"gate": getattr(op, "acts", ())}.get(op.kind, (getattr(op, "act", "none"),))
        need(set(acts) <= set(ACTIVATIONS), f"unknown activation in {acts}")
        stride = {view: self.buffers[view.buffer].stride for view in [*op.reads, *op.writes]}
        if isinstance(op, Conv):
            source, width = op.inputs[0], sum(v.channels for v in op.inputs)
            need(all(stride[v] == stride[source] for v in op.inputs), "inputs of several strides")
            factor = op.stride / 2 if op.up else op.stride
            need(stride[op.output] == stride[source] * factor, f"output {op.output} has the wrong stride")
            out = op.output.channels
            expected = {
                1: (out, width, 1, 1),
                2: (3, 3, out, width, 2, 2),
                3: (out, 1 if op.depthwise else width, 3, 3),
            }[op.kernel]
            got = tuple(self.weights[op.weight].shape)
            need(got == expected, f"weights {list(got)}, expected {list(expected)}")
            need(not op.depthwise or out == width, f"{width} channels to {out}")
            if op.scale:
                need(stride[op.scale] == 0 and op.scale.channels == width, f"scale {op.scale} does not fit")
            if op.add:
                fits = stride[op.add] in (0, stride[source]) and op.add.channels == width
                need(fits, f"add {op.add} does not fit")
            if op.mean:
                need(stride[op.mean] == 0 and op.mean.channels == out, f"mean {op.mean} does not fit")
        elif isinstance(op, Down):
            need(stride[op.output] == 2 * stride[op.input], f"output {op.output} has the wrong stride")
            for view in op.writes:
                need(view.channels == self.weights[op.weight].shape[0], f"{view} has the wrong channels")
        elif isinstance(op, Gate):
            need(len(op.layers) == len(op.biases) == len(op.acts), "layers, biases and acts differ in length")
            need(set(stride.values()) == {0}, "reads or writes a map")
        else:
            outputs = sum(v.channels for v in op.writes)
            same = {"concat": sum(v.channels for v in op.reads), "stem": outputs, "upsample": outputs}
            need(same.get(op.kind, op.reads[0].channels) == outputs, "channels of input and output differ")

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
        return sorted({op.kind for op in self.ops} - CORE)

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

    def substitute(self, changes: Mapping[str, Op | None], **kwargs) -> Plan:
        """A plan in which the ops of these names are replaced, or gone where None."""
        ops = (changes.get(op.name, op) for op in self.ops)
        return self.replace([op for op in ops if op is not None], **kwargs)


def overlap(a: View, b: View) -> bool:
    return a.buffer == b.buffer and bool(a.mask & b.mask)
