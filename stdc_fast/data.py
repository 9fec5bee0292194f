"""Training crops: random scale, place and appearance, and the endless stream of them, on Pillow and NumPy.

Images are RGB uint8 ``[H, W, 3]``, labels uint8 ``[H, W]`` with 255 for pixels that do not count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stdc_fast.appearance import Appearance
from stdc_fast.datasets import SegmentationFolder
from stdc_fast.images import MEAN
from stdc_fast.reference.losses import IGNORE


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, flip and appearance.

    Args:
        scales: range of the scale factor, drawn log-uniformly.
        aspect: largest stretch of the width against the height, e.g. 0.1 for 10 % either way.
        balance: probability that a crop is placed on a random pixel of a random class.
        appearance: light, colours and sharpness.
    """

    scales: tuple[float, float] = (0.5, 2.0)
    aspect: float = 0.1
    balance: float = 0.5
    appearance: Appearance = dataclasses.field(default_factory=Appearance)

    def __call__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        crop: tuple[int, int],
        rng: np.random.Generator,
        target: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One training sample of ``crop`` (H, W) pixels; the crop contains a pixel of class ``target``.

        What lies outside the image is filled with the mean colour and label 255.
        """
        height, width = labels.shape
        scale = float(np.exp(rng.uniform(*np.log(self.scales))))
        stretch = float(np.exp(rng.uniform(-1, 1) * np.log1p(self.aspect) / 2))
        # The window of the source that becomes the crop, so that only what is kept is resized.
        box_h, box_w = crop[0] / (scale / stretch), crop[1] / (scale * stretch)
        if target is None:
            top, left = rng.uniform(0, max(height - box_h, 0)), rng.uniform(0, max(width - box_w, 0))
        else:
            rows, cols = np.nonzero(labels == target)
            pick = rng.integers(len(rows))
            top = np.clip(rows[pick] - rng.uniform(0, 1) * box_h, 0, max(height - box_h, 0))
            left = np.clip(cols[pick] - rng.uniform(0, 1) * box_w, 0, max(width - box_w, 0))
        # Where the window is larger than the image, the image floats in it.
        pad_top = rng.uniform(0, max(box_h - height, 0))
        pad_left = rng.uniform(0, max(box_w - width, 0))
        in_h, in_w = min(box_h, height), min(box_w, width)
        out_h = min(crop[0], round(in_h * crop[0] / box_h))
        out_w = min(crop[1], round(in_w * crop[1] / box_w))
        y = min(round(pad_top * crop[0] / box_h), crop[0] - out_h)
        x = min(round(pad_left * crop[1] / box_w), crop[1] - out_w)

        box = (left, top, min(left + in_w, width), min(top + in_h, height))
        pixels = Image.fromarray(image).resize((out_w, out_h), Image.Resampling.BILINEAR, box)
        pixels = np.asarray(self.appearance(pixels, rng))
        ids = np.asarray(Image.fromarray(labels).resize((out_w, out_h), Image.Resampling.NEAREST, box))
        if rng.random() < 0.5:
            pixels, ids = pixels[:, ::-1], ids[:, ::-1]
        canvas = np.empty((*crop, 3), np.uint8)
        canvas[:] = np.round(np.array(MEAN) * 255)
        canvas[y : y + out_h, x : x + out_w] = pixels
        out = np.full(crop, IGNORE, np.uint8)
        out[y : y + out_h, x : x + out_w] = ids
        return canvas, out


class TrainingStream(torch.utils.data.Dataset):
    """An endless stream of augmented samples that depends on (seed, position) only.

    Sample ``k`` is the same whether the run was interrupted or not, and on any number of workers or
    processes. Every epoch visits each image once, in a new order; a sample drawn for class balance
    replaces its image with one that holds the class.

    Args:
        folder: the split to train on; decoded once and kept in memory while under ``cache_bytes``.
        histograms: pixels of every class in every image, int64 ``[images, classes]``.
        augmentation: what to do with each.
        crop_at: crop size (H, W) of sample ``k``.
        seed: of all randomness.
    """

    def __init__(
        self,
        folder: SegmentationFolder,
        histograms: np.ndarray,
        augmentation: Augmentation,
        crop_at: Callable[[int], tuple[int, int]],
        seed: int,
        cache_bytes: int = 2 << 30,
    ):
        self.folder = folder
        self.augmentation = augmentation
        self.crop_at = crop_at
        self.seed = seed
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = cache_bytes
        present = histograms > 0
        self.class_ids = np.flatnonzero(present.any(axis=0)).tolist()
        self.class_images = {c: np.flatnonzero(present[:, c]) for c in self.class_ids}

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._cache:
            return self._cache[index]
        pair = self.folder.load(index)
        size = sum(a.nbytes for a in pair)
        if size <= self._room:
            self._room -= size
            self._cache[index] = pair
        return pair

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        """uint8 image ``[h, w, 3]`` and uint8 labels ``[h, w]`` of position ``k``."""
        epoch, place = divmod(k, len(self.folder))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.folder))
        rng = np.random.default_rng([self.seed, 1, k])
        index, target = int(order[place]), None
        if self.class_ids and rng.random() < self.augmentation.balance:
            target = int(rng.choice(self.class_ids))
            index = int(rng.choice(self.class_images[target]))
        image, labels = self._load(index)
        crop, out = self.augmentation(image, labels, self.crop_at(k), rng, target)
        return torch.from_numpy(crop), torch.from_numpy(out)
