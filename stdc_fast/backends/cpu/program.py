"""Plans as the native engine reads them: a text header, one line a buffer, weight or op, then the weights.

The format (version 3) is that of ``csrc/core/program.cpp``::

    stdc-plan 3
    NAME DTYPE
    buffers COUNT               then lines: STORE CHANNELS STRIDE NAME
    weights COUNT               then lines: DTYPE OFFSET DIMENSIONS SIZE...
    ops COUNT                   then lines: KIND NAME INPUTS (BUFFER OFFSET CHANNELS)... OUTPUT SETTINGS...
    inputs COUNT BUFFER...
    output BUFFER OFFSET CHANNELS
    data                        then zeros up to a multiple of 64 bytes, then all weights

Weights are rounded to the plan's dtype; biases, depthwise weights and gates are float32. So are the weights
of convolutions that Winograd's tiles may do: the engine rounds them once, transformed or not. Whole weights
are int8. Steps of levels are written as their inverses. Plans without levels are written as version 2, which
has no settings for them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stdc_fast.backends.base import why_not_native
from stdc_fast.plan.ops import (
    ACTIVATIONS,
    LEVELS,
    Add,
    Conv,
    Down,
    Gate,
    Quantise,
    Scale,
    Stem,
    Upsample,
    View,
)
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import BFLOAT16, FLOAT32, INT8, INT8_FLOAT32, Precision

#: What the engine computes in.
PRECISIONS = (FLOAT32, BFLOAT16, INT8, INT8_FLOAT32)


def why_not(plan: Plan | None, precision: Precision) -> str | None:
    """Why the native engine does not run a plan, or None; without one, why it lacks a precision."""
    if precision not in PRECISIONS:
        return f"it computes in float32, bfloat16 and int8, not {precision}"
    if plan is None:
        return None
    if (reason := why_not_native(plan, levels=True)) is not None:
        return reason
    # The engine multiplies pairs of 16-bit channels, and four of 8 bits.
    for op in plan.ops:
        if isinstance(op, (Conv, Down)):
            views = op.inputs if isinstance(op, Conv) else (op.input,)
            even = 4 if op.multipliers else 4 // precision.maps.itemsize
            if any(v.channels % even or v.offset % even for v in views):
                return f"{op.kind} {op.name}: odd numbers of channels in {precision}"
    return None


def serialise(plan: Plan, precision: Precision) -> bytes:
    """The saved plan. ValueError for what the engine can not run, see :func:`why_not`."""
    reason = why_not(plan, precision)
    if reason is not None:
        raise ValueError(f"the native engine can not run {plan.name}: {reason}")
    return _Writer(plan, precision).bytes()


class _Writer:
    def __init__(self, plan: Plan, precision: Precision):
        self.plan, self.precision = plan, precision
        self.version = 3 if any(b.store in LEVELS for b in plan.buffers.values()) else 2
        self.buffers: list[str] = []
        self.names: dict[str, int] = {}
        self.weights: list[str] = []
        self.data: list[bytes] = []
        self.size = 0
        self.ops: list[str] = []

    def bytes(self) -> bytes:
        plan = self.plan
        inputs = []
        for name in plan.inputs:
            buffer = plan.buffers[name]
            store = "frame" if buffer.store == "uint8" else "image"
            inputs.append(self.buffer(f"{name}:given", store, buffer.channels, buffer.stride))
        for name, buffer in plan.buffers.items():
            if name in plan.inputs and buffer.channels == 3 and self._of_stem(name):
                self.buffer(name, "act", 4, 1)  # four channels a pixel: whole pairs, and fewer loads
            elif buffer.store in LEVELS:
                self.buffer(name, buffer.store, buffer.channels, buffer.stride)
            elif buffer.stride == 0:
                self.buffer(name, "vector", buffer.channels, 0)
            elif buffer.store == "uint8":
                self.buffer(name, "labels", buffer.channels, buffer.stride)
            elif buffer.store == "float32" and name not in plan.inputs:
                self.buffer(name, "logits", buffer.channels, buffer.stride)
            else:
                self.buffer(name, "act", buffer.channels, buffer.stride)
        for name in plan.inputs:
            if not self._of_stem(name):
                whole = plan.whole(name)
                self.op("import", name, [View(f"{name}:given", 0, whole.channels)], whole)
        for op in plan.ops:
            getattr(self, f"_{op.kind}")(op)
        output = plan.outputs[0]
        logits = {op.output.buffer: op.input for op in plan.ops if isinstance(op, Upsample)}
        output = logits.get(output.buffer, output)
        if plan.buffers[output.buffer].store != "float32":
            result = View("result", 0, output.channels)
            self.buffer("result", "image", output.channels, plan.buffers[output.buffer].stride)
            self.op("export", "result", [output], result)
            output = result
        lines = [
            f"stdc-plan {self.version}",
            f"{word(plan.name)} {_name(self.precision.maps)}",
            f"buffers {len(self.buffers)}",
            *self.buffers,
            f"weights {len(self.weights)}",
            *self.weights,
            f"ops {len(self.ops)}",
            *self.ops,
            f"inputs {len(inputs)} {' '.join(map(str, inputs))}",
            f"output {self.view(output)}",
            "data\n",
        ]
        header = "\n".join(lines).encode()
        return b"".join([header, bytes(-len(header) % 64), *self.data])

    def _of_stem(self, name: str) -> bool:
        return any(isinstance(op, Stem) and op.input.buffer == name for op in self.plan.ops)

    def buffer(self, name: str, store: str, channels: int, stride: int) -> int:
        self.names[name] = len(self.buffers)
        self.buffers.append(f"{store} {channels} {stride} {word(name)}")
        return self.names[name]

    def view(self, view: View) -> str:
        return f"{self.names[view.buffer]} {view.offset} {view.channels}"

    def optional(self, view: View | None) -> str:
        return "-" if view is None else f"+ {self.view(view)}"

    def weight(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        if tensor is None:
            return -1
        rounded = tensor.detach().to("cpu", dtype).contiguous()  # to int8 without loss, of whole weights
        raw = rounded.view(torch.int16).numpy() if dtype == torch.bfloat16 else rounded.numpy()
        data = np.ascontiguousarray(raw).tobytes()
        data += bytes(-len(data) % 64)
        shape = " ".join(map(str, tensor.shape))
        self.weights.append(f"{_name(dtype)} {self.size} {tensor.ndim} {shape}")
        self.data.append(data)
        self.size += len(data)
        return len(self.weights) - 1

    def named(self, name: str | None, dtype: torch.dtype = torch.float32) -> int:
        return self.weight(None if name is None else self.plan.weights[name], dtype)

    def levels(self, *names: str | None) -> list[int]:
        """The settings of levels: none where the format has no such."""
        if self.version == 2:
            return []
        inverses = (None if n is None else self.plan.weights[n].float().reciprocal() for n in names)
        return [self.weight(inverse) for inverse in inverses]

    def multipliers(self, op: Conv | Down) -> list[int]:
        return [] if self.version == 2 else [self.named(op.multipliers)]

    def rounded(self, name: str) -> Tensor:
        """Weights that are rounded like all others, but kept in float32."""
        return self.plan.weights[name].to(self.precision.weights).float()

    def op(self, kind: str, name: str, inputs: list[View], output: View, *settings: object) -> None:
        views = " ".join(map(self.view, inputs))
        rest = "".join(f" {s}" for s in settings)
        self.ops.append(f"{kind} {word(name)} {len(inputs)} {views} {self.view(output)}{rest}")

    def _stem(self, op: Stem) -> None:
        image = View(op.input.buffer, 0, 4)
        given = View(f"{op.input.buffer}:given", 0, 3)
        weight = self.plan.weights[op.weight].to(self.precision.weights)
        bias = self.plan.weights[op.bias].float() if op.bias else torch.zeros(len(weight))
        if op.offset is None:
            self.op("import", f"{op.name}:image", [given], image)
        else:
            # Raw pixels less whole numbers are exact in every dtype. What those lack of the offset goes
            # into the border, and into the bias, with the weights as rounded.
            offset = torch.tensor(op.offset, dtype=torch.float32)
            near = offset.round()
            rest = offset - near
            bias = bias - (weight.float() * rest.view(1, -1, 1, 1)).sum((1, 2, 3))
            numbers = [repr(float(x)) for x in (*near, *rest)]
            self.op("frame", f"{op.name}:image", [given], image, *numbers)
        act = ACTIVATIONS.index(op.act)
        weights = self.weight(weight, self.precision.weights), self.weight(bias)
        rest = [-1, *self.levels(op.levels)] if self.version > 2 else []
        self.op("conv", op.name, [image], op.output, 3, 2, act, *weights, "-", *rest)

    def _conv(self, op: Conv) -> None:
        inputs = list(op.inputs)
        if op.scale or op.add:
            (view,) = inputs
            ready = f"{op.name}:input"
            self.buffer(ready, "act", view.channels, self.plan.buffers[view.buffer].stride)
            inputs = [View(ready, 0, view.channels)]
            self._prologue(ready, view, op.scale, op.add, inputs[0])
        tiles = len(op.inputs) == 1 and (op.kernel, op.stride) in ((3, 1), (2, 1))  # the engine rounds
        dtype = torch.int8 if op.multipliers else torch.float32 if tiles else self.precision.weights
        weights = self.named(op.weight, dtype), self.named(op.bias)
        act = ACTIVATIONS.index(op.act)
        rest = [self.optional(op.mean), *self.multipliers(op), *self.levels(op.levels)]
        self.op("conv", op.name, inputs, op.output, op.kernel, op.stride, act, *weights, *rest)

    def _prologue(
        self,
        name: str,
        view: View,
        scale: View | None,
        add: View | None,
        output: View,
        levels: str | None = None,
    ) -> None:
        rest = self.optional(scale), self.optional(add), *self.levels(levels)
        self.op("prologue", name, [view], output, *rest)

    def _quantise(self, op: Quantise) -> None:
        self._prologue(op.name, op.input, op.scale, op.add, op.output, op.levels)

    def _scale(self, op: Scale) -> None:
        self._prologue(op.name, op.input, op.scale, None, op.output)

    def _add(self, op: Add) -> None:
        self._prologue(op.name, op.input, None, op.other, op.output)

    def _down(self, op: Down) -> None:
        dtype = torch.int8 if op.multipliers else self.precision.weights
        weights = self.named(op.weight, dtype), self.named(op.bias)
        depthwise = self.weight(self.rounded(op.depthwise_weight)), self.named(op.depthwise_bias)
        pooled = self.optional(op.pooled)
        rest = int(op.count_include_pad), *self.multipliers(op), *self.levels(op.levels, op.pooled_levels)
        self.op("down", op.name, [op.input], op.output, pooled, *weights, *depthwise, *rest)

    def _gate(self, op: Gate) -> None:
        layers: list[object] = []
        for name, bias, act in zip(op.layers, op.biases, op.acts, strict=True):
            layers += [self.weight(self.rounded(name).flatten(1)), self.named(bias), ACTIVATIONS.index(act)]
        self.op("gate", op.name, [op.input], op.output, len(op.layers), *layers)

    def _upsample(self, op: Upsample) -> None:
        self.op("upsample", op.name, [op.input], op.output)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def word(name: str) -> str:
    """A name as it is in a saved plan: without white space, which ends a word."""
    return "".join("_" if c.isspace() else c for c in name) or "_"
