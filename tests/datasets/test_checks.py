"""Checks before work begins: sizes, values and shares, in a sample or in all files."""

import folders
import numpy as np
import pytest
from PIL import Image

from stdc_fast.datasets import check, check_training, checks, open_folder
from stdc_fast.errors import UserError


@pytest.fixture
def root(tmp_path):
    return folders.camvid(tmp_path / "data", train=5)


def change(path, **values):
    stored = np.array(Image.open(path))
    for where, value in values.items():
        stored[{"row": slice(50, 51), "most": slice(0, 70), "all": slice(None)}[where]] = value
    Image.fromarray(stored).save(path)


def test_counts(root, caplog):
    folder = open_folder(root, "train")
    pixels = check(folder)
    assert pixels.shape == (5, 4)
    assert (pixels.sum(1) == 96 * 128).all() and (pixels[:, 3] == 2 * 128).all()
    for i in range(5):
        assert (
            pixels[i, :3].tolist() == np.bincount(folder.load_labels(i).ravel(), minlength=256)[:3].tolist()
        )
    assert not caplog.text


def test_unknown_values_are_counted_over_files(root):
    for name in ("f1", "f3"):
        change(root / "trainannot" / f"{name}.png", row=77)
    with pytest.raises(
        UserError, match=r"f1\.png, as 2 of 5 label files: 256 pixels have the value 77, .* mapping"
    ):
        check(open_folder(root, "train"))


def test_a_sample_is_drawn_of_many(root, monkeypatch):
    monkeypatch.setattr(checks, "SAMPLE", 2)
    folder = open_folder(root, "train")
    change(folder.labels[4], row=77)
    seen = {}
    for seed in range(12):
        try:
            assert len(check(folder, seed=seed)) == 2
            seen[seed] = True
        except UserError as error:
            assert "f4.png: 128 pixels have the value 77" in str(error)
            seen[seed] = False
    assert set(seen.values()) == {True, False}
    with pytest.raises(UserError, match="value 77"):
        check(folder, everything=True)
    with pytest.raises(UserError, match="value 77"):
        check_training(folder, None)


def test_images_are_decoded_only_when_all_is_checked(root):
    path = root / "train" / "f2.png"
    path.write_bytes(path.read_bytes()[:600])
    folder = open_folder(root, "train")
    check(folder)
    with pytest.raises(UserError, match=r"train/f2\.png: can not be decoded"):
        check(folder, everything=True)


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("trainannot/f2.png", Image.new("L", (128, 95)), r"trainannot/f2\.png is 128x95, its image 128x96"),
        ("train/f2.png", Image.new("RGB", (8, 8)), r"train/f2\.png: 8x8 is too small"),
    ],
)
def test_sizes(root, name, image, said):
    image.save(root / name)
    with pytest.raises(UserError, match=said):
        check(open_folder(root, "train"))


def test_lossy_labels(root):
    folder = open_folder(root, "train")
    Image.open(folder.labels[1]).save(folder.labels[1].with_suffix(".jpg"))
    folder.labels[1].with_suffix(".jpg").replace(folder.labels[1])
    with pytest.raises(UserError, match=r"f1\.png: labels are lossy JPEG"):
        check(folder)


def test_warnings(root, caplog):
    for path in sorted((root / "trainannot").iterdir()):
        change(path, most=255, row=0)
    for path in sorted((root / "valannot").iterdir()):
        change(path, all=0)
    check_training(open_folder(root, "train"), open_folder(root, "val"))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "in 5 of 5 label files more than half of the pixels do not count, 72 % in all" in lines[0]
    assert "valannot: 2 of 3 classes have no pixel in 2 label files: Wall, Road" in lines[1]


def test_turned_images_are_said(root, caplog):
    path = root / "train" / "f3.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    check(open_folder(root, "train"))
    assert "f3.png: 1 of 5 images are turned as their EXIF data says" in caplog.text
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    with pytest.raises(UserError, match=r"f3\.png is 128x96, its image 96x128"):
        check(open_folder(root, "train"))


def test_palettes_that_differ_are_said(root, caplog):
    palette = np.arange(768) % 251
    for i, path in enumerate(sorted((root / "trainannot").iterdir())):
        image = Image.open(path).convert("P")
        image.putpalette(np.roll(palette, 3 * (i == 2)).astype(np.uint8).tobytes())
        image.save(path)
    check(open_folder(root, "train"))
    assert "f2.png: has another colour for value 0 than f0.png" in caplog.text
