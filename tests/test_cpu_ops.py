"""Each op of the native CPU engine, on every instruction set, against the eager backend."""

import functools

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
    stem,
    views_of_frames,
)
from engines import (
    FULL,
    LOW,
    answers,
    check,
    in_both_dtypes,
    needs_native,
    on_every_isa,
    plain,
    wrong_labels,
)
from plans import random_frames, random_images

from stdc_fast.backends import cpu
from stdc_fast.backends.cpu import program

pytestmark = needs_native

# Tiny, odd, and wide enough for several bands of rows and tiles of pixels.
SIZES = ((1, 1), (1, 2), (2, 1), (3, 5), (8, 6), (9, 34), (41, 67))


@pytest.fixture(autouse=True, scope="module")
def threads():
    """More than there are cores: who waits for whom must not matter."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@functools.cache
def prepared(make, dtype):
    """A case's plan and, for every size, inputs and what must come out; the same for all instruction sets."""
    plan = make()
    return plan, answers(plan, dtype, [(3 if i % 2 else 1, *size) for i, size in enumerate(SIZES)])


def agrees(make, dtype, isa):
    plan, cases = prepared(make, dtype)
    executable = cpu.compile(plan, dtype, isa=isa, poisoned=True)
    assert executable.isa == isa
    for inputs, expected in cases:
        got = executable(*inputs)
        assert got.dtype == (FULL if executable._logits else dtype)
        check(got, expected, dtype, list(inputs[0].shape))


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", CONVS)
def test_conv(case, dtype, isa):
    agrees(CONVS[case], dtype, isa)


@on_every_isa
def test_odd_channels_in_float32(isa):
    for kernel, stride in FORMS:
        agrees(odd_channels(kernel, stride), FULL, isa)


def test_odd_channels_are_refused_in_bfloat16():
    plan = odd_channels(3, 1)()
    assert "odd" in program.unsupported(plan, LOW) and program.unsupported(plan, FULL) is None
    with pytest.raises(ValueError, match="odd numbers of channels"):
        cpu.compile(plan, LOW)


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", LOGITS)
def test_logits_are_not_rounded(case, dtype, isa):
    agrees(LOGITS[case], dtype, isa)


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
    return plan, answers(plan, dtype, [(1, *size) for size in PARITIES])


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", STEMS)
def test_stem(case, dtype, isa):
    agrees(STEMS[case], dtype, isa)


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", DOWNS)
def test_down(case, dtype, isa):
    agrees(DOWNS[case], dtype, isa)


WIDE_DOWN = down(1030, 16, True)


@on_every_isa
@in_both_dtypes
def test_down_of_more_channels_than_a_step_has(dtype, isa):
    agrees(WIDE_DOWN, dtype, isa)


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", GATES)
def test_gate(case, dtype, isa):
    agrees(GATES[case], dtype, isa)


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("case", PROLOGUES)
def test_prologue(case, dtype, isa):
    agrees(PROLOGUES[case], dtype, isa)


# Labels.


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
    for view in views_of_frames(random_frames(3, 20, 44)):
        assert torch.equal(executable(view), executable(view.clone(memory_format=torch.contiguous_format)))
