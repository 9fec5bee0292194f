"""Labels frames as they come: a thread pulls them from their source while the caller's thread computes."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from stdc_fast import images, video
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.segmentation import Segmentation

#: Seconds that closing waits for a source that is busy with its next frame.
PATIENCE = 1.0


def open_stream(
    frames: Iterable | str | os.PathLike | int,
    begin: Callable[[str, object, float | None], Callable[[], Segmentation]],
    bgr: bool,
    range: tuple[float, float] | None,
    ahead: int,
    latest: bool | None,
    depth: int = 1,
) -> Stream:
    """``begin(name, image, time)()`` for each of ``frames``; ``depth`` as for :class:`Stream`, the rest as
    for :meth:`Segmenter.stream`.
    """
    if range is not None and isinstance(frames, (str, os.PathLike, int, video.Reader)):
        raise UserError(f"range={range} is for pictures; a video says its own")
    if isinstance(frames, (str, os.PathLike, int)):
        if not video.is_video(frames):
            raise UserError(
                f"{frames!r} is neither a video nor a camera; for images use predict(..., stream=True)"
            )
        frames = video.read(frames)
    reader = frames if isinstance(frames, video.Reader) else None
    if not isinstance(frames, Iterable) or getattr(frames, "ndim", 4) != 4:
        got = f"one of shape {list(frames.shape)}" if hasattr(frames, "shape") else type(frames).__name__
        raise UserError(
            f"expected an iterable of frames, a video or a camera, got {got}; images go to predict()"
        )

    def prepare(index: int, frame: object) -> tuple[str, object, float | None]:
        name = f"frame {index}" if reader is None else f"{reader.name}[{index}]"
        with images.memory_errors(name):
            image = open_frame(frame, name, bgr and reader is None, range)
        return name, image, None if reader is None else reader.time

    if latest is None:
        latest = reader is not None and reader.live
    return Stream(frames, prepare, lambda item: begin(*item), ahead, latest, 1 if latest else depth)


def open_frame(
    frame: object, name: str, bgr: bool = False, range: tuple[float, float] | None = None
) -> np.ndarray | Tensor:
    """One frame of a stream, in memory of its own, as :func:`stdc_fast.images.open_item` gives it.

    ``frame`` is an array ``[H, W, 3]`` or ``[H, W]``, a tensor of one image (see
    :func:`stdc_fast.images.tensor_images`), a PIL image, an image's path, or an image file's bytes.
    UserErrors start with ``name``.
    """
    if isinstance(frame, Tensor):
        if frame.ndim != 3:
            raise UserError(f"{name}: expected one image, a tensor of 3 dimensions, got {list(frame.shape)}")
        try:
            (image,) = images.tensor_images(frame, bgr, range)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return image.clone() if isinstance(image, Tensor) else image.copy()
    if isinstance(frame, (str, os.PathLike)):
        try:
            return images.read_image(frame, range)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    if isinstance(frame, (np.ndarray, Image.Image)) or images.is_file(frame):
        return images.open_item(frame, name, bgr, range)
    raise UserError(
        f"{name}: expected an array [H, W, 3], PIL image, tensor, path or bytes, got {type(frame).__name__}"
    )


class Stream(Iterator["Segmentation"]):
    """Results of :meth:`Segmenter.stream`, in the order of the frames.

    The source is pulled from and closed in a thread of its own, which starts with the first ``next()``. That
    thread ends when the source does, at an error, with :meth:`close`, and when the stream is deleted.

    Attributes:
        dropped: number of frames that were replaced by newer ones (``latest`` only).
    """

    def __init__(
        self,
        frames: Iterable,
        prepare: Callable[[int, object], object],
        begin: Callable[[object], Callable[[], Segmentation]],
        ahead: int = 2,
        latest: bool = False,
        depth: int = 1,
    ):
        """``begin(prepare(index, frame))()`` for each frame: ``prepare`` in the thread, all else here.

        Up to ``depth`` frames are begun before the first of them is waited for, but no frame of the source
        is waited for while another is on its way.
        """
        if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1:
            raise UserError(f"ahead is a number of frames from 1 on, not {ahead!r}")
        self._begin, self._depth = begin, depth
        self._begun: collections.deque[Callable[[], Segmentation]] = collections.deque()
        self._failure: Exception | None = None
        self._pipe = _Pipe(1 if latest else ahead, latest)
        source = iter(frames)
        # Nothing that the thread holds may hold the stream: deleting it is what ends the thread.
        self._thread = threading.Thread(
            target=_pull, args=(self._pipe, source, prepare), name="stdc_fast stream", daemon=True
        )
        # Runs also when the interpreter ends, so that the thread is not cut off within a decoder.
        self._finish = weakref.finalize(self, _finish, self._pipe, self._thread, source)

    @property
    def dropped(self) -> int:
        return self._pipe.dropped

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Segmentation:
        if self._pipe.stopped:
            self.close()
            raise StopIteration
        if self._thread.ident is None:
            self._thread.start()
        try:
            while self._failure is None and len(self._begun) < self._depth:
                if self._begun and not self._pipe.ready():
                    break
                try:
                    self._begun.append(self._begin(self._pipe.take(self._thread)))
                except Exception as error:  # its place is behind those that were begun
                    self._failure = error
            if self._begun:
                return self._begun.popleft()()
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Let the stream end with the frame that is being labelled; returns at once, for signal handlers."""
        self._pipe.stop()

    def close(self) -> None:
        """End the thread and close the source.

        Waits for the thread, but not longer than a second for a source that is busy with its next frame:
        that one is closed as soon as it returns.
        """
        self._finish()
        while self._begun:  # what they are copied to may go when they are done
            with contextlib.suppress(Exception):
                self._begun.popleft()()
        self._failure = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Pipe:
    """Frames on their way from the thread to the caller, at most ``room`` of them.

    Its lock is re-entrant: the garbage collector may delete a stream at any point of any thread.
    """

    def __init__(self, room: int, latest: bool):
        self.room, self.latest = room, latest
        self.items: collections.deque[object] = collections.deque()
        self.changed = threading.Condition(threading.RLock())
        self.stopped = self.ended = False
        self.error: BaseException | None = None
        self.dropped = 0

    def wait_for_room(self) -> bool:
        """Before the source is asked, so that no frame is held beside those in here; False to stop."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.latest or len(self.items) < self.room)
            return not self.stopped

    def ready(self) -> bool:
        """Whether :meth:`take` would not wait."""
        with self.changed:
            return bool(self.items or self.ended or self.stopped)

    def put(self, item: object) -> None:
        with self.changed:
            if len(self.items) == self.room:  # the newest wins
                self.items.popleft()
                self.dropped += 1
            self.items.append(item)
            self.changed.notify_all()

    def take(self, thread: threading.Thread) -> object:
        """The next frame; StopIteration at the end; what the source raised, where it raised it."""
        with self.changed:
            while not (self.items or self.ended or self.stopped):
                # Not for ever: so Ctrl-C gets through on Windows, and a thread lost in a fork is noticed.
                self.changed.wait(0.5)
                if not (self.ended or thread.is_alive()):
                    raise RuntimeError(
                        "the stream's thread is gone (after a fork?); open it where it is read"
                    )
            if self.stopped:
                raise StopIteration
            if self.items:
                item = self.items.popleft()
                self.changed.notify_all()
                return item
            error, self.error = self.error, None
        try:
            raise error or StopIteration
        finally:
            del error  # its traceback holds this frame

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def _pull(pipe: _Pipe, source: Iterator, prepare: Callable[[int, object], object]) -> None:
    """The thread: frames from the source into the pipe."""
    failure = None
    try:
        for index in itertools.count():
            if not pipe.wait_for_room():
                break
            try:
                frame = next(source)
            except StopIteration:
                break
            # Prepared at once, for sources that write every frame to the same buffer.
            pipe.put(prepare(index, frame))
            del frame
    except BaseException as error:
        failure = error
    try:
        _close(source)
    except BaseException as error:
        if pipe.stopped:
            raise  # nobody asks any more; Python prints it
        failure = failure or error
    finally:
        pipe.end(failure)
        del failure


def _close(source: Iterator) -> None:
    close = getattr(source, "close", None)
    if callable(close):
        close()


def _finish(pipe: _Pipe, thread: threading.Thread, source: Iterator) -> None:
    pipe.stop()
    if thread.ident is None:
        _close(source)
    elif thread is not threading.current_thread():
        thread.join(PATIENCE)
        if not thread.is_alive():
            pipe.items.clear()
