"""Reading videos: frames in order, with their times, upright and in RGB."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.video import sources
from stdc_fast.video.colour import Colours
from stdc_fast.video.fields import Deinterlacer
from stdc_fast.video.pyav import av, reason

log = logging.getLogger(__name__)

#: Seconds that times in an MPEG transport stream may jump, as in FFmpeg; more is a clock that was set anew.
JUMP = 10
#: Times that an address is opened again where it broke off, without a frame in between.
ATTEMPTS = 3
# Containers whose times are those of decoding: pictures come in another order where there are B-frames.
_DECODING_TIMES = ("avi", "asf", "mxf")


def read(source: str | os.PathLike | int, *, matrix: str | None = None) -> Reader:
    """Open a video file, numbered pictures, a camera (0, "/dev/video0"; on Linux) or an address (rtsp://...).

    ``matrix`` is that of its colours, "bt601", "bt709" or "bt2020", and goes before what the video says.

    Raises UserError, in one line, if there is none, PyAV is missing, or not even one frame can be decoded.
    """
    return Reader(source, matrix)


class Reader(Iterator[np.ndarray]):
    """Frames of a video or camera, RGB uint8 ``[H, W, 3]``, each fresh, turned upright as the file says.

    Colours are converted by the matrix and range that the video names, to BT.709; high dynamic range is
    brought to the usual one. Interlaced frames become whole ones. Of several videos in a file the largest is
    read; cover pictures and sound are left out.

    Where a file is damaged or ends early, the frames that can be decoded come first, then a UserError that
    says how many they were. A live address that breaks off is opened again.

    Attributes:
        name: the path, "camera 0", or the address without its password.
        camera: whether it is one.
        live: whether it is a camera or a live address: frames that are not fetched are lost.
        width, height: of the first frame, upright, in pixels.
        fps: mean number of frames a second, a Fraction.
        frames: number of frames that the file says it has, or None; not exact in every container.
        aspect: width of a pixel by its height, a Fraction, 1 for most videos.
        time: seconds from the first frame to the one given last.
    """

    def __init__(self, source: str | os.PathLike | int, matrix: str | None = None):
        self.camera, self.live = sources.is_camera(source), sources.is_live(source)
        self.name = sources.title(source)
        self.time = 0.0
        self._source, self._numbered = source, sources.sequence(source) is not None
        self._turns = 0  # by 90 degrees, counter-clockwise, to have a frame upright
        self._damage = ""
        self._dropping = False
        self._anew = True  # the next time stamp is that of a clock that was set anew
        av()
        with contextlib.ExitStack() as stack:
            with self._errors():
                self._open(stack)
            stream = self._stream
            self._colours = Colours(self.name, matrix, stream.codec_context.name, self.camera)
            self._fields = Deinterlacer(self.name)
            rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
            self.fps = next((Fraction(r) for r in rates if r and 0 < r <= 1000), sources.USUAL_RATE)
            self._begin = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
            self._seconds = self._claimed_seconds()
            known = stream.frames or (round(self._seconds * self.fps) if self._seconds else None)
            self.frames = None if self.live else known
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

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Open the source, closed by ``stack`` if anything fails, and choose its stream."""
        self._container = container = sources.open_source(self._source)
        stack.callback(container.close)
        if not container.streams.video:
            raise UserError(f"{self.name}: holds no pictures, only sound or data; give a video")
        marks = av().stream.Disposition
        videos = [
            s for s in container.streams.video
            if not s.disposition & (marks.attached_pic | marks.timed_thumbnails)
        ]  # fmt: skip
        if not videos:
            raise UserError(f"{self.name}: holds sound with a cover picture, but no video")
        known = [s for s in videos if s.codec_context is not None]
        if not known:
            raise UserError(f"{self.name}: its codec is unknown here; convert it to H.264")
        self._stream = stream = max(known, key=lambda s: s.codec_context.width * s.codec_context.height)
        height, width = stream.codec_context.height, stream.codec_context.width
        if len(videos) > 1:
            log.warning(
                "%s: holds %d videos; the largest is read, %dx%d", self.name, len(videos), width, height
            )
        if height or width:  # else the first packets say it
            images.check_size(height, width, self.name)
        stream.thread_type = "SLICE" if self.live else "AUTO"  # frame threads add latency

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> np.ndarray:
        if self._first is not None:
            (image, self.time), self._first = self._first, None
        else:
            image, self.time = next(self._decoder)
        return image

    def skip(self, frames: int | None = None) -> int:
        """Leave out the next ``frames``, or all that follow, decoded but not converted; how many there were.

        UserError, as when iterating, where the file is damaged.
        """
        count, self._dropping = 0, True
        try:
            while frames is None or count < frames:
                if next(self, self) is self:
                    break
                count += 1
        finally:
            self._dropping = False
        return count

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
        count, start, time, reached = 0, 0.0, 0.0, 0.0
        for packet in self._packets():
            for frame, stamp in self._frames(packet):
                period = 1 / self.fps if count else 0
                if stamp is None:
                    time += period
                else:
                    if not count and stamp - self._begin > 0.5 and not self.live:
                        log.warning(
                            "%s: its first %.1f s are left out, as they lack a key frame",
                            self.name, stamp - self._begin,
                        )  # fmt: skip
                    step = stamp - start - time
                    if step < 0 or (step > JUMP and self._container.format.name == "mpegts"):
                        self._anew = True
                    if self._anew:
                        start, self._anew = stamp - time - period, False
                    time = stamp - start
                    reached = max(time, stamp - self._begin)
                count += 1
                yield None if self._dropping else self._upright(frame), float(time)
        if count and not self._damage and self._seconds and not self.live:
            missing = self._seconds - max(time, reached) - 1 / self.fps
            if missing > max(0.5, 0.05 * self._seconds):
                self._damage = f"it ends {missing:.1f} s early"
        if self._damage:
            remedy = "check it" if self.live else "copy it again"
            if sources.is_url(self._source) and not self.live:
                remedy = "download it first, as not all servers let one read its index at the end"
            raise UserError(f"{self.name}: only {count} frames could be decoded ({self._damage}); {remedy}")

    def _packets(self) -> Iterator[object]:
        """Packets of the picture, then an empty one, which lets the decoder give its last frames."""
        attempts = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    if packet.size:
                        attempts = 0
                        yield packet
                break
            except av().FFmpegError as error:
                if self._numbered and isinstance(error, FileNotFoundError):
                    break  # after the last one
                failure = reason(error)
            # What is sent to nobody in particular comes or does not come; a server can be asked again.
            if not sources.is_server(self._source) or not self._open_again(failure, attempts):
                self._damage = failure
                break
            attempts += 1
        yield None

    def _open_again(self, failure: str, attempts: int) -> bool:
        """Connect once more; False if that fails, too."""
        if attempts == ATTEMPTS:
            return False
        log.warning("%s: broke off (%s); it is opened again", self.name, failure)
        self._container.close()
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack)
                stack.pop_all()
        except (UserError, av().FFmpegError, OSError):
            return False
        self._anew = True
        return True

    def _frames(self, packet: object) -> list[tuple[object, float | None]]:
        """Whole frames with their time stamps in seconds; None where there is none."""
        with self._errors():
            try:
                frames = self._stream.decode(packet)
            except av().error.InvalidDataError:
                # As players do: what follows may be sound again, from its next key frame on.
                self._damage = self._damage or "some of its data is damaged"
                frames = []
            found = []
            for frame in frames:
                ticks = frame.dts if self._container.format.name in _DECODING_TIMES else frame.pts
                # Not frame.time, which is wrong for the last frames, those that the empty packet gives.
                stamp = None if ticks is None else float(ticks * self._stream.time_base)
                found += self._fields.put(frame, stamp)
            return found if packet else found + self._fields.end()

    def _upright(self, frame) -> np.ndarray:
        with self._errors():
            image = self._colours.rgb(frame)
            self._turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, self._turns)) if self._turns else image

    def _claimed_seconds(self) -> float | None:
        """How long the pictures last, as the file says, or None."""
        stream, container = self._stream, self._container
        text = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska, WebM
        if text:
            seconds = int(text[1]) * 3600 + int(text[2]) * 60 + float(text[3])
            # FFmpeg writes the time of the end there, mkvmerge with its statistics the length.
            return seconds if "_STATISTICS_TAGS" in stream.metadata else seconds - self._begin
        if container.format.name == "avi" and stream.frames:
            return float(stream.frames / self.fps)  # its duration is a guess from the file's size
        if stream.duration:
            return float(stream.duration * stream.time_base)
        alone = len(container.streams) == 1
        return container.duration / av().time_base if alone and container.duration else None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (av().FFmpegError, OSError) as error:
            remedy = "check it, or name another" if self.live else "copy it again, or convert it to H.264"
            raise UserError(f"{self.name}: can not be decoded ({reason(error)}); {remedy}") from None
