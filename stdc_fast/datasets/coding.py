"""Label files: which values and colours stand for which class, and reading them without a guess."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stdc_fast.errors import UserError
from stdc_fast.images import check_file, decode_errors

#: Stored values of label files are below this.
VALUES = 1 << 16
#: In place of a class id: no class, and not ignored either. So there are at most this many classes.
UNKNOWN = 254

Colour = tuple[int, int, int]
#: Stored values or colours, and the class id of each.
Reading = tuple[list[int | Colour], np.ndarray]
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")
_LOSSY_TIFF = ("jpeg", "old-jpeg", "webp")
# By Pillow's raw mode: grey of fewer bits than 8, and by how much Pillow multiplies the samples.
_FEW_BITS = {"L;2": 85, "L;4": 17}


class UnknownValues(UserError):
    """A label file with values, or colours, that are no class and not ignored.

    ``pixels`` counts them, most first; ``known`` says in words what is known.
    """

    def __init__(self, path: Path, pixels: dict[int | Colour, int], known: str):
        self.path, self.pixels, self.known = path, pixels, known
        super().__init__(f"{path}: {_strange(pixels)}, {_remedy(pixels, known)}")


@dataclasses.dataclass(frozen=True)
class Coding:
    """What label files store.

    Attributes:
        values: class id by stored value, 255 for pixels that do not count.
        colours: the same by (red, green, blue).
        only: "ids", "greys" or "colours", where files could be read in several ways; None decides by each
            file. "greys" are ids, too: the grey levels of a palette, not its numbers.
    """

    values: Mapping[int, int]
    colours: Mapping[Colour, int] = dataclasses.field(default_factory=dict)
    only: str | None = None

    def read(self, path: Path) -> np.ndarray:
        """Class ids of a label file, uint8 ``[H, W]``, 255 where no class counts.

        Ids are read from files of one channel (1, 8 or 16 bits, or a palette) and from colour files that are
        all grey; colours from files of three channels, palettes and grey ones. UserError for lossy files, for
        values that are neither a class nor ignored, and where both readings fit and differ.
        """
        with decode_errors(path):
            check_file(path)
            with Image.open(path) as opened:
                refuse_lossy(opened, path)
                kind, raw = opened.format, _raw_mode(opened)
                image = ImageOps.exif_transpose(opened)
        if image.mode in ("LA", "PA", "RGBA"):
            if image.getchannel("A").getextrema() != (255, 255):
                raise UserError(f"{path}: labels have transparent pixels; export them without transparency")
            image = image.convert({"LA": "L", "PA": "P", "RGBA": "RGB"}[image.mode])
        if image.mode == "RGB":
            return self._true_colour(_packed(np.asarray(image)), path)
        if image.mode not in ("1", "L", "P") and image.mode[0] not in "IF":
            raise UserError(f"{path}: labels must be grey, palette or RGB images, not {image.mode}")
        stored = np.asarray(image)
        if stored.dtype not in (np.bool_, np.uint8):
            low, high = float(stored.min()), float(stored.max())
            if not (low >= 0 and high < VALUES) or (image.mode == "F" and (stored % 1).any()):
                raise UserError(
                    f"{path}: labels have values from {low:g} to {high:g}; they must be whole numbers from 0 "
                    f"to {VALUES - 1}"
                )
        stored = stored.astype(np.uint16)
        counts = np.bincount(stored.ravel())
        present = np.flatnonzero(counts)
        readings, greys = self._colours(present, image), _greys(present, image)
        if kind == "GIF" and greys is not None and self.values:
            readings.append(_reading(greys.tolist(), self.values))
        if kind == "GIF" and not readings:
            raise UserError(
                f"{path}: programs number the colours of a GIF anew, so its values are no certain ids; write "
                "the classes' colours as palette into data.yaml, or give PNG files"
            )
        if kind != "GIF" and (self.values or not readings):
            readings = self._ids(present, image.mode, raw, greys) + readings
        table = np.zeros(len(counts), np.uint8)
        table[present] = self._chosen(readings, counts[present], path, image.mode == "P")
        return table[stored]

    def _true_colour(self, packed: np.ndarray, path: Path) -> np.ndarray:
        codes, counts = np.unique(packed, return_counts=True)
        grey = not (codes % 0x10101).any()
        if not grey and not self.colours:
            raise UserError(
                f"{path}: is a colour image, of {len(codes)} colours, and no colours of classes are known; "
                "write them as palette into data.yaml, or give labels of one channel with class ids"
            )
        readings = [_reading(map(_colour, codes.tolist()), self.colours)] if self.colours else []
        if grey:
            readings += self._ids(codes // 0x10101, "L", "L", None)
        return self._chosen(readings, counts, path)[np.searchsorted(codes, packed)]

    def _ids(self, present: np.ndarray, mode: str, raw: str, greys: np.ndarray | None) -> list[Reading]:
        """What the values are as class ids: several readings where that depends on who wrote the file."""
        options = [present]
        if greys is not None:
            # What programs make of grey files that shrink PNG; each file may have another order.
            options = {"ids": [present], "greys": [greys]}.get(self.only, [present, greys])
        elif raw in _FEW_BITS:
            options.append(present // _FEW_BITS[raw])
        elif UNKNOWN in _reading(present.tolist(), self.values)[1]:
            if mode == "1":
                options = [present * 255]
            elif present[-1] > 255 and not (present % 257).any():
                options = [present // 257]  # 8 bits that were scaled to 16
        return [_reading(option.tolist(), self.values) for option in options]

    def _colours(self, present: np.ndarray, image: Image.Image) -> list[Reading]:
        """What the values are as colours, where they can be."""
        if not self.colours or present[-1] > 255:
            return []
        if image.mode != "P":
            grey = (present * 255 if image.mode == "1" else present).tolist()
            return [_reading(((v, v, v) for v in grey), self.colours)]
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        if present[-1] >= len(palette):
            return []
        return [_reading(map(tuple, palette[present].tolist()), self.colours)]

    def _chosen(
        self, readings: list[Reading], counts: np.ndarray, path: Path, palette: bool = False
    ) -> np.ndarray:
        """Class ids by the one reading whose keys are all known, uint8, one each."""
        kinds = {how: [r for r in readings if isinstance(r[0][0], tuple) == (how == "colours")]
                 for how in ("ids", "colours")}  # fmt: skip
        readings = kinds.get("ids" if self.only == "greys" else self.only) or readings
        fits = [ids for _, ids in readings if UNKNOWN not in ids]
        if not fits:
            keys, ids = min(readings, key=lambda reading: counts[reading[1] == UNKNOWN].sum())
            strange = {keys[i]: int(counts[i]) for i in np.flatnonzero(ids == UNKNOWN)}
            strange = dict(sorted(strange.items(), key=lambda item: -item[1]))
            raise UnknownValues(path, strange, self.known(colours=isinstance(keys[0], tuple)))
        if any(not np.array_equal(ids, fits[0]) for ids in fits):
            if palette and len(kinds["ids"]) > 1:
                raise UserError(
                    f"{path}: has a palette of greys, as programs that shrink PNG write it; write coding: "
                    "greys into data.yaml if the greys are ids, coding: ids if the palette's numbers are"
                )
            if len(kinds["ids"]) > 1:
                raise UserError(
                    f"{path}: is grey of fewer than 8 bits, whose samples may be ids as they are or scaled; "
                    "save it with 8 bits"
                )
            raise UserError(
                f"{path}: its values are ids as well as colours of classes; write coding: ids or "
                "coding: colours into data.yaml"
            )
        return fits[0]

    def known(self, colours: bool = False) -> str:
        """What files may hold, in words."""
        if not colours:
            return _ranges(self.values)
        return f"{len(self.colours)} colours" if self.colours else "no colours"


def refuse_lossy(image: Image.Image, path: Path) -> None:
    """UserError for an opened label file whose compression changes values."""
    lossy = image.format in _LOSSY or image.info.get("compression") in _LOSSY_TIFF
    if image.format == "WEBP":
        lossy = _lossy_webp(path.read_bytes())
    if lossy:
        raise UserError(
            f"{path}: labels are lossy {image.format}, whose compression changes class ids; export them as "
            "PNG from where they were painted"
        )


def _lossy_webp(data: bytes) -> bool:
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] not in (b"VP8 ", b"VP8L"):
        if data[at : at + 4] == b"ANMF":
            at += 24
        else:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + (data[at + 4] & 1)
    return data[at : at + 4] != b"VP8L"


def _raw_mode(image: Image.Image) -> str:
    """How Pillow says that samples are stored, before it decodes them."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _greys(present: np.ndarray, image: Image.Image) -> np.ndarray | None:
    """Grey levels of the values of a palette image, where all are grey and some differ from the values."""
    if image.mode != "P":
        return None
    palette = np.asarray(image.getpalette("RGB"), np.uint16).reshape(-1, 3)
    if present[-1] >= len(palette):
        return None
    used = palette[present]
    grey = (used == used[:, :1]).all()
    return used[:, 0] if grey and (used[:, 0] != present).any() else None


