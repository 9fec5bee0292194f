"""Segmentation folders (CamVid, Cityscapes) and the training augmentation, on Pillow and NumPy.

Images are RGB uint8 ``[H, W, 3]``, labels uint8 ``[H, W]`` with 255 for pixels that do not count.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stdc_fast.appearance import Appearance
from stdc_fast.classes import CAMVID, CITYSCAPES, ClassSet
from stdc_fast.errors import UserError
from stdc_fast.images import MEAN, is_image, read_image
from stdc_fast.reference.losses import IGNORE

# Cityscapes' labelIds (34 of them) to trainIds, the 19 classes that count.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclasses.dataclass(frozen=True)
class SegmentationFolder:
    """Pairs of image and label files of one split of a data set.

    ``remap`` is a 256-entry table from stored label values to class ids and 255; ``known`` has the values
    that may occur, all by default.
    """

    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    classes: ClassSet
    remap: np.ndarray
    known: frozenset[int] = frozenset(range(256))

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image ``[H, W, 3]`` and labels ``[H, W]`` of one pair; UserError where they do not fit."""
        image, labels = self.load_image(index), self.load_labels(index)
        if image.shape[:2] != labels.shape:
            raise UserError(
                f"{self.labels[index]} is {labels.shape[1]}x{labels.shape[0]}, "
                f"its image {image.shape[1]}x{image.shape[0]}"
            )
        return image, labels

    def load_image(self, index: int) -> np.ndarray:
        """RGB uint8 ``[H, W, 3]``."""
        return read_image(self.images[index])

    def load_labels(self, index: int) -> np.ndarray:
        """Class ids uint8 ``[H, W]``, 255 where no class counts. UserError for values that are not known."""
        path = self.labels[index]
        try:
            with Image.open(path) as im:
                if im.mode not in ("L", "P"):
                    raise UserError(f"{path}: labels must be one 8-bit channel of class ids, not {im.mode}")
                stored = np.asarray(im)
        except UserError:
            raise
        except Exception as error:  # decoders raise many types on damaged files
            raise UserError(f"{path}: not a readable image ({error})") from None
        pixels = np.bincount(stored.ravel(), minlength=256)
        strange = [v for v in np.flatnonzero(pixels).tolist() if v not in self.known]
        if strange:
            raise UserError(
                f"{path}: {pixels[strange[0]]} pixels have the value {strange[0]}, which is no class id of "
                f"this data and none that is ignored ({_ranges(self.known)} are); mend the labels, or name "
                "the value in classes.txt"
            )
        return self.remap[stored]

    def histograms(self) -> np.ndarray:
        """Pixels of every class in every image, int64 ``[images, classes]``; reads all labels."""
        return np.stack(
            [
                np.bincount(self.load_labels(i).ravel(), minlength=256)[: len(self.classes)]
                for i in range(len(self))
            ]
        )


