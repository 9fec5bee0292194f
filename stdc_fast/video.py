"""Videos and cameras: :func:`read` gives their frames, :class:`Writer` writes them; with PyAV (``av``)."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.files import atomic, write_errors

#: Containers that :class:`Writer` writes.
OUTPUT_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
#: Frames per second where a file does not say.
USUAL_RATE = Fraction(25)
#: Seconds that times in an MPEG transport stream may jump, as in FFmpeg; more is a clock that was set anew.
JUMP = 10
# FFmpeg's device of a Linux camera.
_CAMERA_FORMAT = "v4l2"


@functools.cache
def _av():
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"videos need PyAV, which can not be imported ({error}); run pip install av"
        ) from None
    return av


def _camera(source: object) -> str | None:
    """The device file of 0, "0" or "/dev/video0"; None for what is no camera."""
    if isinstance(source, int) and not isinstance(source, bool):
        return f"/dev/video{source}"
    if not isinstance(source, (str, os.PathLike)):
        return None
    text = os.fspath(source)
    if re.fullmatch(r"[0-9]{1,4}", text) and not os.path.exists(text):
        return f"/dev/video{int(text)}"
    return text if re.fullmatch(r"/dev/video[0-9]+", text) else None


def is_camera(source: object) -> bool:
    """Whether this names a camera: its number, also as text if there is no such file, or ``/dev/videoN``."""
    return _camera(source) is not None


def is_video(source: object) -> bool:
    """Whether this names a camera or, by its suffix, a video file, which need not exist.

    A GIF is a video if it has several frames. Folders and globs are none.
    """
    if _camera(source) is not None:
        return True
    if not isinstance(source, (str, os.PathLike)):
        return False
    text = os.fspath(source)
    suffix = os.path.splitext(text)[1].lower()
    if images.is_animated_gif(text):
        return True
    if suffix not in images.VIDEO_SUFFIXES or os.path.isdir(text):
        return False
    return os.path.exists(text) or not glob.has_magic(text)


def read(source: str | os.PathLike | int) -> Reader:
    """Open a video file or a camera (0, "0", "/dev/video0"; on Linux).

    Raises UserError, in one line, if there is none, PyAV is missing, or not even one frame can be decoded.
    """
    return Reader(source)


class Reader(Iterator[np.ndarray]):
    """Frames of a video or camera, RGB uint8 ``[H, W, 3]``, each fresh, turned upright as the file says.

    Where a file is damaged or ends early, the frames that can be decoded come first, then a UserError that
    says how many they were. Sound is left out.

    Attributes:
        name: the path, or "camera 0".
        camera: whether it is one: it has no end, and frames that are not fetched are lost.
        width, height: of the first frame, upright, in pixels.
        fps: mean number of frames a second, a Fraction.
        frames: number of frames that the file says it has, or None; not exact in every container.
        aspect: width of a pixel by its height, a Fraction, 1 for most videos.
        time: seconds from the first frame to the one given last.
    """

    def __init__(self, source: str | os.PathLike | int):
        device = _camera(source)
        self.camera = device is not None
        self.name = f"camera {os.fspath(source) if isinstance(source, os.PathLike) else source}"
        if device is None:
            self.name = os.fspath(source)
            with images.decode_errors(self.name):
                images.check_file(Path(self.name))
        self.time = 0.0
        self._turns = 0  # by 90 degrees, counter-clockwise, to have a frame upright
        self._damage = ""
        av = _av()
        with contextlib.ExitStack() as stack:
            with self._errors():
                if device is not None:
                    self._container = stack.enter_context(_open_camera(av, device, self.name))
                else:
                    # "file:", so that colons and percent signs in a name mean nothing.
                    self._container = stack.enter_context(av.open(f"file:{self.name}"))
                if not self._container.streams.video:
                    raise UserError(f"{self.name}: holds no pictures, only sound or data; give a video")
                self._stream = stream = self._container.streams.video[0]
                if stream.codec_context is None:
                    raise UserError(f"{self.name}: its codec is unknown here; convert it to H.264")
                height, width = stream.codec_context.height, stream.codec_context.width
                if height or width:  # else the first packets say it
                    images.check_size(height, width, self.name)
                stream.thread_type = "SLICE" if self.camera else "AUTO"  # frame threads add latency
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
            self.fps = Fraction(rate) if rate and 0 < rate <= 1000 else USUAL_RATE
            self._seconds = self._claimed_seconds()
            known = stream.frames or (round(self._seconds * self.fps) if self._seconds else None)
            self.frames = None if self.camera else known
            self._decoder = self._decode()
            # Decoded already: what is not a video at all fails here, and sizes are those after turning.
            try:
                self._first = next(self._decoder)
            except StopIteration:
                raise UserError(f"{self.name}: holds no frames; copy or convert it again") from None
            self.height, self.width = self._first[0].shape[:2]
            aspect = stream.sample_aspect_ratio or Fraction(1)
            self.aspect = 1 / Fraction(aspect) if self._turns % 2 else Fraction(aspect)
            stack.pop_all()

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> np.ndarray:
        if self._first is not None:
            (image, self.time), self._first = self._first, None
        else:
            image, self.time = next(self._decoder)
        return image

    def close(self) -> None:
        """Close the file or the camera. Iterating ends."""
        self._first = None
        self._decoder.close()
        self._container.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _decode(self) -> Iterator[tuple[np.ndarray, float]]:
        count, start, time = 0, None, 0.0
        for packet in self._packets():
            for frame in self._frames(packet):
                if frame.pts is not None:
                    # Not frame.time, which is wrong for the last frames, those that the empty packet gives.
                    stamp = float(frame.pts * self._stream.time_base)
                    start = stamp if start is None else start
                    step = stamp - start - time
                    if step < 0 or (step > JUMP and self._container.format.name == "mpegts"):
                        start = stamp - time - 1 / self.fps  # the clock was set anew
                    time = stamp - start
                elif count:
                    time += 1 / self.fps
                count += 1
                yield self._upright(frame), float(time)
        if count and not self._damage and self._seconds and not self.camera:
            missing = self._seconds - time - 1 / self.fps
            if missing > max(0.5, 0.05 * self._seconds):
                self._damage = f"it ends {missing:.1f} s early"
        if self._damage:
            remedy = "check it" if self.camera else "copy it again"
            raise UserError(f"{self.name}: only {count} frames could be decoded ({self._damage}); {remedy}")

    def _packets(self) -> Iterator[object]:
        """Packets of the picture, then an empty one, which lets the decoder give its last frames."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except _av().FFmpegError as error:
            self._damage = _reason(error)
        yield None

    def _frames(self, packet: object) -> list:
        with self._errors():
            try:
                return self._stream.decode(packet)
            except _av().error.InvalidDataError:
                # As players do: what follows may be sound again, from its next key frame on.
                self._damage = self._damage or "some of its data is damaged"
                return []

    def _upright(self, frame) -> np.ndarray:
        with self._errors():
            image = frame.to_ndarray(format="rgb24")
            self._turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, self._turns)) if self._turns else image

    def _claimed_seconds(self) -> float | None:
        """How long the pictures last, as the file says, or None."""
        stream, container = self._stream, self._container
        text = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska, WebM
        if text:
            return int(text[1]) * 3600 + int(text[2]) * 60 + float(text[3])
        if container.format.name == "avi" and stream.frames:
            return float(stream.frames / self.fps)  # its duration is a guess from the file's size
        if stream.duration:
            return float(stream.duration * stream.time_base)
        alone = len(container.streams) == 1
        return container.duration / _av().time_base if alone and container.duration else None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (_av().FFmpegError, OSError) as error:
            remedy = "check it, or name another" if self.camera else "copy it again, or convert it to H.264"
            raise UserError(f"{self.name}: can not be decoded ({_reason(error)}); {remedy}") from None


def _open_camera(av, device: str, name: str):
    try:
        av.ContainerFormat(_CAMERA_FORMAT, "r")
    except ValueError:
        raise UserError(
            f"{name}: this PyAV reads no cameras (that needs Linux); read the frames with OpenCV and give "
            "them to Segmenter.stream(frames, bgr=True, latest=True)"
        ) from None
    try:
        return av.open(device, format=_CAMERA_FORMAT)
    except (av.FFmpegError, OSError) as error:
        found = ", ".join(sorted(glob.glob("/dev/video[0-9]*"))) or "none"
        raise UserError(
            f"{name}: {device} can not be opened ({_reason(error)}); cameras found: {found}"
        ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__


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
        self._av = _av()
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
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
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
            raise UserError(f"{self.path}: can not be written ({_reason(error)})") from None
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
