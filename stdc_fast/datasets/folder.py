"""One split of a labelled data set on disk."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stdc_fast.classes import CAMVID, ClassSet
from stdc_fast.datasets import description, known, layouts
from stdc_fast.datasets.coding import Coding
from stdc_fast.errors import UserError
from stdc_fast.images import read_image

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SegmentationFolder:
    """Pairs of image and label files of one split of a data set; ``coding`` says what the labels store."""

    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    classes: ClassSet
    coding: Coding

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
        """Class ids uint8 ``[H, W]``, 255 where no class counts; UserError as :meth:`Coding.read`."""
        return self.coding.read(self.labels[index])


def open_folder(root: str | Path, split: str) -> SegmentationFolder:
    """Open one split of a labelled data set.

    ``docs/data.md`` has the layouts of folders, and the files that may lie in them: ``data.yaml`` with names,
    colours, values and folders, ``classes.txt``, ``class_dict.csv``, and lists of a split's images.
    Cityscapes and CamVid need none. No pixels are looked at.

    Args:
        root: the data set's folder, or a ``data.yaml`` in it.
        split: such as "train" or "val".

    Raises UserError if the layout is unknown, if no file names the classes, or if a pair is not complete.
    """
    root = Path(root)
    if root.name in description.FILES:
        root = root.parent
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the data set's own folder")
    about = description.read(root)
    pairs = layouts.find(root, split, about)
    if about.note:
        log.warning("%s", about.note)
    classes, coding = about.apply(*_classes(root, about, pairs))
    return SegmentationFolder(pairs.images, pairs.labels, classes, coding)


def open_folders(root: str | Path, splits: Sequence[str]) -> SegmentationFolder:
    """Several splits of one data set as one; UserError as :func:`open_folder`, or if their labels differ."""
    folders = [open_folder(root, split) for split in splits]
    first = folders[0]
    for split, folder in zip(splits, folders, strict=True):
        if folder.classes != first.classes or folder.coding != first.coding:
            raise UserError(f"{root}: the labels of {splits[0]} and {split} have different classes or ids")
    images, labels = (tuple(p for f in folders for p in getattr(f, k)) for k in ("images", "labels"))
    return dataclasses.replace(first, images=images, labels=labels)


def _classes(root: Path, about: description.Description, pairs: layouts.Pairs) -> tuple[ClassSet, Coding]:
    """Classes and coding by the files that name them, else those of Cityscapes or CamVid."""
    if about.classes is not None:
        return about.classes, about.coding
    if pairs.label_suffix.endswith(("_labelIds", "_labelTrainIds")):
        return known.cityscapes(pairs.label_suffix.endswith("_labelTrainIds"))
    if known.is_camvid(pairs.names):
        return CAMVID, known.CAMVID_CODING
    raise UserError(
        f"{root}: no file names the classes; write their names into classes.txt, one a line in the order of "
        "the ids that labels have, or describe the data in data.yaml"
    )
