"""Decoded frames to RGB: which matrix and range they have, and who computes."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Callable

import numpy as np

from stdc_fast import _native
from stdc_fast.errors import UserError
from stdc_fast.video import hdr
from stdc_fast.video.pyav import av

log = logging.getLogger(__name__)

#: What ``matrix=`` may be: its weights of red and blue in the luma, and FFmpeg's number.
MATRICES = {
    "bt601": (0.299, 0.114, 6),
    "bt709": (0.2126, 0.0722, 1),
    "bt2020": (0.2627, 0.0593, 9),
}
# FFmpeg's numbers of matrices; others than these, "unspecified" and "reserved" are refused.
_TAGS = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_ALL = {**MATRICES, "fcc": (0.30, 0.11, 4), "smpte240m": (0.212, 0.087, 7)}
_UNKNOWN = (0, 2, 3)  # 0 is RGB's, which is no matrix of Y'CbCr
_BY_PRIMARIES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}
_FULL = 2
# Codecs whose chroma lies in the middle of its pixels; it lies on the left ones elsewhere.
_CENTRED = ("mjpeg", "mpeg1video")
_UNUSUAL = {8: "linear", 9: "logarithmic", 10: "logarithmic"}
_FORMAT = re.compile(r"(?:yuvj?(420|422|444)p|nv(12|21|16|24|42)|p([024])1[0126])(9|10|12|14|16)?(?:le)?")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where samples lie in a frame's planes.

    ``planes`` has for Y, U and V the plane and the first sample in it.
    """

    planes: tuple[tuple[int, int], ...]
    ratio: tuple[int, int]
    step: int
    bits: int
    shift: int = 0  # of a sample in its 16 bits


def _layout(name: str) -> _Layout | None:
    """Of one of FFmpeg's formats that the native module reads, else None."""
    found = _FORMAT.fullmatch(name)
    if not found or name.endswith("le") != bool(found[3] or found[4]):
        return None
    planar, semi, deep, bits = found.groups()
    ratios = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "12": (2, 2), "21": (2, 2), "16": (2, 1)}
    ratios |= {"24": (1, 1), "42": (1, 1), "0": (2, 2), "2": (2, 1), "4": (1, 1)}
    if planar:
        return _Layout(((0, 0), (1, 0), (2, 0)), ratios[planar], 1, int(bits or 8))
    swapped = semi in ("21", "42")
    planes = ((0, 0), (1, int(swapped)), (1, int(not swapped)))
    if deep:
        depth = int(name[2:4])
        return _Layout(planes, ratios[deep], 2, depth, 16 - depth)
    return None if bits else _Layout(planes, ratios[semi], 2, 8)


