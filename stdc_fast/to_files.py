"""Pictures to files of overlays and labels: the next ones are read and the last ones written meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from stdc_fast import checkpoints, encode, images
from stdc_fast.classes import ClassSet, cityscapes_ids
from stdc_fast.errors import UserError
from stdc_fast.files import write_bytes
from stdc_fast.flight import in_turn
from stdc_fast.pipeline import Clock, Workers
from stdc_fast.segmentation import Segmentation
from stdc_fast.segmenter import Segmenter
from stdc_fast.version import __version__


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is written of each picture, and how.

    Attributes:
        overlay, labels: whether there is an overlay, and a label PNG.
        format, quality: of overlays, as for :func:`stdc_fast.encode.picture`.
        alpha, legend, side_by_side: of overlays, as for :meth:`Segmentation.overlay`.
        label_ids: as for :meth:`Segmentation.save`.

    UserError for values that these do not take.
    """

    overlay: bool = True
    labels: bool = True
    format: str = "jpg"
    quality: int | None = None
    alpha: float = 0.55
    legend: bool = True
    side_by_side: bool = False
    label_ids: bool = False

    def __post_init__(self) -> None:
        encode.check_format(self.format, self.quality)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha must lie between 0 and 1, not {self.alpha}")

    def check(self, classes: ClassSet) -> None:
        """UserError where these classes have no labelIds and they are wanted."""
        if self.label_ids:
            cityscapes_ids(classes)

    def targets(self, stem: Path) -> dict[str, Path]:
        """Files of one picture by what they hold: "overlay", "labels"."""
        wanted = {"overlay": self.overlay and self.format, "labels": self.labels and "png"}
        return {
            kind: stem.with_name(f"{stem.name}_{kind}.{suffix}") for kind, suffix in wanted.items() if suffix
        }

    def content(self, kind: str, result: Segmentation, key: str | None = None) -> bytes:
        """The bytes of the file that holds ``kind``; ``key`` as for :func:`stdc_fast.encode.picture`."""
        if kind == "labels":
            return encode.labels(result, self.label_ids, key)
        picture = result.overlay(self.alpha, self.legend, self.side_by_side)
        try:
            return encode.picture(picture, self.format, self.quality, key)
        except UserError as error:
            raise UserError(f"{result.name}: its overlay can not be written: {error}") from None


@dataclasses.dataclass(frozen=True)
class Task:
    """One picture and the files that are made of it.

    Attributes:
        source: a path, or a picture file that is open.
        name: of the picture, in messages and results.
        targets: as of :meth:`Outputs.targets`.
        error: why there is nothing to read, known before.
    """

    source: object
    name: str
    targets: dict[str, Path]
    error: UserError | None = None


class Clocks:
    """Seconds that threads took to read, label and write, see :class:`stdc_fast.pipeline.Clock`."""

    def __init__(self) -> None:
        self.read, self.label, self.write = Clock(), Clock(), Clock()

    def seconds(self) -> dict[str, float]:
        return {name: round(clock.seconds, 6) for name, clock in vars(self).items()}


