"""The training augmentation, and the stream of crops."""

import folders
import numpy as np
import pytest
import torch
from paths import ROOT

from stdc_fast.appearance import Appearance
from stdc_fast.classes import CAMVID, ClassSet
from stdc_fast.data import Augmentation, TrainingStream
from stdc_fast.datasets import histograms, open_folder
from stdc_fast.images import MEAN, STD, normalise

SHARED_CAMVID = ROOT.parent / "shared" / "data" / "camvid"

STILL = Appearance(jitter=0.0)


def test_normalise():
    frame = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    x = normalise(frame, torch.float64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = (frame.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    torch.testing.assert_close(x, expected.permute(0, 3, 1, 2))


def marked(height=60, width=80):
    """An image whose red channel is its label's id times 10, so that the two can be compared."""
    labels = np.arange(height * width, dtype=np.int64).reshape(height, width) * 20 // (height * width)
    labels = labels.astype(np.uint8)
    image = np.stack([labels * 10] * 3, -1)
    return image, labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_crops_keep_image_and_labels_together(scale):
    image, labels = marked()
    augment = Augmentation((scale, scale), aspect=0.2, appearance=STILL)
    for seed in range(20):
        crop, out = augment(image, labels, (64, 96), np.random.default_rng(seed))
        assert crop.shape == (64, 96, 3) and out.shape == (64, 96)
        inside = out != 255
        assert inside.any()
        # Interpolated rows lie between two classes, which are ten apart.
        assert np.abs(crop[..., 0].astype(int) - out.astype(int) * 10)[inside].max() <= 10
        outside = crop[~inside]
        assert (outside == np.round(np.array(MEAN) * 255)).all()


def test_scale_one_without_crop_is_the_image_or_its_mirror():
    image, labels = marked(64, 96)
    augment = Augmentation((1.0, 1.0), aspect=0.0, appearance=STILL)
    seen = set()
    for seed in range(8):
        crop, out = augment(image, labels, (64, 96), np.random.default_rng(seed))
        if np.array_equal(out, labels):
            assert np.array_equal(crop, image)
            seen.add("same")
        else:
            assert np.array_equal(out, labels[:, ::-1]) and np.array_equal(crop, image[:, ::-1])
            seen.add("mirror")
    assert seen == {"same", "mirror"}


def test_target_class_is_in_the_crop():
    image, labels = marked(120, 160)
    labels[:] = 0
    labels[100:104, 30:34] = 7
    augment = Augmentation((1.5, 2.0), aspect=0.0)
    for seed in range(20):
        _, out = augment(image, labels, (64, 64), np.random.default_rng(seed), target=7)
        assert (out == 7).any()


def stream(folder, seed=0, balance=0.5):
    return TrainingStream(
        folder, histograms(folder)[:, :-1], Augmentation(balance=balance), lambda k: (64, 64), seed
    )


def test_stream_depends_on_seed_and_position_only(tmp_path):
    folder = open_folder(folders.camvid(tmp_path), "train")
    first, second, other = stream(folder), stream(folder), stream(folder, seed=1)
    for k in (9, 3, 700):
        assert all(torch.equal(a, b) for a, b in zip(first[k], second[k], strict=True))
    assert not torch.equal(first[3][0], other[3][0])
    assert not torch.equal(first[3][0], first[4][0])


def test_every_epoch_sees_every_image(tmp_path):
    folder = open_folder(folders.camvid(tmp_path, train=6), "train")
    samples = stream(folder, balance=0.0)
    seen, load = [], samples._load
    samples._load = lambda index: seen.append(index) or load(index)
    for k in range(12):
        samples[k]
    assert len(set(seen)) == 6
    assert sorted(seen[:6]) == sorted(seen[6:])


def test_classes():
    assert len(set(ClassSet.from_names(tuple(map(str, range(40)))).palette)) == 40
    assert ClassSet.from_names(tuple(n.upper() for n in CAMVID.names)) is CAMVID
    with pytest.raises(ValueError, match="2 names but 1 colours"):
        ClassSet(("a", "b"), ((0, 0, 0),))
