"""Overlays, legends and label images, on Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stdc_fast.classes import ClassSet

#: Classes with a smaller share of an image are left out of its legend.
LEAST = 0.0005


def lookup(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Colour by class id, uint8 ``[256, 3]``; ids without a class are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table


def blend(image: np.ndarray, colours: Image.Image, alpha: float) -> Image.Image:
    """``(1 - alpha) image + alpha colours``; both RGB, ``image`` uint8 ``[H, W, 3]``."""
    return Image.blend(Image.fromarray(image), colours, alpha)


def label_image(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """A palette image whose pixel values are the class ids, uint8 ``[H, W]``."""
    image = Image.fromarray(labels).convert("P")
    image.putpalette(lookup(palette).tobytes())
    return image


def add_legend(
    picture: Image.Image, shares: dict[str, float], classes: ClassSet, steady: bool = False
) -> Image.Image:
    """The picture with a strip below that names the classes in their order, their colours and shares (0..1).

    With ``steady`` all classes are in it, each in its own place: for videos, whose frames must have one
    size. Otherwise those are with a share of at least :data:`LEAST`.
    """
    shares = {name: shares.get(name, 0.0) for name in classes.names}
    if not steady:
        shares = {name: share for name, share in shares.items() if share >= LEAST}
    colour = dict(zip(classes.names, classes.shown, strict=True))
    font = ImageFont.load_default(size=max(11, round(picture.width / 60)))
    ascent = font.getbbox("Ag")[3]
    gap = max(4, ascent // 2)
    entries = [(name, f"{name} {share:.1%}") for name, share in shares.items()]
    longest = [f"{name} 100.0%" for name in shares] if steady else [text for _, text in entries]
    widths = [gap + ascent + gap + round(font.getlength(text)) + gap for text in longest]
    columns = max(1, (picture.width - gap) // max(widths, default=1))
    lines = -(-len(entries) // columns)
    pitch = (picture.width - gap) // columns
    out = Image.new("RGB", (picture.width, picture.height + gap + lines * (ascent + gap)), (24, 24, 24))
    out.paste(picture, (0, 0))
    pen = ImageDraw.Draw(out)
    for i, (name, text) in enumerate(entries):
        x = gap + (i % columns) * pitch
        y = picture.height + gap + (i // columns) * (ascent + gap)
        pen.rectangle((x, y, x + ascent, y + ascent - 1), fill=colour[name], outline=(255, 255, 255))
        pen.text((x + ascent + gap, y), text, fill=(240, 240, 240), font=font)
    return out
