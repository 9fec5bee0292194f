"""Mean intersection over union, at the full size of the labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from stdc_fast.errors import UserError
from stdc_fast.reference.losses import IGNORE

if TYPE_CHECKING:
    from stdc_fast.data import SegmentationFolder
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


def evaluate(
    model: Segmenter,
    folder: SegmentationFolder,
    *,
    scale: float | None = None,
    size: str | tuple[int, int] | None = None,
    indices: Iterable[int] | None = None,
) -> Confusion:
    """Confusion matrix of a model over a split, by the official protocol.

    The normalised image is resized (bilinear, align_corners=True), the logits come at that size, are
    resized to the labels' full size, then argmax. Classes are matched by name where the model's and
    the data's names are the same in another order; the matrix is in the data's order.

    Args:
        model: what to evaluate.
        folder: see :func:`stdc_fast.data.open_folder`.
        scale, size: as for :meth:`Segmenter.predict`; by default the weights' own.
        indices: images to take; all by default (pass a progress bar over ``range(len(folder))``).

    Raises UserError if model and data have different classes.
    """
    order = _match(model, folder)
    confusion = Confusion(len(folder.classes))
    for i in range(len(folder)) if indices is None else indices:
        image, labels = folder.load(i)
        predicted = model.label(image[None], scale=scale, size=size)
        confusion.update(labels, order[predicted[0].cpu().numpy()])
    return confusion


def _match(model: Segmenter, folder: SegmentationFolder) -> np.ndarray:
    """The data's class id of each of the model's, uint8 ``[C]``."""
    mine = [n.lower() for n in model.classes.names]
    theirs = [n.lower() for n in folder.classes.names]
    if len(mine) != len(theirs):
        raise UserError(
            f"the model has {len(mine)} classes, the data {len(theirs)} ({', '.join(folder.classes.names)}); "
            "evaluate it on data with its own classes"
        )
    if sorted(mine) == sorted(theirs):
        return np.array([theirs.index(n) for n in mine], np.uint8)
    differing = next(n for n in mine if n not in theirs)
    raise UserError(f"the model's class {differing!r} is none of the data's ({', '.join(theirs)})")
