"""Each op of the native CPU engine, on every instruction set, against the eager backend."""

import functools
import itertools

import pytest
import torch
from engines import FULL, LOW, Sketch, in_both_dtypes, needs_native, on_every_isa, wrong_labels
from plans import random_frames, random_images

from stdc_fast.backends import cpu, eager, program
from stdc_fast.backends.rounding import Rounding
from stdc_fast.numerics import relative_error, tolerance
from stdc_fast.plan.ops import View

pytestmark = needs_native

# Tiny, odd, and wide enough for several bands of rows and tiles of pixels.
SIZES = ((1, 1), (1, 2), (2, 1), (3, 5), (8, 6), (9, 34), (41, 67))
ACTS = ("none", "relu", "sigmoid", "sigmoid+1")
OFFSET = (123.675, 116.28, 103.53)


@pytest.fixture(autouse=True, scope="module")
def threads():
    """More than there are cores: who waits for whom must not matter."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


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


def check(got, expected, dtype, what=""):
    """All of it by the table of tolerances, and no single number far off."""
    assert got.shape == expected.shape
    error = relative_error(got, expected)
    assert error <= tolerance(dtype).op, f"{what}: {error:.2e}"
    largest = ((got.double() - expected.double()).abs().max() / expected.abs().max()).item()
    assert largest <= (1e-5 if dtype == FULL else 2.0**-6), f"{what}: {largest:.2e} at one place"


@functools.cache
def prepared(make, dtype):
    """A case's plan and, for every size, inputs and what must come out; the same for all instruction sets."""
    plan = make()
    exact, cases = oracle(plan, dtype), []
    for i, size in enumerate(SIZES):
        inputs = given(plan, dtype, 3 if i % 2 else 1, *size, seed=i)
        cases.append((inputs, exact(*(x if x.dtype == torch.uint8 else x.to(exact.dtype) for x in inputs))))
    return plan, cases


def agrees(make, dtype, isa):
    plan, cases = prepared(make, dtype)
    executable = cpu.compile(plan, dtype, isa=isa, poisoned=True)
    assert executable.isa == isa
    for inputs, expected in cases:
        got = executable(*inputs)
        assert got.dtype == (FULL if executable._logits else dtype)
        check(got, expected, dtype, list(inputs[0].shape))


def sketched(*channels, **how):
    """Turns a function of a sketch and its inputs, which returns the output, into a case."""

    def decorate(draw):
        @functools.wraps(draw)
        def make():
            sketch = Sketch(*channels, **how)
            return sketch.plan(draw(sketch, *sketch.inputs))

        return make

    return decorate


# Convolutions.


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


FORMS = list(itertools.product((1, 3), (1, 2)))
CONVS = {
    **{f"6 to 10, {k}x{k} / {s}": plain(6, 10, k, s, bias=False) for k, s in FORMS},
    **{f"34 to 19, {k}x{k} / {s}": plain(34, 19, k, s, act="none") for k, s in FORMS},
    **{f"64 to 150, {k}x{k} / {s}": plain(64, 150, k, s) for k, s in FORMS},
    **{f"10 of 20 to 19, {k}x{k} / {s}": between(10, 19, k, s) for k, s in FORMS},
    **{f"32 of 42 to 34, {k}x{k} / {s}": between(32, 34, k, s) for k, s in FORMS},
    **{f"32 and 64 to 40, {k}x{k} / {s}": pair(32, 64, 40, k, s) for k, s in FORMS},
    **{f"6 and 34 to 10, {k}x{k} / {s}": pair(6, 34, 10, k, s, wide=2) for k, s in FORMS},
    "2 to 1": plain(2, 1, 3, 1, act="none"),
    "1030 to 40": plain(1030, 40, 1, 1, act="none"),
    "512 to 34, 3x3": plain(512, 34, 3, 1, act="none"),
    "a wide first and a narrow second input": pair(64, 2, 34, 3, 1, bias=False),
    "one buffer read twice": sketched(12)(
        lambda s, x: s.conv([View(x.buffer, 2, 6), View(x.buffer, 0, 8)], 10, 3)
    ),
    "an input from another buffer's middle": sketched(6)(
        lambda s, x: s.conv(View(s.conv(x, 44, 1).buffer, 6, 32), 34, 3, 2)
    ),
}


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", CONVS)
def test_conv(case, dtype, isa):
    agrees(CONVS[case], dtype, isa)


