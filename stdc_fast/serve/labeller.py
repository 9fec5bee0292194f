"""The one thread that labels: pictures of one size in a batch, those first that came first."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from stdc_fast import images
from stdc_fast.segmenter import Segmenter
from stdc_fast.serve.settings import Settings

_log = logging.getLogger(__name__)

#: Weight of the newest batch in the seconds that a picture takes.
_NEWEST = 0.2


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labels of one picture, uint8 ``[H, W]``; when its batch began, seconds of the batch, and its size."""

    labels: np.ndarray
    began: float
    seconds: float
    batch: int


@dataclasses.dataclass(frozen=True)
class _Job:
    image: np.ndarray
    future: Future
    arrived: float


class Labeller:
    """Labels pictures that any thread submits, in a thread of its own.

    A batch has the pictures of the first one's size that wait, up to ``most``. It waits for more up to
    ``settings.max_wait`` seconds from when its first one came, but only while ``coming()`` says that others
    are being read.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Settings,
        coming: Callable[[], int] = lambda: 0,
        done: Callable[[int, float], None] = lambda pictures, seconds: None,
    ):
        self._segmenter, self._settings, self._coming, self._done = segmenter, settings, coming, done
        self.most = settings.batch_on(segmenter.device.type)
        #: Seconds a picture, of late; None before the first one.
        self.pace: float | None = None
        self._jobs: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="stdc_fast labeller", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __len__(self) -> int:
        """Pictures that wait."""
        return len(self._jobs)

    def submit(self, image: np.ndarray) -> Future:
        """A :class:`Labelled` of RGB uint8 ``[H, W, 3]``, later. Cancelling it leaves the picture out."""
        job = _Job(image, Future(), time.perf_counter())
        with self._changed:
            if self._closed or not self.alive:
                raise RuntimeError("the thread that labels has ended")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def wake(self) -> None:
        """``coming()`` may have changed."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread after the batch that it is at; pictures that wait are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._label(batch)
        finally:
            with self._changed:
                self._closed = True
                for job in self._jobs:
                    job.future.cancel()
                self._jobs.clear()

    def _take(self) -> list[_Job]:
        """The next batch; none at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return []
                first = self._jobs[0]
                until = first.arrived + self._settings.max_wait
                self._changed.wait_for(
                    functools.partial(self._full, first.image.shape), max(0.0, until - time.perf_counter())
                )
                if batch := self._pick(first.image.shape):
                    return batch

    def _full(self, shape: tuple[int, ...]) -> bool:
        """Whether there is nothing to wait for."""
        alike = sum(job.image.shape == shape for job in self._jobs)
        return self._closed or alike >= self.most or not self._coming()

    def _pick(self, shape: tuple[int, ...]) -> list[_Job]:
        """Take out the first jobs of a shape, and those whose clients have gone."""
        batch, left = [], collections.deque()
        for job in self._jobs:
            if len(batch) < self.most and job.image.shape == shape:
                if job.future.set_running_or_notify_cancel():
                    batch.append(job)
            else:
                left.append(job)
        self._jobs = left
        return batch

    def _label(self, batch: list[_Job]) -> None:
        began = time.perf_counter()
        try:
            frames = batch[0].image[None] if len(batch) == 1 else np.stack([job.image for job in batch])
            settings = self._settings
            with images.memory_errors("the picture"):
                labels = self._segmenter.label(frames, scale=settings.scale, size=settings.size)
                labels = labels.cpu().numpy()
        except Exception as error:
            if len(batch) > 1:  # the fault of one is not that of the others
                for job in batch:
                    self._label([job])
                return
            if not isinstance(error, ValueError):
                _log.exception("a picture of %s could not be labelled", list(batch[0].image.shape))
            batch[0].future.set_exception(error)
            return
        seconds = time.perf_counter() - began
        share = seconds / len(batch)
        self.pace = share if self.pace is None else self.pace + _NEWEST * (share - self.pace)
        self._done(len(batch), seconds)
        for job, found in zip(batch, labels, strict=True):
            job.future.set_result(Labelled(found, began, seconds, len(batch)))
