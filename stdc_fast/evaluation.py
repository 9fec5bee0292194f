"""Mean intersection over union of a model over a split, at the full size of the labels."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stdc_fast import images
from stdc_fast.datasets.checks import warn_of_shares
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.inference import label
from stdc_fast.input_size import InputSize
from stdc_fast.protocol import Protocol
from stdc_fast.reference.losses import IGNORE
from stdc_fast.version import __version__

if TYPE_CHECKING:
    from stdc_fast.classes import ClassSet
    from stdc_fast.datasets import SegmentationFolder
    from stdc_fast.segmenter import Segmenter


class Confusion:
    """Confusion matrix of a segmentation; rows are true classes, columns predicted ones.

    ``matrix`` is int64 ``[C, C]``. Pixels labelled 255 do not count.
    """

    def __init__(self, num_classes: int):
        self.matrix = np.zeros((num_classes, num_classes), np.int64)

    def update(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        """Add one image: integer arrays of equal shape; ValueError for shapes or ids out of range."""
        if labels.shape != predicted.shape:
            raise ValueError(f"labels are {labels.shape}, predictions {predicted.shape}")
        valid = labels != IGNORE
        true, guess = labels[valid].astype(np.int64), predicted[valid].astype(np.int64)
        n = len(self.matrix)
        for what, ids in (("label", true), ("prediction", guess)):
            if ids.size and (ids.min() < 0 or ids.max() >= n):
                raise ValueError(f"{what}s from {ids.min()} to {ids.max()} do not fit {n} classes")
        self.matrix += np.bincount(true * n + guess, minlength=n * n).reshape(n, n)

    def iou(self) -> np.ndarray:
        """Intersection over union by class, float64 ``[C]``; NaN for a class that never occurs."""
        hits = np.diag(self.matrix)
        union = self.matrix.sum(0) + self.matrix.sum(1) - hits
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that occur; NaN if none does."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that got their class; NaN without any."""
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float("nan")


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """How one image went.

    Attributes:
        name: of its file.
        size: (H, W) of the image and its labels.
        seen: (H, W) of each view of it, as the protocol has them.
        iou: by class, NaN for a class that the image neither has nor was given.
        miou: mean of these; NaN for an image without labelled pixels.
        pixel_accuracy: share of the labelled pixels.
        seconds: from the decoded image to labels on the CPU.
    """

    name: str
    size: tuple[int, int]
    seen: tuple[tuple[int, int], ...]
    iou: tuple[float, ...]
    miou: float
    pixel_accuracy: float
    seconds: float


