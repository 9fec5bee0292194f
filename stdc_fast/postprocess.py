"""From the network's logits to labels at the photo's size, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast.reference.networks import upsample

# Logits at full size that are stored at once; what is larger comes in bands of rows.
_BAND_BYTES = 256 << 20


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

    Equal to ``upsample(logits, size, align_corners).argmax(1)`` up to the rounding of the interpolation, but the
    memory it takes does not grow with classes times output pixels. Ties take the lowest class.

    Args:
        logits: ``[N, C, h, w]``, float, C <= 256.
        size: (H, W) of the labels.
        confidence: also return the softmax probability of the chosen class.
        align_corners: of the interpolation.

    Returns:
        Labels uint8 ``[N, H, W]`` and confidence float32 ``[N, H, W]`` or None.
    """
    n, c, h, _ = logits.shape
    height, width = size
    labels = torch.empty((n, height, width), dtype=torch.uint8, device=logits.device)
    chosen = torch.empty((n, height, width), device=logits.device) if confidence else None
    rows = max(1, _BAND_BYTES // max(1, n * c * width * logits.element_size()))
    logits = logits.contiguous()  # NCHW: one plane per class
    wide = logits if rows >= height else upsample(logits, (h, width), align_corners)
    where = torch.arange(height, device=logits.device, dtype=torch.float64)
    if align_corners:
        where = where * ((h - 1) / max(height - 1, 1))
    else:
        where = ((where + 0.5) * (h / height) - 0.5).clamp_(min=0)
    top = where.long().clamp_(max=h - 1)
    bottom = (top + 1).clamp_(max=h - 1)
    weight = (where - top).to(logits.dtype).view(-1, 1)
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        if rows >= height:
            values = upsample(logits, size, align_corners)
        else:
            values = torch.lerp(wide[:, :, top[band]], wide[:, :, bottom[band]], weight[band])
        # A running maximum: argmax() takes ten times as long here, and the indices of max() are not always
        # the lowest of a tie.
        best, found = values[:, 0].clone(), labels[:, band].zero_()
        for i in range(1, c):
            found.masked_fill_(values[:, i] > best, i)
            torch.maximum(best, values[:, i], out=best)
        if chosen is not None:
            chosen[:, band] = (values - best.unsqueeze(1)).exp_().sum(1).reciprocal_()
    return labels, chosen
