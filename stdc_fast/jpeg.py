"""JPEG files decoded by simplejpeg, the same pixels as Pillow's in a quarter of the time."""

from __future__ import annotations

import functools
import io
from types import ModuleType

import numpy as np
from PIL import Image


@functools.cache
def _simplejpeg() -> ModuleType | None:
    """None where the package is not installed, or is no package of this machine."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def pixels(image: Image.Image) -> np.ndarray | None:
    """RGB uint8 ``[H, W, 3]`` of a JPEG that Pillow has just opened and not yet decoded.

    None for what is left to Pillow: other formats, grey and CMYK, and whatever is damaged, of which Pillow
    says how.
    """
    package = _simplejpeg()
    file = getattr(image, "fp", None)
    if package is None or file is None or image.format != "JPEG" or image.mode != "RGB":
        return None
    try:
        file.seek(0)
        array = package.decode_jpeg(file.read())
    except (ValueError, OSError, io.UnsupportedOperation):
        return None
    return array if array.shape == (image.height, image.width, 3) else None