def _packed(colours: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _reading(keys: Iterable[int | Colour], known: Mapping) -> Reading:
    keys = list(keys)
    return keys, np.array([known.get(key, UNKNOWN) for key in keys], np.uint8)


def text(value: int | Colour) -> str:
    """A stored value, or a colour as people write it: "128 64 128"."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _strange(pixels: dict[int | Colour, int]) -> str:
    value, count = next(iter(pixels.items()))
    kind = "colour" if isinstance(value, tuple) else "value"
    more = f" and {sum(pixels.values()) - count} have {len(pixels) - 1} others" if len(pixels) > 1 else ""
    return f"{count} pixels have the {kind} {text(value)}{more}"


def _remedy(pixels: Iterable[int | Colour], known: str) -> str:
    first = next(iter(pixels))
    if isinstance(first, tuple):
        return (
            f"which is no class's and not ignored ({known} are known); add it to mapping or ignore in "
            f'data.yaml, written "{text(first)}", and mind that resizing and smoothing make new colours'
        )
    return (
        f"which is no class id of this data and none that is ignored ({known} are); mend the labels, or name "
        "the value in classes.txt or under mapping or ignore in data.yaml"
    )


def summary(errors: list[UnknownValues], read: int) -> UserError:
    """One refusal for several label files with unknown values, of ``read`` that were read."""
    if len(errors) == 1:
        return errors[0]
    pixels: dict[int | Colour, int] = {}
    for error in errors:
        for value, count in error.pixels.items():
            pixels[value] = pixels.get(value, 0) + count
    pixels = dict(sorted(pixels.items(), key=lambda item: -item[1]))
    return UserError(
        f"{errors[0].path}, as {len(errors)} of {read} label files: {_strange(pixels)}, "
        f"{_remedy(pixels, errors[0].known)}"
    )


def _ranges(values: Iterable[int]) -> str:
    """Numbers as "0-18, 255"."""
    found = []
    for _, group in itertools.groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0]):
        run = [value for _, value in group]
        found.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(found)