@on_every_isa
def test_odd_channels_in_float32(isa):
    for kernel, stride in FORMS:
        agrees(odd_channels(kernel, stride), FULL, isa)


@functools.cache
def odd_channels(kernel, stride):
    return between(5, 7, kernel, stride, before=3, after=1)


def test_odd_channels_are_refused_in_bfloat16():
    plan = odd_channels(3, 1)()
    assert "odd" in program.unsupported(plan, LOW) and program.unsupported(plan, FULL) is None
    with pytest.raises(ValueError, match="odd numbers of channels"):
        cpu.compile(plan, LOW)


LOGITS = {
    **{f"{n} classes": plain(34, n, 1, 1, act="none", store="float32") for n in (1, 6, 10, 19, 34, 150)},
    "3x3 over 64": plain(64, 11, 3, 1, act="none", bias=False, store="float32"),
    "after a convolution": sketched(6)(
        lambda s, x: s.conv(s.conv(x, 34, 3, 2), 19, 1, act="none", store="float32")
    ),
}


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", LOGITS)
def test_logits_are_not_rounded(case, dtype, isa):
    agrees(LOGITS[case], dtype, isa)


# The sub-pixel form: the input has half the size, rounded up.


def subpixel(channels, outputs, **how):
    @sketched(6)
    def make(s, x):
        return s.conv(s.conv(x, channels, 1, 2, act="none"), outputs, 2, **how)

    return make


@sketched(6)
def subpixel_of_views(s, x):
    """From 32 of 44 channels to 10 of 30, with the average."""
    x = View(s.conv(x, 44, 3, 2).buffer, 6, 32)
    y, mean = s.buffer(30, 1), s.vector(10)
    s.conv(x, View(y.buffer, 14, 10), 2, mean=mean)
    return s.scale(View(y.buffer, 14, 10), s.gate(mean, (10,), ("sigmoid+1",)))


SUBPIXEL = {
    "6 to 10": subpixel(6, 10, bias=False),
    "64 to 40": subpixel(64, 40),
    "34 to 150": subpixel(34, 150, act="none"),
    "views": subpixel_of_views,
}
PARITIES = tuple(itertools.product((1, 2, 3, 6, 9, 40), (1, 2, 5, 8, 65, 66)))


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", SUBPIXEL)
def test_subpixel(case, dtype, isa):
    """Even and odd heights and widths, in all four combinations."""
    agrees(SUBPIXEL[case], dtype, isa)
    plan, cases = parities(case, dtype)
    executable = cpu.compile(plan, dtype, isa=isa, poisoned=True)
    for inputs, expected in cases:
        check(executable(*inputs), expected, dtype, list(inputs[0].shape))


@functools.cache
def parities(case, dtype):
    plan = SUBPIXEL[case]()
    exact, cases = oracle(plan, dtype), []
    for i, size in enumerate(PARITIES):
        inputs = given(plan, dtype, 1, *size, seed=i)
        cases.append((inputs, exact(*(x.to(exact.dtype) for x in inputs))))
    return plan, cases


# Stem.


def stem(outputs, frames, **how):
    sketch = sketched(3, store="uint8" if frames else "float32")
    return sketch(lambda s, x: s.stem(x, outputs, OFFSET if frames else None, **how))


@sketched(3, store="uint8")
def stem_to_a_view(s, x):
    both = s.buffer(30, 2)
    return s.stem(x, View(both.buffer, 10, 20), OFFSET, bias=False)


STEMS = {
    **{f"{n} of frames": stem(n, True) for n in (6, 32, 34)},
    **{f"{n} of images": stem(n, False, bias=n != 32) for n in (6, 32, 34)},
    "a view": stem_to_a_view,
    "whole numbers for an offset": sketched(3, store="uint8")(lambda s, x: s.stem(x, 10, (1.0, 0.0, 255.0))),
}


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", STEMS)
def test_stem(case, dtype, isa):
    agrees(STEMS[case], dtype, isa)


# Down.


