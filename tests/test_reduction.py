"""Photos much larger than the network's input: averaged alike, whoever labels them, on every device."""

import numpy as np
import pytest
import torch
from PIL import Image

from stdc_fast.inference import label
from stdc_fast.protocol import Protocol
from stdc_fast.reduction import _by_pillow, _by_torch, reduced


def noise(height, width, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize("steps", [(3, 3), (2, 5), (1, 7), (11, 1), (90, 80)])
def test_the_bits_are_pillows_on_every_device(steps):
    for more in (0, 1):  # whole blocks, and blocks that are cut at the border
        frames = noise(3 * steps[0] + more, 4 * steps[1] + more)
        whole = [np.asarray(Image.fromarray(f.numpy()).reduce(steps[::-1])) for f in frames]
        assert np.array_equal(_by_pillow(frames, steps), whole)
        assert np.array_equal(_by_torch(frames, steps), whole)


@pytest.mark.parametrize(
    ("sides", "seen", "shape"),
    [
        ((128, 192), (64, 96), (128, 192)),  # a half, as the paper's code does it
        ((129, 192), (64, 96), (65, 192)),
        ((300, 200), (40, 199), (43, 200)),
        ((64, 64), (640, 640), (64, 64)),
    ],
)
def test_only_what_is_more_than_halved_is_averaged(sides, seen, shape):
    frames = noise(*sides)
    assert reduced(frames, seen).shape[1:3] == shape
    floats = frames.permute(0, 3, 1, 2).double()
    assert reduced(floats, seen).shape[2:] == shape
    # Pillow rounds at half the number of pixels, rounded down: of three pixels at 2/3, of seven at 4/7.
    assert (reduced(frames, seen).permute(0, 3, 1, 2) - reduced(floats, seen)).abs().max() <= 2 / 3


def test_predict_label_and_val_give_the_same_labels_of_a_large_photo(tiny_model):
    photo = noise(400, 530)[0].numpy()
    for size in ((96, 128), (50, 300)):
        expected = tiny_model.predict(photo, size=size).labels
        assert len(np.unique(expected)) > 1
        assert np.array_equal(tiny_model.label(photo[None], size=size)[0], expected)
        assert np.array_equal(label(tiny_model, photo, Protocol(size=size)), expected)
        # As one of the views and windows, too: here they are the same one.
        views = Protocol(size=size, window=size)
        assert (label(tiny_model, photo, views).numpy() == expected).mean() > 0.999