class Evaluation(Confusion):
    """The confusion matrix of a model over images, and how it came about.

    Attributes:
        classes: the data's, in the order of the matrix.
        protocol: how images became labels.
        model: name, backend, dtype, device and interpolation of the model, and the library's version.
        images: an :class:`ImageScore` each.
    """

    def __init__(self, classes: ClassSet, protocol: Protocol, model: dict[str, object]):
        super().__init__(len(classes))
        self.classes, self.protocol, self.model = classes, protocol, model
        self.images: list[ImageScore] = []

    def sizes(self) -> list[dict[str, object]]:
        """Sizes of images, how many have them, and at which sizes the network saw those."""
        count = Counter((image.size, image.seen) for image in self.images)
        return [{"images": n, "size": size, "seen": seen} for (size, seen), n in count.items()]

    def to_dict(self) -> dict[str, object]:
        """Figures and how they came about, as plain Python values; None for NaN."""
        iou = zip(self.classes.names, self.iou().tolist(), strict=True)
        return {
            **self.model,
            "protocol": self.protocol.to_dict(),
            "images": len(self.images),
            "sizes": self.sizes(),
            "miou": _finite(self.miou()),
            "pixel_accuracy": _finite(self.pixel_accuracy()),
            "iou": {name: _finite(value) for name, value in iou},
            "confusion": self.matrix.tolist(),
        }

    def how(self) -> str:
        """How the figures came about, in one line."""
        seen = "; ".join(
            f"{_size(s['size'])} seen at {', '.join(_size(v) for v in dict.fromkeys(s['seen']))}"
            for s in self.sizes()
        )
        about = self.model
        return (
            f"{len(self.images)} images, {seen}; {self.protocol}; "
            f"logits with align_corners={about['logits_align_corners']}; "
            f"{about['dtype']} on {about['backend']}, {about['device']}, stdc_fast {about['stdc_fast']}"
        )

    def save_confusion(self, path: str | Path) -> None:
        """Write the matrix as CSV: pixels, a row a true class; the first cell says how they came about."""
        about = f"rows true, columns predicted; {self.model['model']}, {self.how()}"
        with_heads = [[about, *self.classes.names]]
        with_heads += [[n, *row] for n, row in zip(self.classes.names, self.matrix.tolist(), strict=True)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(with_heads)
        write_atomic(path, lambda p: p.write_text(text.getvalue()))

    def save_images(self, path: str | Path) -> None:
        """Write :attr:`images` as JSON Lines: ``iou`` by name, None for NaN, and ``how``."""
        how, lines = self.how(), []
        for image in self.images:
            row = {k: _finite(v) for k, v in dataclasses.asdict(image).items()}
            row["iou"] = dict(zip(self.classes.names, map(_finite, image.iou), strict=True))
            lines.append(json.dumps(row | {"model": self.model["model"], "how": how}) + "\n")
        write_atomic(path, lambda p: p.write_text("".join(lines)))


def evaluate(
    model: Segmenter,
    folder: SegmentationFolder,
    *,
    protocol: str | Protocol = "official",
    scale: float | None = None,
    size: str | tuple[int, int] | None = None,
    indices: Iterable[int] | None = None,
    workers: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Evaluation:
    """Score a model on a split, at the labels' full size.

    Classes are matched by name where the model's and the data's names are the same in another order; the
    matrix is in the data's order. Of a whole split, a warning counts the classes without a pixel, and the
    images of which more than half does not count.

    Args:
        model: what to evaluate.
        folder: see :func:`stdc_fast.open_folder`.
        protocol: how images become labels: a :class:`Protocol`, or the name of one.
        scale, size: as of :class:`Protocol`, where ``protocol`` is a name.
        indices: images to take; all by default.
        workers: threads that read images and labels ahead; with 0 they are read in turn.
        progress: wraps the iterable of images, for example ``tqdm.tqdm``.

    Raises UserError if model and data have different classes, and for images and labels that can not be
    read, do not fit each other or hold unknown ids, with the file's name.
    """
    if isinstance(protocol, str):
        protocol = Protocol(protocol, scale, size)
    elif scale is not None or size is not None:
        raise UserError("scale and size are fields of the protocol that you gave; set them there")
    if workers < 0:
        raise UserError(f"workers must be 0 or more, not {workers}")
    order = _match(model, folder)
    about = {
        "model": model.name,
        "backend": model.backend,
        "dtype": str(model.precision),
        "device": str(model.device),
        "logits_align_corners": model.network.align_corners,
        "stdc_fast": __version__,
    }
    result = Evaluation(folder.classes, protocol, about)
    whole, pixels = indices is None, []
    indices = range(len(folder)) if whole else indices
    with contextlib.closing(_loaded(folder, indices, workers)) as pairs:
        for path, image, labels in progress(pairs):
            start = time.perf_counter()
            with images.memory_errors(path), _named(path):
                predicted = label(model, image, protocol).cpu().numpy()
            seconds = time.perf_counter() - start
            one = Confusion(len(folder.classes))
            one.update(labels, order[predicted])
            result.matrix += one.matrix
            counts = one.matrix.sum(1)
            pixels.append([*counts, labels.size - counts.sum()])
            views = protocol.views(*labels.shape, model.input_size)
            seen = tuple(view.size for view in views)
            scores = one.iou().tolist(), one.miou(), one.pixel_accuracy()
            result.images.append(ImageScore(path.name, labels.shape, seen, *scores, seconds))
    if whole and pixels:
        warn_of_shares(folder, np.array(pixels))
    return result


def check_sizes(folder: SegmentationFolder, protocol: Protocol) -> None:
    """UserError with a file's name where a view of an image is too small or too large for the network."""
    for path in folder.images:
        with _named(path), Image.open(path) as image:
            protocol.views(image.height, image.width, InputSize())


def _loaded(
    folder: SegmentationFolder, indices: Iterable[int], workers: int
) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """File, image and labels of each index, read ahead by threads: two of them a worker wait at most."""
    if not workers:
        for i in indices:
            yield folder.images[i], *folder.load(i)
        return
    pool = ThreadPoolExecutor(workers, "stdc_fast-read")
    try:
        waiting: deque = deque()
        for i in indices:
            waiting.append((i, pool.submit(folder.load, i)))
            if len(waiting) > 2 * workers:
                done, pair = waiting.popleft()
                yield folder.images[done], *pair.result()
        for done, pair in waiting:
            yield folder.images[done], *pair.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file a UserError is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _finite(value):
    """None for NaN, so that JSON has it."""
    return None if isinstance(value, float) and value != value else value


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _match(model: Segmenter, folder: SegmentationFolder) -> np.ndarray:
    """The data's class id of each of the model's, uint8 ``[C]``."""
    mine = [n.lower() for n in model.classes.names]
    theirs = [n.lower() for n in folder.classes.names]
    where = folder.labels[0].parent if folder.labels else "the data"
    if len(mine) != len(theirs):
        raise UserError(
            f"{where}: the model has {len(mine)} classes, the data {len(theirs)} "
            f"({', '.join(folder.classes.names)}); evaluate it on data with its own classes, or merge "
            "those of the data by mapping in data.yaml"
        )
    if sorted(mine) == sorted(theirs):
        return np.array([theirs.index(n) for n in mine], np.uint8)
    differing = next(n for n in mine if n not in theirs)
    raise UserError(
        f"{where}: the model's class {differing!r} is none of the data's ({', '.join(theirs)}); if only "
        "the names differ, give the data's names, in the model's order, as classes (--classes)"
    )
