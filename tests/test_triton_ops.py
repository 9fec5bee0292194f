"""Each of Triton's kernels against the eager backend: on a GPU compiled, without one interpreted.

Each case runs in one dtype and a few sizes; in all of them with ``-m wide``.
"""

import functools
import itertools

import pytest
import torch
from cases import (
    CONVS,
    DOWNS,
    FORMS,
    GATES,
    LOGITS,
    OFFSET,
    PARITIES,
    PROLOGUES,
    STEMS,
    SUBPIXEL,
    down,
    labelled,
    layouts,
    odd_channels,
    prologue,
    stem,
    subpixel,
    views_of_frames,
)
from engines import (
    DEVICE,
    FULL,
    HALF,
    LOW,
    Sketch,
    answers,
    check,
    kernels,
    needs_triton,
    pair,
    plain,
    sketched,
    wrong_labels,
)
from plans import random_frames, random_images
from torch.nn import functional as F

from stdc_fast.backends.triton.tiles import Tiles
from stdc_fast.plan.ops import View
from stdc_fast.reference.networks import upsample

pytestmark = needs_triton

DTYPES = (FULL, HALF, LOW)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Where the dtype hardly matters.
one_dtype = pytest.mark.parametrize(
    "dtype", [LOW, *(pytest.param(d, marks=pytest.mark.wide) for d in (FULL, HALF))], ids=str
)
# (batch, height, width)
FEW = ((1, 1, 2), (3, 3, 5), (1, 8, 34))
MANY = ((3, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 5), (1, 8, 6), (3, 9, 34), (1, 17, 33))


def every(cases, few=FEW, many=MANY):
    """Parametrizes by (case, dtype, shapes): each case with one dtype, and widely with all."""
    found = []
    for i, case in enumerate(cases):
        found.append(pytest.param(case, DTYPES[i % 3], few, id=f"{case}, {DTYPES[i % 3]}"))
        found += [
            pytest.param(case, dtype, many, id=f"{case}, {dtype}, all sizes", marks=pytest.mark.wide)
            for dtype in DTYPES
        ]
    return pytest.mark.parametrize("case, dtype, shapes", found)


def agrees(make, dtype, shapes, tiles=None):
    """All memory is NaN before each run."""
    plan = make()
    executable = kernels(plan, dtype, tiles)
    for inputs, expected in answers(plan, dtype, shapes):
        got = executable(*(x.to(DEVICE) for x in inputs))
        assert got.device.type == DEVICE and got.dtype == (FULL if executable._logits else dtype)
        check(got.cpu(), expected, dtype, list(inputs[0].shape))


ALL_CONVS = {
    **CONVS,
    **{f"5 of 9 to 7, {k}x{k} / {s}": functools.partial(odd_channels(k, s)) for k, s in FORMS},
}


@every(ALL_CONVS)
def test_conv(case, dtype, shapes):
    agrees(ALL_CONVS[case], dtype, shapes)


@every(LOGITS)
def test_logits_are_float32_and_planar(case, dtype, shapes):
    plan = LOGITS[case]()
    executable = kernels(plan, dtype)
    (inputs, _), *_ = answers(plan, dtype, [(2, 4, 6)])
    assert executable(*(x.to(DEVICE) for x in inputs)).is_contiguous()
    agrees(LOGITS[case], dtype, shapes)


EVEN_AND_ODD = tuple((1, *size) for size in itertools.product((1, 2, 5, 8), (1, 2, 9, 10)))
SUBPIXELS = {**SUBPIXEL, "5 to 7": subpixel(5, 7)}


@every(SUBPIXELS, few=(*FEW, (1, 8, 5), (1, 2, 10)), many=(*MANY, *((2, *size) for size in PARITIES)))
def test_subpixel(case, dtype, shapes):
    agrees(SUBPIXELS[case], dtype, shapes)


