"""How a photo would look in other light and from another camera; for training, on Pillow and NumPy.

Nothing here moves a pixel, so labels stay as they are. Photos are Pillow images of mode RGB.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Random light, colours, sharpness, noise and compression; each is off at 0.

    Draws happen only for what is on, so a recipe without an option keeps its samples when one is added.

    Args:
        jitter: largest relative change of brightness, contrast and saturation.
        white_balance: largest relative gain of red against blue and, half of it, of green, either way.
        gamma: exponents lie between ``1 / (1 + gamma)`` and ``1 + gamma``.
        hue: largest rotation of the hue, as a share of the full turn.
        grey: share of the photos that lose all colour.
        blur: largest standard deviation of a Gaussian blur, in pixels; half of the photos have one.
        noise: largest standard deviation of sensor noise as a share of white; half of the photos have some.
        jpeg: share of the photos that go through JPEG, at qualities from 20 to 90.
    """

    jitter: float = 0.4
    white_balance: float = 0.0
    gamma: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """A photo of the same size; all randomness comes from ``rng``."""
        enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        for i in rng.permutation(len(enhancers)):
            factor = float(rng.uniform(1 - self.jitter, 1 + self.jitter))
            image = enhancers[i](image).enhance(factor)
        if self.white_balance or self.gamma:
            warmth, tint, bend = rng.uniform(-1, 1, 3) * np.log1p(
                [self.white_balance, self.white_balance / 2, self.gamma]
            )
            image = tone(image, white_balance(warmth, tint), float(np.exp(bend)))
        if self.hue:
            image = rotate_hue(image, float(rng.uniform(-self.hue, self.hue)))
        if self.grey and rng.random() < self.grey:
            image = image.convert("L").convert("RGB")
        if self.blur and rng.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, self.blur))))
        if self.noise and rng.random() < 0.5:
            image = add_noise(image, float(rng.uniform(0, self.noise)), rng)
        if self.jpeg and rng.random() < self.jpeg:
            image = compress(image, int(rng.integers(20, 91)))
        return image


def white_balance(warmth: float, tint: float = 0.0) -> tuple[float, float, float]:
    """Gains of red, green and blue: red over blue is ``exp(warmth)``, green over their mean ``exp(tint)``."""
    red, green, blue = np.exp(np.array([warmth / 2, tint, -warmth / 2]))
    return float(red), float(green), float(blue)


def tone(
    image: Image.Image, gains: tuple[float, float, float] = (1.0, 1.0, 1.0), gamma: float = 1.0
) -> Image.Image:
    """Every value v of 0..1 becomes ``gain v^gamma``, at most 1; gains are those of red, green and blue."""
    curve = (np.arange(256) / 255) ** gamma
    tables = np.round(255 * np.minimum(np.outer(gains, curve), 1)).astype(int)
    return image.point(tables.ravel().tolist())


def rotate_hue(image: Image.Image, turn: float) -> Image.Image:
    """Rotate the colours about the grey axis, 1 being the full turn: R + G + B stays but for clipping."""
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    near, far = (1 - cos) / 3 - sin / np.sqrt(3), (1 - cos) / 3 + sin / np.sqrt(3)
    own = (1 + 2 * cos) / 3
    return image.convert("RGB", (own, near, far, 0, far, own, near, 0, near, far, own, 0))


def add_noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise on every value; ``deviation`` is a share of white."""
    pixels = np.asarray(image)
    noisy = rng.standard_normal(pixels.shape, np.float32) * np.float32(255 * deviation) + pixels
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def compress(image: Image.Image, quality: int) -> Image.Image:
    """What JPEG of a quality from 1 to 95 leaves of a photo."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return decoded.convert("RGB")
