"""Label images as PNG files: what other decoders read of them."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from stdc_fast import draw, png
from stdc_fast.classes import CITYSCAPES

PALETTE = draw.lookup(CITYSCAPES.palette)


@pytest.fixture(params=["zlib-ng", "zlib"])
def deflate(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(png, "_deflate", lambda: zlib)
    else:
        pytest.importorskip("zlib_ng", reason="zlib-ng is not installed")


def pictures(photo_labels):
    draws = np.random.default_rng(0)
    yield from (
        draws.integers(0, 256, size, dtype=np.uint8) for size in [(1, 1), (1, 300), (300, 1), (97, 131)]
    )
    yield np.zeros((64, 70_000), np.uint8)
    yield photo_labels
    yield photo_labels[:, ::2].T  # not contiguous


@pytest.fixture
def photo_labels(tiny_model, photo):
    return tiny_model.predict(photo(160, 224)).labels


def test_pillow_reads_the_pixels_the_palette_and_the_texts(deflate, photo_labels):
    for labels in pictures(photo_labels):
        content = png.encode(labels, PALETTE, {"Software": "é", "ImageUniqueID": "12"})
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.mode == "P" and np.array_equal(np.array(image), labels)
            assert image.getpalette() == PALETTE.ravel().tolist()
            assert image.info == {"Software": "é", "ImageUniqueID": "12"}


def test_greys(deflate, photo_labels):
    for labels in pictures(photo_labels):
        with Image.open(io.BytesIO(png.encode(labels, None, {}))) as image:
            assert image.mode == "L" and np.array_equal(np.array(image), labels)


def test_libpng_reads_it(deflate, photo_labels):
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    for labels in pictures(photo_labels):
        grey = cv2.imdecode(np.frombuffer(png.encode(labels, None, {}), np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(grey, labels)
        content = np.frombuffer(png.encode(labels, PALETTE, {}), np.uint8)
        assert np.array_equal(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB), PALETTE[labels])


def test_damage_is_noticed(deflate, photo_labels):
    """Of each chunk's sum: one that is wrong would be believed otherwise."""
    content = bytearray(png.encode(photo_labels, PALETTE, {}))
    for name in (b"IHDR", b"PLTE", b"IDAT"):
        wrong = bytearray(content)
        wrong[wrong.index(name) + 4] ^= 1
        with pytest.raises((OSError, SyntaxError)), Image.open(io.BytesIO(wrong)) as image:
            image.verify()


def test_long_data_are_several_chunks(deflate, monkeypatch, photo_labels):
    monkeypatch.setattr(png, "_CHUNK", 100)
    content = png.encode(photo_labels, PALETTE, {})
    assert content.count(b"IDAT") > 1
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.array(image), photo_labels)


def test_the_same_bytes_each_time(deflate, photo_labels):
    assert png.encode(photo_labels, PALETTE, {}) == png.encode(photo_labels.copy(), PALETTE, {})
