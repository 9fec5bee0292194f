"""Light, colours, sharpness and noise of training photos."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from stdc_fast import appearance
from stdc_fast.appearance import Appearance

OPTIONS = {"jitter": 0.4, "white_balance": 0.3, "gamma": 0.5, "hue": 0.2, "grey": 1.0, "blur": 3.0,
           "noise": 0.1, "jpeg": 1.0}  # fmt: skip
STILL = Appearance(jitter=0.0)


@pytest.fixture
def photo():
    """Smooth in both directions, of three different channels, away from black and white."""
    y, x = np.mgrid[0:48, 0:64]
    channels = (60 + 2 * x, 100 + y, 180 - x)
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


def means(image):
    return pixels(image).mean((0, 1))


def test_nothing_on_changes_nothing(photo):
    assert np.array_equal(pixels(STILL(photo, np.random.default_rng(0))), pixels(photo))


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_photos_by_its_own_draws(photo, option):
    change = dataclasses.replace(STILL, **{option: OPTIONS[option]})
    results = [pixels(change(photo, np.random.default_rng(seed))) for seed in range(6)]
    again = [pixels(change(photo, np.random.default_rng(seed))) for seed in range(6)]
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))
    assert results[0].shape == (48, 64, 3)
    assert any(not np.array_equal(r, pixels(photo)) for r in results)
    if option != "grey":
        assert any(not np.array_equal(results[0], r) for r in results[1:])


def test_options_that_are_off_draw_nothing():
    """What follows in a stream, such as the flip, stays where a recorded recipe has it."""
    image, ours, expected = Image.new("RGB", (8, 8)), np.random.default_rng(3), np.random.default_rng(3)
    Appearance(jitter=0.4)(image, ours)
    expected.permutation(3)
    for _ in range(3):
        expected.uniform()
    assert ours.random() == expected.random()


def test_white_balance_is_red_against_blue(photo):
    warm = means(appearance.tone(photo, appearance.white_balance(0.2))) / means(photo)
    assert warm[0] / warm[2] == pytest.approx(np.exp(0.2), rel=0.01)
    assert warm[1] == pytest.approx(1, rel=0.01)
    tinted = means(appearance.tone(photo, appearance.white_balance(0.0, 0.1))) / means(photo)
    assert tinted == pytest.approx([1, np.exp(0.1), 1], rel=0.01)


def test_tone_is_a_power_and_a_gain_that_clips():
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2))
    found = pixels(appearance.tone(ramp, (1.0, 2.0, 0.5), gamma=2.0))[0]
    exact = 255 * (np.arange(256) / 255) ** 2
    for channel, gain in enumerate((1.0, 2.0, 0.5)):
        assert np.abs(found[:, channel] - np.minimum(gain * exact, 255)).max() <= 0.5 + 1e-9


def test_hue_turns_about_grey(photo):
    third = pixels(appearance.rotate_hue(photo, 1 / 3))
    assert np.abs(third - pixels(photo)[..., [2, 0, 1]]).max() <= 1
    back = appearance.rotate_hue(appearance.rotate_hue(photo, 0.03), -0.03)
    assert np.abs(pixels(back) - pixels(photo)).max() <= 2
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    assert np.abs(pixels(appearance.rotate_hue(grey, 0.4)) - 90).max() <= 1


def test_grey_has_no_colour(photo):
    found = pixels(dataclasses.replace(STILL, grey=1.0)(photo, np.random.default_rng(0)))
    assert (found == found[..., :1]).all() and found.std() > 1


def test_noise_has_its_deviation_and_no_bias():
    flat = Image.new("RGB", (200, 200), (128, 128, 128))
    found = pixels(appearance.add_noise(flat, 0.04, np.random.default_rng(0))) - 128
    assert found.std() == pytest.approx(0.04 * 255, rel=0.02)
    assert abs(found.mean()) < 0.2
    assert abs(np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1]) < 0.02


def test_lower_quality_is_further_away():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    near, far = (np.abs(pixels(appearance.compress(image, q)) - noise).mean() for q in (90, 20))
    assert 0 < near < far


def test_half_of_the_photos_stay_sharp():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    change = dataclasses.replace(STILL, blur=4.0)
    results = [pixels(change(image, np.random.default_rng(seed))) for seed in range(100)]
    assert 30 < sum(np.array_equal(r, pixels(image)) for r in results) < 70
