"""Resize and argmax in bands against F.interpolate and argmax on the whole tensor."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stdc_fast import UserError, postprocess
from stdc_fast.postprocess import resize_argmax


def oracle(logits, size):
    """Resized logits, float64."""
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=True)


def random_logits(n, c, h, w, seed=0, dtype=torch.float64):
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_sizes():
    rng = np.random.default_rng(3)
    fixed = [
        ((1, 9), (33, 40)),  # one row: nothing to interpolate between
        ((9, 1), (40, 33)),
        ((1, 1), (32, 32)),
        ((8, 12), (1, 96)),  # to one row, which is the first
        ((8, 12), (64, 1)),
        ((8, 12), (1, 1)),
        ((8, 12), (8, 12)),  # same size
        ((8, 12), (8, 96)),  # one direction only
        ((8, 12), (64, 12)),
        ((40, 50), (13, 17)),  # down
        ((40, 9), (13, 70)),  # down and up
        ((90, 120), (89, 121)),  # by one
        ((60, 3), (719, 5)),  # several bands of rows
    ]
    drawn = [(tuple(rng.integers(1, 30, 2)), tuple(rng.integers(1, 120, 2))) for _ in range(25)]
    return [(tuple(map(int, a)), tuple(map(int, b))) for a, b in fixed + drawn]


@pytest.mark.parametrize(("source", "target"), random_sizes())
def test_equals_interpolate_and_argmax(source, target):
    logits = random_logits(2, 11, *source, seed=sum(source) + sum(target))
    wide = oracle(logits, target)
    labels, confidence = resize_argmax(logits, target, confidence=True)
    assert labels.dtype == torch.uint8
    assert labels.shape == (2, *target)
    assert torch.equal(labels.long(), wide.argmax(1))
    assert confidence.dtype == torch.float32
    expected = wide.softmax(1).amax(1)
    torch.testing.assert_close(confidence.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), random_sizes())
def test_float32_differs_only_between_equals(source, target):
    logits = random_logits(2, 11, *source, seed=1, dtype=torch.float32)
    wide = oracle(logits, target)
    labels, _ = resize_argmax(logits, target)
    best, order = wide.topk(2, 1)
    wrong = labels.long() != order[:, 0]
    margin = (best[:, 0] - best[:, 1])[wrong]
    # Positions are rounded to float32 by both sides, at most 2^-24 of up to 120 rows.
    assert (margin < 1e-4).all()
    assert wrong.double().mean() < 1e-3


def test_bands_do_not_show(monkeypatch):
    logits = random_logits(2, 5, 13, 17)
    whole, whole_confidence = resize_argmax(logits, (101, 77), confidence=True)
    for size in (1, 30000, 100000):  # one row; 4 and 16 rows, which do not divide the height
        monkeypatch.setattr(postprocess, "_BAND_BYTES", size)
        labels, confidence = resize_argmax(logits, (101, 77), confidence=True)
        assert torch.equal(labels, whole)
        torch.testing.assert_close(confidence, whole_confidence)


@pytest.mark.parametrize("target", [(8, 12), (61, 95), (64, 12), (8, 95), (5, 7)])
def test_ties_take_the_lowest_class(target):
    logits = random_logits(1, 4, 8, 12, dtype=torch.float32)
    # Without a resize any logits tie with their copies. With one, torch may round the planes of two equal
    # classes differently, so there the tie is between zeros, which every rounding keeps.
    if target == (8, 12):
        twice = torch.cat([logits, logits, logits], 1)
        assert torch.equal(resize_argmax(twice, target)[0], resize_argmax(logits, target)[0])
    some = torch.full((1, 5, 8, 12), -1.0)
    some[:, [1, 3]] = 0
    assert (resize_argmax(some, target)[0] == 1).all()
    flat = torch.zeros(1, 11, 8, 12)
    labels, confidence = resize_argmax(flat, target, confidence=True)
    assert labels.count_nonzero() == 0
    torch.testing.assert_close(confidence, torch.full_like(confidence, 1 / 11))


def test_class_counts_at_the_ends():
    labels, confidence = resize_argmax(random_logits(1, 1, 4, 4), (9, 9), confidence=True)
    assert labels.count_nonzero() == 0
    assert torch.equal(confidence, torch.ones(1, 9, 9))
    logits = torch.zeros(1, 256, 4, 4)
    logits[:, 255] = 1
    assert (resize_argmax(logits, (9, 9))[0] == 255).all()
    with pytest.raises(UserError, match="257 classes: labels are bytes"):
        resize_argmax(random_logits(1, 257, 4, 4), (8, 8))
    with pytest.raises(UserError, match="257 classes: labels are bytes"):
        torch.ops.stdc_fast.labels(random_logits(1, 257, 4, 4).float(), (8, 8))


def test_layouts_do_not_matter_and_the_input_stays():
    plain = random_logits(2, 11, 9, 14)
    expected = resize_argmax(plain, (70, 111))[0]
    channels_last = plain.contiguous(memory_format=torch.channels_last)
    window = random_logits(2, 22, 18, 28)
    window[:, ::2, ::2, ::2] = plain
    for logits in (channels_last, window[:, ::2, ::2, ::2]):
        before = logits.clone()
        assert torch.equal(resize_argmax(logits, (70, 111))[0], expected)
        assert torch.equal(logits, before)


def test_confidence_is_only_computed_on_request():
    assert resize_argmax(random_logits(1, 3, 4, 4), (8, 8))[1] is None


def test_results_are_fresh():
    logits = random_logits(1, 3, 8, 8)
    first, chosen = resize_argmax(logits, (8, 8), confidence=True)
    kept, kept_chosen = first.clone(), chosen.clone()
    second, other = resize_argmax(-logits, (8, 8), confidence=True)
    assert not torch.equal(first, second)
    assert torch.equal(first, kept)
    assert torch.equal(chosen, kept_chosen)
    assert first.data_ptr() != second.data_ptr()
    assert chosen.data_ptr() != other.data_ptr()
