"""Labels in forms of other libraries: COCO, polygons, supervision, pandas, transformers' pipelines."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.segmentation import Segmentation


@dataclasses.dataclass(frozen=True)
class Polygon:
    """The outline of one connected region of a class, 8-connected.

    Attributes:
        class_id, name: of the class.
        outer: int32 ``[n, 2]``, (x, y) of pixels: those of the region's own edge, as OpenCV has them.
        holes: the same of the edges around its holes; these pixels too belong to the region.
        area: pixels of the region.
    """

    class_id: int
    name: str
    outer: np.ndarray
    holes: tuple[np.ndarray, ...]
    area: int


def package(name: str, import_name: str | None = None, extra: str = "results") -> ModuleType:
    """A package of an extra; UserError with the remedy where it is not installed."""
    try:
        return importlib.import_module(import_name or name)
    except ImportError as error:
        raise UserError(
            f'needs {name}, which can not be imported ({error}); pip install "stdc-fast[{extra}]"'
        ) from None


def class_ids(result: Segmentation, classes: Sequence[str | int] | None) -> list[int]:
    """Ids of those that are asked for, by name or id, and occur; UserError for an unknown one."""
    present = np.flatnonzero(np.bincount(result.labels.ravel(), minlength=len(result.classes)))
    if classes is None:
        return present.tolist()
    if isinstance(classes, (str, int)) or not isinstance(classes, Iterable):
        raise UserError(f"classes must be a list of names or ids, not {classes!r}")
    names, wanted = list(result.classes.names), set()
    for one in classes:
        known = one in names if isinstance(one, str) else one in range(len(names))
        if not known:
            raise UserError(f"no class {one!r}; the classes are {', '.join(names)}")
        wanted.add(names.index(one) if isinstance(one, str) else int(one))
    return [i for i in present.tolist() if i in wanted]


def coco_rle(
    result: Segmentation, image_id: int | str | None, classes: Sequence[str | int] | None
) -> list[dict[str, object]]:
    mask = package("pycocotools", "pycocotools.mask")
    if isinstance(image_id, np.generic):  # which JSON does not take
        image_id = image_id.item()
    found = []
    for i in class_ids(result, classes):
        rle = mask.encode(np.asfortranarray(result.labels == i, dtype=np.uint8))
        entry = {
            "image_id": result.name if image_id is None else image_id,
            "category_id": i,
            "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
            "area": int(mask.area(rle)),
            "bbox": [float(n) for n in mask.toBbox(rle)],
            "iscrowd": 0,  # as in COCO-Stuff; tools ignore crowds
        }
        if (score := _score(result, i)) is not None:
            entry["score"] = score
        found.append(entry)
    return found


def polygons(
    result: Segmentation, classes: Sequence[str | int] | None, least: int, tolerance: float
) -> list[Polygon]:
    for name, value in (("least", least), ("tolerance", tolerance)):
        if not (isinstance(value, (int, float, np.number)) and value >= 0 and math.isfinite(value)):
            raise UserError(f"{name} must be a number of pixels, 0 or more, not {value!r}")
    cv2 = package("opencv-python-headless", "cv2")
    found = []
    for i in class_ids(result, classes):
        mask = (result.labels == i).astype(np.uint8)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        holes: dict[int, list[np.ndarray]] = {}
        for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True):
            if parent >= 0:
                holes.setdefault(parent, []).append(_simpler(cv2, contour, tolerance))
        for k, (contour, (_, _, _, parent)) in enumerate(zip(contours, tree[0], strict=True)):
            x, y = contour[0, 0]
            area = int(stats[regions[y, x], cv2.CC_STAT_AREA])
            if parent < 0 and area >= least:
                outer = _simpler(cv2, contour, tolerance)
                found.append(Polygon(i, result.classes.names[i], outer, tuple(holes.get(k, ())), area))
    return sorted(found, key=lambda p: -p.area)


def _simpler(cv2: ModuleType, contour: np.ndarray, tolerance: float) -> np.ndarray:
    """[n, 2], at most ``tolerance`` pixels from the contour."""
    return (cv2.approxPolyDP(contour, tolerance, True) if tolerance else contour)[:, 0]


def supervision(result: Segmentation, classes: Sequence[str | int] | None):
    sv = package("supervision")
    ids = class_ids(result, classes)
    if not ids:
        return sv.Detections.empty()
    masks = np.stack([result.labels == i for i in ids])
    scores = [_score(result, i) for i in ids]
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        class_id=np.array(ids),
        confidence=None if result.confidence is None else np.array(scores, dtype=np.float32),
        data={"class_name": np.array([result.classes.names[i] for i in ids])},
    )


def pandas(result: Segmentation):
    columns = ["id", "name", "pixels", "share"]
    return package("pandas").DataFrame(result.to_dict()["classes"], columns=columns)


def pipeline(result: Segmentation) -> list[dict[str, object]]:
    return [
        {
            "score": _score(result, i),
            "label": result.classes.names[i],
            "mask": Image.fromarray((result.labels == i).astype(np.uint8) * 255),
        }
        for i in class_ids(result, None)
    ]


def _score(result: Segmentation, class_id: int) -> float | None:
    """Mean probability of a class where it is; None where nobody asked for probabilities."""
    if result.confidence is None:
        return None
    return float(result.confidence[result.labels == class_id].mean(dtype=np.float64))
