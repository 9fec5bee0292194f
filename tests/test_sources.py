"""Where pictures come from: bytes, open files, pipes, missing codecs; and values that need their range."""

import io
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from stdc_fast import UserError, images, stream

# ---------------------------------------------------------------- bytes, open files, pipes


def test_bytes_and_open_files_are_read(photo, tmp_path):
    path, array = tmp_path / "a.png", photo()
    Image.fromarray(array).save(path)
    content = path.read_bytes()
    at_its_end = io.BytesIO()
    at_its_end.write(content)
    for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), at_its_end):
        items, several = images.iterate(source)
        ((name, item),) = items
        assert not several
        assert np.array_equal(images.open_item(item, name), array)
    with path.open("rb") as file:
        assert np.array_equal(images.read_image(file), array)
        assert np.array_equal(stream.open_frame(file, "frame 0"), array)
        assert images.name_of(file) == str(path)
    with (
        path.open(encoding="latin-1") as file,
        pytest.raises(UserError, match='open as text; open it with "rb"'),
    ):
        images.read_image(file)


@pytest.mark.parametrize(("content", "said"), [(b"", "0 bytes"), (b"text", "not an image")])
def test_bytes_that_are_no_image(content, said):
    with pytest.raises(UserError, match=said) as error:
        images.read_image(content)
    assert str(error.value).startswith("bytes: ")


def test_endless_sources_are_refused(monkeypatch):
    monkeypatch.setattr(images, "_MAX_BYTES", 1 << 20)
    with open("/dev/zero", "rb") as file, pytest.raises(UserError, match="more than 1 MB"):
        images.read_image(file)


def test_pipes_are_read(photo, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "PNG")
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(buffer.getvalue(),))
    writer.start()
    assert np.array_equal(images.read_image(path), photo())
    writer.join()


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_stdin(source, photo, monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "PNG")
    buffer.seek(0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(buffer))
    items, several = images.iterate(source)
    ((name, item),) = items
    assert (name, several) == ("stdin", False)
    assert np.array_equal(images.open_item(item, name), photo())
    with pytest.raises(UserError, match="stdin: has 0 bytes"):
        images.open_item(item, name)


# ---------------------------------------------------------------- whose fault it is


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("decoder jpeg2k not available", "this Pillow was built without its decoder"),
        ("image file is truncated (3 bytes not processed)", "copy or convert it again"),
        ("broken data stream when reading image file", "copy or convert it again"),
        ("Unsupported BMP compression (5)", "of a kind that Pillow does not decode"),
    ],
)
def test_files_are_not_blamed_for_codecs(reason, remedy):
    with pytest.raises(UserError, match=remedy) as error, images.decode_errors("a.jp2"):
        raise OSError(reason)
    assert reason in str(error.value)


def test_a_missing_codec_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(images.features, "check", lambda name: False)
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x1cftypavif")
    with pytest.raises(UserError, match="without a decoder of AVIF"):
        images.read_image(tmp_path / "a.avif")


def test_heic_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "has_heif", lambda: False)
    for name in ("a.heic", "a.jpg"):
        (tmp_path / name).write_bytes(b"\0\0\0\x1cftypheic")
        with pytest.raises(UserError, match=f"{name}: HEIC pictures need the package pillow-heif"):
            images.read_image(tmp_path / name)


@pytest.fixture
def heic(monkeypatch, photo):
    """A file that starts as HEIC does, and a stand-in of pillow-heif."""
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    content = b"\0\0\0\x18ftypheic" + bytes(100)

    def has_heif():
        picture = Image.fromarray(photo())
        Image.register_open("HEIF", lambda *_: picture.copy(), lambda head: head[4:12] == b"ftypheic")
        return True

    monkeypatch.setattr(images, "has_heif", has_heif)
    return content


@pytest.mark.parametrize("name", ["a.heic", "a.jpg", None])
def test_heic_is_known_by_its_content(heic, photo, tmp_path, name):
    """Not by the name, nor because another one was opened before in this process."""
    if name is not None:
        (tmp_path / name).write_bytes(heic)
    source = heic if name is None else tmp_path / name
    assert np.array_equal(images.read_image(source), photo())
    assert np.array_equal(images.read_image(source, formats=images.FROM_STRANGERS), photo())


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(
    "wrong", ["a.jpg", np.zeros((64, 96, 3), np.uint8), None], ids=lambda w: type(w).__name__
)
def test_a_picture_is_no_tensor(model, wrong):
    with pytest.raises(UserError, match=f"{type(wrong).__name__}; files and pictures go to predict"):
        model(wrong)


def test_range_is_for_pictures(model, photo):
    deep = photo().astype(np.uint16) * 16
    expected = model.predict(photo()).labels
    assert np.array_equal(model.predict(deep, range=(0, 4080)).labels, expected)
    assert np.array_equal(next(model.stream([deep], range=(0, 4080))).labels, expected)
    assert np.array_equal(model.predict(torch.tensor(photo()) / 255, range=(0, 1)).labels, expected)
    for call in (lambda: model.predict(deep), lambda: next(model.stream([deep]))):
        with pytest.raises(UserError, match=r"range=\(0, 4095\)"):
            call()
    with pytest.raises(UserError, match=r"range=.0.0, 1.0. is for pictures"):
        model.predict("drive.mp4", range=(0, 1))
    with pytest.raises(UserError, match="range must be two"):
        model.predict(deep, range=5)
