"""From the network's logits to labels at the photo's size, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from stdc_fast.errors import UserError
from stdc_fast.reference.networks import upsample

# Logits at full size that are stored at once; what is larger comes in bands of rows.
_BAND_BYTES = 256 << 20

#: A map ``[N, C, h, w]`` in bands: from ``start`` and ``stop`` to those rows, ``[N, C, stop - start, w]``.
Rows: TypeAlias = Callable[[int, int], Tensor]


def label_logits(
    logits: Tensor,
    seen: tuple[int, int],
    size: tuple[int, int],
    confidence: bool = False,
    align_corners: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The published protocol's end: logits to the size that the network saw, then to ``size``, then argmax.

    Arguments and results are those of :func:`resize_argmax`, with (H, W) ``seen`` besides.
    """
    if seen != size:
        logits = upsample(logits, seen, align_corners)
    return resize_argmax(logits, size, confidence, align_corners)


def resize_argmax(
    logits: Tensor, size: tuple[int, int], confidence: bool = False, align_corners: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Bilinear resize and argmax, storing at most 256 MB of resized logits.

    Equal to ``upsample(logits, size, align_corners).argmax(1)`` up to the rounding of the interpolation, but
    the memory it takes does not grow with classes times output pixels. Ties take the lowest class.

    Args:
        logits: ``[N, C, h, w]``, float, C <= 256.
        size: (H, W) of the labels.
        confidence: also return the softmax probability of the chosen class.
        align_corners: of the interpolation.

    Returns:
        Labels uint8 ``[N, H, W]`` and confidence float32 ``[N, H, W]`` or None.

    UserError for more classes.
    """
    n, c, h, _ = logits.shape
    if c > 256:
        raise UserError(f"{c} classes: labels are bytes, so at most 256; take argmax(1) of the logits")
    height, width = size
    labels = torch.empty((n, height, width), dtype=torch.uint8, device=logits.device)
    chosen = torch.empty((n, height, width), device=logits.device) if confidence else None
    rows = max(1, _BAND_BYTES // max(1, n * c * width * logits.element_size()))
    logits = logits.contiguous()  # NCHW: one plane per class
    if rows < height:
        wide = upsample(logits, (h, width), align_corners)
        resized = resized_rows(rows_of(wide), (h, width), size, align_corners)
    for start in range(0, height, rows):
        band = slice(start, min(start + rows, height))
        whole = rows >= height
        values = upsample(logits, size, align_corners) if whole else resized(band.start, band.stop)
        best = argmax(values, labels[:, band])
        if chosen is not None:
            chosen[:, band] = (values - best.unsqueeze(1)).exp_().sum(1).reciprocal_()
    return labels, chosen


def argmax(values: Tensor, labels: Tensor) -> Tensor:
    """Write the class with the largest value, the lowest of a tie, to ``labels``, uint8 ``[N, H, W]``.

    Returns the largest values ``[N, H, W]`` of ``values``, ``[N, C, H, W]``.
    """
    # A running maximum: argmax() takes ten times as long here, and the indices of max() are not always
    # the lowest of a tie.
    best, found = values[:, 0].clone(), labels.zero_()
    for i in range(1, values.shape[1]):
        found.masked_fill_(values[:, i] > best, i)
        torch.maximum(best, values[:, i], out=best)
    return best


def rows_of(x: Tensor) -> Rows:
    """The rows of a tensor ``[N, C, h, w]``."""
    return lambda start, stop: x[:, :, start:stop]


def resized_rows(
    rows: Rows, source: tuple[int, int], size: tuple[int, int], align_corners: bool = True
) -> Rows:
    """The rows of ``upsample(x, size, align_corners)``, up to its rounding, from those of ``x``.

    ``source`` is (h, w) of ``x``. A band of them reads no more of ``x`` than it needs, so that ``x`` itself
    may be computed in bands.
    """
    if source == size:
        return rows
    height = source[0]
    step = (height - 1) / max(size[0] - 1, 1) if align_corners else height / size[0]

    def band(start: int, stop: int) -> Tensor:
        # Positions in float64: in float32 they are off by some 1e-4 of a row.
        where = torch.arange(start, stop, dtype=torch.float64)
        where = where * step if align_corners else ((where + 0.5) * step - 0.5).clamp_(min=0)
        top = where.long().clamp_(max=height - 1)
        first, last = int(top[0]), min(int(top[-1]) + 1, height - 1)
        x = rows(first, last + 1)
        if source[1] != size[1]:
            x = upsample(x, (x.shape[2], size[1]), align_corners)
        weight = (where - top).to(x).view(-1, 1)
        above = (top - first).to(x.device)
        return torch.lerp(x[:, :, above], x[:, :, (above + 1).clamp_(max=last - first)], weight)

    return band
