"""JPEG files by simplejpeg: the pixels that Pillow gives, and Pillow for all that is not plain."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from stdc_fast import images, jpeg
from stdc_fast.errors import UserError

pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")


@pytest.fixture
def taken(monkeypatch):
    """Of each picture whether simplejpeg decoded it."""
    found, pixels = [], jpeg.pixels

    def noting(image):
        array = pixels(image)
        found.append(array is not None)
        return array

    monkeypatch.setattr(jpeg, "pixels", noting)
    return found


def save(picture, **how):
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, "JPEG", **how)
    return file.getvalue()


def by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("how", [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {}])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_pixels_are_pillows(photo, taken, how, subsampling, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for picture in (photo(*size), noise):
        for quality in (30, 75, 98):
            content = save(picture, subsampling=subsampling, quality=quality, **how)
            assert np.array_equal(images.read_image(content), by_pillow(content))
    assert taken == [True] * 6


def test_stored_as_rgb(photo, taken):
    content = save(photo(), keep_rgb=True)
    assert np.array_equal(images.read_image(content), by_pillow(content))
    assert taken == [True]


def test_an_open_file_and_a_path(photo, taken, tmp_path):
    (tmp_path / "a.jpg").write_bytes(save(photo()))
    with open(tmp_path / "a.jpg", "rb") as file:
        assert np.array_equal(images.read_image(file), images.read_image(tmp_path / "a.jpg"))
    assert taken == [True, True]


def test_what_is_left_to_pillow(photo, taken):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert images.read_image(save(photo(64, 96), exif=turned)).shape == (96, 64, 3)
    images.read_image(save(photo(), icc_profile=profile))
    images.read_image(save(photo()), range=(0, 100))
    assert taken == []
    grey = save(photo()[..., 0])
    assert np.array_equal(images.read_image(grey), by_pillow(grey))
    cmyk = save(Image.fromarray(photo()).convert("CMYK"))
    assert images.read_image(cmyk).shape == (64, 96, 3)
    assert not any(taken)


def test_damage_is_told_by_pillow(photo, taken, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(save(photo())[:-500])
    with pytest.raises(UserError, match=r"a.jpg: can not be decoded \(.*truncated"):
        images.read_image(path)
    assert taken == [False]


def test_without_the_package(photo, monkeypatch):
    content = save(photo())
    want = images.read_image(content)
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    assert np.array_equal(images.read_image(content), want)
