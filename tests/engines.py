"""What the tests of engines share: where they run, small plans with random weights, and what is expected."""

import copy
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plans import one_thread, random_frames
from torch import Tensor

import stdc_fast
from stdc_fast import _native, images
from stdc_fast.backends import eager, triton
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.numerics import relative_error, tolerance
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.plan.ops import Add, Buffer, Conv, Down, Gate, Op, Scale, Stem, Upsample, View
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

BUILT, REASON = _native.available()
ISAS = _native.module().isas() if BUILT else ["none"]
LOW, HALF, FULL = torch.bfloat16, torch.float16, torch.float32
#: Where Triton's kernels run: on the GPU if there is one, else in the interpreter (see conftest.py).
DEVICE = "cpu" if triton.interpreted() else "cuda"
KERNELS, NO_KERNELS = triton.available()

needs_native = pytest.mark.skipif(not BUILT, reason=f"needs the native module: {REASON}")
needs_triton = pytest.mark.skipif(not KERNELS, reason=f"needs Triton's kernels: {NO_KERNELS}")
on_every_isa = pytest.mark.parametrize("isa", ISAS)
in_both_dtypes = pytest.mark.parametrize("dtype", [FULL, LOW], ids=["float32", "bfloat16"])


def kernels(plan: Plan, dtype: torch.dtype, choose=None) -> triton.Executable:
    """The plan on Triton's kernels, with all memory NaN before each run; a GPU has its own tiles."""
    return triton.compile(plan, dtype, DEVICE, tiles=choose, poisoned=True)


def wrong_labels(labels: Tensor, logits: Tensor, between=None) -> int:
    """Pixels whose label is not the best of the logits as torch interpolates them, where that is no matter
    of rounding; ``between``: interpolate to that size first.
    """
    if between is not None:
        logits = upsample(logits.double(), between)
    size = tuple(labels.shape[1:])
    expected = resize_argmax(logits, size)[0]
    if torch.equal(labels, expected):
        return 0
    values = upsample(logits.double(), size)
    short = values.amax(1) - values.gather(1, labels.long()[:, None])[:, 0]
    return int((~(short <= 1e-5 * logits.abs().max())).sum())


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


#: Greatest difference at one place, over the greatest value: a unit or two in the last place of that.
LARGEST = {FULL: 1e-5, HALF: 2.0**-9, LOW: 2.0**-6}


def given(plan, dtype, *shape, seed=0):
    """Random inputs of a plan, in its dtype."""
    found = []
    for i, name in enumerate(plan.inputs):
        buffer = plan.buffers[name]
        if buffer.store == "uint8":
            found.append(random_frames(*shape, seed=seed + i))
            continue
        generator = torch.Generator().manual_seed(seed + i)
        x = torch.randn(shape[0], buffer.channels, *shape[1:], generator=generator)
        found.append((x + 0.25).to(dtype))
    return found


def oracle(plan, dtype):
    """Runs the plan as exactly as the engine should: in float64, or rounding where it rounds."""
    if dtype == FULL:
        return eager.compile(plan, torch.float64)
    return eager.compile(plan, torch.float32, rounding=Rounding(dtype))


def answers(plan, dtype, shapes: Iterable[tuple[int, int, int]]) -> list[tuple[list[Tensor], Tensor]]:
    """For each (batch, height, width): inputs, and what must come out."""
    exact, found = oracle(plan, dtype), []
    for i, shape in enumerate(shapes):
        inputs = given(plan, dtype, *shape, seed=i)
        found.append((inputs, exact(*(x if x.dtype == torch.uint8 else x.to(exact.dtype) for x in inputs))))
    return found


def check(got, expected, dtype, what=""):
    """All of it by the table of tolerances, and no single number far off."""
    assert got.shape == expected.shape
    error = relative_error(got, expected)
    assert error <= tolerance(dtype).op, f"{what}: {error:.2e}"
    largest = ((got.double() - expected.double()).abs().max() / expected.abs().max()).item()
    assert largest <= LARGEST[dtype], f"{what}: {largest:.2e} at one place"


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


# The embedded network and a photo.

STREET = Path(stdc_fast.__file__).parent / "assets" / "street.jpg"


@functools.cache
def trained():
    """The embedded network in float64."""
    model = stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32", backend="eager")
    return copy.deepcopy(model.network).double().eval().requires_grad_(False)


@functools.cache
def trained_plan(frames=True):
    return optimise(build(trained(), frames=frames))


@functools.cache
def street(size):
    """The photo's middle, small enough that the network sees what it was trained on."""
    image = Image.fromarray(images.read_image(STREET))
    height = round(256 * image.height / image.width)
    image = np.array(image.resize((256, height), Image.Resampling.BILINEAR))
    top, left = max(0, (height - size[0]) // 2), (256 - size[1]) // 2
    crop = image[top : top + size[0], left : left + size[1]]
    if crop.shape[:2] != size:
        crop = np.array(Image.fromarray(crop).resize(size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(crop.copy())[None]


@functools.cache
def truth(net, frames):
    """Logits and labels of the float64 network."""
    with one_thread():
        logits = net.logits8(images.normalise(frames, torch.float64))
    return logits, resize_argmax(logits, tuple(frames.shape[1:3]))[0]


@functools.cache
def emulated(plan, dtype, image):
    how = {} if dtype == FULL else {"rounding": Rounding(dtype)}
    return eager.compile(plan, FULL, **how)(image)


_KEYS = {}


def as_key(x):
    """One tensor for all of the same numbers, so that it can be a key of a cache."""
    return _KEYS.setdefault((x.shape, x.numpy().tobytes()), x)
