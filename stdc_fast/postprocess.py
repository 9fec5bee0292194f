"""From the network's logits to labels at the photo's size, in bands that stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast.reference.networks import upsample

# A band of logits fits a core's cache, or on a GPU keeps it busy without filling its memory.
_BAND_BYTES = {"cpu": 3 << 20, "cuda": 64 << 20}


def resize_argmax(
    logits: Tensor, size: tuple[int, int], confidence: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Bilinear resize (align_corners=True) and argmax, without storing the resized logits.

    Equal to ``upsample(logits, size).argmax(1)`` up to the rounding of the interpolation, but the
    memory it takes does not grow with classes times output pixels. Ties take the lowest class.

    Args:
        logits: ``[N, C, h, w]``, float, C <= 256.
        size: (H, W) of the labels.
        confidence: also return the softmax probability of the chosen class.

    Returns:
        Labels uint8 ``[N, H, W]`` and confidence float32 ``[N, H, W]`` or None.
    """
    n, c, h, _ = logits.shape
    height, width = size
    wide = logits if logits.shape[3] == width else upsample(logits, (h, width))
    wide = wide.contiguous()
    where = torch.arange(height, device=logits.device, dtype=torch.float64)
    where = where * ((h - 1) / max(height - 1, 1))
    top = where.long().clamp_(max=h - 1)
    bottom = (top + 1).clamp_(max=h - 1)
    weight = (where - top).to(logits.dtype).view(-1, 1)
    labels = torch.empty((n, height, width), dtype=torch.uint8, device=logits.device)
    chosen = torch.empty((n, height, width), device=logits.device) if confidence else None
    room = _BAND_BYTES[logits.device.type]
    rows = max(1, room // (max(n, 1) * c * width * logits.element_size()))
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        if h == height:
            values = wide[:, :, band]
        else:
            values = torch.lerp(wide[:, :, top[band]], wide[:, :, bottom[band]], weight[band])
        # A running maximum: argmax over a dimension that is not the innermost takes ten times as long.
        best, found = values[:, 0].clone(), labels[:, band].zero_()
        for i in range(1, c):
            found.masked_fill_(values[:, i] > best, i)
            torch.maximum(best, values[:, i], out=best)
        if chosen is not None:
            chosen[:, band] = (values - best.unsqueeze(1)).exp_().sum(1).reciprocal_()
    return labels, chosen
