"""What the tests of every op share: small plans of each form of an op, by what is special about them."""

import functools
import itertools

import torch
from sketch import Sketch, between, pair, plain, sketched

from stdc_fast.plan.ops import View

ACTS = ("none", "relu", "sigmoid", "sigmoid+1")
OFFSET = (123.675, 116.28, 103.53)

# Convolutions.

FORMS = list(itertools.product((1, 3), (1, 2)))


@sketched(6)
def among_unwritten(s, x):
    """All three are 10 of 30 channels, and the other 20 are NaN if memory was."""
    views = [View(s.buffer(30, 1).buffer, 14, 10) for _ in range(3)]
    s.conv(x, views[0], 1)
    s.conv(views[0], views[1], 3)
    return s.conv(views[:2], views[2], 3)


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
    "from and to channels whose neighbours nobody writes": among_unwritten,
    "an input from another buffer's middle": sketched(6)(
        lambda s, x: s.conv(View(s.conv(x, 44, 1).buffer, 6, 32), 34, 3, 2)
    ),
}


@functools.cache
def odd_channels(kernel, stride):
    return between(5, 7, kernel, stride, before=3, after=1)


LOGITS = {
    **{f"{n} classes": plain(34, n, 1, 1, act="none", store="float32") for n in (1, 6, 10, 19, 34, 150)},
    "3x3 over 64": plain(64, 11, 3, 1, act="none", bias=False, store="float32"),
    "after a convolution": sketched(6)(
        lambda s, x: s.conv(s.conv(x, 34, 3, 2), 19, 1, act="none", store="float32")
    ),
}


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


@sketched(6)
def down_to_two_buffers(s, x):
    y, pooled = s.buffer(30, 2), s.buffer(16, 2)
    views = View(y.buffer, 4, 10), View(pooled.buffer, 2, 10)
    s.down(x, views[0], views[1])
    return s.conv(views, 10, 1)


DOWNS = {
    "to two buffers": down_to_two_buffers,
    "6 to 10": down(6, 10, True),
    "32 to 64": down(32, 64, True),
    "64 to 150": down(64, 150, True, bias=False),
    "34 to 19, without padding": down(34, 19, True, include=False),
    "10 to 34, without padding": down(10, 34, True, include=False),
    "32 to 40, no pool": down(32, 40, False),
    "6 to 19, no pool": down(6, 19, False, bias=False, include=False),
}


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


@sketched(6)
def averages_of_two_sizes(s, x):
    """In one vector, each over its own map; a gate reads both, another only the second."""
    mean, y, z = s.vector(22), s.buffer(10, 1), s.buffer(12, 2)
    s.conv(x, y, 3, mean=View(mean.buffer, 0, 10))
    s.conv(x, z, 3, 2, mean=View(mean.buffer, 10, 12))
    both = s.gate(mean, (10,), ("sigmoid",))
    return s.scale(s.scale(y, both), s.gate(View(mean.buffer, 10, 12), (10,), ("none",)))


GATES = {
    **{f"one layer, {act}": gated((34,), (act,)) for act in ACTS},
    **{f"two layers, relu and {act}": gated((10, 19), ("relu", act)) for act in ACTS},
    **{f"two layers, {act} and none": gated((64, 34), (act, "none"), bias=False) for act in ACTS},
    "150 channels": gated((19, 150), ("relu", "sigmoid"), channels=150, kernel=1),
    "64 channels": gated((64,), ("sigmoid",), channels=64),
    "700 channels": gated((150, 700), ("relu", "sigmoid+1"), channels=700, kernel=1),
    "parts": average_in_parts,
    "averages of two sizes": averages_of_two_sizes,
}


@sketched(6)
def average_and_map(s, x):
    """An average beside the map that it is of."""
    y, mean = s.buffer(36, 1), s.vector(36)
    s.conv(x, y, 3, mean=mean)
    return s.scale(y, s.gate(mean, (36,), ("sigmoid+1",)))


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


#: Every form of every op, by "kind, what is special"; "odd" ones have odd numbers of channels.
OPS = {
    f"{kind}, {name}": make
    for kind, forms in {
        "conv": CONVS, "logits": LOGITS, "subpixel": SUBPIXEL, "stem": STEMS, "down": DOWNS, "gate": GATES,
        "prologue": PROLOGUES,
    }.items()
    for name, make in forms.items()
}  # fmt: skip
OPS |= {f"odd conv, 5 of 9 to 7, {k}x{k} / {s}": odd_channels(k, s) for k, s in FORMS}
OPS |= {
    "odd subpixel, 5 to 7": subpixel(5, 7),
    "odd down, 5 to 7": down(5, 7, True),
    "odd down, 5 to 7, without padding": down(5, 7, True, include=False),
}


# Labels.


@functools.cache
def labelled(classes):
    """Of signed numbers without biases, so that which class is the best changes from pixel to pixel."""
    s = Sketch(3, store="uint8")
    x = s.conv(s.stem(s.inputs[0], 10, OFFSET, bias=False), 10, 3, 2, act="none", bias=False)
    return s.plan(s.labels(s.conv(x, classes, 3, 2, act="none", bias=False, store="float32")))


@functools.cache
def with_ties():
    """Logits in which class 4 is a copy of 0; 2, 7 and 9 are less that; and all others zero. And all zero."""
    plan = labelled(11)
    name = plan.ops[-2].weight
    one, other = plan.weights[name][[2, 6]]
    weight = torch.zeros_like(plan.weights[name])
    weight[[0, 4]], weight[[2, 7, 9]] = one - other, other - one
    return plan.replace(weights={name: weight}), plan.replace(weights={name: torch.zeros_like(weight)})


#: (batch, (height, width), (height, width) of the labels)
LABELS = (
    (1, (1, 1), (1, 1)), (3, (1, 9), (4, 3)), (1, (17, 8), (1, 70)), (2, (16, 40), (15, 43)),
    (1, (34, 130), (90, 41)), (1, (9, 267), (11, 300)),
)  # fmt: skip


# Inputs as people have them.


def layouts(x):
    """The same numbers otherwise in memory; what lies between them is NaN."""
    n, c, h, w = x.shape
    deep = x.new_full((n + 1, c + 5, h + 2, w), float("nan"))
    wide = x.new_full((n, c, h, 2 * w), float("nan"))
    deep[1:, 2:-3, 1:-1], wide[..., ::2] = x, x
    last = deep.contiguous(memory_format=torch.channels_last)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    yield from (x.contiguous(), x.contiguous(memory_format=torch.channels_last), turned)
    yield from (deep[1:, 2:-3, 1:-1], last[1:, 2:-3, 1:-1], wide[..., ::2])


def views_of_frames(large):
    """Frames that are not dense, of ``[3, H, W, 3]`` with sides of 10 at least."""
    yield from (large[:, ::2], large[:, :, ::2], large[1:, 3:9, 5:30], large.transpose(1, 2), large.flip(2))
    yield large.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    yield from (large[:1].expand(3, -1, -1, -1), large[:, :1].expand(-1, 4, -1, -1), large[:, 4:5, 7:8])
    yield from (large[..., :1].expand(-1, -1, -1, 3), large[:, :, 6:7], large[::2, 2:3], large.flip(3))
