"""Data set folders and the training augmentation."""

import folders
import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image

from stdc_fast.appearance import Appearance
from stdc_fast.classes import CAMVID, CITYSCAPES, ClassSet
from stdc_fast.data import Augmentation, TrainingStream, open_folder, open_folders
from stdc_fast.errors import UserError
from stdc_fast.images import MEAN, STD, normalise

SHARED_CAMVID = ROOT.parent / "shared" / "data" / "camvid"

STILL = Appearance(jitter=0.0)


def test_camvid_folder(tmp_path):
    folder = open_folder(folders.camvid(tmp_path), "train")
    assert len(folder) == 4
    assert folder.classes.names == ("Sky", "Wall", "Road")
    image, labels = folder.load(0)
    assert image.shape == (96, 128, 3) and labels.shape == (96, 128)
    assert (labels[:2] == 255).all() and set(np.unique(labels[2:])) == {0, 1, 2}
    assert folder.histograms().sum() == 4 * 94 * 128


def test_camvid_listing_chooses_and_orders(tmp_path):
    folders.camvid(tmp_path)
    (tmp_path / "train.txt").write_text("f2\nf0.png\n")
    assert [p.stem for p in open_folder(tmp_path, "train").images] == ["f2", "f0"]


def test_camvid_without_class_names_has_the_usual_eleven(tmp_path):
    folder = open_folder(folders.camvid(tmp_path, classes=""), "val")
    assert folder.classes == CAMVID
    assert (folder.load_labels(0)[:2] == 255).all()


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes_folder(tmp_path, train_ids):
    folder = open_folder(folders.cityscapes(tmp_path, train_ids), "train")
    assert folder.classes == CITYSCAPES
    labels = folder.load_labels(0)
    assert (labels[:2] == 255).all() and set(np.unique(labels[2:])) == {0, 1, 2}


def test_several_splits_are_one(tmp_path):
    root = folders.camvid(tmp_path)
    both = open_folders(root, ("train", "val"))
    parts = [open_folder(root, s) for s in ("train", "val")]
    assert both.images == parts[0].images + parts[1].images
    assert both.labels == parts[0].labels + parts[1].labels
    assert np.array_equal(both.load_labels(4), parts[1].load_labels(0))


def test_splits_of_different_ids_are_not_one(tmp_path):
    root = folders.cityscapes(tmp_path)
    for path in (root / "gtFine" / "val").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(UserError, match="the labels of train and val have different classes or ids"):
        open_folders(root, ("train", "val"))


@pytest.mark.skipif(not SHARED_CAMVID.is_dir(), reason="CamVid is not at ../shared/data/camvid")
def test_real_camvid():
    assert [len(open_folder(SHARED_CAMVID, s)) for s in ("train", "val")] == [367, 101]
    folder = open_folder(SHARED_CAMVID, "val")
    assert folder.classes == CAMVID
    assert set(np.unique(folder.load_labels(0))) <= {*range(11), 255}


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_folder(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"neither train/ with trainannot/ .* nor leftImg8bit/"):
        open_folder(tmp_path, "train")
    folders.camvid(tmp_path)
    (tmp_path / "trainannot" / "f1.png").unlink()
    with pytest.raises(UserError, match="trainannot: no file for 'f1'"):
        open_folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("Sky 0\n")
    (tmp_path / "trainannot" / "f1.png").write_bytes(b"")
    with pytest.raises(UserError, match="of the form '3 Road'"):
        open_folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("0 Sky\n")
    folder = open_folder(tmp_path, "train")
    with pytest.raises(UserError, match=r"f1\.png: not a readable image"):
        folder.load(1)
    Image.new("L", (9, 9)).save(tmp_path / "trainannot" / "f1.png")
    with pytest.raises(UserError, match="is 9x9, its image 128x96"):
        folder.load(1)
    Image.new("RGB", (128, 96)).save(tmp_path / "trainannot" / "f1.png")
    with pytest.raises(UserError, match="one 8-bit channel of class ids, not RGB"):
        folder.load(1)


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
        folder, folder.histograms(), Augmentation(balance=balance), lambda k: (64, 64), seed
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
