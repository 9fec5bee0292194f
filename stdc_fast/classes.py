"""Class names and colours of the data sets that STDC weights are trained on."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

from stdc_fast.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClassSet:
    """Names and RGB colours (0..255) of the classes, by class id."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} names but {len(self.palette)} colours")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shown(self) -> tuple[tuple[int, int, int], ...]:
        """The colours of overlays: the palette, but for CamVid's, some of which look alike."""
        return _CAMVID_SHOWN if self.palette == CAMVID.palette else self.palette

    @staticmethod
    def from_names(names: tuple[str, ...]) -> ClassSet:
        """The known set of these names, else these names with evenly spread colours."""
        for known in (CAMVID, CITYSCAPES, PASCAL_VOC):
            if [n.lower() for n in names] == [n.lower() for n in known.names]:
                return known
        return ClassSet(tuple(names), spread_palette(len(names)))


def spread_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` colours of evenly spread hue, in three brightnesses in turn."""
    colours = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(i / max(count, 1), 0.75, (0.95, 0.7, 0.5)[i % 3])
        colours.append(tuple(round(255 * c) for c in rgb))
    return tuple(colours)


CAMVID = ClassSet(
    (
        "Sky", "Building", "Pole", "Road", "Pavement", "Tree",
        "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
    ),
    (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip

_CAMVID_SHOWN = (
    (120, 190, 250), (140, 85, 50), (195, 195, 190), (128, 64, 128), (244, 60, 220), (60, 140, 40),
    (255, 220, 0), (255, 160, 120), (20, 30, 170), (230, 20, 50), (0, 205, 170),
)  # fmt: skip

CITYSCAPES = ClassSet(
    (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
        "motorcycle", "bicycle",
    ),
    (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
        (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
        (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
        (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip

#: Cityscapes' labelIds, 0 to 33, of the classes in their order (which are the trainIds 0 to 18).
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def _voc_colour(index: int) -> tuple[int, int, int]:
    """VOC's rule: the lowest three bits of the id are the highest of red, green and blue, and so on."""
    channels = (sum((index >> (3 * i + c) & 1) << (7 - i) for i in range(3)) for c in range(3))
    return tuple(channels)


PASCAL_VOC = ClassSet(_VOC_NAMES, tuple(_voc_colour(i) for i in range(len(_VOC_NAMES))))


def cityscapes_ids(classes: ClassSet) -> np.ndarray:
    """Cityscapes' labelId of each class, uint8 ``[C]``. UserError unless all are its classes, by name."""
    known = dict(zip(CITYSCAPES.names, CITYSCAPES_IDS, strict=True))
    other = [name for name in classes.names if name.lower() not in known]
    if other:
        raise UserError(
            f"{other[0]!r} is no class of Cityscapes, so it has no labelId; leave out label_ids (--label-ids)"
        )
    return np.array([known[name.lower()] for name in classes.names], np.uint8)


#: Names and colours by the name of a data set.
DATA_SETS = {"camvid": CAMVID, "cityscapes": CITYSCAPES, "voc": PASCAL_VOC}