def down(channels, outputs, pooled, **how):
    @sketched(channels + 4)
    def make(s, x):
        """Into two parts of one buffer, so that both are seen."""
        both = s.buffer(2 * outputs + 6, 2)
        where = View(both.buffer, 6, outputs)
        pool = View(both.buffer, 6 + outputs, outputs)
        s.down(View(x.buffer, 2, channels), where, pool if pooled else None, **how)
        return View(both.buffer, 6, 2 * outputs) if pooled else where

    return make


DOWNS = {
    "6 to 10": down(6, 10, True),
    "32 to 64": down(32, 64, True),
    "64 to 150": down(64, 150, True, bias=False),
    "34 to 19, without padding": down(34, 19, True, include=False),
    "10 to 34, without padding": down(10, 34, True, include=False),
    "32 to 40, no pool": down(32, 40, False),
    "6 to 19, no pool": down(6, 19, False, bias=False, include=False),
}


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", DOWNS)
def test_down(case, dtype, isa):
    agrees(DOWNS[case], dtype, isa)


# Averages and gates; what a gate gives is seen in a map that it scales.


def gated(widths, acts, channels=34, kernel=3, **how):
    @sketched(6)
    def make(s, x):
        y, mean = s.buffer(channels, 1), s.vector(channels)
        s.conv(x, y, kernel, mean=mean)
        gate = s.gate(mean, widths, acts, **how)
        return s.scale(View(y.buffer, 0, gate.channels), gate)

    return make


@sketched(6)
def average_in_parts(s, x):
    """Two convolutions fill one vector, of which a gate reads a part of both; another gate reads the gate."""
    y, mean, out = s.buffer(48, 2), s.vector(50), s.vector(20)
    s.conv(x, View(y.buffer, 0, 38), 3, 2, mean=View(mean.buffer, 2, 38))
    s.conv(View(y.buffer, 0, 38), View(y.buffer, 38, 10), 1, mean=View(mean.buffer, 40, 10))
    s.gate(View(mean.buffer, 33, 11), (20,), ("none",), out=out)
    second = s.gate(View(out.buffer, 3, 16), (48,), ("sigmoid+1",))
    return s.scale(y, second)


GATES = {
    **{f"one layer, {act}": gated((34,), (act,)) for act in ACTS},
    **{f"two layers, relu and {act}": gated((10, 19), ("relu", act)) for act in ACTS},
    **{f"two layers, {act} and none": gated((64, 34), (act, "none"), bias=False) for act in ACTS},
    "150 channels": gated((19, 150), ("relu", "sigmoid"), channels=150, kernel=1),
    "64 channels": gated((64,), ("sigmoid",), channels=64),
    "parts": average_in_parts,
}


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", GATES)
def test_gate(case, dtype, isa):
    agrees(GATES[case], dtype, isa)


# Prologues: a convolution's, and as ops of their own.


def prologue(channels, kernel, stride=1, scale=False, add=None):
    """Of some channels of a buffer: times a vector, plus a vector, a map, or a part of the map itself."""

    @sketched(channels + 6)
    def make(s, x):
        x, means, fields = s.conv(x, channels + 4, 3, 2), s.vector(64), {}
        s.conv(x, 64, 1, mean=means)
        if scale:
            vector = s.gate(means, (channels + 3,), ("sigmoid+1",))
            fields["scale"] = View(vector.buffer, 3, channels)
        if add == "vector":
            fields["add"] = s.gate(means, (channels,), ("none",))
        if add == "map":
            fields["add"] = View(s.conv(x, channels + 10, 1).buffer, 4, channels)
        if add == "itself":
            fields["add"] = View(x.buffer, 0, channels)
        return s.conv(View(x.buffer, 2, channels), 10, kernel, stride, **fields)

    return make


@sketched(10, 40)
def ops_of_their_own(s, x, y):
    vector = s.vector(10)
    s.conv(x, 10, 1, mean=vector)
    vector = s.gate(vector, (10,), ("sigmoid",))
    x = s.add(s.scale(x, vector), View(y.buffer, 14, 10))
    return s.add(x, vector)


