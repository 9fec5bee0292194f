"""Each op on every engine against the eager backend; labels; inputs as people have them."""

import functools
import itertools

import pytest
import torch
from cases import (
    LABELS,
    OFFSET,
    OPS,
    PARITIES,
    labelled,
    layouts,
    prologue,
    stem,
    subpixel,
    views_of_frames,
    with_ties,
)
from engines import ENGINES, QUICK, in_dtypes, on, with_cases
from oracle import FULL, LOW, answers, check, wrong_labels
from plans import random_frames, random_images
from sketch import Sketch, pair, plain, sketched
from torch.nn import functional as F

from stdc_fast.plan.ops import View
from stdc_fast.reference.networks import upsample


def sizes_of_subpixel(case, engine, many):
    """Even and odd heights and widths."""
    if "subpixel" not in case:
        return ()
    return tuple((2, *size) for size in PARITIES) if many or engine in QUICK else ((1, 8, 5), (1, 2, 10))


@with_cases(OPS, more=sizes_of_subpixel)
def test_op(engine, case, dtype, shapes):
    engine.agrees(OPS[case], dtype, shapes)


@in_dtypes(every=False)
def test_subpixel_in_all_parities(engine, dtype):
    sizes = itertools.product((1, 2, 5, 8), (1, 2, 9, 10))
    engine.agrees(subpixel(6, 10), dtype, [(1, *size) for size in sizes])


@sketched(22)
def twice_in_one_buffer(s, x):
    """From the channels on both sides of those that it writes."""
    y = s.buffer(44, 1)
    s.conv(x, View(y.buffer, 0, 8), 1)
    s.conv(x, View(y.buffer, 24, 20), 1)
    s.conv([View(y.buffer, 0, 8), View(y.buffer, 24, 20)], View(y.buffer, 8, 16), 3)
    return View(y.buffer, 0, 44)


@in_dtypes()
def test_reading_and_writing_one_buffer(engine, dtype):
    for make in (twice_in_one_buffer, prologue(34, 3, scale=True, add="itself")):
        engine.agrees(make, dtype, engine.few)


# Numbers.


def added():
    s = Sketch(6, 6)
    return s.plan(s.add(*s.inputs))


def added_as_products():
    plan = pair(6, 6, 6, 1, 1, act="none", bias=False)()
    unit = torch.eye(6, dtype=torch.float64)[..., None, None]
    return plan.replace(weights={plan.ops[0].weight: torch.cat([unit, unit], 1)})


@in_dtypes()
def test_rounding_is_to_nearest_even(engine, dtype):
    """Sums of which every other lies in the middle between two numbers of the dtype."""
    ulps = 2.0 ** {LOW: 8, FULL: 22}.get(dtype, 11)
    x, y = (ulps / 2 * (1 + torch.rand(1, 6, 9, 7))).round(), torch.randint(-3, 4, (1, 6, 9, 7)) / 2
    for plan, sign in itertools.product((added(), added_as_products()), (1, -1)):
        executable = engine.compile(plan, dtype)
        got = executable(engine.put((sign * x).to(dtype)), engine.put(y.to(dtype))).cpu()
        assert torch.equal(got, (sign * x.double() + y.double()).to(dtype))


@in_dtypes()
def test_what_is_too_large_is_infinite(engine, dtype):
    """As in torch, of both signs; what is just not too large is not."""
    executable = engine.compile(added_as_products(), dtype)
    most = torch.finfo(dtype).max
    x = torch.tensor([most, -most, most, -most, 1.0]).view(1, 5, 1, 1).expand(1, 5, 3, 5)
    y = torch.tensor([most, -most, most / 4096, 2, -1.0]).view(1, 5, 1, 1).expand(1, 5, 3, 5)
    expected = (x.double() + y.double()).to(dtype)
    assert expected.isinf().any() and not expected.isinf().all()
    for i in range(5):
        one, other = torch.zeros(2, 1, 6, 3, 5)
        one[:, i], other[:, i] = x[:, i], y[:, i]
        got = executable(engine.put(one.to(dtype)), engine.put(other.to(dtype))).cpu()
        assert torch.equal(got[:, i], expected[:, i]) and not got.isnan().any()


@in_dtypes()
def test_nan_is_not_hidden(engine, dtype):
    """It spreads as far as a convolution sees, also through ReLU, and not to other images."""
    executable = engine.compile(plain(6, 10, 3, 1)(), dtype)
    x = engine.put(torch.randn(2, 6, 9, 11).to(dtype))
    expected = executable(x)
    x[0, 3, 4, 5] = float("nan")
    got = executable(x)
    assert got[0, :, 3:6, 4:7].isnan().all()
    got[0, :, 3:6, 4:7] = expected[0, :, 3:6, 4:7]
    assert torch.equal(got, expected)