class ToFiles:
    """Labels pictures one after the other, while threads read the next ones and write the last ones.

    Args:
        segmenter: labels, in the caller's thread.
        outputs: what is written.
        workers: threads that read and write, and how many pictures they hold.
        batch: consecutive pictures of one size that go through the network together.
        scale, size, range: as for :meth:`Segmenter.predict`.

    Attributes:
        clocks: what took how long, up to now.
        stopped: set from a signal's handler or another thread, it lets :meth:`run` end: no picture is
            begun any more, and those that are labelled are written.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        outputs: Outputs,
        workers: Workers,
        *,
        batch: int = 1,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
        range: tuple[float, float] | None = None,
    ):
        if batch < 1:
            raise UserError(f"batch is a number of pictures from 1 on, not {batch}")
        self.segmenter, self.outputs, self.workers, self.batch = segmenter, outputs, workers, batch
        self.scale, self.size, self.range = scale, size, range
        self.clocks = Clocks()
        self.stopped = False

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, dict[str, object] | UserError]]:
        """Each task with its result's values, or the UserError that says why it has none; in order.

        The values are those of :meth:`Segmentation.to_dict` and the files. Tasks are pulled in the caller's
        thread. At most ``workers.ahead`` pictures wait for the network, and as many results for their files.
        """
        self._network  # noqa: B018, computed here and not by several threads at once
        written = self.workers.map(self._write, self._labelled(tasks), self.clocks.write)
        with contextlib.closing(written):
            for (task, _), row in written:
                yield task, row

    def done(self, task: Task) -> bool:
        """Whether all files of a task are there, as this run would write them: by the keys in them.

        A key stands for the picture's bytes, the network, and all that decides what is in the files.
        """
        if not task.targets or not isinstance(task.source, Path):
            return False
        keys = {kind: encode.key_of(path) for kind, path in task.targets.items()}
        if None in keys.values() or (digest := _digest(task.source)) is None:
            return False
        return all(key == self._key(kind, digest) for kind, key in keys.items())

    def _key(self, kind: str, digest: str) -> str:
        outputs, segmenter = self.outputs, self.segmenter
        values = [
            digest,
            self._network,
            repr(segmenter.input_size),
            [self.scale, self.size, self.range],
            [segmenter.classes.names, segmenter.classes.palette, segmenter.classes.shown],
            kind,
            [outputs.label_ids] if kind == "labels" else dataclasses.astuple(outputs)[2:-1],
        ]
        return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()

    @functools.cached_property
    def _network(self) -> list[object]:
        """What decides the labels beside the picture."""
        segmenter, ranges = self.segmenter, None
        if segmenter.precision.levels and (found := segmenter.calibration) is not None:
            tensors = {name: tensor.tolist() for name, tensor in found.tensors().items()}
            ranges = found.keep, tensors
        fingerprint = checkpoints.fingerprint(segmenter.network)
        return [__version__, fingerprint, str(segmenter.precision), segmenter.memory, repr(ranges)]

    def _read(self, task: Task) -> _Picture:
        if task.error is not None:
            raise task.error
        with images.memory_errors(task.name):
            digest = _digest(task.source)
            return _Picture(images.read_image(task.source, self.range, task.name), digest)

    def _labelled(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, _Labelled | UserError]]:
        ring = self.segmenter._ring()
        wanted = itertools.takewhile(lambda _: not self.stopped, tasks)
        read = self.workers.map(self._read, wanted, self.clocks.read)
        with contextlib.closing(read):
            begin, depth = functools.partial(self._begin, ring), ring.depth if ring else 1
            for group, results in in_turn(self._groups(read), begin, depth):
                if isinstance(results, UserError):
                    results = [self._alone(*one) for one in group] if len(group) > 1 else [results]
                yield from ((task, result) for (task, _), result in zip(group, results, strict=True))

    def _groups(self, read: Iterator[tuple[Task, _Picture | UserError]]) -> Iterator[list]:
        """Pictures that go through the network together."""
        group, shape = [], None
        for task, found in read:
            if self.stopped:
                return
            own = None if isinstance(found, UserError) else found.image.shape
            if group and own != shape:
                yield group
                group = []
            group.append((task, found))
            shape = own
            if len(group) == self.batch or own is None:
                yield group
                group = []
        if group:
            yield group

    def _begin(self, ring, group) -> Callable[[], list[_Labelled]]:
        if isinstance(group[0][1], UserError):
            raise group[0][1]
        name, found = group[0][0].name, [picture for _, picture in group]
        frames = np.stack([one.image for one in found]) if len(found) > 1 else found[0].image[None]
        with self.clocks.label.running(), images.memory_errors(name):
            finish = self.segmenter._segment(ring, name, frames, self.scale, self.size, False)

        def finished() -> list[_Labelled]:
            with self.clocks.label.running(), images.memory_errors(name):
                results = finish()
            for (task, _), result in zip(group, results, strict=True):
                result.name = task.name
            return [_Labelled(result, one.digest) for result, one in zip(results, found, strict=True)]

        return finished

    def _alone(self, task: Task, found: _Picture) -> _Labelled | UserError:
        """After a batch that failed, of which others may be good."""
        try:
            return self._begin(None, [(task, found)])()[0]
        except UserError as error:
            return error

    def _write(self, item: tuple[Task, _Labelled | UserError]) -> dict[str, object]:
        task, found = item
        if isinstance(found, UserError):
            raise found
        row = found.result.to_dict()
        with images.memory_errors(task.name):
            for kind, path in task.targets.items():
                key = None if found.digest is None else self._key(kind, found.digest)
                write_bytes(path, self.outputs.content(kind, found.result, key))
                row[kind] = str(path)
        return row


@dataclasses.dataclass(frozen=True)
class _Picture:
    image: np.ndarray
    digest: str | None


@dataclasses.dataclass(frozen=True)
class _Labelled:
    result: Segmentation
    digest: str | None


def _digest(source: object) -> str | None:
    """Of a file's bytes; None for what is no file, or can not be read, of which its reader tells more."""
    if not isinstance(source, Path):
        return None
    found = hashlib.blake2b(digest_size=16)
    with contextlib.suppress(OSError, ValueError), source.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
        return found.hexdigest()
    return None
