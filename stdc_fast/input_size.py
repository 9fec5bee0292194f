"""At which size the network sees an image: what is asked for, and what holds where nobody asks."""

from __future__ import annotations

import dataclasses
import operator

from stdc_fast import images
from stdc_fast.errors import UserError


@dataclasses.dataclass(frozen=True)
class InputSize:
    """Size at which the network sees an image, where the caller does not say.

    ``short_side`` is the length in pixels to which the shorter side is brought, so that things appear as
    large as in training. Without it, ``scale`` is what the image is resized by.
    """

    short_side: int | None = None
    scale: float = 1.0

    def resolve(
        self,
        height: int,
        width: int,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
    ) -> tuple[int, int]:
        """(H, W) for an image of that size; ``scale`` and ``size`` ("native" or (H, W)) go first."""
        size = check_request(scale, size)
        if size == "native":
            result = (height, width)
        elif size is not None:
            result = size
        elif scale is None and self.short_side is not None:
            factor = self.short_side / min(height, width)
            result = (round(height * factor), round(width * factor))
        else:
            scale = self.scale if scale is None else scale
            result = (int(height * scale), int(width * scale))
        if not images.is_possible(*result):
            raise UserError(
                f"the network would see {result[1]}x{result[0]}; {images.LIMITS}; change scale or size"
            )
        return result


def check_request(scale: float | None, size: object) -> str | tuple[int, int] | None:
    """``size`` as None, "native" or two ints; UserError for what is neither, or both given."""
    if scale is not None and size is not None:
        raise UserError(f"give scale={scale} or size={size}, not both")
    # The upper bound keeps height * scale finite.
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if scale is not None and not (number and 0 < scale <= 1e6):
        raise UserError(f"scale must be a positive number, not {scale!r}")
    if size is None or (isinstance(size, str) and size == "native"):
        return size
    try:
        if isinstance(size, str) or len(size) != 2:
            raise ValueError
        return operator.index(size[0]), operator.index(size[1])
    except (TypeError, ValueError, IndexError, OverflowError):
        raise UserError(f'size must be (height, width) or "native", not {size!r}') from None
