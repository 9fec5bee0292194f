"""The result for one image: labels, shares, overlay, JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stdc_fast import draw, encode, exchange
from stdc_fast.classes import ClassSet
from stdc_fast.errors import UserError
from stdc_fast.files import write_bytes


class Segmentation:
    """Labels of one image.

    Attributes:
        labels: class ids, uint8 ``[H, W]``, at the image's own size.
        confidence: softmax probability of the chosen class, float32 ``[H, W]``, or None.
        image: the image, RGB uint8 ``[H, W, 3]``.
        classes: names and colours.
        name: the image's path, or "array", "item 3", ...
        seconds: time from the decoded image to the labels.
        read_seconds: time to read and decode it, or to copy an array; next to none where another thread did.
        input_size: (H, W) that the network saw.
        time: of a video's frame, seconds from the first one; else None.
    """

    def __init__(
        self,
        labels: np.ndarray,
        image: np.ndarray,
        classes: ClassSet,
        name: str,
        seconds: float,
        input_size: tuple[int, int],
        confidence: np.ndarray | None = None,
        time: float | None = None,
    ):
        self.time = time
        self.labels, self.image, self.classes, self.name = labels, image, classes, name
        self.seconds, self.input_size, self.confidence = seconds, input_size, confidence
        self.read_seconds = 0.0

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({self.name!r}, {width}x{height}, {len(self.counts())} classes)"

    @property
    def speed(self) -> dict[str, float]:
        """Milliseconds by stage: "read", from a file to pixels, and "label", from pixels to labels.

        The second one is the network with all around it: one plan resizes, normalises, computes and compares.
        """
        return {"read": 1e3 * self.read_seconds, "label": 1e3 * self.seconds}

    def counts(self) -> dict[str, int]:
        """Pixels by class name, most first; classes that do not occur are left out."""
        # Half the time of NumPy's bincount, which makes 64-bit indices first.
        pixels = np.array(Image.fromarray(self.labels).histogram()[: len(self.classes)])
        order = sorted(np.flatnonzero(pixels), key=lambda i: -pixels[i])
        return {self.classes.names[i]: int(pixels[i]) for i in order}

    def shares(self) -> dict[str, float]:
        """Share of the image by class name, 0..1, largest first."""
        return {name: n / self.labels.size for name, n in self.counts().items()}

    def colours(self) -> np.ndarray:
        """The labels in the colours of overlays, RGB uint8 ``[H, W, 3]``; label files have the palette's."""
        return np.array(self._colours())

    def _colours(self) -> Image.Image:
        # A tenth of the time of NumPy's lookup.
        return draw.label_image(self.labels, self.classes.shown).convert("RGB")

    def overlay(self, alpha: float = 0.55, legend: bool = False, side_by_side: bool = False) -> Image.Image:
        """The image under its labels' colours; ``alpha`` is the colours' weight, 0..1.

        With ``side_by_side`` the image itself is to the left. With ``legend`` a strip below names the classes
        that have at least 0.05 % of the image, with their shares.
        """
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie between 0 and 1, not {alpha}")
        picture = draw.blend(self.image, self._colours(), alpha)
        if side_by_side:
            picture = Image.fromarray(np.hstack([self.image, np.asarray(picture)]))
        return draw.add_legend(picture, self.shares(), self.classes) if legend else picture

    def save(self, path: str | Path, *, label_ids: bool = False) -> None:
        """Write the labels as a PNG: pixel values are class ids, the palette their colours.

        With ``label_ids`` they are Cityscapes' labelIds, such as 7 for road, in a grey PNG, as its benchmark
        wants them. The file appears whole or not at all. UserError if it can not be written, or for
        ``label_ids`` of other classes than Cityscapes'.
        """
        if Path(path).suffix.lower() != ".png":
            raise UserError(f"{path}: labels are written as PNG, since JPEG would change them; use .png")
        write_bytes(path, encode.labels(self, label_ids))

    def to_dict(self) -> dict[str, object]:
        """Name, sizes, time and classes as plain Python values."""
        height, width = self.labels.shape
        counts = self.counts()
        return {
            "name": self.name,
            "width": width,
            "height": height,
            "input_width": self.input_size[1],
            "input_height": self.input_size[0],
            "seconds": round(self.seconds, 6),
            "classes": [
                {
                    "id": self.classes.names.index(name),
                    "name": name,
                    "pixels": pixels,
                    "share": round(pixels / (height * width), 6),
                }
                for name, pixels in counts.items()
            ],
        }

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    # Forms of other libraries. pip install "stdc-fast[results]" has what they need.

    def to_coco_rle(
        self, image_id: int | str | None = None, classes: Sequence[str | int] | None = None
    ) -> list[dict[str, object]]:
        """One COCO annotation a class that occurs, by pycocotools: its mask run-length encoded.

        Args:
            image_id: of the data set; None takes :attr:`name`.
            classes: names or ids of those that are wanted.

        Returns dicts of JSON values: "image_id", "category_id" (the class id, from 0), "segmentation" with
        "size" (H, W) and "counts", "area" in pixels, "bbox" (x, y, width, height), "iscrowd" 0, and "score",
        the mean probability, with confidence. UserError for an unknown class, or without the package.
        """
        return exchange.coco_rle(self, image_id, classes)

    def polygons(
        self, classes: Sequence[str | int] | None = None, *, least: int = 0, tolerance: float = 0.0
    ) -> list[exchange.Polygon]:
        """Outlines of the connected regions of each class by OpenCV, the largest region first.

        Args:
            classes: names or ids of those that are wanted.
            least: regions of fewer pixels are left out.
            tolerance: how far in pixels a simpler outline may be from the true one; 0 keeps it exact.

        Points are pixels that belong to the region. So a polygon's geometric area is less than its pixels.
        """
        return exchange.polygons(self, classes, least, tolerance)

    def to_supervision(self, classes: Sequence[str | int] | None = None):
        """``supervision.Detections`` with one mask a class that occurs, "class_name" in ``data``.

        ``confidence`` is the mean probability, where it was asked for.
        """
        return exchange.supervision(self, classes)

    def to_pandas(self):
        """``pandas.DataFrame`` with a row a class that occurs: id, name, pixels, share; the largest first."""
        return exchange.pandas(self)

    def to_pipeline(self) -> list[dict[str, object]]:
        """What ``pipeline("image-segmentation")`` of transformers gives for semantic networks.

        One dict a class that occurs: "score", the mean probability or None as there; "label"; and "mask", a
        PIL image ``L`` with 255 where the class is.
        """
        return exchange.pipeline(self)

    def _repr_png_(self) -> bytes:
        """For notebooks: the overlay with its legend, at most 1280 pixels wide."""
        picture = self.overlay(legend=True)
        picture.thumbnail((1280, 1280))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()