class Colours:
    """Makes RGB of the decoded frames of one video, and says in one line what it has to guess.

    Args:
        name: of the video, for messages.
        matrix: a name of :data:`MATRICES`, which goes before what the video says; None to follow that.
        codec: FFmpeg's name of the decoder.
        camera: untagged pictures of cameras are BT.601 at every size, as Video4Linux defines.
    """

    def __init__(self, name: str, matrix: str | None = None, codec: str = "", camera: bool = False):
        if matrix is not None and matrix not in MATRICES:
            raise UserError(f"matrix must be one of {', '.join(MATRICES)}, not {matrix!r}")
        self._name, self._matrix, self._camera = name, matrix, camera
        self._centred = codec in _CENTRED
        self._said: set[str] = set()
        self._ways: dict[tuple, Callable] = {}

    def rgb(self, frame) -> np.ndarray:
        """RGB uint8 ``[H, W, 3]``, in memory of its own; UserError for colours that are not understood."""
        key = (
            frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range,
            frame.color_primaries, frame.color_trc,
        )  # fmt: skip
        if key not in self._ways:
            self._ways[key] = self._way(frame)
        return self._ways[key](frame)

    def _way(self, frame) -> Callable:
        """How frames with the tags of this one become RGB."""
        # NOTE: by value, for PyAV gives an int where it has no name.
        transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
        if transfer in _UNUSUAL:
            self._say(f"its brightness is {_UNUSUAL[transfer]}, and is read as if it were of BT.709")
        kind = frame.format
        special = (transfer, primaries) if hdr.needed(transfer, primaries) else None
        if kind.is_rgb or kind.has_palette or kind.is_bayer:
            return lambda frame: _special(frame.to_ndarray(format="rgb24"), special)
        matrix = self._find_matrix(frame)
        full = kind.name.startswith("yuvj") or int(frame.color_range) == _FULL
        layout = _layout(kind.name)
        if layout is None or _native.why_not() is not None or sys.byteorder != "little":
            return lambda frame: _special(_by_ffmpeg(frame, _ALL[matrix][2], full), special)
        centred = self._centred or kind.name.startswith("yuvj")
        numbers = coefficients(matrix, full, layout.bits, layout.shift)
        table = hdr.table(*special) if special else None
        return lambda frame: _by_engine(frame, layout, centred, numbers, table)

    def _find_matrix(self, frame) -> str:
        tag, primaries = int(frame.colorspace), int(frame.color_primaries)
        if self._matrix is not None:
            return self._matrix
        if tag in _TAGS:
            return _TAGS[tag]
        if tag not in _UNKNOWN:
            raise UserError(
                f"{self._name}: its colours have matrix {tag} of ITU-T H.273, which is not read; convert it: "
                "ffmpeg -i IN -vf zscale=matrix=709 OUT.mp4"
            )
        if primaries in _BY_PRIMARIES:
            return _BY_PRIMARIES[primaries]
        if self._camera or self._centred or len(frame.format.components) < 3:
            return "bt601"
        if frame.width <= 1024 and frame.height <= 576:
            return "bt601"
        self._say(
            f"does not say its colour matrix; BT.709 is taken, as usual for {frame.width}x{frame.height}; "
            'matrix="bt601" overrules that'
        )
        return "bt709"

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s: %s", self._name, text)


def coefficients(matrix: str, full: bool, bits: int = 8, shift: int = 0) -> list[float]:
    """What makes R, G and B from 0 to 255 of raw samples.

    Factors of Y in all, V in red, U and V in green, U in blue; then what is added to red, green and blue.
    """
    red, blue, _ = _ALL[matrix]
    green = 1 - red - blue
    unit = 2 ** (bits - 8)
    # In steps of 8 bits; full range reaches from 0 to the highest sample.
    luma = 255 / ((2**bits - 1) if full else 219 * unit)
    chroma = 255 / ((2**bits - 1) if full else 224 * unit)
    black, grey = (0 if full else 16 * unit), 128 * unit
    red_v, blue_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    green_u, green_v = -blue_u * blue / green, -red_v * red / green
    start = -luma * black
    factors = [luma, red_v, green_u, green_v, blue_u]
    added = [start - red_v * grey, start - (green_u + green_v) * grey, start - blue_u * grey]
    return [f / 2**shift for f in factors] + added


def _special(image: np.ndarray, encoding: tuple[int, int] | None) -> np.ndarray:
    return hdr.convert(image, *encoding) if encoding else image


def _by_engine(
    frame, layout: _Layout, centred: bool, numbers: list[float], table: np.ndarray | None
) -> np.ndarray:
    rgb = np.empty((frame.height, frame.width, 3), np.uint8)
    size = 1 if layout.bits == 8 else 2
    planes = [
        (frame.planes[plane], first * size, frame.planes[plane].line_size) for plane, first in layout.planes
    ]
    _native.module().yuv_to_rgb(planes, rgb, layout.ratio, layout.step, size == 2, centred, numbers, table)
    return rgb


def _by_ffmpeg(frame, matrix: int, full: bool) -> np.ndarray:
    """The same by swscale, which rounds down and takes the nearest chroma unless it is told not to."""
    flags = av().video.reformatter.Interpolation
    spaces = {1: "ITU709", 4: "FCC", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
    return frame.reformat(
        format="rgb24",
        src_colorspace=spaces[matrix],
        src_color_range="JPEG" if full else "MPEG",
        interpolation=flags.BILINEAR | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP,
    ).to_ndarray()
