"""Frames of a listing as pictures: read in order where a container must be, and decoded in threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from stdc_fast import images, video
from stdc_fast.bulk.frames import Frame
from stdc_fast.bulk.sources import PARQUET, TAR, VIDEO, stat_of
from stdc_fast.bulk.tables import Pictures
from stdc_fast.errors import UserError
from stdc_fast.pipeline import Clock, Workers


class HasFrame(Protocol):
    """What is read: ``frame``, and ``kept``, which is not None where it needs no reading."""

    frame: Frame
    kept: object


T = TypeVar("T", bound=HasFrame)


class Images:
    """Pictures of frames, RGB uint8 ``[H, W, 3]``; a context, which closes the containers.

    Args:
        workers: threads that decode.
        range: values of black and white in pictures, see :func:`stdc_fast.samples.to_bytes`.
        matrix: of videos' colours, see :func:`stdc_fast.video.read`.
    """

    def __init__(self, workers: Workers, range: tuple[float, float] | None = None, matrix: str | None = None):
        self.clock = Clock()
        self._workers, self._range, self._matrix = workers, range, matrix
        # A container is read from one end to the other: by one thread, which does its work in order.
        self._serial = Workers(1, ahead=workers.ahead)
        self._container: tuple[str, _Video | Pictures] | None = None

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_) -> None:
        self._serial.__exit__()
        self._close()

    def read(self, items: Iterable[T]) -> Iterator[tuple[T, np.ndarray | UserError | None]]:
        """(item, picture), a UserError for one that can not be had, or None where there is something kept."""
        fetched = self._serial.map(self._fetch, items, self.clock)
        for (item, _), image in self._workers.map(self._decode, fetched, self.clock):
            yield item, image

    def _fetch(self, item: HasFrame) -> object:
        """What a container has of a frame."""
        frame = item.frame
        if item.kept is not None or frame.error is not None or frame.kind not in (VIDEO, PARQUET):
            return None
        if self._container is None or self._container[0] != frame.path:
            self._close()
            check_unchanged(frame)
            opened = _Video(frame, self._matrix) if frame.kind == VIDEO else Pictures(frame.path)
            self._container = frame.path, opened
        container = self._container[1]
        with images.memory_errors(frame.name):
            return container.frame(frame.at) if frame.kind == VIDEO else container.picture(frame.at)

    def _decode(self, item_and_content: tuple[HasFrame, object]) -> np.ndarray | None:
        item, content = item_and_content
        frame = item.frame
        if item.kept is not None:
            return None
        if frame.error is not None:
            raise UserError(frame.error)
        if isinstance(content, (UserError, np.ndarray)):
            if isinstance(content, UserError):
                raise content
            return content
        with images.memory_errors(frame.name):
            if isinstance(content, bytes):
                return images.read_image(content, self._range, frame.name)
            check_unchanged(frame)
            source = _member(frame) if frame.kind == TAR else frame.path
            image = images.read_image(source, self._range, frame.name)
            check_unchanged(frame)  # nor while it was read
            return image

    def _close(self) -> None:
        if self._container is not None:
            self._container[1].close()
            self._container = None


def check_unchanged(frame: Frame) -> None:
    """UserError where the file is not the one that was listed."""
    size, mtime_ns = stat_of(frame.path)
    if size < 0:
        raise UserError(f"{frame.path}: no such file any more; restore it and use --retry-failures")
    if (size, mtime_ns) != (frame.size, frame.mtime_ns):
        raise UserError(
            f"{frame.path}: changed since the job began; use --retry-failures, or begin another job"
        )


def _member(frame: Frame) -> bytes:
    offset, length = frame.at
    with images.decode_errors(frame.name):
        with Path(frame.path).open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) < length:
            raise OSError("truncated")
        return content


class _Video:
    """Frames of a video by number; those that follow one another are read one after another."""

    def __init__(self, frame: Frame, matrix: str | None):
        self._path, self._matrix = frame.path, matrix
        self._reader: video.Reader | None = None
        self._next = 0

    def frame(self, number: int) -> np.ndarray:
        if self._reader is None or number < self._next:
            self.close()
            self._reader, self._next = video.read(self._path, matrix=self._matrix), 0
        try:
            self._next += self._reader.skip(number - self._next)
            image = next(self._reader, None)
        except UserError:
            self.close()
            raise
        if image is None:
            self.close()
            raise UserError(f"{self._path}[{number}]: the video has fewer frames than when they were counted")
        self._next += 1
        return image

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
