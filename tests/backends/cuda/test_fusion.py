"""Kernels that compute several ops: bit by bit what a kernel for each gives, as exact as the reference."""

import dataclasses

import pytest
import torch
from cases import OFFSET
from hosted import CORES, Hosted, chooser, counters, every_schedule, forced, scheduled
from oracle import HALF, LOW, answers, check, given, relative_error, street, trained_plan
from plans import random_frames
from sketch import sketched

from stdc_fast.backends.cuda import fusion
from stdc_fast.numerics import tolerance
from stdc_fast.plan.ops import View

DTYPES = (HALF, LOW)


# Cases.


def opening(between, outputs, frames=True, **how):
    """The first two convolutions."""

    @sketched(3, store="uint8" if frames else "float32")
    def make(s, x):
        return s.conv(s.stem(x, between, OFFSET if frames else None), outputs, 3, 2, **how)

    return make


@sketched(3, store="uint8")
def opening_to_a_view(s, x):
    both = s.buffer(30, 4)
    return s.conv(s.stem(x, 20, OFFSET, bias=False), View(both.buffer, 10, 13), 3, 2, bias=False)


OPENINGS = {
    "32 to 64": opening(32, 64),
    "32 to 64 of images": opening(32, 64, frames=False, act="none"),
    "20 to 70": opening(20, 70),
    "6 to 10 of images": opening(6, 10, frames=False),
    "a view": opening_to_a_view,
}
# Odd and even, several tiles, and less than one.
SHAPES = [(2, 33, 70), (1, 18, 132), (3, 5, 3), (1, 1, 1)]


def _left_out(lowered):
    """Ops that have no launch of their own."""
    return {op.name for launch in lowered.launches for op in launch.also}


def agrees(make, dtype, shapes, choose=None, kinds=(), bits=True):
    """All fusions that there are, against none, and against the reference; returns what ran."""
    plan = make()
    fused, apart = (Hosted(plan, dtype, choose, fused=how) for how in (fusion.possible, False))
    for inputs, expected in answers(plan, dtype, shapes):
        got = fused(*inputs)
        check(got, expected, dtype)
        assert not bits or torch.equal(got, apart(*inputs))
        fused.last.poison()
    left_out = [kind for one in fused.last.fused for kind in [one.kind] if one.op in _left_out(fused.last)]
    assert sorted(left_out) == sorted(kinds)
    assert len(fused.last.launches) == len(plan.ops) - len(kinds)
    return fused


#: A core without slices, which adds up in the order of the kernel for the first two.
WHOLE = forced((64, 16), 8, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPENINGS)
def test_the_first_two_convolutions(name, dtype):
    agrees(OPENINGS[name], dtype, SHAPES, WHOLE, kinds=["stem"])


SPLITS = {128: [(8, 16), (16, 8), (9, 14), (3, 5)], 64: [(8, 8), (4, 16), (1, 64), (1, 1)]}


@pytest.mark.parametrize("core, shape", [(c, s) for c in CORES["stem_conv"] for s in SPLITS[c[0]]], ids=str)
def test_every_core_of_the_first_two(core, shape):
    choose = forced(core, *shape, kind="stem_conv", usual=WHOLE)
    for dtype, make in zip(DTYPES, (opening(32, core[1] + 6), opening(20, 10, frames=False)), strict=True):
        agrees(make, dtype, [(2, 37, 75), (1, 3, 5)], choose, ["stem"])


# Gates.


def scaled(channels, outputs, kernel, stride=1, add=None, act="sigmoid+1"):
    """A convolution that reads an average's gate as its scale, and adds nothing, a vector or a map."""

    @sketched(6)
    def make(s, x):
        mean, fields = s.vector(channels), {}
        x = s.conv(x, channels, 1, 2, mean=mean)
        if add == "vector":
            fields["add"] = s.gate(mean, (channels,), ("relu",))
        if add == "map":
            fields["add"] = s.conv(x, channels, 1)
        gate = s.gate(mean, (channels,), (act,), bias=add != "map")
        return s.conv(x, outputs, kernel, stride, scale=gate, **fields)

    return make


def beside(channels, outputs):
    """A gate that the next convolution does not read."""

    @sketched(6)
    def make(s, x):
        mean = s.vector(channels)
        x = s.conv(x, channels, 1, mean=mean)
        gate = s.gate(mean, (outputs,), ("sigmoid+1",))
        return s.scale(s.conv(x, outputs, 3), gate)

    return make


@sketched(6)
def both(s, x):
    """A convolution that computes its scale, and has another gate beside it."""
    mean, other = s.vector(36), s.vector(20)
    x = s.conv(s.conv(x, 36, 1, mean=mean), 20, 1, 2, mean=other)
    scale, later = s.gate(other, (20,), ("sigmoid",)), s.gate(mean, (36,), ("none",))
    x = s.conv(x, 36, 2, scale=scale)
    return s.scale(s.conv(x, 36, 3), later)