def test_subpixel_in_all_parities_and_several_tiles():
    """Tiles of sixteen pixels: some of the sets for the last row or column have nothing to do."""
    small = lambda work: Tiles(4, 4, 16, 16, warps=4, stages=1)  # noqa: E731
    agrees(subpixel(6, 10), FULL, EVEN_AND_ODD)
    agrees(subpixel(6, 10), FULL, [(1, 17, 11), (2, 9, 10)], small)


@every(STEMS)
def test_stem(case, dtype, shapes):
    agrees(STEMS[case], dtype, shapes)


@every(DOWNS)
def test_down(case, dtype, shapes):
    agrees(DOWNS[case], dtype, shapes)


def test_down_with_odd_channels():
    for include in (True, False):
        agrees(down(5, 7, True, include=include), HALF, FEW)


@every(GATES)
def test_gate(case, dtype, shapes):
    agrees(GATES[case], dtype, shapes)


@every(PROLOGUES)
def test_prologue(case, dtype, shapes):
    agrees(PROLOGUES[case], dtype, shapes)


@every_dtype
def test_rounding_is_to_nearest_even(dtype):
    """Sums of which every other lies in the middle between two numbers of the dtype."""
    s = Sketch(6, 6)
    executable = kernels(s.plan(s.add(*s.inputs)), dtype)
    ulps = 2.0 ** (8 if dtype == LOW else 11 if dtype == HALF else 22)
    x, y = (ulps / 2 * (1 + torch.rand(1, 6, 9, 7))).round(), torch.randint(-3, 4, (1, 6, 9, 7)) / 2
    for sign in (1, -1):
        expected = (sign * x.double() + y.double()).to(dtype)
        got = executable((sign * x).to(DEVICE, dtype), y.to(DEVICE, dtype)).cpu()
        assert torch.equal(got, expected)


# Tiles: results must not depend on how the work is cut.


def forced(**changes):
    """The same tiles for every convolution that can have them."""

    def choose(work):
        t = {"height": 4, "width": 8, "channels": 16, "depth": 16, "stages": 1, **changes}
        if work.kind != "conv":
            t.pop("split", None)
        if work.kind == "stem":
            t["depth"] = 32
        return Tiles(**t)

    return choose


SHAPES_OF_TILES = [(1, 16), (16, 1), (2, 32), (16, 16), (4, 4)]


@pytest.mark.parametrize("tile", SHAPES_OF_TILES, ids=str)
def test_shapes_of_tiles(tile):
    height, width = tile
    choose = forced(height=height, width=width)
    agrees(plain(6, 10, 3, 1), FULL, [(2, 5, 18)], choose)
    agrees(plain(6, 10, 3, 2), HALF, [(1, 9, 18)], choose)
    agrees(stem(10, True), LOW, [(2, 9, 34)], choose)
    agrees(down(6, 10, True, include=False), FULL, [(1, 9, 34)], choose)


@pytest.mark.parametrize("channels, depth", [(16, 16), (32, 32), (16, 64), (64, 16), (128, 128)])
def test_blocks_of_channels(channels, depth):
    """Less and more than there are, inputs and outputs."""
    choose = forced(height=8, channels=channels, depth=depth)
    agrees(plain(34, 40, 3, 1), FULL, [(2, 3, 5)], choose)
    agrees(pair(34, 6, 40, 1, 1), LOW, [(1, 3, 5)], choose)
    agrees(down(34, 40, True), HALF, [(1, 3, 5)], choose)
    agrees(prologue(34, 2, scale=True, add="map"), FULL, [(1, 3, 5)], choose)


def split_cases():
    """More steps than programs that share them; fewer; the average, the prologue and logits besides."""
    yield "many steps", plain(34, 19, 3, 1), 16
    yield "one step", plain(6, 10, 1, 2), 16
    yield "a deep step", plain(34, 19, 3, 2), 64
    yield "scale, map", prologue(34, 3, scale=True, add="map"), 16
    yield "logits", plain(70, 19, 1, 1, act="none", store="float32"), 16
    yield "average", average_and_map, 16
    yield "two inputs", pair(34, 22, 19, 3, 1), 16
    yield "sub-pixel", subpixel(34, 19), 16


