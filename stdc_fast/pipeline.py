"""Work that threads do beside the caller's, in order and in bounded memory: read ahead, write behind."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from stdc_fast.errors import UserError

T, R = TypeVar("T"), TypeVar("R")

#: Items a worker may have begun or finished before somebody takes them.
AHEAD = 2


def default_workers() -> int:
    """Threads that read and write beside the network: as many as there are processors to use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, usable))


class Workers:
    """A pool of threads for several stages of one pipeline.

    ``ahead`` bounds the items of each stage that are held at once: those being worked on, and those done
    that nobody has taken yet. Leaving the context cancels what has not begun and waits for what has.
    """

    def __init__(self, workers: int | None = None, ahead: int | None = None):
        self.workers = default_workers() if workers is None else workers
        if self.workers < 1:
            raise UserError(f"workers is a number of threads from 1 on, not {workers}")
        self.ahead = AHEAD * self.workers if ahead is None else ahead
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="stdc_fast pipeline")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, work: Callable[[T], R], items: Iterable[T], clock: Clock | None = None
    ) -> Iterator[tuple[T, R | UserError]]:
        """(item, ``work(item)``), or the UserError that it raised, in the order of the items.

        Items are pulled from their source in the caller's thread, and only while there is room. A result is
        given before the next item is pulled, if it is there by then. What else ``work`` raises is raised in
        its item's place. Where the caller stops early, what has not begun is cancelled.
        """
        held: collections.deque[tuple[T, Future]] = collections.deque()
        source = iter(items)
        more = True
        try:
            while more or held:
                while held and (not more or len(held) >= self.ahead or held[0][1].done()):
                    yield self._first(held)
                if more:
                    try:
                        item = next(source)
                    except StopIteration:
                        more = False
                    else:
                        held.append((item, self._pool.submit(_timed, work, item, clock)))
                        del item
        finally:
            for _, future in held:
                future.cancel()

    @staticmethod
    def _first(held: collections.deque[tuple[T, Future]]) -> tuple[T, R | UserError]:
        item, future = held.popleft()
        try:
            return item, future.result()
        except UserError as error:
            return item, error


class Clock:
    """Seconds that the threads of one stage were busy, all of them together."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - start


@contextlib.contextmanager
def until_interrupted(stop: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM calls ``stop``, in the main thread; the next one acts as always.

    Gives a list that then holds the signal's number.
    """
    previous, interrupted = {}, []

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def first(number: int, _) -> None:
        restore()
        interrupted.append(int(number))
        stop()

    with contextlib.suppress(ValueError):  # not in the main thread, where no signals arrive
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, first)
    try:
        yield interrupted
    finally:
        restore()


def _timed(work: Callable[[T], R], item: T, clock: Clock | None) -> R:
    with contextlib.nullcontext() if clock is None else clock.running():
        return work(item)
