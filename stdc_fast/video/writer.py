"""Writing videos: H.264 in the colours of television, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from stdc_fast.errors import UserError
from stdc_fast.files import atomic, write_errors
from stdc_fast.video.pyav import av, reason
from stdc_fast.video.sources import USUAL_RATE

#: Containers that :class:`Writer` writes.
OUTPUT_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv"})


class Writer:
    """Writes frames as a video: H.264 where the installed FFmpeg has it, else MPEG-4; no sound.

    The file appears as a whole with :meth:`close` or at the end of a ``with`` block, or not at all: an
    exception in the block discards it. With no frame written there is no file.

    Args:
        path: .mp4, .m4v, .mov or .mkv; missing folders are made.
        fps: frames a second.
        aspect: width of a pixel by its height.

    Attributes:
        frames: number of frames written.
        codec: name of the encoder, once there is a frame.
    """

    def __init__(
        self, path: str | os.PathLike, fps: float | Fraction = USUAL_RATE, aspect: Fraction | float = 1
    ):
        if Path(path).suffix.lower() not in OUTPUT_SUFFIXES:
            raise UserError(f"{path}: unknown kind of video; use {', '.join(sorted(OUTPUT_SUFFIXES))}")
        if not 0 < fps <= 1000:
            raise UserError(f"fps must be a number above 0 and up to 1000, not {fps}")
        self._av = av()
        self.path = Path(path)
        self._rate = Fraction(fps).limit_denominator(1001)
        # 29.97 stands for 30000 / 1001.
        ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
        if isinstance(fps, float) and abs(ntsc - self._rate) < 1e-3:
            self._rate = ntsc
        # Ticks of which both the period and, for frames at any other time, a small step are whole numbers.
        self._tick = Fraction(1, self._rate.numerator * max(1, 60000 // self._rate.numerator))
        if self._tick.denominator > 65535:  # MPEG-4's limit
            self._tick = Fraction(1, 60000)
        self._aspect = Fraction(aspect).limit_denominator(1000)
        self._stack = contextlib.ExitStack()
        self._container = self._stream = None
        self._pts = -1
        self._done = False
        self.frames, self.codec = 0, ""

    def write(self, frame: np.ndarray | Image.Image, time: float | None = None) -> None:
        """Add a frame, RGB uint8 ``[H, W, 3]`` or a PIL image.

        The first one sets the size; later ones are resized to it. An odd width or height grows by one pixel,
        since the codecs store colours at half the size. ``time`` is in seconds from the first frame and must
        grow; None puts frames at equal distances. UserError if the file can not be written.
        """
        image = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"expected a uint8 frame [H, W, 3], got {image.dtype} {list(image.shape)}")
        if self._done:
            raise UserError(f"{self.path}: is finished; no frame can be added to it")
        with self._whole_or_nothing():
            if self._container is None:
                self._open(*image.shape[:2])
            height, width = self._size
            if image.shape[:2] != (height, width):
                image = np.asarray(Image.fromarray(image).resize((width, height)))
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if time is None:
                pts = self._pts + max(1, round(1 / (self._rate * self._tick))) if self.frames else 0
            else:
                pts = round(Fraction(time) / self._tick)
            self._pts = max(self._pts + 1, pts)
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            flags = self._av.video.reformatter.Interpolation
            picture = picture.reformat(
                format="yuv420p",
                dst_colorspace="ITU709",
                interpolation=flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INP,
            )
            picture.pts, picture.time_base = self._pts, self._tick
            self._container.mux(self._stream.encode(picture))
            self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; nothing happens a second time. UserError if it fails."""
        self._done = True
        if self._container is None:
            return
        with self._whole_or_nothing():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
            self._stack.close()

    def discard(self) -> None:
        """Leave no file."""
        if self._container is not None:
            container, self._container = self._container, None
            with contextlib.suppress(self._av.FFmpegError, OSError):  # of a disk that is full
                container.close()
        # To the temporary file this is an exception: it is deleted.
        self._stack.__exit__(InterruptedError, InterruptedError(), None)
        self._done = True

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    @contextlib.contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        try:
            with write_errors(self.path):
                yield
        except self._av.FFmpegError as error:
            self.discard()
            raise UserError(f"{self.path}: can not be written ({reason(error)})") from None
        except BaseException:
            self.discard()
            raise

    def _open(self, height: int, width: int) -> None:
        temporary = self._stack.enter_context(atomic(self.path))
        self._size = height, width
        self._container = self._av.open(f"file:{temporary}", "w", format=_muxer(self.path))
        self.codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        options = {"preset": "veryfast", "crf": "20"} if self.codec == "libx264" else {}
        self._stream = stream = self._container.add_stream(self.codec, rate=self._rate, options=options)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self._tick
        context.sample_aspect_ratio = self._aspect
        # BT.709 in the range of television, and said so, or players guess by the size.
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        if self.codec != "libx264":
            stream.bit_rate = max(200_000, int(0.2 * width * height * self._rate))


def _muxer(path: Path) -> str:
    return {".mkv": "matroska", ".mov": "mov"}.get(path.suffix.lower(), "mp4")
