"""Tiny videos for the tests: sound ones, damaged ones, and what is decoded of them."""

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'stdc-fast[video]'")

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx"}


def photo(height, width):
    """A smooth random picture, RGB uint8 [H, W, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def film(path, count=10, size=(64, 96), rate=25, codec=None, times=None, options=None, aspect=None):
    """Write a video of slowly changing pictures; gives them, RGB uint8 [H, W, 3]."""
    codec = codec or CODECS[os.path.splitext(path)[1]]
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    pictures = [np.roll(photo(*size), 4 * i, axis=1) for i in range(count)]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if codec == "libx264" and (size[0] % 2 or size[1] % 2) else "yuv420p"
        stream.bit_rate = 1_000_000
        stream.codec_context.gop_size = 4
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return pictures


def decoded(path):
    """Frames, times in seconds, and the video stream's facts."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        images = [f.to_ndarray(format="rgb24") for f in frames]
        return images, [float(f.pts * f.time_base) for f in frames if f.time_base], stream.average_rate


def distance(a, b):
    """Mean difference of two pictures' brightness, in grey levels; colours are stored at half the size."""
    brightness = [np.asarray(x).astype(float) @ (0.2126, 0.7152, 0.0722) for x in (a, b)]
    return np.abs(brightness[0] - brightness[1]).mean()


def alike(a, b):
    """Compression changes these pictures by up to 6; two different ones differ by more than 40."""
    return np.shape(a) == np.shape(b) and distance(a, b) < 8


BAD = {
    "missing.mp4": "no such file",
    "empty.mp4": "is empty",
    "text.mp4": "can not be decoded",
    "folder": "is a folder",
    "sound.mp4": "holds no pictures",
    "headless.mp4": "can not be decoded",
    "small.mp4": "96x16 is too small",
}


def bad_files(folder):
    """Write files that are no sound video into the working folder; gives what is said of each."""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video\nat all\n" * 50)
    (folder / "folder").mkdir()
    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    film("headless.mp4")
    content = (folder / "headless.mp4").read_bytes()
    (folder / "headless.mp4").write_bytes(content[: len(content) // 2])  # what says where frames are is gone
    film("small.mp4", 2, (16, 96))
    return BAD


def cut(path, share=0.6):
    """A video whose end is missing; True at random access, so frames before the cut are sound."""
    film(path, 40, options={"movflags": "faststart"} if path.endswith(".mp4") else None)
    with open(path, "rb+") as file:
        file.truncate(int(os.path.getsize(path) * share))
