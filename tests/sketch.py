"""Small plans with random weights, a few ops each; and one with an op of every kind, from frame to labels."""

import functools

import torch
from torch import Tensor

from stdc_fast.plan import Plan
from stdc_fast.plan.ops import Add, Buffer, Conv, Down, Gate, Op, Scale, Stem, Upsample, View


class Sketch:
    """A plan in the making. Weights are random, so that what a convolution returns is of order one."""

    def __init__(self, *channels: int, store: str = "act", seed: int = 0):
        self.buffers: dict[str, Buffer] = {}
        self.ops: list[Op] = []
        self.weights: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.inputs = [self.buffer(n, 1, store) for n in channels]

    def buffer(self, channels: int, stride: int, store: str = "act") -> View:
        name = f"buffer {len(self.buffers)}"
        self.buffers[name] = Buffer(name, channels, stride, store)
        return View(name, 0, channels)

    def vector(self, channels: int) -> View:
        return self.buffer(channels, 0, "float32")

    def weight(self, *shape: int, fan: int | None = None) -> str:
        name = f"weight {len(self.weights)}"
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        self.weights[name] = values / (fan or 1) ** 0.5
        return name

    def emit(self, kind: type[Op], **fields) -> None:
        self.ops.append(kind(name=f"op {len(self.ops)}", **fields))

    def stride(self, view: View) -> int:
        return self.buffers[view.buffer].stride

    def output(self, out: View | int, stride: int, store: str = "act") -> View:
        return out if isinstance(out, View) else self.buffer(out, stride, store)

    def stem(self, image: View, out: View | int, offset=None, bias: bool = True) -> View:
        out = self.output(out, 2)
        weight = self.weight(out.channels, 3, 3, 3, fan=27)
        if offset is not None:
            self.weights[weight] /= 64
        self.emit(
            Stem, input=image, output=out, weight=weight, act="relu", offset=offset,
            bias=self.weight(out.channels) if bias else None,
        )  # fmt: skip
        return out

    def conv(
        self, inputs, out: View | int, kernel: int, stride: int = 1, act: str = "relu", bias: bool = True,
        store: str = "act", **fields,
    ) -> View:  # fmt: skip
        """Kernel 2 is the sub-pixel form."""
        inputs = (inputs,) if isinstance(inputs, View) else tuple(inputs)
        up, place = kernel == 2, self.stride(inputs[0])
        out = self.output(out, place // 2 if up else place * stride, store)
        width = sum(view.channels for view in inputs)
        shape = (out.channels, width, kernel, kernel)
        weight = self.weight(*((3, 3) if up else ()), *shape, fan=width * kernel**2)
        self.emit(
            Conv, inputs=inputs, output=out, weight=weight, kernel=kernel, stride=stride, act=act, up=up,
            bias=self.weight(out.channels) if bias else None, **fields,
        )  # fmt: skip
        return out

    def down(self, x: View, out: View | int, pooled: View | None = None, bias=True, include=True) -> View:
        out = self.output(out, 2 * self.stride(x))
        n = out.channels
        self.emit(
            Down, input=x, output=out, pooled=pooled, count_include_pad=include,
            weight=self.weight(n, x.channels, 1, 1, fan=x.channels), bias=self.weight(n) if bias else None,
            depthwise_weight=self.weight(n, 1, 3, 3, fan=9), depthwise_bias=self.weight(n) if bias else None,
        )  # fmt: skip
        return out

    def gate(self, x: View, widths, acts, bias: bool = True, out: View | None = None) -> View:
        layers, width = [], x.channels
        for n in widths:
            layers.append(self.weight(n, width, 1, 1, fan=width))
            width = n
        out = self.vector(width) if out is None else out
        biases = tuple(self.weight(n) if bias else None for n in widths)
        self.emit(Gate, input=x, output=out, layers=tuple(layers), biases=biases, acts=tuple(acts))
        return out

    def scale(self, x: View, vector: View) -> View:
        out = self.buffer(x.channels, self.stride(x))
        self.emit(Scale, input=x, scale=vector, output=out)
        return out

    def add(self, x: View, other: View) -> View:
        out = self.buffer(x.channels, self.stride(x))
        self.emit(Add, input=x, other=other, output=out)
        return out

    def labels(self, logits: View) -> View:
        out = self.buffer(1, 1, "uint8")
        self.emit(Upsample, input=logits, output=out)
        return out

    def plan(self, output: View) -> Plan:
        return Plan(
            "sketch", self.buffers, tuple(self.ops), tuple(v.buffer for v in self.inputs), (output,),
            self.weights,
        )  # fmt: skip


def sketched(*channels, **how):
    """Turns a function of a sketch and its inputs, which returns the output, into a case."""

    def decorate(draw):
        @functools.wraps(draw)
        def make():
            sketch = Sketch(*channels, **how)
            return sketch.plan(draw(sketch, *sketch.inputs))

        return make

    return decorate


def plain(inputs, outputs, kernel, stride, **how):
    return sketched(inputs)(lambda s, x: s.conv(x, outputs, kernel, stride, **how))


def between(channels, outputs, kernel, stride, before=4, after=6, **how):
    """From and to some channels of wider buffers; what is on both sides is NaN or another op's."""

    @sketched(before + channels + after)
    def make(s, x):
        y = s.buffer(before + outputs + after, stride)
        s.conv(View(x.buffer, before, channels), View(y.buffer, before, outputs), kernel, stride, **how)
        s.conv(View(x.buffer, 0, before), View(y.buffer, 0, before), 1, stride)
        return View(y.buffer, 0, before + outputs)

    return make


def pair(first, second, outputs, kernel, stride, wide=0, **how):
    """Two inputs, in buffers with ``wide`` more channels (the second twice as many)."""

    @sketched(first + wide, second + 2 * wide)
    def make(s, x, y):
        views = View(x.buffer, wide, first), View(y.buffer, wide, second)
        return s.conv(views, outputs, kernel, stride, **how)

    return make


@functools.cache
def small_network(classes: int = 11, frames: bool = True, seed: int = 0) -> Plan:
    """From image to labels in few ops, with each kind among them."""
    s = Sketch(3, store="uint8" if frames else "float32", seed=seed)
    x = s.stem(s.inputs[0], 32, (123.7, 116.3, 103.5) if frames else None)
    both, mean = s.buffer(96, 4), s.vector(40)
    x = s.down(x, View(both.buffer, 0, 64), s.buffer(64, 4))
    s.conv(x, View(both.buffer, 64, 32), 3)
    x = s.conv(both, 64, 3, 2)
    y = s.conv(x, 40, 3, 2, mean=mean)
    gate = s.gate(mean, (12, 40), ("relu", "sigmoid+1"))
    x = s.conv([x, s.conv(y, 64, 2, scale=gate)], 48, 1)
    return s.plan(s.labels(s.conv(x, classes, 1, act="none", bias=False, store="float32")))