@sketched(6)
def average_and_map(s, x):
    y, mean = s.buffer(36, 1), s.vector(36)
    s.conv(x, y, 3, mean=mean)
    return s.scale(y, s.gate(mean, (36,), ("sigmoid+1",)))


SPLITS = {name: (make, depth) for name, make, depth in split_cases()}
SPLIT = [
    pytest.param(name, split, DTYPES[i % 3], id=f"{name}, {split}", marks=() if few else pytest.mark.wide)
    for i, (name, split) in enumerate(itertools.product(SPLITS, (2, 4, 8)))
    for few in [split == (8 if i // 3 % 2 else 4)]
]


@pytest.mark.parametrize("case, split, dtype", [*SPLIT, pytest.param("many steps", 2, FULL, id="in two")])
def test_programs_that_share_a_tile(case, split, dtype):
    """Twice with the same size: what they count their arrivals with must be as it was."""
    make, depth = SPLITS[case]
    plan = make()
    choose = forced(split=split, depth=depth)
    executable = kernels(plan, dtype, choose)
    for inputs, expected in answers(plan, dtype, [(2, 5, 6), (2, 5, 6), (1, 3, 5)]):
        check(executable(*(x.to(DEVICE) for x in inputs)).cpu(), expected, dtype)


@one_dtype
def test_convolutions_with_other_tiles_fill_one_average(dtype):
    """Three of them, with one, several and many tiles an image, for one gate, whose sums are as many rows."""

    @sketched(6)
    def make(s, x):
        y, mean = s.buffer(40, 1), s.vector(44)
        s.conv(x, View(y.buffer, 0, 10), 3, mean=View(mean.buffer, 0, 10))
        s.conv(View(y.buffer, 0, 10), View(y.buffer, 10, 20), 1, mean=View(mean.buffer, 10, 20))
        s.conv(View(y.buffer, 10, 20), View(y.buffer, 30, 10), 3, mean=View(mean.buffer, 30, 10))
        return s.scale(y, s.gate(View(mean.buffer, 0, 40), (6, 40), ("relu", "sigmoid")))

    def choose(work):
        shape = {6: (16, 16), 10: (4, 4), 20: (2, 8)}[work.inputs[0]]
        return Tiles(*shape, 16, 16, 2 if work.inputs[0] == 10 else 1, stages=1)

    agrees(make, dtype, [(2, 5, 6), (1, 9, 6), (2, 5, 6)], choose)


# Labels.


LABEL_SIZES = (
    (1, (1, 1), (1, 1)), (3, (1, 9), (4, 3)), (1, (17, 8), (1, 70)), (2, (16, 40), (15, 43)),
    (1, (34, 130), (90, 41)), (1, (9, 267), (11, 300)),
)  # fmt: skip


def check_labels(classes, dtype, sizes):
    """Of the backend's own logits."""
    executable = kernels(labelled(classes), dtype)
    for i, (batch, size, out) in enumerate(sizes):
        frames = random_frames(batch, *size, seed=i).to(DEVICE)
        logits = executable(frames).cpu()
        labels = executable.labels(frames)
        assert min(size) < 16 or len(labels.unique()) > 1
        assert labels.dtype == torch.uint8 and labels.shape == (batch, *size) and labels.is_contiguous()
        assert wrong_labels(labels.cpu(), logits) == 0
        assert wrong_labels(executable.labels(frames, out).cpu(), logits, size) == 0
        assert wrong_labels(executable.labels(frames, out, exact=False).cpu(), logits) == 0


@pytest.mark.wide
@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 6, 10, 19, 34, 150, 256])
def test_labels_of_any_size(classes, dtype):
    check_labels(classes, dtype, LABEL_SIZES)


def test_labels():
    check_labels(11, HALF, LABEL_SIZES[:4])
    check_labels(6, LOW, LABEL_SIZES[-1:])  # more columns of logits than a program has cells
    check_labels(1, FULL, LABEL_SIZES[:2])
    check_labels(256, FULL, [(2, (1, 9), (2, 3))])