@in_dtypes(every=False)
def test_nan_of_a_down_and_a_gate(engine, dtype):
    """Of the former also in the average; of the latter everywhere, but not in other images."""
    x = torch.randn(2, 10, 9, 11).to(dtype)
    x[0, 5, 4, 4] = float("nan")
    got = engine.compile(OPS["down, 6 to 10"](), dtype)(engine.put(x)).cpu()
    assert got[0, :, 2, 2].isnan().all() and got.isnan().sum() == got.shape[1]
    got = engine.compile(OPS["gate, 64 channels"](), dtype)(engine.put(x[:, :6])).cpu()
    assert got[0].isnan().all() and not got[1].isnan().any()


# Labels.


def check_labels(engine, classes, dtype, sizes):
    """Of the engine's own logits."""
    executable = engine.compile(labelled(classes), dtype)
    for i, (batch, size, out) in enumerate(sizes):
        frames = engine.put(random_frames(batch, *size, seed=i))
        logits, labels = executable(frames).cpu(), executable.labels(frames)
        assert min(classes - 1, size[0] // 16, size[1] // 16) < 1 or len(labels.unique()) > 1
        assert labels.dtype == torch.uint8 and labels.shape == (batch, *size) and labels.is_contiguous()
        for _ in range(engine.runs):
            assert wrong_labels(executable.labels(frames).cpu(), logits) == 0
            assert wrong_labels(executable.labels(frames, out).cpu(), logits, size) == 0
            assert wrong_labels(executable.labels(frames, out, exact=False).cpu(), logits) == 0


CLASSES = (1, 2, 6, 10, 19, 34, 150, 256)


@pytest.mark.parametrize("classes", CLASSES)
@in_dtypes(QUICK)
def test_labels(engine, dtype, classes):
    """At the frame's size and others, one pixel and one class included."""
    check_labels(engine, classes, dtype, LABELS)


SLOW = [engine for engine in ENGINES if engine.thrifty]


@pytest.mark.wide
@pytest.mark.parametrize("classes", CLASSES)
@in_dtypes(SLOW)
def test_labels_on_a_slow_engine(engine, dtype, classes):
    check_labels(engine, classes, dtype, LABELS)


@on(SLOW)
def test_labels_of_some_sizes(engine):
    first, *_, last = engine.dtypes
    check_labels(engine, 11, engine.dtypes[-2], LABELS[:4])
    check_labels(engine, 6, last, LABELS[-1:])  # more columns of logits than a block has cells
    check_labels(engine, 1, first, LABELS[:2])
    check_labels(engine, 256, first, [(2, (1, 9), (2, 3)), (1, (9, 17), (9, 17))])


@in_dtypes(every=False)
def test_labels_of_logits_interpolated_twice(engine, dtype):
    """Some lie between two pixels of the first size with a logit between them: they read three, the third
    with little weight. So these are many, and of noise; some cells have more columns than a thread at once.
    """
    s = Sketch(20)
    half = functools.partial(s.conv, out=20, kernel=1, stride=2, act="none", bias=False)
    executable = engine.compile(s.plan(s.labels(half(half(half(s.inputs[0])), store="float32"))), dtype)
    # The interpreter takes minutes for the large ones.
    sizes = ((60, 20), (53, 400)), ((20, 60), (60, 53))
    for size, out in (((28, 20), (25, 140)), ((20, 36), (36, 31))) if engine.name == "triton" else sizes:
        noise = torch.randn(1, 20, *size, generator=torch.Generator().manual_seed(0))
        noise = engine.put(noise)
        labels = executable.labels(noise, out).cpu()
        assert len(labels.unique()) > 10
        assert wrong_labels(labels, executable(noise).cpu(), size) == 0


@in_dtypes(every=False)
def test_the_lowest_class_of_a_tie(engine, dtype):
    ties, zeros = (engine.compile(plan, dtype) for plan in with_ties())
    sizes = [((16, 40), (15, 33)), ((64, 96), (90, 71)), ((33, 47), (40, 50)), ((8, 130), (9, 131))]
    for size, out in sizes[:1] if engine.thrifty else sizes:
        frames = engine.put(random_frames(1, *size))
        found = [ties.labels(frames), ties.labels(frames, out), ties.labels(frames, out, exact=False)]
        assert [set(labels.unique().tolist()) for labels in found] == [{0, 2}] * 3
        assert not zeros.labels(frames).any()


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


@in_dtypes()
def test_frames_are_resized_on_the_way(engine, dtype):
    s = Sketch(3, store="uint8")
    plan = s.plan(s.stem(s.inputs[0], 10, OFFSET))
    executable = engine.compile(plan, dtype)
    sizes = ((13, 22), (7, 33), (26, 11), (1, 40), (25, 1))
    for frames, seen in [(random_frames(2, 13, 22), size) for size in sizes] + [
        (random_frames(1, 1, 1), (3, 5))
    ]:
        got = executable.logits(engine.put(frames), seen).cpu()
        check(got, seen_stem(plan, dtype, frames, seen), dtype, seen)


@in_dtypes(every=False)
def test_labels_of_frames_seen_at_another_size(engine, dtype):
    executable = engine.compile(labelled(6), dtype)
    frames = engine.put(random_frames(2, 19, 30))
    for seen, size in (((24, 40), (11, 30)), ((9, 33), (21, 7))):
        logits = executable.logits(frames, seen).cpu()
        assert wrong_labels(executable.labels(frames, size, seen=seen).cpu(), logits, seen) == 0
        straight = executable.labels(frames, size, seen=seen, exact=False).cpu()
        assert wrong_labels(straight, logits) == 0
    assert torch.equal(executable.labels(frames, seen=(19, 30)), executable.labels(frames))


# Inputs as people have them, results as they keep them.


@in_dtypes(every=False)
def test_layouts_of_maps(engine, dtype):
    executable = engine.compile(plain(10, 34, 3, 1)(), dtype)
    for size in ((5, 7), (1, 9), (8, 1))[: 1 if engine.thrifty else 3]:
        x = engine.put(torch.randn(2, 10, *size).to(dtype))
        expected = executable(x)
        assert expected.is_contiguous(memory_format=torch.channels_last)
        for other in layouts(x):
            before = other.clone()
            assert torch.equal(executable(other), expected)
            assert torch.equal(other.nan_to_num(), before.nan_to_num())
        same = x[:1].expand(3, -1, -1, -1)
        assert torch.equal(executable(same), expected[:1].expand(3, -1, -1, -1))
        flat = x[:, :1].expand(-1, 10, -1, -1)
        assert torch.equal(executable(flat), executable(flat.contiguous()))


@in_dtypes(every=False)
def test_layouts_of_frames(engine, dtype):
    executable = engine.compile(stem(10, True)(), dtype)
    for view in views_of_frames(engine.put(random_frames(3, 10, 12))):
        assert torch.equal(executable(view), executable(view.clone(memory_format=torch.contiguous_format)))


@in_dtypes(every=False)
def test_other_float_dtypes_are_converted(engine, dtype):
    """Maps to the dtype of the engine; images as the engine says."""
    cases = [
        (stem(10, False)(), random_images(2, 5, 6), engine.images(dtype)),
        (plain(6, 10, 1, 1)(), torch.randn(2, 6, 3, 4), dtype),
    ]
    for plan, x, kept in cases:
        executable = engine.compile(plan, dtype)
        for other in (torch.float64, torch.float16, LOW, FULL):
            got = executable(engine.put(x.to(other)))
            assert got.dtype == dtype
            assert torch.equal(got, executable(engine.put(x.to(other).to(kept)))), other


@pytest.mark.parametrize("kind", ["map", "image", "logits"])
@in_dtypes(every=False)
def test_results_are_fresh_and_inputs_stay(engine, dtype, kind):
    plan = {"map": plain(6, 10, 3, 1)(), "image": stem(10, False)(), "logits": labelled(6)}[kind]
    executable = engine.compile(plan, dtype)
    inputs = [engine.put(known[0]) for known, _ in answers(plan, dtype, [(1, 16, 24)] * 2)]
    before, versions = [x.clone() for x in inputs], [x._version for x in inputs]
    for run in [executable, executable.labels] if kind == "logits" else [executable]:
        first = run(inputs[0])
        kept = first.clone()
        second = run(inputs[1])
        assert not torch.equal(first, second)
        assert torch.equal(first, kept)
        first.zero_()
        with torch.inference_mode():
            assert torch.equal(run(inputs[0]), kept)
        memory = {x.untyped_storage().data_ptr() for x in (first, second, *inputs)}
        assert len(memory) == 4
    assert all(map(torch.equal, inputs, before)) and [x._version for x in inputs] == versions


@in_dtypes(every=False)
def test_a_batch_is_its_images(engine, dtype):
    """Bit by bit, and an empty one is empty."""
    executable = engine.compile(labelled(6), dtype)
    frames = engine.put(random_frames(3, 16, 24))
    logits, labels = executable(frames), executable.labels(frames)
    for i in range(3):
        assert torch.equal(executable(frames[i : i + 1])[0], logits[i])
        assert torch.equal(executable.labels(frames[i : i + 1])[0], labels[i])
    assert executable(frames[:0]).shape == (0, 6, 2, 3)
    assert executable.labels(frames[:0], (5, 6)).shape == (0, 5, 6)
