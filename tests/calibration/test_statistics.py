"""What is found of maps, against plain NumPy: extremes, averages, percentiles, least squared errors."""

import numpy as np
import pytest
import torch

from stdc_fast import UserError
from stdc_fast.calibration.statistics import BINS, METHODS, Extremes, Histograms, Passing, check_method

KEY, CHANNELS = "a map", 6


def maps(seed=0):
    """Two frames of a map in two parts, as two ops write it: channels of several kinds, one of them dead."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((2, CHANNELS, 200, 250)).astype(np.float32)
    x[:, 0] = np.maximum(x[:, 0], 0)
    x[:, 1] = generator.uniform(-1, 1, x[:, 1].shape)
    x[1, 1, 3, 5] = 3  # far outside, and alone
    x[:, 2] = 0
    x[:, 4] -= 3
    return x


def shown(looks, x):
    passing = Passing()
    passing.tensor(KEY, torch.full((1, 1, 2, 2), torch.nan))  # which nobody looks at
    passing.looks = looks
    for frame in torch.from_numpy(x):
        parts = frame[None, :4], frame[None, 4:].contiguous(memory_format=torch.channels_last)
        for part, offset in zip(parts, (0, 4), strict=True):
            assert passing.tensor(KEY, part, offset) is part
        passing.tensor("another map", frame[None])
    return looks


@pytest.fixture(scope="module")
def found():
    x = maps()
    extremes = shown(Extremes({KEY: CHANNELS}), x).ranges()
    return x, extremes, shown(Histograms(extremes), x)


def test_extremes(found):
    x, extremes, _ = found
    assert list(extremes) == [KEY]
    for values, expected in (
        (extremes[KEY].low, x.min((0, 2, 3))),
        (extremes[KEY].high, x.max((0, 2, 3))),
        (extremes[KEY].mean, x.mean((0, 2, 3), dtype=np.float64)),
    ):
        assert np.allclose(values, expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(values, values.float().double())  # as files keep them


def test_histograms_count_every_value(found):
    x, _, histograms = found
    counts = histograms.counts[KEY]
    assert counts.shape == (CHANNELS, BINS) and (counts.sum(1) == x[:, 0].size).all()
    for channel in (0, 3, 4):
        reach = np.abs(x[:, channel]).max()
        expected, _ = np.histogram(np.abs(x[:, channel]), BINS, (0, reach))
        assert np.abs(counts[channel].numpy() - expected).sum() <= 8  # at the edges of bins


@pytest.mark.parametrize("percent", [50, 90, 99.9])
def test_percentiles_are_of_what_is_not_zero(found, percent):
    x, extremes, histograms = found
    taken = histograms.ranges(f"percentile:{percent}")[KEY]
    reach = torch.maximum(taken.high, -taken.low)
    for channel in (0, 1, 3, 4):
        magnitudes = np.abs(x[:, channel].ravel())
        greatest = magnitudes.max()
        magnitudes = magnitudes[magnitudes >= greatest / BINS]
        expected = np.percentile(magnitudes, percent, method="inverted_cdf")
        assert abs(reach[channel] - expected) < 1.5 * greatest / BINS
    assert reach[2] == 0
    assert torch.equal(taken.mean, extremes[KEY].mean)


def squared_error(x, clip):
    levels = 127 if x.min() < 0 else 255
    step = clip / levels
    return np.square(np.clip(np.rint(x / step), -levels, levels) * step - x).sum()


def test_mse_is_near_the_least_error(found):
    x, extremes, histograms = found
    taken = histograms.ranges("mse")[KEY]
    reach = torch.maximum(taken.high, -taken.low).numpy()
    for channel in (0, 1, 3, 4):
        values = x[:, channel].astype(np.float64)
        greatest = np.abs(values).max()
        best = min(squared_error(values, share * greatest) for share in np.linspace(0.125, 1, 200))
        assert squared_error(values, reach[channel]) < 1.05 * best
    greatest = torch.maximum(extremes[KEY].high, -extremes[KEY].low).numpy()
    assert reach[1] < 0.8 * greatest[1]  # that one value is cut
    assert squared_error(x[:, 1].astype(np.float64), greatest[1]) > 1.3 * squared_error(
        x[:, 1].astype(np.float64), reach[1]
    )


def test_max_is_what_was_seen(found):
    _, extremes, histograms = found
    assert histograms.ranges("max") == extremes


def test_every_range_lies_within_what_was_seen(found):
    _, extremes, histograms = found
    for method in METHODS:
        taken = histograms.ranges(method)[KEY]
        assert (taken.low >= extremes[KEY].low).all() and (taken.high <= extremes[KEY].high).all()


@pytest.mark.parametrize("reach", [1e-44, 1e-40, 1e-36, 1e-30, 1e30, 3e38])
def test_channels_that_hardly_reach_anywhere(reach):
    """Weight decay leaves such channels beside others: they are counted as those are."""
    x = torch.rand((500, 3), generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, reach, 0.0])
    extremes = Extremes({"map": 3})
    extremes.look("map", x, 0)
    looks = Histograms(extremes.ranges())
    looks.look("map", x, 0)
    assert looks.counts["map"].sum(1).tolist() == [500] * 3
    for method in METHODS:
        high = looks.ranges(method)["map"].high
        assert high[0] > 0.9 and 0 <= high[1] <= 1.001 * x[:, 1].max() and high[2] == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_maps_that_are_not_finite(value):
    x = maps()
    x[1, 3, 7, 7] = value
    with pytest.raises(UserError, match=f"{KEY} has NaN or infinite values"):
        shown(Extremes({KEY: CHANNELS}), x).ranges()


@pytest.mark.parametrize("method", ["best", "max", "mse", "percentile:99.99", "percentile:100"])
def test_methods(method):
    assert check_method(method) == method


@pytest.mark.parametrize(
    "method",
    ["Max", "", None, "percentile", "percentile:", "percentile:49", "percentile:101", "percentile:1e2"],
)
def test_what_is_no_method(method):
    with pytest.raises(UserError, match=r"method must be best, max, mse or percentile:P.*not"):
        check_method(method)