def open_folder(root: str | Path, split: str) -> SegmentationFolder:
    """Open one split of a CamVid or Cityscapes folder, told apart by their sub-folders.

    CamVid: ``SPLIT/`` and ``SPLITannot/`` with files of the same stem, optionally ``SPLIT.txt`` (a
    list of stems) and ``classes.txt`` (``id name`` a line; ids without a class of their own, such as
    "Unlabelled", are ignored). Cityscapes: ``leftImg8bit/SPLIT/*/`` and ``gtFine/SPLIT/*/`` with
    ``_labelIds.png`` or, where present, ``_labelTrainIds.png``.

    Raises UserError if the folder is neither, or if a pair is incomplete.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the data set's own folder")
    if (root / "leftImg8bit").is_dir():
        return _open_cityscapes(root, split)
    if (root / split).is_dir() and (root / f"{split}annot").is_dir():
        return _open_camvid(root, split)
    raise UserError(
        f"{root}: found neither {split}/ with {split}annot/ (CamVid) nor leftImg8bit/ (Cityscapes)"
    )


def open_folders(root: str | Path, splits: Sequence[str]) -> SegmentationFolder:
    """Several splits of one data set as one; UserError as :func:`open_folder`, or if their labels differ."""
    folders = [open_folder(root, split) for split in splits]
    first = folders[0]
    for split, folder in zip(splits, folders, strict=True):
        if folder.classes != first.classes or not np.array_equal(folder.remap, first.remap):
            raise UserError(f"{root}: the labels of {splits[0]} and {split} have different classes or ids")
    images, labels = (tuple(p for f in folders for p in getattr(f, k)) for k in ("images", "labels"))
    return dataclasses.replace(first, images=images, labels=labels)


def _open_camvid(root: Path, split: str) -> SegmentationFolder:
    images = {p.stem: p for p in sorted((root / split).iterdir()) if is_image(p)}
    labels = {p.stem: p for p in sorted((root / f"{split}annot").iterdir()) if is_image(p)}
    listing = root / f"{split}.txt"
    if listing.is_file():
        stems = [Path(line.split()[0]).stem for line in listing.read_text().splitlines() if line.strip()]
    else:
        stems = sorted(images)
    if not stems:
        raise UserError(f"{root / split}: holds no images")
    for stem in stems:
        if stem not in images or stem not in labels:
            what = f"{split}annot" if stem in images else split
            raise UserError(f"{root / what}: no file for {stem!r}")
    remap = np.full(256, IGNORE, np.uint8)
    classes, ignored = CAMVID, {len(CAMVID)}  # the twelfth of the usual release is "void"
    if (root / "classes.txt").is_file():
        names, ignored = _read_classes(root / "classes.txt")
        classes = ClassSet.from_names(tuple(names.values()))
        ids = list(names)
    else:
        ids = list(range(len(classes)))
    remap[ids] = np.arange(len(ids))
    return SegmentationFolder(
        tuple(images[s] for s in stems),
        tuple(labels[s] for s in stems),
        classes,
        remap,
        frozenset({*ids, *ignored, IGNORE}),
    )


def _read_classes(path: Path) -> tuple[dict[int, str], set[int]]:
    """Classes by stored value, and values that are ignored."""
    names, ignored = {}, set()
    for line in path.read_text().splitlines():
        if not line.strip():
            continue
        match = re.fullmatch(r"(\d+)\s+(\S.*)", line.strip())
        if not match or int(match[1]) > 254:
            raise UserError(f"{path}: expected lines of the form '3 Road', got {line.strip()!r}")
        if match[2].lower() in ("unlabelled", "void", "ignore"):
            ignored.add(int(match[1]))
        else:
            names[int(match[1])] = match[2]
    if not names:
        raise UserError(f"{path}: names no class")
    repeated = [n for n in names.values() if list(names.values()).count(n) > 1]
    if repeated:
        raise UserError(f"{path}: names {repeated[0]!r} twice; each class needs a name of its own")
    return names, ignored


def _open_cityscapes(root: Path, split: str) -> SegmentationFolder:
    images, labels = [], []
    train_ids = None
    for image in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.*")):
        stem = image.stem.removesuffix("_leftImg8bit")
        base = root / "gtFine" / split / image.parent.name / f"{stem}_gtFine"
        candidates = [Path(f"{base}_labelTrainIds.png"), Path(f"{base}_labelIds.png")]
        found = next((p for p in candidates if p.is_file()), None)
        if found is None:
            raise UserError(f"{image}: found neither {candidates[0]} nor {candidates[1].name}")
        if train_ids is None:
            train_ids = found == candidates[0]
        elif train_ids != (found == candidates[0]):
            raise UserError(
                f"{root / 'gtFine' / split}: some images have labelTrainIds, others only labelIds; "
                "make them all or none"
            )
        images.append(image)
        labels.append(found)
    if not images:
        raise UserError(f"{root / 'leftImg8bit' / split}: holds no */*_leftImg8bit images")
    remap = np.full(256, IGNORE, np.uint8)
    remap[list(range(19) if train_ids else _CITYSCAPES_IDS)] = np.arange(19)
    known = frozenset({*range(19 if train_ids else 34), IGNORE})
    return SegmentationFolder(tuple(images), tuple(labels), CITYSCAPES, remap, known)


def _ranges(values: Iterable[int]) -> str:
    """Numbers as "0-18, 255"."""
    found = []
    for _, group in itertools.groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0]):
        run = [value for _, value in group]
        found.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(found)


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
        histograms: ``folder.histograms()``.
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