@one_dtype
def test_labels_of_logits_interpolated_twice(dtype):
    """Some lie between two pixels of the first size with a logit between them: they read three, the third
    with little weight. So these are many, and of noise.
    """
    s = Sketch(19)
    half = functools.partial(s.conv, out=19, kernel=1, stride=2, act="none", bias=False)
    executable = kernels(s.plan(s.labels(half(half(half(s.inputs[0])), store="float32"))), dtype)
    for size, out in (((60, 20), (53, 400)), ((20, 60), (60, 53))):
        noise = torch.randn(1, 19, *size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        labels = executable.labels(noise, out).cpu()
        assert len(labels.unique()) > 10
        assert wrong_labels(labels, executable(noise).cpu(), size) == 0


@functools.cache
def equals():
    """Logits in which class 4 is a copy of 0; 2, 7 and 9 are less that; and all others zero."""
    plan = labelled(11)
    op = plan.ops[-2]
    one, other = plan.weights[op.weight][[2, 6]]
    weight = torch.zeros_like(plan.weights[op.weight])
    weight[[0, 4]], weight[[2, 7, 9]] = one - other, other - one
    return plan.replace(weights={op.weight: weight}), op


@one_dtype
def test_the_lowest_class_of_a_tie(dtype):
    plan, op = equals()
    executable = kernels(plan, dtype)
    frames = random_frames(1, 16, 40).to(DEVICE)
    asked = {"labels": (), "exact": ((15, 33),)}
    found = {name: executable.labels(frames, *size) for name, size in asked.items()}
    found["straight"] = executable.labels(frames, (15, 33), exact=False)
    for name, labels in found.items():
        assert set(labels.unique().tolist()) == {0, 2}, name
    zero = plan.replace(weights={op.weight: torch.zeros_like(plan.weights[op.weight])})
    assert not kernels(zero, dtype).labels(frames).any()


# Frames seen at another size.


def seen_stem(plan, dtype, frames, seen):
    """What the first op gives for frames resized on the way, rounding as the backend does, in float64."""
    op = plan.ops[0]
    keep = lambda x: x if dtype == FULL else x.to(dtype).double()  # noqa: E731
    weight = keep(plan.weights[op.weight])
    offset = torch.tensor(op.offset, dtype=torch.float64).view(1, 3, 1, 1)
    rest = offset - offset.round()
    x = upsample(frames.permute(0, 3, 1, 2).double(), seen) - offset.round()
    x = keep(x)
    inside = F.pad(torch.ones_like(x), (1, 1, 1, 1))
    x = torch.where(inside > 0, F.pad(x, (1, 1, 1, 1)), keep(rest))
    bias = plan.weights[op.bias] - (weight * rest).sum((1, 2, 3))
    return keep(F.conv2d(x, weight, bias, stride=2).relu())


@every_dtype
def test_frames_are_resized_on_the_way(dtype):
    s = Sketch(3, store="uint8")
    plan = s.plan(s.stem(s.inputs[0], 10, OFFSET))
    executable = kernels(plan, dtype)
    frames = random_frames(2, 13, 22)
    for seen in ((13, 22), (7, 33), (26, 11), (1, 40), (25, 1)):
        got = executable.logits(frames.to(DEVICE), seen).cpu()
        check(got, seen_stem(plan, dtype, frames, seen), dtype, seen)
    one = random_frames(1, 1, 1)
    check(executable.logits(one.to(DEVICE), (3, 5)).cpu(), seen_stem(plan, dtype, one, (3, 5)), dtype)


@one_dtype
def test_labels_of_frames_seen_at_another_size(dtype):
    executable = kernels(labelled(6), dtype)
    frames = random_frames(2, 19, 30).to(DEVICE)
    for seen, size in (((24, 40), (11, 30)), ((9, 33), (21, 7))):
        logits = executable.logits(frames, seen).cpu()
        assert wrong_labels(executable.labels(frames, size, seen=seen).cpu(), logits, seen) == 0
        straight = executable.labels(frames, size, seen=seen, exact=False).cpu()
        assert wrong_labels(straight, logits) == 0
    assert torch.equal(executable.labels(frames, seen=(19, 30)), executable.labels(frames))


# Inputs as people have them, results as they keep them.


@one_dtype
def test_layouts_of_maps(dtype):
    executable = kernels(plain(10, 34, 3, 1)(), dtype)
    x = torch.randn(2, 10, 5, 7).to(DEVICE, dtype)
    expected = executable(x)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    for other in layouts(x):
        before = other.clone()
        assert torch.equal(executable(other), expected)
        assert torch.equal(other.nan_to_num(), before.nan_to_num())
    same = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(executable(same), expected[:1].expand(3, -1, -1, -1))


def test_layouts_of_frames():
    executable = kernels(stem(10, True)(), FULL)
    for view in views_of_frames(random_frames(3, 10, 12).to(DEVICE)):
        assert torch.equal(executable(view), executable(view.clone(memory_format=torch.contiguous_format)))


def test_other_float_dtypes_are_converted():
    """Maps to the dtype of the backend, images to float32."""
    cases = [
        (stem(10, False)(), random_images(2, 5, 6), FULL),
        (plain(6, 10, 1, 1)(), torch.randn(2, 6, 3, 4), HALF),
    ]
    for plan, x, kept in cases:
        executable = kernels(plan, HALF)
        for other in (torch.float64, FULL, LOW):
            got = executable(x.to(DEVICE, other))
            assert got.dtype == HALF
            assert torch.equal(got, executable(x.to(DEVICE, other).to(kept))), other


@pytest.mark.parametrize("kind", ["map", "image", "logits"])
def test_results_are_fresh_and_inputs_stay(kind):
    plan = {"map": plain(6, 10, 3, 1)(), "image": stem(10, False)(), "logits": labelled(6)}[kind]
    executable = kernels(plan, FULL)
    inputs = [answers(plan, FULL, [(1, 16, 24)] * 2)[i][0][0].to(DEVICE) for i in range(2)]
    before = [x.clone() for x in inputs]
    runs = [executable, executable.labels] if kind == "logits" else [executable]
    for run in runs:
        first = run(inputs[0])
        kept = first.clone()
        second = run(inputs[1])
        assert not torch.equal(first, second)
        assert torch.equal(first, kept)
        first.zero_()
        assert torch.equal(run(inputs[0]), kept)
        assert len({x.untyped_storage().data_ptr() for x in (first, second, *inputs)}) == 4
    for x, old in zip(inputs, before, strict=True):
        assert torch.equal(x, old)


def test_a_batch_is_its_images():
    """Bit by bit, and an empty one is empty."""
    plan = labelled(6)
    executable = kernels(plan, HALF)
    frames = random_frames(3, 16, 24).to(DEVICE)
    logits, labels = executable(frames), executable.labels(frames)
    for i in range(3):
        assert torch.equal(executable(frames[i : i + 1])[0], logits[i])
        assert torch.equal(executable.labels(frames[i : i + 1])[0], labels[i])
    assert executable(frames[:0]).shape == (0, 6, 2, 3)
    assert executable.labels(frames[:0], (5, 6)).shape == (0, 5, 6)


@every_dtype
def test_nan_is_not_hidden(dtype):
    """It spreads as far as a convolution sees, also through ReLU, and not to other images."""
    executable = kernels(plain(6, 10, 3, 1)(), dtype)
    x = torch.randn(2, 6, 9, 11).to(DEVICE, dtype)
    expected = executable(x)
    x[0, 3, 4, 5] = float("nan")
    got = executable(x)
    assert got[0, :, 3:6, 4:7].isnan().all()
    got[0, :, 3:6, 4:7] = expected[0, :, 3:6, 4:7]
    assert torch.equal(got, expected)
