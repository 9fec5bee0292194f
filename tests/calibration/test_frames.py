"""Which frames a calibration takes: of folders, iterators that use one buffer, deep pictures, flat ones."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal

from stdc_fast.calibration.frames import choose, split


@pytest.fixture
def photos(photo):
    return [photo(seed=i) for i in range(6)]


def pictures_of(frames):
    return [image for _, image in frames.opened()]


def camera(photos, make=lambda buffer: buffer):
    """Frames as many readers give them: one array, in which each picture takes the place of the last."""
    buffer = np.empty_like(photos[0])
    for one in photos:
        buffer[:] = one
        yield make(buffer)
    buffer[:] = 0


@pytest.mark.parametrize("make", [lambda buffer: buffer, torch.from_numpy], ids=["array", "tensor"])
def test_a_reader_may_use_its_buffer_again(photos, make):
    for source in (camera(photos, make), [camera(photos, make)]):
        for found, expected in zip(pictures_of(choose(source, 6, 0)), photos, strict=True):
            assert np.array_equal(found, expected)
    few = pictures_of(choose(camera(photos, make), 3, 0))
    places = [next(i for i, one in enumerate(photos) if np.array_equal(one, image)) for image in few]
    assert places == sorted(set(places)) and len(places) == 3


def test_normalised_tensors_of_one_buffer(photos):
    buffer = torch.zeros(3, 64, 96)
    source = (buffer.fill_(value) for value in (0.1, 0.2, 0.3))
    assert [float(image.mean()) for image in pictures_of(choose(source, 3, 0))] == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_every_frame_that_passes_may_be_drawn(photos):
    drawn = [
        tuple(image[0, 0, 0] for image in pictures_of(choose(iter(photos), 2, seed))) for seed in range(40)
    ]
    assert drawn[0] == tuple(image[0, 0, 0] for image in pictures_of(choose(iter(photos), 2, 0)))
    assert set(itertools.chain(*drawn)) == {one[0, 0, 0] for one in photos}


def test_black_and_white_and_the_order_of_channels(photos, tmp_path):
    deep = photos[0].astype(np.uint16) * 16
    Image.fromarray(deep[:, :, 0]).save(tmp_path / "deep.png")
    (found,) = pictures_of(choose(tmp_path, 1, 0, range=(0, 255 * 16)))
    assert np.array_equal(found, np.repeat(photos[0][:, :, :1], 3, 2))
    for source in ([photos[1]], iter([photos[1]])):
        (found,) = pictures_of(choose(source, 1, 0, bgr=True))
        assert np.array_equal(found, photos[1][:, :, ::-1])
    assert "range" in refusal(choose, photos, 1, 0, range=(5, 5))


@pytest.mark.parametrize("seed", ["x", None, [1], 1.5, True], ids=str)
def test_seeds(photos, seed):
    assert f"seed must be a whole number, not {seed!r}" in refusal(choose, photos, 2, seed)


def test_frames_of_one_colour_judge_nothing(photos):
    """A lid on the lens: such a frame is looked at, but says nothing about how good 8 bits are."""
    frames = choose(photos, 6, 0)
    for seed in range(8):
        for flat in itertools.product((False, True), repeat=6):
            if all(flat):
                continue
            looked, held = split(frames, flat, seed)
            telling = {name for (name, _), one in zip(frames.items, flat, strict=True) if not one}
            names = [{name for name, _ in part.items} for part in (looked, held)]
            assert len(names[1]) == 1 and names[1] <= telling and names[0] & telling
            assert len(telling) == 1 or not names[0] & names[1]
    assert "all frames of a list are of one flat colour" in refusal(split, frames, [True] * 6, 0)