PROLOGUES = {
    "scale": prologue(34, 3, scale=True),
    "add a vector": prologue(6, 1, add="vector"),
    "add a map": prologue(32, 3, 2, add="map"),
    "add the map itself": prologue(10, 3, add="itself"),
    "scale and add a vector": prologue(64, 3, scale=True, add="vector"),
    "scale and add a map": prologue(34, 1, 2, scale=True, add="map"),
    "scale, add a vector, up": prologue(32, 2, scale=True, add="vector"),
    "scale, add a map, up": prologue(10, 2, scale=True, add="map"),
    "ops of their own": ops_of_their_own,
}


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", PROLOGUES)
def test_prologue(case, dtype, isa):
    agrees(PROLOGUES[case], dtype, isa)


# Labels.


@functools.cache
def labelled(classes):
    s = Sketch(3, store="uint8")
    x = s.conv(s.stem(s.inputs[0], 10, OFFSET), 10, 3, 2)
    return s.plan(s.labels(s.conv(x, classes, 3, 2, act="none", store="float32")))


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("classes", [1, 2, 6, 10, 19, 34, 150, 256])
def test_labels(classes, dtype, isa):
    """Of the engine's own logits, at the frame's size and others, one pixel and one class included."""
    executable = cpu.compile(labelled(classes), dtype, isa=isa, poisoned=True)
    for i, (size, out) in enumerate(
        [((1, 1), (1, 1)), ((1, 9), (4, 3)), ((17, 8), (1, 70)), ((40, 65), (39, 67)), ((34, 130), (90, 41))]
    ):
        frames = random_frames(1 + i % 2 * 2, *size, seed=i)
        logits = executable(frames)
        assert wrong_labels(executable.labels(frames), logits) == 0
        assert wrong_labels(executable.labels(frames, out), logits, size) == 0
        assert wrong_labels(executable.labels(frames, out, exact=False), logits) == 0


# Inputs as people have them.


def layouts(x):
    """The same numbers otherwise in memory; what lies between them is NaN."""
    n, c, h, w = x.shape
    deep = torch.full((n + 1, c + 5, h + 2, w), float("nan"), dtype=x.dtype)
    wide = torch.full((n, c, h, 2 * w), float("nan"), dtype=x.dtype)
    deep[1:, 2:-3, 1:-1], wide[..., ::2] = x, x
    last = deep.contiguous(memory_format=torch.channels_last)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    yield from (x.contiguous(), x.contiguous(memory_format=torch.channels_last), turned)
    yield from (deep[1:, 2:-3, 1:-1], last[1:, 2:-3, 1:-1], wide[..., ::2])


@on_every_isa
@in_both_dtypes
def test_layouts_of_maps(dtype, isa):
    executable = cpu.compile(plain(10, 34, 3, 1)(), dtype, isa=isa, poisoned=True)
    for size in ((5, 7), (1, 9), (8, 1)):
        x = torch.randn(2, 10, *size).to(dtype)
        expected = executable(x)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        for other in layouts(x):
            before = other.clone()
            assert torch.equal(executable(other), expected)
            assert torch.equal(other, before)
        same = x[:1].expand(3, -1, -1, -1)
        assert torch.equal(executable(same), expected[:1].expand(3, -1, -1, -1))
        flat = x[:, :1].expand(-1, 10, -1, -1)
        assert torch.equal(executable(flat), executable(flat.contiguous()))


@on_every_isa
@in_both_dtypes
def test_other_float_dtypes_are_converted(dtype, isa):
    executable = cpu.compile(stem(10, False)(), dtype, isa=isa)
    x = random_images(2, 9, 12)
    for other in (torch.float64, torch.float16, LOW, FULL):
        expected = executable(x.to(other).to(dtype))
        got = executable(x.to(other))
        assert got.dtype == dtype and torch.equal(got, expected)


@on_every_isa
@in_both_dtypes
def test_layouts_of_frames(dtype, isa):
    executable = cpu.compile(stem(10, True)(), dtype, isa=isa, poisoned=True)
    large = random_frames(3, 20, 44)
    planes = large.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for view in (
        large[:, ::2], large[:, :, ::2], large[1:, 3:9, 5:30], large.transpose(1, 2), planes, large.flip(2),
        large[:1].expand(3, -1, -1, -1), large[:, :1].expand(-1, 4, -1, -1), large[:, 4:5, 7:8],
        large[..., :1].expand(-1, -1, -1, 3), large[:, :, 6:7], large[::2, 2:3], large.flip(3),
    ):  # fmt: skip
        assert torch.equal(executable(view), executable(view.clone(memory_format=torch.contiguous_format)))
