"""From samples of any depth to bytes: which values are black and white, and whether that is certain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stdc_fast.errors import UserError, announce

#: Floats up to here, but above 1, may be any kind of data.
_LEAST_BYTES = 16


def check_range(range: object) -> tuple[float, float]:
    """``range`` as two finite numbers, black and white; UserError for anything else."""
    try:
        low, high = (float(value) for value in range)
    except (TypeError, ValueError):
        raise UserError(f"range must be two numbers, black and white, not {range!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"range must be two finite numbers, black below white, not {range!r}")
    return low, high


def to_bytes(values: np.ndarray, name: str, range: tuple[float, float] | None = None) -> np.ndarray:
    """Samples as uint8 of the same shape: black becomes 0 and white 255, the rest is clipped.

    Args:
        values: bool, integers or floats of any shape. Bytes without ``range`` come back as they are.
        name: of the picture, for messages.
        range: the values of black and white; None takes those that are certain or likely.

    Floats between 0 and 1 or 0 and 255 and 32-bit integers of 8 or 16 bits are taken as such, and a line
    says so. UserError for NaN, and where the values may mean several things: it names their range.
    """
    if values.dtype == np.uint8 and range is None:
        return values
    if values.dtype == np.bool_:
        return values.view(np.uint8) * np.uint8(255)
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if not (np.isfinite(least) and np.isfinite(most)):
        raise UserError(
            f"{name}: holds NaN or infinity among its {values.dtype.name} values; mend the picture"
        )
    low, high = _guess(values.dtype, least, most, name) if range is None else check_range(range)
    with np.errstate(over="ignore"):
        scaled = values.astype(np.float64 if values.dtype.itemsize == 8 else np.float32)
        scaled -= low
        scaled *= 255 / (high - low)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def _guess(dtype: np.dtype, least, most, name: str) -> tuple[float, float]:
    """Black and white of values from ``least`` to ``most``."""
    seen = f"{dtype.name} values from {least:g} to {most:g}"
    if dtype.kind == "f":
        white = 1 if most <= 1 else 255 if _LEAST_BYTES <= most <= 255 else None
        if least >= 0 and white:
            announce(name, f"its {dtype.name} values from %g to %g are taken as 0 (black) to {white} (white);"
                     " range overrules that", least, most)  # fmt: skip
            return 0, white
        low, high = min(0, math.floor(least)), math.ceil(most)
        raise UserError(f"{name}: holds {seen}, neither 0 to 1 nor 0 to 255; say which are black and white "
                        f"by range=({low}, {high}), on the command line --range {low},{high}")  # fmt: skip
    full = np.iinfo(dtype).max
    # Whatever is white, zeros are black; and a quarter of the range holds more than 14 bits of 16.
    if least >= 0 and (most == 0 or (dtype.kind == "u" and most > full // 4)):
        return 0, full
    if least >= 0 and (dtype.itemsize > 2 or dtype.kind == "i"):
        whites = [255] if most <= 255 else [white for white in (65535, full) if white // 4 < most <= white]
        for white in whites[:1]:
            announce(name, f"its {dtype.name} values from %d to %d are taken as 0 (black) to {white} (white);"
                     " range overrules that", least, most)  # fmt: skip
            return 0, white
    signed = -4 * int(least) > most  # not only a little below black, as sensors' noise is
    largest = 2 * max(int(most), -int(least) - 1) + 1 if signed else most
    bits = next(bits for bits in (8, 10, 12, 14, 16, 24, 32, 64) if largest < 1 << bits)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (min(0, int(least)), (1 << bits) - 1)
    raise UserError(
        f"{name}: holds {seen} of {full} possible: {bits} bits, or a very dark picture; say which are black "
        f"and white by range=({low}, {high}) or (0, {full}), on the command line --range {low},{high}"
    )


def check_normalised(image: Tensor, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """UserError for NaN, and for values that no picture has once it is normalised with these.

    ``image`` is float ``[3, H, W]``. Not normalised are those of 0..1, a little more where a resize went
    beyond, those of -0.5..0.5 and of -1..1, and those farther outside of what black and white become than
    these are apart. A picture that was normalised has so few contrasts in thick fog only.
    """
    least, most = (float(value) for value in torch.aminmax(image.detach()))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise UserError(f"{name}: the float tensor holds NaN or infinity; mend the values before predict()")
    black = min(-m / s for m, s in zip(mean, std, strict=True))
    white = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    usual, likely = white - black > 4 and least < most, None
    if (black < -0.5 and 0 <= least < most <= 1) or (usual and least >= -0.1 and most <= 1.1):
        likely = "(0, 1)"
    elif usual and max(-least, most) <= 0.5:
        likely = "(-0.5, 0.5)"
    elif usual and max(-least, most) == 1.0:
        likely = "(-1, 1)"
    elif least < 2 * black - white or most > 2 * white - black:
        likely = "(0, 255)" if least >= 0 and most <= 255 else "(black, white)"
    if likely:
        raise UserError(
            f"{name}: a float tensor must be normalised, black to {black:.2f} and white to {white:.2f}, but "
            f"its values go from {least:g} to {most:g}; normalise it, or give range={likely}"
        )
