"""A job on one machine: frames are read ahead, labelled by the caller's thread, written behind, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stdc_fast.bulk.frames import Frame
from stdc_fast.bulk.job import Job
from stdc_fast.bulk.outputs import OutputError
from stdc_fast.bulk.readers import Images
from stdc_fast.bulk.sources import PICTURE
from stdc_fast.errors import UserError
from stdc_fast.flight import in_turn
from stdc_fast.images import memory_errors
from stdc_fast.pipeline import Clock, Workers, until_interrupted
from stdc_fast.segmentation import Segmentation

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter


@dataclasses.dataclass(slots=True)
class Item:
    """A frame on its way.

    ``place`` is its own among the frames of its shard; ``kept`` is what an earlier run made of it, or None;
    ``last`` says that no other frame of its shard comes after it.
    """

    shard: int
    place: int
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
    batch: int = 1,
    on_frame: Callable[[], object] = lambda: None,
    signals: bool = False,
) -> Summary:
    """Label all frames of shards.

    Args:
        job, model: what is labelled, and by what.
        shards: None takes those that are pending.
        workers, ahead: of :class:`stdc_fast.pipeline.Workers`, which read; as many others write.
        batch: frames of one size that go through the network together at most. Pictures of a shard are sorted
            by their sizes for that, and results are put in order again.
        on_frame: called after each frame.
        signals: the first Ctrl-C or SIGTERM ends the run after the frames that are on their way, and the
            summary says so.

    OutputError where results can not be written, or the sources are gone; what is done stays.
    """
    if batch < 1:
        raise UserError(f"--batch is a number of frames from 1 on, not {batch}")
    shards = job.pending() if shards is None else shards
    summary, start = Summary(), time.perf_counter()
    labelling, writing = Clock(), Clock()
    how = {name: job.options[name] for name in ("range", "matrix")}
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(until_interrupted() if signals else contextlib.nullcontext([]))
        writers, readers = (stack.enter_context(Workers(workers, ahead)) for _ in range(2))
        images = stack.enter_context(Images(readers, **how))
        opened = images.read(_items(job, shards, batch, interrupted))
        way = _labelled if batch == 1 else functools.partial(_in_batches, batch=batch)
        labelled = way(model, opened, job.options, labelling)

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


def _items(job: Job, shards: Iterable[int], batch: int, interrupted: list[int]) -> Iterator[Item]:
    for shard in shards:
        count = job.listing.length(shard)
        work = enumerate(job.work(shard))
        if batch > 1:
            work = sorted(work, key=lambda one: _size(one[1][0]))
        for i, (place, (frame, kept)) in enumerate(work, 1):
            if interrupted:
                return
            yield Item(shard, place, frame, kept, i == count)


def _size(frame: Frame) -> tuple[int, int]:
    """(width, height) of a picture, as its head says; (0, 0) for what has to be read to know it."""
    if frame.kind == PICTURE and frame.error is None:
        with contextlib.suppress(Exception), Image.open(frame.path) as image:  # told of when it is read
            return image.size
    return 0, 0


def _how(options: dict) -> dict[str, object]:
    """At which size the network sees frames."""
    size = options["size"]
    return {"scale": options["scale"], "size": tuple(size) if isinstance(size, list) else size}


def _labelled(model: Segmenter, opened: Iterator, options: dict, clock: Clock) -> Iterator:
    """(item, its labels, the UserError of its failure, or None where it needs none)."""
    ring, how = model._ring(), _how(options)

    def begin(opened_item):
        item, image = opened_item
        if isinstance(image, UserError):
            raise image
        if image is None:
            return lambda: None
        with clock.running():
            finish = model._begin(ring, item.frame.name, lambda: image, *how.values(), False)

        def finished() -> Segmentation:
            with clock.running():
                return finish()

        return finished

    for (item, _), found in in_turn(opened, begin, ring.depth if ring else 1):
        yield item, found


def _in_batches(model: Segmenter, opened: Iterator, options: dict, clock: Clock, batch: int) -> Iterator:
    """:func:`_labelled` of up to ``batch`` frames of one size at once."""
    how = _how(options)

    def shape(opened_item) -> object:
        return getattr(opened_item[1], "shape", None)

    for same, group in itertools.groupby(opened, shape):
        while some := list(itertools.islice(group, batch)):
            if same is None:
                yield from some
                continue
            yield from _together(model, some, same[:2], how, clock)


def _together(model: Segmenter, some: list, size: tuple[int, int], how: dict, clock: Clock) -> Iterator:
    """A batch; one by one where it fails, as for want of memory, since others of it may be good."""
    try:
        with clock.running(), memory_errors(some[0][0].frame.name):
            seen = model.input_size.resolve(*size, **how)
            labels = model.label(np.stack([image for _, image in some]), **how).cpu().numpy()
    except UserError as error:
        if len(some) == 1:
            yield some[0][0], error
        else:
            for one in some:
                yield from _together(model, [one], size, how, clock)
        return
    for (item, image), own in zip(some, labels, strict=True):
        yield item, Segmentation(own, image, model.classes, item.frame.name, 0.0, seen)


def _in_shards(job: Job, results: Iterator, interrupted: list[int]) -> Iterator[tuple[Item, object]]:
    """Put results into the files of their shards, and record the shards that are done."""
    for (item, _), written in results:
        failures: dict[int, tuple[Frame, str]] = {}
        waiting: dict[int, tuple[Frame, object]] = {}
        place = 0
        with job.output.open(item.shard) as add:
            while True:
                if isinstance(written, OutputError):
                    raise written
                waiting[item.place] = item.frame, written
                while place in waiting:
                    frame, result = waiting.pop(place)
                    if isinstance(result, UserError):
                        _check_there(job, frame)
                        failures[place] = frame, str(result)
                    else:
                        add(frame, result)
                    place += 1
                yield item, written
                if item.last:
                    break
                try:
                    (item, _), written = next(results)
                except StopIteration:
                    if not interrupted:
                        raise RuntimeError(f"the frames of shard {item.shard} end early") from None
                    raise _Interrupted from None
        job.finish(item.shard, list(failures.values()))


def _check_there(job: Job, frame: Frame) -> None:
    """UserError where not a frame is lost but all of them, as with a disk that is gone."""
    root = Path(job.root)
    if not Path(frame.path).exists() and not root.exists():
        raise OutputError(f"{root}: is gone since the job began")
