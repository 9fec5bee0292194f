"""Videos of high dynamic range or wide gamut to the colours of ordinary ones, by a table."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageFilter

#: By FFmpeg's number of the primaries: x, y of red, green and blue. All have the white point D65.
PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
PQ, HLG = 16, 18  # FFmpeg's numbers of the transfer functions of BT.2100
# Reference white of BT.2408, and the peak of its display, in candelas a square metre.
_WHITE, _PEAK = 203.0, 1000.0
# Of reference white: what is darker stays as it is, what is brighter is compressed.
_KNEE = 0.9
_STEPS = 65


def needed(transfer: int, primaries: int) -> bool:
    """Whether frames of these are to go through :func:`convert`."""
    return transfer in (PQ, HLG) or (primaries != 1 and primaries in PRIMARIES)


def convert(image: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` in BT.709 of one that is encoded by FFmpeg's transfer and primaries.

    Eight bits are few for the range; the native module takes :func:`table` before it rounds to them.
    """
    colours = table(transfer, primaries)[..., :3].ravel() / 255
    return np.asarray(Image.fromarray(image).filter(ImageFilter.Color3DLUT(_STEPS, colours)))


@functools.lru_cache(4)
def table(transfer: int, primaries: int) -> np.ndarray:
    """Colours of BT.709 from 0 to 255, float32 ``[blue, green, red, 4]``, for evenly spaced encoded ones."""
    grid = np.linspace(0, 1, _STEPS)
    blue, green, red = np.meshgrid(grid, grid, grid, indexing="ij")
    colours = np.zeros((_STEPS, _STEPS, _STEPS, 4), np.float32)
    colours[..., :3] = 255 * to_sdr(np.stack([red, green, blue], -1), transfer, primaries)
    return colours


def to_sdr(encoded: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Colours ``[..., 3]`` from 0 to 1, of any of these encodings, as BT.709 on a display of gamma 2.4.

    Light is taken as the display shows it. White of BT.2408 becomes white. Above nine tenths of it brightness
    is compressed, the same for all three colours, so that hues stay.
    """
    light = _light(encoded, transfer)
    if primaries in PRIMARIES and primaries != 1:
        light = np.maximum(light @ np.linalg.solve(_to_xyz(1), _to_xyz(primaries)).T, 0)
    if transfer in (PQ, HLG):
        most = light.max(axis=-1, keepdims=True)
        above = np.clip((most - _KNEE) / (_PEAK / _WHITE - _KNEE), 0, 1)
        slope = (_PEAK / _WHITE - _KNEE) / (1 - _KNEE)  # 1 at the knee
        compressed = _KNEE + (1 - _KNEE) * slope * above / (1 + (slope - 1) * above)
        light = light * np.where(most > _KNEE, compressed / np.maximum(most, _KNEE), 1)
    return np.clip(light, 0, 1) ** (1 / 2.4)


def _light(encoded: np.ndarray, transfer: int) -> np.ndarray:
    """Light of a display, of which 1 is reference white: ITU-R BT.2100, or gamma 2.4 as of BT.1886."""
    if transfer == PQ:
        root = encoded ** (32 / 2523)
        ratio = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
        return 10000 / _WHITE * ratio ** (16384 / 2610)
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(encoded <= 0.5, encoded**2 / 3, (np.exp((encoded - c) / a) + b) / 12)
        brightness = scene @ np.array([0.2627, 0.6780, 0.0593])
        return _PEAK / _WHITE * scene * brightness[..., None] ** 0.2
    return encoded**2.4


def _to_xyz(primaries: int) -> np.ndarray:
    """Matrix [3, 3] from linear RGB to CIE XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[primaries]]).T
    x, y = 0.3127, 0.3290
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])
