"""Pictures and labels as bytes of files: PNG, JPEG and WebP, marked as made here."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from stdc_fast import draw, png
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
#: Pixels that a side has at most, by the formats' libraries.
LIMITS = {"jpg": 65_500, "webp": 16_383}
#: EXIF's Software and its folder of more tags, where a format has no text of its own.
_SOFTWARE_TAG, _EXIF_TAG = 0x0131, 0x8769
#: What a picture was made of, and how: the key that its writer gave, in EXIF and in PNG.
_KEY_TAG, _KEY_TEXT = 0xA420, "ImageUniqueID"


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


def picture(
    image: Image.Image, kind: str = "jpg", quality: int | None = None, key: str | None = None
) -> bytes:
    """An RGB picture as a file's bytes; ``kind`` one of :data:`FORMATS`.

    ``key`` of ASCII stays in the file, for :func:`key_of`. UserError as :func:`check_format`, and for a
    picture that is too large for the format.
    """
    check_format(kind, quality)
    if kind == "png":
        info = PngInfo()
        for name, text in _texts(key).items():
            info.add_text(name, text)
        return _bytes(image, "PNG", pnginfo=info, compress_level=COMPRESS_LEVEL)
    if max(image.size) > LIMITS[kind]:
        raise UserError(
            f"the picture has {image.width}x{image.height} pixels, {kind} at most {LIMITS[kind]} a side; "
            "use png"
        )
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = SOFTWARE
    if key is not None:
        exif.get_ifd(_EXIF_TAG)[_KEY_TAG] = key
    how = {"subsampling": 0} if kind == "jpg" else {"method": 1}
    return _bytes(image, FORMATS[kind], quality=quality or QUALITY, exif=exif, **how)


def labels(result: Segmentation, label_ids: bool = False, key: str | None = None) -> bytes:
    """A PNG whose pixels are class ids, its palette their colours.

    With ``label_ids`` they are Cityscapes' labelIds, such as 7 for road, in a grey PNG. ``key`` is as for
    :func:`picture`. UserError for ``label_ids`` of other classes than Cityscapes'.
    """
    if label_ids:
        return png.encode(cityscapes_ids(result.classes)[result.labels], None, _texts(key))
    return png.encode(result.labels, draw.lookup(result.classes.palette), _texts(key))


def _texts(key: str | None) -> dict[str, str]:
    """What says in a PNG that it was made here, and with which key."""
    return {"Software": SOFTWARE} | ({} if key is None else {_KEY_TEXT: key})


def made_here(path: str | os.PathLike) -> bool:
    """Whether a file is a picture that was written here."""
    return _marks(path)[0] == SOFTWARE


def key_of(path: str | os.PathLike) -> str | None:
    """The key with which a picture was written here; None without, and for other files."""
    software, key = _marks(path)
    return key if software == SOFTWARE else None


def _marks(path: str | os.PathLike) -> tuple[str | None, str | None]:
    """A picture's Software and its key."""
    try:
        with Image.open(path, formats=list(FORMATS.values())) as image:
            if image.format == "PNG":
                return image.info.get("Software"), image.info.get(_KEY_TEXT)
            exif = image.getexif()
            return exif.get(_SOFTWARE_TAG), exif.get_ifd(_EXIF_TAG).get(_KEY_TAG)
    except Exception:  # decoders raise many types on damaged files
        return None, None


def _bytes(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()