GATED = {
    "36 to 10, 3x3": (scaled(36, 10, 3), ["scale"]),
    "20 to 70, 3x3 / 2, and a vector": (scaled(20, 70, 3, 2, "vector"), ["scale"]),
    "64 to 40, sub-pixel, and a vector": (scaled(64, 40, 2, add="vector"), ["scale"]),
    "36 to 19, sub-pixel, and a map": (scaled(36, 19, 2, add="map"), ["scale"]),
    "100 to 10, 3x3, and a map": (scaled(100, 10, 3, add="map", act="sigmoid"), ["scale"]),
    "36 beside": (beside(36, 36), ["beside"]),
    "20 of 100 beside": (beside(100, 20), ["beside"]),
    "both": (both, ["scale", "beside"]),
}


@pytest.mark.parametrize("name, dtype", [(n, DTYPES[i % 2]) for i, n in enumerate(GATED)], ids=str)
def test_gates_on_the_way(name, dtype):
    """Their sums have another order, so that they are as exact, and not the same bits."""
    make, kinds = GATED[name]
    agrees(make, dtype, [(2, 13, 29), (3, 5, 3), (1, 1, 1)], kinds=kinds, bits=False)


@pytest.mark.parametrize("core", CORES["conv"], ids=str)
def test_gates_in_every_core(core):
    """With several chunks, and blocks that share a tile."""
    make, kinds = GATED["both"]
    agrees(
        make, DTYPES[core[1] % 64 // 16 % 2], [(2, 9, 13)], forced(core, 4, 8, 16, split=2), kinds, bits=False
    )


# Classifiers.


def headed(channels, classes, kernel=3, **how):
    """A head, as logits."""

    @sketched(6)
    def make(s, x):
        x = s.conv(x, channels, kernel, **how)
        return s.conv(x, classes, 1, act="none", bias=classes != 19, store="float32")

    return make


HEADS = {
    "128, 19 classes": headed(128, 19),
    "64, 2 classes, stride 2": headed(64, 2, stride=2),
    "256, 32 classes, 1x1": headed(256, 32, 1),
}


# Whole blocks of 16 pixels for each warp: not of 144 pixels, nor where eight warps have four such blocks.
@pytest.mark.parametrize("core", [c for c in CORES["conv"] if c[0] != 144 and c != (64, 64, 4)], ids=str)
def test_classifiers(core):
    """By one block a tile and by several, whose partial logits are added up in one order."""
    for i, make in enumerate(HEADS.values()):
        choose = forced(core, *SPLITS.get(core[0], SPLITS[64])[i], 32)
        blocks = make().ops[0].output.channels / core[1]
        kinds = ["logits"] if blocks >= 1 else []
        fused = agrees(make, DTYPES[i % 2], [(2, 13, 21), (1, 3, 5)], choose, kinds, bits=False)
        assert all(not x.any() for x in counters(fused)) and len(counters(fused)) == (blocks > 1)


# The network.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fused_network(dtype):
    """All that can be fused, as exact as the network with a kernel for each op is to be."""
    frames, usual = street((64, 96)), chooser()

    def choose(work):  # a classifier takes no tiles that blocks share
        return dataclasses.replace(usual(work), split=1)

    fused, apart = (Hosted(trained_plan(), dtype, choose, fused=how) for how in (fusion.possible, False))
    error = relative_error(fused(frames), apart(frames))
    assert error <= tolerance(dtype).logits
    assert len(fused.last.launches) == len(apart.last.launches) - 5
    assert sum(len(one.also) for one in fused.last.launches) == 5


def test_resized_frames():
    """The resizing is the stem's, so it is the fused kernel's too."""
    frames = street((50, 71))
    # NOTE: the classifier's tiles are the same for both, and no core adds up in slices.
    fused, apart = (Hosted(trained_plan(), HALF, WHOLE, fused=how) for how in (fusion.possible, False))
    got, expected = (one.labels(frames, (47, 81), seen=(64, 96)) for one in (fused, apart))
    assert torch.equal(got, expected)
    assert fused.last.fused and not apart.last.fused


@every_schedule
def test_every_order_gives_the_same_bits(schedule):
    """With races of threads and of blocks watched for; and without, in memory that starts as zeros."""
    cases = {"opening": OPENINGS["20 to 70"], "both": both, "head": HEADS["256, 32 classes, 1x1"]}
    for name, make in cases.items():
        plan = make()
        inputs = given(plan, LOW, 2, 13, 30)
        executable = Hosted(plan, LOW, fused=fusion.possible)
        expected = executable(*inputs)
        with scheduled(schedule, block_races=True):
            assert torch.equal(executable(*inputs), expected), name
        with scheduled(schedule, races=False, poison=False):
            assert torch.equal(executable(*inputs), expected), name


# What is fused, and what is not.


def kinds(draw, *channels, **how):
    return [one.kind for one in fusion.possible(sketched(*channels, **how)(draw)())]


def seen_twice(s, x):
    y = s.stem(x, 32, OFFSET)
    return s.conv([s.conv(y, 16, 3, 2), s.conv(y, 16, 3, 2)], 8, 1)


def gated(s, x, channels=20, kernel=3, widths=(20,), wide=0, twice=False, again=False):
    mean = s.vector(channels)
    x = s.conv(s.conv(x, 8, 3, 2), channels, 3, mean=mean)
    gate = s.gate(mean, (*widths[:-1], channels + wide), ["sigmoid"] * len(widths))
    if again:
        gate = s.gate(gate, (channels,), ("sigmoid",))
    y = s.conv(x, channels, kernel, scale=View(gate.buffer, wide, channels))
    return s.scale(y, gate) if twice else y


def headed_otherwise(s, x, classes=19, act="none", **head):
    x = s.conv(s.conv(x, 8, 3, 2), 32, 3, **head)
    return s.conv(x, classes, 1, act=act, store="float32")


OTHERS = {
    "a stem that two read": seen_twice,
    "a stem that is the output": lambda s, x: s.stem(x, 32, OFFSET),
    "more than 32 channels": lambda s, x: s.conv(s.stem(x, 34, OFFSET), 64, 3, 2),
    "stride 1": lambda s, x: s.conv(s.stem(x, 32, OFFSET), 64, 3, 1),
    "1x1": lambda s, x: s.conv(s.stem(x, 32, OFFSET), 64, 1, 2),
    "logits": lambda s, x: s.conv(s.stem(x, 32, OFFSET), 19, 3, 2, store="float32"),
    "an average": lambda s, x: s.conv(s.stem(x, 32, OFFSET), 19, 3, 2, mean=s.vector(19)),
    "a gate of two layers": lambda s, x: gated(s, x, widths=(8, 20)),
    "rows of averages that are no whole vectors": lambda s, x: gated(s, x, channels=22),
    "1x1 after a gate": lambda s, x: gated(s, x, kernel=1),
    "a part of a gate": lambda s, x: gated(s, x, wide=8),
    "a gate that two read": lambda s, x: gated(s, x, twice=True),
    "a gate of a gate": lambda s, x: gated(s, x, again=True),
    "a head with an average": lambda s, x: headed_otherwise(s, x, mean=s.vector(32)),
    "a classifier with an activation": lambda s, x: headed_otherwise(s, x, act="relu"),
    "33 classes": lambda s, x: headed_otherwise(s, x, classes=33),
    "a part of a stem": lambda s, x: s.conv(View(s.stem(x, 32, OFFSET).buffer, 0, 16), 64, 3, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_there_is_no_kernel_for(name):
    assert kinds(OTHERS[name], 3, store="uint8") == []


def test_the_model_chooses():
    """As it says for the device; the same launches whatever tiles are tried, and none where it is off."""
    plan, size = trained_plan(), (64, 96)
    usual, never = Hosted(plan, HALF), Hosted(plan, HALF, fused=False)
    usual.labels(random_frames(1, *size))
    never.labels(random_frames(1, *size))
    assert usual.last.fused and not never.last.fused
    device = usual._tiles.model.device
    assert usual.last.predicted(device) < never.last.predicted(device)
    (request,) = usual._fused
    names = [launch.name for launch in usual.last.launches]
    slow = forced((64, 16), 1, 1)
    assert [one.name for one in usual.lower(request, tiles=slow).launches] == names
    # Without a model nothing is left out.
    tiles = usual._tiles
    assert Hosted(plan, HALF, lambda work: tiles(work)).lower(request).fused == ()


def test_reports_name_all_ops_of_a_launch():
    executable = Hosted(OPENINGS["32 to 64"](), HALF, fused=fusion.possible)
    executable(random_frames(1, 8, 8))
    (launch,) = executable.last.launches
    assert (launch.name, launch.kind) == ("op 0 + op 1", "stem + conv")


def test_more_channels_between_than_a_kernel_has():
    executable = Hosted(OPENINGS["32 to 64"](), HALF, fused=fusion.possible)
    executable(random_frames(1, 8, 8))
    arguments = executable.last.launches[0].arguments
    arguments.channels = 33
    with pytest.raises(RuntimeError, match="stem_conv: 33 channels between, at most 32"):
        executable.last.native.run([arguments], 0, False)
