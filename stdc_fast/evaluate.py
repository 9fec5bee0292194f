"""Mean intersection over union, at the full size of the labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stdc_fast.reference.losses import IGNORE
from stdc_fast.reference.networks import upsample


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
                raise ValueError(f"{what} {ids.max()} does not fit {n} classes")
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
        """Share of the pixels with the right class."""
        return float(np.trace(self.matrix) / max(self.matrix.sum(), 1))


def scaled_logits(network: nn.Module, x: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
    """Logits by the official accuracy protocol: both interpolations bilinear, align_corners=True.

    The *normalised* image ``[N, 3, H, W]`` is resized to ``int(H * scale), int(W * scale)``, the
    network's logits come at that size and are then resized to ``size``: float32 ``[N, C, *size]``.
    """
    if scale != 1:
        x = upsample(x, (int(x.shape[2] * scale), int(x.shape[3] * scale)))
    logits = network(x)
    if not logits.dtype == torch.float64:
        logits = logits.float()
    return logits if logits.shape[2:] == tuple(size) else upsample(logits, size)
