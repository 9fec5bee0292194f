"""Whether the views, strides and weights of one op fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from stdc_fast.plan import ops
from stdc_fast.plan.ops import Buffer, Op, View


def problems(op: Op, buffers: Mapping[str, Buffer], weights: Mapping[str, Tensor]) -> Iterator[str]:
    """What does not fit, in words; nothing if all does."""

    def stride(view: View) -> int:
        return buffers[view.buffer].stride

    def shaped(name: str | None, *shape: int) -> Iterator[str]:
        if name is not None and tuple(weights[name].shape) != shape:
            yield f"weights {name} are {list(weights[name].shape)}, expected {list(shape)}"

    def steps(output: View, source: View, factor: float = 1) -> Iterator[str]:
        if stride(output) != stride(source) * factor:
            yield f"{output} has stride {stride(output)}, expected {stride(source) * factor:g}"

    def wide(view: View, channels: int) -> Iterator[str]:
        if view.channels != channels:
            yield f"{view} has {view.channels} channels, expected {channels}"

    def vector(view: View | None, channels: int) -> Iterator[str]:
        if view is not None:
            yield from wide(view, channels)
            if stride(view):
                yield f"{view} is no vector"

    for act in (*getattr(op, "acts", ()), getattr(op, "act", "none")):
        if act not in ops.ACTIVATIONS:
            yield f"unknown activation {act!r}; known are {', '.join(ops.ACTIVATIONS)}"

    if getattr(op, "inputs", True) == ():
        yield "has no inputs"
        return
    yield from _of_levels(op, buffers, weights)

    if isinstance(op, ops.Conv):
        source, out = op.inputs[0], op.output.channels
        width = sum(view.channels for view in op.inputs)
        for view in op.inputs[1:]:
            yield from steps(view, source)
        yield from steps(op.output, source, op.stride / 2 if op.up else op.stride)
        if (op.kernel, op.stride, op.up) not in _FORMS:
            yield f"there is no kernel {op.kernel} with stride {op.stride} and up {op.up}"
        elif op.kernel == 2 and op.depthwise:
            yield "there is no depthwise sub-pixel form"
        elif op.kernel == 2:
            yield from shaped(op.weight, 3, 3, out, width, 2, 2)
        else:
            yield from shaped(op.weight, out, 1 if op.depthwise else width, op.kernel, op.kernel)
        if op.depthwise:
            yield from wide(op.output, width)
        yield from shaped(op.bias, out)
        yield from vector(op.scale, width)
        if op.add is not None:
            yield from wide(op.add, width)
            if stride(op.add):
                yield from steps(op.add, source)
        yield from vector(op.mean, out)
    elif isinstance(op, ops.Stem):
        yield from steps(op.output, op.input, 2)
        yield from shaped(op.weight, op.output.channels, op.input.channels, 3, 3)
        yield from shaped(op.bias, op.output.channels)
        if op.offset is not None and len(op.offset) != op.input.channels:
            yield f"offset {op.offset} for {op.input}"
    elif isinstance(op, ops.Down):
        middle = op.output.channels
        yield from shaped(op.weight, middle, op.input.channels, 1, 1)
        yield from shaped(op.bias, middle)
        yield from shaped(op.depthwise_weight, middle, 1, 3, 3)
        yield from shaped(op.depthwise_bias, middle)
        for view in op.writes:
            yield from wide(view, middle)
            yield from steps(view, op.input, 2)
    elif isinstance(op, ops.Gate):
        if not len(op.layers) == len(op.biases) == len(op.acts) > 0:
            yield f"{len(op.layers)} layers, {len(op.biases)} biases, {len(op.acts)} activations"
            return
        width = op.input.channels
        yield from vector(op.input, width)
        for name, bias in zip(op.layers, op.biases, strict=True):
            out = weights[name].shape[0]
            yield from shaped(name, out, width, 1, 1)
            yield from shaped(bias, out)
            width = out
        yield from vector(op.output, width)
    elif isinstance(op, ops.Quantise):
        width = op.output.channels
        yield from wide(op.input, width)
        yield from steps(op.output, op.input)
        yield from vector(op.scale, width)
        if op.add is not None:
            yield from wide(op.add, width)
            if stride(op.add):
                yield from steps(op.add, op.input)
    elif isinstance(op, ops.Concat):
        yield from wide(op.output, sum(view.channels for view in op.inputs))
        for view in op.inputs:
            yield from steps(op.output, view)
    elif isinstance(op, ops.Upsample):
        yield from wide(op.output, 1)
        yield from steps(op.output, op.input, 1 / 8)
    else:
        factor = {"pool": 2, "mean": 0, "resize": 0.5}.get(op.kind, 1)
        yield from wide(op.output, op.input.channels)
        yield from steps(op.output, op.input, factor)
        if isinstance(op, ops.Norm):
            for name in op.weights:
                yield from shaped(name, op.input.channels)
        elif isinstance(op, ops.Scale):
            yield from vector(op.scale, op.input.channels)
        elif isinstance(op, ops.Add):
            yield from wide(op.other, op.input.channels)
            if stride(op.other):
                yield from steps(op.other, op.input)


def _of_levels(op: Op, buffers: Mapping[str, Buffer], weights: Mapping[str, Tensor]) -> Iterator[str]:
    """What of the 8-bit levels that it reads or writes does not fit."""
    read = [view for view in op.reads if buffers[view.buffer].store in ops.LEVELS]
    written = [view for view in op.writes if buffers[view.buffer].store in ops.LEVELS]
    multipliers = getattr(op, "multipliers", None)
    if multipliers is None:
        for view in read:
            yield f"reads levels {view} without multipliers"
    else:
        products = op.inputs if isinstance(op, ops.Conv) else (op.input,)
        if read != list(products) or op.reads != read:
            yield "has multipliers, but does not read levels alone"
        if weights[multipliers].shape != (op.output.channels,):
            yield f"multipliers are {list(weights[multipliers].shape)}, expected [{op.output.channels}]"
        weight = weights[op.weight]
        if not bool(((weight == weight.round()) & (weight.abs() <= 127)).all()):
            yield f"weights {op.weight} are no whole numbers in -127..127"
    for field, output in (("levels", "output"), ("pooled_levels", "pooled")):
        view, levels = getattr(op, output, None), getattr(op, field, None)
        if (view in written) != (levels is not None):
            yield f"{output}: steps and a buffer of levels go together"
        elif levels is not None:
            step = weights[levels]
            if step.shape != (view.channels,) or not bool((step > 0).all()):
                yield f"steps {levels} must be {view.channels} positive numbers"


# (kernel, stride, up) of the convolutions that there are.
_FORMS = {(1, 1, False), (1, 2, False), (3, 1, False), (3, 2, False), (3, 1, True), (2, 1, True)}
