"""A job on one machine: frames are read ahead, labelled by the caller's thread, written behind, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stdc_fast.bulk.frames import Frame
from stdc_fast.bulk.job import Job
from stdc_fast.bulk.outputs import OutputError
from stdc_fast.bulk.readers import Images
from stdc_fast.errors import UserError
from stdc_fast.flight import in_turn
from stdc_fast.pipeline import Clock, Workers
from stdc_fast.segmentation import Segmentation

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter


@dataclasses.dataclass(slots=True)
class Item:
    """A frame on its way.

    ``kept`` is what an earlier run made of it, or None; ``last`` says that its shard ends with it.
    """

    shard: int
    frame: Frame
    kept: object
    last: bool


@dataclasses.dataclass
class Summary:
    """What a run did.

    Attributes:
        labelled, failed: frames of this run.
        seconds: by the wall.
        reading, labelling, writing: seconds that threads were busy with it, all of them together.
        signal: the number of what interrupted it, or None.
    """

    labelled: int = 0
    failed: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    labelling: float = 0.0
    writing: float = 0.0
    signal: int | None = None

    def __str__(self) -> str:
        rate = self.labelled / self.seconds if self.seconds else 0.0
        return (
            f"{self.labelled} frames labelled in {self.seconds:.2f} s, {rate:.1f} frames a second (busy: "
            f"reading {self.reading:.2f} s, labelling {self.labelling:.2f} s, writing {self.writing:.2f} s)"
        )


def run(
    job: Job,
    model: Segmenter,
    shards: Iterable[int] | None = None,
    workers: int | None = None,
    ahead: int | None = None,
    on_frame: Callable[[], object] = lambda: None,
    signals: bool = False,
) -> Summary:
    """Label all frames of ``shards``, by default of those that are pending.

    ``workers`` and ``ahead`` are as for :class:`stdc_fast.pipeline.Workers`, which read; as many others
    write. ``on_frame`` is called after each frame. With ``signals`` the first Ctrl-C or SIGTERM ends the run
    after the frames that are on their way, and the summary says so. OutputError where results can not be
    written, or the sources are gone; what is done stays.
    """
    shards = job.pending() if shards is None else shards
    summary, start = Summary(), time.perf_counter()
    labelling, writing = Clock(), Clock()
    how = {name: job.options[name] for name in ("range", "matrix")}
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(_until_interrupted() if signals else contextlib.nullcontext([]))
        writers, readers = (stack.enter_context(Workers(workers, ahead)) for _ in range(2))
        images = stack.enter_context(Images(readers, **how))
        opened = images.read(_items(job, shards, interrupted))
        labelled = _labelled(model, opened, job.options, labelling)

        def result(item_and_found: tuple[Item, Segmentation | UserError | None]) -> object:
            item, found = item_and_found
            if isinstance(found, UserError):
                raise found
            return item.kept if found is None else job.output.result(item.frame, found)

        with contextlib.suppress(_Interrupted):
            for item, written in _in_shards(job, writers.map(result, labelled, writing), interrupted):
                if isinstance(written, UserError):
                    summary.failed += 1
                elif item.kept is None:
                    summary.labelled += 1
                on_frame()
        if interrupted:
            summary.signal = interrupted[0]
    summary.seconds = time.perf_counter() - start
    summary.reading, summary.labelling, summary.writing = (
        images.clock.seconds,
        labelling.seconds,
        writing.seconds,
    )
    return summary


class _Interrupted(Exception):
    """A shard is not done, and no more of its frames come."""


def _items(job: Job, shards: Iterable[int], interrupted: list[int]) -> Iterator[Item]:
    for shard in shards:
        count = job.listing.length(shard)
        for i, (frame, kept) in enumerate(job.work(shard), 1):
            if interrupted:
                return
            yield Item(shard, frame, kept, i == count)


def _labelled(
    model: Segmenter, opened: Iterator, options: dict, clock: Clock
) -> Iterator[tuple[Item, object]]:
    """(item, its labels, the UserError of its failure, or None where it needs none)."""
    ring = model._ring()
    size = options["size"]
    size = tuple(size) if isinstance(size, list) else size

    def begin(opened_item):
        item, image = opened_item
        if isinstance(image, UserError):
            raise image
        if image is None:
            return lambda: None
        with clock.running():
            finish = model._begin(ring, item.frame.name, lambda: image, options["scale"], size, False)

        def finished() -> Segmentation:
            with clock.running():
                return finish()

        return finished

    for (item, _), found in in_turn(opened, begin, ring.depth if ring else 1):
        yield item, found


def _in_shards(job: Job, results: Iterator, interrupted: list[int]) -> Iterator[tuple[Item, object]]:
    """Put results into the files of their shards, and record the shards that are done."""
    for (item, _), written in results:
        failures: list[tuple[Frame, str]] = []
        with job.output.open(item.shard) as add:
            while True:
                if isinstance(written, OutputError):
                    raise written
                if isinstance(written, UserError):
                    _check_there(job, item.frame)
                    failures.append((item.frame, str(written)))
                else:
                    add(item.frame, written)
                yield item, written
                if item.last:
                    break
                try:
                    (item, _), written = next(results)
                except StopIteration:
                    if not interrupted:
                        raise RuntimeError(f"the frames of shard {item.shard} end early") from None
                    raise _Interrupted from None
        job.finish(item.shard, failures)


def _check_there(job: Job, frame: Frame) -> None:
    """UserError where not a frame is lost but all of them, as with a disk that is gone."""
    root = Path(job.root)
    if not Path(frame.path).exists() and not root.exists():
        raise OutputError(f"{root}: is gone since the job began; mount it again, and run the same command")


@contextlib.contextmanager
def _until_interrupted() -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM is noted in the list that is given; the next one acts as always."""
    previous, interrupted = {}, []

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def stop(number: int, _) -> None:
        restore()
        interrupted.append(int(number))

    with contextlib.suppress(ValueError):  # not in the main thread, where no signals arrive
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop)
    try:
        yield interrupted
    finally:
        restore()
