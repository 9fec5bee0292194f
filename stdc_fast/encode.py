"""Pictures and labels as bytes of files: PNG, JPEG and WebP, marked as made here."""

from __future__ import annotations

import io
import os
import zlib
from typing import TYPE_CHECKING

from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from stdc_fast import draw
from stdc_fast.classes import cityscapes_ids
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.segmentation import Segmentation

#: What a picture that is written here has as its Software.
SOFTWARE = "stdc_fast"
#: Formats of overlays, by the suffix of their files, by Pillow's names.
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
#: Of JPEG and WebP, 1 to 100.
QUALITY = 90
#: zlib's fastest: at 2048x1024 a PNG takes a third of the time of Pillow's own choice.
COMPRESS_LEVEL = 1
#: EXIF's Software, where a format has no text of its own.
_SOFTWARE_TAG = 0x0131


def check_format(kind: str, quality: int | None = None) -> None:
    """UserError for an unknown format, a quality that is none, or one of a format without any."""
    if kind not in FORMATS:
        raise UserError(f"the format of overlays is one of {', '.join(FORMATS)}, not {kind!r}")
    if kind == "webp" and not features.check("webp"):
        raise UserError(
            "this Pillow was built without WebP; use jpg or png, or install Pillow from its wheels"
        )
    if quality is not None and kind == "png":
        raise UserError("PNG keeps every pixel and has no quality; leave the quality out, or use jpg or webp")
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"the quality must lie between 1 and 100, not {quality}")


def picture(image: Image.Image, kind: str = "jpg", quality: int | None = None) -> bytes:
    """An RGB picture as a file's bytes; ``kind`` one of :data:`FORMATS`.

    UserError as :func:`check_format`.
    """
    check_format(kind, quality)
    if kind == "png":
        return _bytes(image, "PNG", pnginfo=software(), compress_level=COMPRESS_LEVEL)
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = SOFTWARE
    how = {"subsampling": 0} if kind == "jpg" else {"method": 1}
    return _bytes(image, FORMATS[kind], quality=quality or QUALITY, exif=exif, **how)


def labels(result: Segmentation, label_ids: bool = False) -> bytes:
    """A PNG whose pixels are class ids, its palette their colours.

    With ``label_ids`` they are Cityscapes' labelIds, such as 7 for road, in a grey PNG. UserError for
    ``label_ids`` of other classes than Cityscapes'.
    """
    if label_ids:
        image = Image.fromarray(cityscapes_ids(result.classes)[result.labels])
    else:
        image = draw.label_image(result.labels, result.classes)
    # Labels are runs of one value: half the bytes of zlib's usual way at this level, and no slower.
    how = {"compress_level": COMPRESS_LEVEL, "compress_type": zlib.Z_RLE}
    return _bytes(image, "PNG", pnginfo=software(), **how)


def software() -> PngInfo:
    """What says in a PNG that it was made here."""
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    return info


def made_here(path: str | os.PathLike) -> bool:
    """Whether a file is a picture that was written here."""
    try:
        with Image.open(path, formats=list(FORMATS.values())) as image:
            return SOFTWARE in (image.info.get("Software"), image.getexif().get(_SOFTWARE_TAG))
    except Exception:  # decoders raise many types on damaged files
        return False


def _bytes(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()
