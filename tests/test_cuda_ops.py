"""Each of the CUDA kernels against the eager backend, in the emulator on the CPU.

Each case runs in one dtype and a few sizes; in all of them with ``-m wide``. All memory is NaN before each
run, and what no op writes must be NaN after it.
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
from engines import FULL, HALF, LOW, Sketch, answers, check, pair, plain, sketched, wrong_labels
from hosted import Hosted, agrees, beside, spared
from plans import random_frames, random_images
from test_triton_ops import LABEL_SIZES, equals, seen_stem

from stdc_fast.plan.ops import View

DTYPES = (HALF, LOW)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Where the dtype hardly matters.
one_dtype = pytest.mark.parametrize("dtype", [LOW, pytest.param(HALF, marks=pytest.mark.wide)], ids=str)
# (batch, height, width)
FEW = ((1, 1, 2), (3, 3, 5), (1, 8, 34))
MANY = ((3, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 5), (1, 8, 6), (3, 9, 34), (1, 17, 33), (2, 40, 51))


def every(cases, few=FEW, many=MANY):
    """Parametrizes by (case, dtype, shapes): each case with one dtype, and widely with both."""
    found = []
    for i, case in enumerate(cases):
        dtype = DTYPES[(i + i // 4) % 2]  # forms of a convolution come in fours
        found.append(pytest.param(case, dtype, few, id=f"{case}, {dtype}"))
        found += [
            pytest.param(case, dtype, many, id=f"{case}, {dtype}, all sizes", marks=pytest.mark.wide)
            for dtype in DTYPES
        ]
    return pytest.mark.parametrize("case, dtype, shapes", found)


ALL_CONVS = {
    **CONVS,
    **{f"5 of 9 to 7, {k}x{k} / {s}": functools.partial(odd_channels(k, s)) for k, s in FORMS},
}


@every(ALL_CONVS)
def test_conv(case, dtype, shapes):
    agrees(ALL_CONVS[case], dtype, shapes)


@every(LOGITS)
def test_logits_are_float32_and_planar(case, dtype, shapes):
    executable = agrees(LOGITS[case], dtype, shapes)
    (inputs, _), *_ = answers(LOGITS[case](), dtype, [(2, 4, 6)])
    got = executable(*inputs)
    assert got.dtype == FULL and got.is_contiguous()


EVEN_AND_ODD = tuple((1, *size) for size in itertools.product((1, 2, 5, 8), (1, 2, 9, 10)))
SUBPIXELS = {**SUBPIXEL, "5 to 7": subpixel(5, 7)}


@every(SUBPIXELS, few=(*FEW, (1, 8, 5), (1, 2, 10)), many=(*MANY, *((2, *size) for size in PARITIES)))
def test_subpixel(case, dtype, shapes):
    agrees(SUBPIXELS[case], dtype, shapes)


def test_subpixel_in_all_parities():
    agrees(subpixel(6, 10), HALF, EVEN_AND_ODD)


@every(STEMS)
def test_stem(case, dtype, shapes):
    agrees(STEMS[case], dtype, shapes)


@every(DOWNS)
def test_down(case, dtype, shapes):
    agrees(DOWNS[case], dtype, shapes)


@every_dtype
def test_down_with_odd_channels(dtype):
    for include in (True, False):
        agrees(down(5, 7, True, include=include), dtype, FEW)


@every(GATES)
def test_gate(case, dtype, shapes):
    agrees(GATES[case], dtype, shapes)


@every(PROLOGUES)
def test_prologue(case, dtype, shapes):
    agrees(PROLOGUES[case], dtype, shapes)


BESIDE = [
    CONVS["10 of 20 to 19, 3x3 / 1"], CONVS["from and to channels whose neighbours nobody writes"],
    SUBPIXEL["views"], STEMS["a view"], DOWNS["to two buffers"], GATES["parts"],
]  # fmt: skip


@pytest.mark.parametrize("make", BESIDE)
def test_what_lies_beside_a_view_stays(make):
    """And one number that changes there is seen."""
    executable = agrees(make, HALF, [(2, 5, 7)])
    assert spared(executable) > 0
    for _, x, channels in beside(executable):
        before = x[..., channels[0]].clone()
        x[..., channels[0]] = 1
        with pytest.raises(AssertionError, match="no op writes"):
            spared(executable)
        x[..., channels[0]] = before


# Numbers.


@every_dtype
def test_rounding_is_to_nearest_even(dtype):
    """Sums of which every other lies in the middle between two numbers of the dtype; as products, too."""
    added = Sketch(6, 6)
    products = pair(6, 6, 6, 1, 1, act="none", bias=False)()
    unit = torch.eye(6, dtype=torch.float64)[..., None, None]
    plans = [
        added.plan(added.add(*added.inputs)),
        products.replace(weights={products.ops[0].weight: torch.cat([unit, unit], 1)}),
    ]
    ulps = 2.0 ** (8 if dtype == LOW else 11)
    x, y = (ulps / 2 * (1 + torch.rand(1, 6, 9, 7))).round(), torch.randint(-3, 4, (1, 6, 9, 7)) / 2
    for plan, sign in itertools.product(plans, (1, -1)):
        expected = (sign * x.double() + y.double()).to(dtype)
        assert torch.equal(Hosted(plan, dtype)((sign * x).to(dtype), y.to(dtype)), expected)


@every_dtype
def test_what_is_too_large_is_infinite(dtype):
    """As in torch, of both signs; what is just not too large is not."""
    plan = pair(6, 6, 6, 1, 1, act="none", bias=False)()
    unit = torch.eye(6, dtype=torch.float64)[..., None, None]
    executable = Hosted(plan.replace(weights={plan.ops[0].weight: torch.cat([unit, unit], 1)}), dtype)
    most = torch.finfo(dtype).max
    x = torch.tensor([most, -most, most, -most, 1.0]).view(1, 5, 1, 1).expand(1, 5, 3, 5)
    y = torch.tensor([most, -most, most / 4096, 2, -1.0]).view(1, 5, 1, 1).expand(1, 5, 3, 5)
    expected = (x.double() + y.double()).to(dtype)
    assert expected.isinf().any() and not expected.isinf().all()
    for i in range(5):
        one, other = torch.zeros(2, 1, 6, 3, 5)
        one[:, i], other[:, i] = x[:, i], y[:, i]
        got = executable(one.to(dtype), other.to(dtype))
        assert torch.equal(got[:, i], expected[:, i]) and not got.isnan().any()


@every_dtype
def test_nan_is_not_hidden(dtype):
    """It spreads as far as a convolution sees, also through ReLU, and not to other images."""
    executable = Hosted(plain(6, 10, 3, 1)(), dtype)
    x = torch.randn(2, 6, 9, 11).to(dtype)
    expected = executable(x)
    x[0, 3, 4, 5] = float("nan")
    got = executable(x)
    assert got[0, :, 3:6, 4:7].isnan().all()
    got[0, :, 3:6, 4:7] = expected[0, :, 3:6, 4:7]
    assert torch.equal(got, expected)


@one_dtype
def test_nan_of_a_down_and_a_gate(dtype):
    """Of the former also in the average; of the latter everywhere, but not in other images."""
    executable = Hosted(down(6, 10, True)(), dtype)
    x = torch.randn(2, 10, 9, 11).to(dtype)
    x[0, 5, 4, 4] = float("nan")
    got = executable(x)
    assert got[0, :, 2, 2].isnan().all() and got.isnan().sum() == got.shape[1]
    executable = Hosted(GATES["64 channels"](), dtype)
    x = torch.randn(2, 6, 9, 11).to(dtype)
    x[0, 5, 4, 4] = float("nan")
    got = executable(x)
    assert got[0].isnan().all() and not got[1].isnan().any()


# Labels.


def check_labels(classes, dtype, sizes):
    """Of the backend's own logits."""
    executable = Hosted(labelled(classes), dtype)
    for i, (batch, size, out) in enumerate(sizes):
        frames = random_frames(batch, *size, seed=i)
        logits, labels = executable(frames), executable.labels(frames)
        assert min(classes - 1, size[0] // 16, size[1] // 16) < 1 or len(labels.unique()) > 1
        assert labels.dtype == torch.uint8 and labels.shape == (batch, *size) and labels.is_contiguous()
        assert wrong_labels(labels, logits) == 0
        assert wrong_labels(executable.labels(frames, out), logits, size) == 0
        assert wrong_labels(executable.labels(frames, out, exact=False), logits) == 0


@pytest.mark.wide
@every_dtype
@pytest.mark.parametrize("classes", [1, 2, 6, 10, 19, 34, 150, 256])
def test_labels_of_any_size(classes, dtype):
    check_labels(classes, dtype, LABEL_SIZES)


def test_labels():
    check_labels(11, HALF, LABEL_SIZES[:4])
    check_labels(6, LOW, LABEL_SIZES[-1:])  # more columns of logits than a block has cells
    check_labels(1, LOW, LABEL_SIZES[:2])
    check_labels(256, HALF, [(2, (1, 9), (2, 3)), (1, (9, 17), (9, 17))])


@one_dtype
def test_labels_of_logits_interpolated_twice(dtype):
    """Some lie between two pixels of the first size with a logit between them: they read three, the third
    with little weight. So these are many, and of noise; some cells have more columns than a thread at once.
    """
    s = Sketch(19)
    half = functools.partial(s.conv, out=19, kernel=1, stride=2, act="none", bias=False)
    executable = Hosted(s.plan(s.labels(half(half(half(s.inputs[0])), store="float32"))), dtype)
    for size, out in (((60, 20), (53, 400)), ((20, 60), (60, 53))):
        noise = torch.randn(1, 19, *size, generator=torch.Generator().manual_seed(0))
        labels = executable.labels(noise, out)
        assert len(labels.unique()) > 10
        assert wrong_labels(labels, executable(noise), size) == 0


@one_dtype
def test_the_lowest_class_of_a_tie(dtype):
    plan, op = equals()
    executable = Hosted(plan, dtype)
    frames = random_frames(1, 16, 40)
    found = [executable.labels(frames), executable.labels(frames, (15, 33))]
    for labels in (*found, executable.labels(frames, (15, 33), exact=False)):
        assert set(labels.unique().tolist()) == {0, 2}
    zero = plan.replace(weights={op.weight: torch.zeros_like(plan.weights[op.weight])})
    assert not Hosted(zero, dtype).labels(frames).any()


# Frames seen at another size.


@every_dtype
def test_frames_are_resized_on_the_way(dtype):
    s = Sketch(3, store="uint8")
    plan = s.plan(s.stem(s.inputs[0], 10, (123.675, 116.28, 103.53)))
    executable = Hosted(plan, dtype)
    frames = random_frames(2, 13, 22)
    for seen in ((13, 22), (7, 33), (26, 11), (1, 40), (25, 1)):
        check(executable.logits(frames, seen), seen_stem(plan, dtype, frames, seen), dtype, seen)
    one = random_frames(1, 1, 1)
    check(executable.logits(one, (3, 5)), seen_stem(plan, dtype, one, (3, 5)), dtype)


@one_dtype
def test_labels_of_frames_seen_at_another_size(dtype):
    executable = Hosted(labelled(6), dtype)
    frames = random_frames(2, 19, 30)
    for seen, size in (((24, 40), (11, 30)), ((9, 33), (21, 7))):
        logits = executable.logits(frames, seen)
        assert wrong_labels(executable.labels(frames, size, seen=seen), logits, seen) == 0
        assert wrong_labels(executable.labels(frames, size, seen=seen, exact=False), logits) == 0
    assert torch.equal(executable.labels(frames, seen=(19, 30)), executable.labels(frames))


# Inputs as people have them, results as they keep them.


@one_dtype
def test_layouts_of_maps(dtype):
    executable = Hosted(plain(10, 34, 3, 1)(), dtype)
    x = torch.randn(2, 10, 5, 7).to(dtype)
    expected = executable(x)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    for other in layouts(x):
        before = other.clone()
        assert torch.equal(executable(other), expected)
        assert torch.equal(other.nan_to_num(), before.nan_to_num())
    same = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(executable(same), expected[:1].expand(3, -1, -1, -1))


def test_layouts_of_frames():
    executable = Hosted(stem(10, True)(), HALF)
    for view in views_of_frames(random_frames(3, 10, 12)):
        assert torch.equal(executable(view), executable(view.clone(memory_format=torch.contiguous_format)))


def test_other_float_dtypes_are_converted():
    """Maps to the dtype of the backend, images to float32."""
    cases = [
        (stem(10, False)(), random_images(2, 5, 6), FULL),
        (plain(6, 10, 1, 1)(), torch.randn(2, 6, 3, 4), HALF),
    ]
    for plan, x, kept in cases:
        executable = Hosted(plan, HALF)
        for other in (torch.float64, FULL, LOW):
            got = executable(x.to(other))
            assert got.dtype == HALF
            assert torch.equal(got, executable(x.to(other).to(kept))), other


def test_a_batch_is_its_images():
    """Bit by bit, and an empty one is empty."""
    executable = Hosted(labelled(6), HALF)
    frames = random_frames(3, 16, 24)
    logits, labels = executable(frames), executable.labels(frames)
    for i in range(3):
        assert torch.equal(executable(frames[i : i + 1])[0], logits[i])
        assert torch.equal(executable.labels(frames[i : i + 1])[0], labels[i])
    assert executable(frames[:0]).shape == (0, 6, 2, 3)
    assert executable.labels(frames[:0], (5, 6)).shape == (0, 5, 6)


@sketched(22)
def twice_in_one_buffer(s, x):
    """From the channels on both sides of those that it writes."""
    y = s.buffer(44, 1)
    s.conv(x, View(y.buffer, 0, 8), 1)
    s.conv(x, View(y.buffer, 24, 20), 1)
    s.conv([View(y.buffer, 0, 8), View(y.buffer, 24, 20)], View(y.buffer, 8, 16), 3)
    return View(y.buffer, 0, 44)


def test_reading_and_writing_one_buffer():
    for dtype in DTYPES:
        agrees(twice_in_one_buffer, dtype, FEW)
        agrees(prologue(34, 3, scale=True, add="itself"), dtype, FEW)
