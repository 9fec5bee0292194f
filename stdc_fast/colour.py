"""From a PIL image to sRGB bytes: ICC profiles, colour codes, PNG's gamma, and the depth of samples."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from stdc_fast import containers, jpeg, samples
from stdc_fast.errors import UserError, announce

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

_D65 = 0.3127, 0.329
_SRGB = 0.64, 0.33, 0.3, 0.6, 0.15, 0.06, *_D65
_ADOBE = 0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *_D65
_SMPTE = 0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *_D65
#: x and y of red, green, blue and white by their code in ITU-T H.273; 2 is "unspecified".
_PRIMARIES = {
    1: _SRGB,
    2: _SRGB,
    5: (0.64, 0.33, 0.29, 0.6, 0.15, 0.06, *_D65),
    6: _SMPTE,
    7: _SMPTE,
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *_D65),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *_D65),
}
#: Exponent by the transfer's code in H.273; None is sRGB's curve, with which stills of BT.709 are shown too.
_TRANSFERS = {1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
_HDR = {16: "PQ", 18: "HLG"}
#: Values of sRGB that a profile may move, by rounding, and be sRGB.
_ROUNDING = 2
#: Largest high byte of 16-bit colours that are likely to have 14 bits or fewer.
_FOURTEEN_BITS = 63


def to_srgb(image: Image.Image, name: str = "image", range: tuple[float, float] | None = None) -> np.ndarray:
    """sRGB uint8 ``[H, W, 3]`` of a PIL image: upright by its EXIF orientation, alpha dropped.

    Colours are converted from what the file says: an ICC profile, colour codes (PNG, AVIF, HEIC), gamma and
    chromaticities (PNG), or EXIF's Adobe RGB. A file that says nothing has sRGB. ``range`` is as for
    :func:`stdc_fast.samples.to_bytes`.

    Raises UserError for HDR pictures, and where the values of black and white are not certain.
    """
    chunks = _png(image) if image.format == "PNG" else {}
    profile, depth = _profile(image, name, chunks), _depth(image, chunks)
    if depth.cut and range is not None:
        raise UserError(
            f"{name}: range is for grey pictures and arrays, since Pillow reads only the high bytes of "
            "16-bit colours; read the file with OpenCV or tifffile, and give the uint16 array"
        )
    if range is not None and (depth.stretched or image.mode == "CMYK"):
        why = f"has a {image.mode} picture" if image.mode == "CMYK" else "says itself which value is white"
        raise UserError(f"{name}: {why}; leave out range, {range}")
    if profile is None and range is None and not _turned(image):
        plain = jpeg.pixels(image)
        if plain is not None:
            return plain
    image.load()  # some formats turn it then, and say so no more
    if _turned(image):  # else that is a copy
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = samples.to_bytes(values.astype(depth.dtype or values.dtype), name, range or depth.range)
        image = Image.fromarray(~grey if depth.negative else grey)
    else:
        if image.mode == "LAB":
            raise UserError(f"{name}: has Lab colours, whose white is not certain; convert it to sRGB")
        if image.mode not in ("L", "RGB", "CMYK"):
            image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
        if range is not None:
            if not 0 <= range[0] < range[1] <= 255:
                raise UserError(f"{name}: has 8 bits, 0 to 255, which are of no range {range}; leave it out")
            image = Image.fromarray(samples.to_bytes(np.asarray(image), name, range))
    array = _converted(image, profile, name)
    if depth.cut and 0 < array.max() <= _FOURTEEN_BITS:
        raise UserError(
            f"{name}: the high bytes of its 16-bit colours go to {array.max()} of 255: 14 bits or fewer, or "
            "a very dark picture; convert it to 8 bits, or give a uint16 array and range"
        )
    return array


def _turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


@dataclasses.dataclass(frozen=True)
class _Depth:
    """How a file stores its samples, as far as it says.

    Attributes:
        range: values of black and white, where they are certain.
        dtype: of grey samples, where Pillow's is another.
        cut: whether Pillow gives the high bytes of 16-bit colours.
        negative: whether 0 is white where Pillow does not see to it.
        stretched: whether Pillow has made white 255 or 65535, as the file says what white is.
    """

    range: tuple[float, float] | None = None
    dtype: type | None = None
    cut: bool = False
    negative: bool = False
    stretched: bool = False


def _depth(image: Image.Image, chunks: dict[bytes, bytes]) -> _Depth:
    grey = image.mode.startswith("I") or image.mode == "F"
    if image.format == "PNG":
        header = chunks.get(b"IHDR", b"")
        return _Depth(dtype=np.uint16 if grey else None, cut=header[8:9] == b"\x10" and not grey)
    if image.format == "PPM":
        # Pillow stretches what has another maximum than 255 and 65535, and says that maximum.
        stretched = bool(image.tile) and isinstance(image.tile[0][3], tuple) and image.tile[0][3][1] != 255
        if image.mode == "I":
            return _Depth((0, 65535) if stretched else None, np.uint16, stretched=stretched)
        return _Depth(stretched=stretched)
    if image.format == "JPEG2000" and grey:
        return _Depth((0, 65535), np.uint16, stretched=True)
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kind = (tags.get(tag, (1,))[0] for tag in (258, 339))
        exact = (0, (1 << bits) - 1) if image.mode.startswith("I;16") and bits < 16 else None
        unsigned = np.uint32 if image.mode == "I" and bits == 32 and kind == 1 else None
        return _Depth(exact, unsigned, bits == 16 and not grey, grey and tags.get(262) == 0)
    return _Depth()


def _png(image: Image.Image) -> dict[bytes, bytes]:
    with containers.opened(image) as file:
        return {} if file is None else containers.png_chunks(file, (b"IHDR", b"cICP"))


def _profile(image: Image.Image, name: str, chunks: dict[bytes, bytes]) -> bytes | None:
    """An ICC profile of the image's colours, its own or made from what else the file says; None for sRGB."""
    own, codes = image.info.get("icc_profile"), None
    if chunk := chunks.get(b"cICP"):
        codes = chunk[0], chunk[1]  # before the profile, says the specification
    elif own:
        if hdr := _HDR.get(_codes_of_profile(own)):
            raise _hdr(name, hdr)
        return own
    elif image.format in ("AVIF", "HEIF", "JPEG2000"):
        with containers.opened(image) as file:
            if file is not None and image.format == "JPEG2000":
                return containers.jp2_profile(file)
            codes = None if file is None else containers.heif_codes(file)
    if codes is not None:
        primaries, transfer = codes
        if transfer in _HDR:
            raise _hdr(name, _HDR[transfer])
        if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
            raise UserError(f"{name}: its colour codes {primaries}/{transfer} (H.273) are not known here; "
                            "convert it to sRGB")  # fmt: skip
        return _made(_PRIMARIES[primaries], _TRANSFERS[transfer])
    if "srgb" in image.info:
        return None
    gamma, points = image.info.get("gamma"), image.info.get("chromaticity")
    if gamma or points:
        # PNG has white first. 1/2.2 is how sRGB's own curve is written.
        points = _SRGB if points is None else (*points[2:], *points[:2])
        try:
            return _made(points, None if not gamma or abs(gamma - 1 / 2.2) < 0.005 else 1 / gamma)
        except (ValueError, ZeroDivisionError, OverflowError, struct.error):
            announce(name, "its gamma or chromaticities are damaged; its colours are taken as sRGB")
    return _made(_ADOBE, 563 / 256) if _adobe(image) else None


