"""Bilinear interpolation as tables of places and weights, in one step and in two, is torch's."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from stdc_fast.backends.gpu.interpolation import interpolation

LENGTHS = [(1, 1), (1, 9), (2, 1), (2, 17), (5, 5), (6, 41), (9, 70), (23, 180), (40, 7)]


@pytest.mark.parametrize("source, target", LENGTHS, ids=str)
def test_interpolation_is_torchs(source, target):
    x = torch.randn(source)
    base, weights = interpolation(source, target)
    assert (base.dtype, weights.dtype) == (torch.int32, torch.float32)
    close(applied(x, base, weights, 2), line(x, target))


@pytest.mark.parametrize("source", [1, 2, 5, 23])
def test_interpolation_in_two_steps_is_torchs(source):
    """To what eight times as many numbers were, less up to seven; from there to more and to fewer."""
    x = torch.randn(source)
    for between, target in itertools.product(
        (8 * source, 8 * source - 3, 8 * source - 7), (1, 2, 9, 100, 999)
    ):
        base, weights = interpolation(source, target, between)
        close(applied(x, base, weights, 3), line(line(x, between), target))


def line(x, target):
    return F.interpolate(x.view(1, 1, 1, -1), (1, target), mode="bilinear", align_corners=True).view(-1)


def applied(x, base, weights, taps):
    assert weights.shape == (len(base), taps)
    assert base.min() >= 0 and (base.diff() >= 0).all() and base.max() < len(x)
    places = base.long()[:, None] + torch.arange(taps)
    assert not weights[places > len(x)].any()  # of what is beyond the last there is nothing
    return (x[places.clamp(max=len(x) - 1)] * weights).sum(1)


def close(got, expected):
    assert (got - expected).abs().max() <= 1e-5