def _hdr(name: str, kind: str) -> UserError:
    return UserError(f"{name}: is an HDR picture ({kind}), whose tones are not mapped here; export it as SDR")


def _codes_of_profile(profile: bytes) -> int | None:
    """The code of the transfer that an ICC profile of HDR colours has besides its curves."""
    count = int.from_bytes(profile[128:132], "big")
    for i in range(min(count, 100)):
        entry = profile[132 + 12 * i : 144 + 12 * i]
        if entry[:4] == b"cicp":
            place = int.from_bytes(entry[4:8], "big")
            return int.from_bytes(profile[place + 9 : place + 10], "big")
    return None


def _adobe(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB, as cameras do (DCF 2.0)."""
    with contextlib.suppress(Exception):  # damaged EXIF data are no reason to refuse a picture
        exif = image.getexif()
        return 0x8769 in exif and str(exif.get_ifd(0xA005).get(1, "")).startswith("R03")
    return False


@functools.lru_cache(16)
def _made(points: tuple[float, ...], gamma: float | None) -> bytes | None:
    """An ICC profile (v4, matrix and curve) of x and y of red, green, blue and white; None for sRGB's.

    ``gamma`` is the exponent, None for sRGB's curve. ValueError for points without an inverse.
    """
    if gamma is None and np.allclose(points, _SRGB, atol=2e-3):
        return None
    x, y = np.reshape(points, (4, 2)).T
    colours = np.array([x / y, np.ones(4), (1 - x - y) / y])  # XYZ in columns; white is the last
    d50 = np.array([0.9642, 1, 0.8249])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.diag((bradford @ d50) / (bradford @ colours[:, 3]))
    adapted = np.linalg.solve(bradford, adapted @ bradford) @ colours
    columns = adapted[:, :3] * np.linalg.solve(adapted[:, :3], d50)
    if not np.isfinite(columns).all():
        raise ValueError("no such colours")

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    curve = (0, (gamma,)) if gamma else (3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    curve = b"para\0\0\0\0" + struct.pack(">HH", curve[0], 0) + fixed(*curve[1])
    bodies = {b"wtpt": d50, **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True))}
    tags = {tag: b"XYZ \0\0\0\0" + fixed(*body) for tag, body in bodies.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, body in tags.items():
        table += struct.pack(">4sII", tag, start + len(data), len(body))
        data += body
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x", start + len(data), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    return (header + fixed(*d50)).ljust(128, b"\0") + table + data


@functools.lru_cache(8)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """From a profile to sRGB; None where it is sRGB.

    ValueError, with the reason, where there is none. ``mode`` is L, RGB or CMYK.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        raise ValueError("it is damaged") from None
    space = source.profile.xcolor_space.strip()
    if {"GRAY": "L"}.get(space, space) != mode:
        raise ValueError(f"it is for {space or 'other'} colours, the picture has {mode}")
    # Without the cache of the last pixel: it costs more than it saves in photos.
    target, flags = ImageCms.createProfile("sRGB"), ImageCms.Flags.NOCACHE
    try:
        made = ImageCms.buildTransform(source, target, mode, "RGB", flags=flags)
    except ImageCms.PyCMSError as error:
        raise ValueError(error) from None
    if mode in ("L", "RGB"):
        # Names of profiles are not certain, what they do is.
        steps = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(*[steps] * len(mode)), -1).reshape((1, -1, 3)[: 1 + len(mode)])
        moved = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), made)).astype(int)
        if np.abs(moved - (grid if mode == "RGB" else grid[..., None])).max() <= _ROUNDING:
            return None
    return made


def _converted(image: Image.Image, profile: bytes | None, name: str) -> np.ndarray:
    """uint8 ``[H, W, 3]`` of an image of mode L, RGB or CMYK."""
    if profile:
        if image.mode == "L" and profile[16:20] == b"RGB ":
            image = image.convert("RGB")
        try:
            made = _transform(profile, image.mode)
        except (ImportError, ValueError) as error:
            announce(name, "its colour profile is not used (%s); its colours are taken as sRGB",
                     str(error).split("\n")[0])  # fmt: skip
        else:
            image = made.apply(image) if made is not None else image
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
