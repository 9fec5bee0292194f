"""From the network's logits to labels at the photo's size, in bands that stay in cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stdc_fast.reference.networks import upsample

_BAND_BYTES = 1 << 20


def resize_argmax(
    logits: Tensor, size: tuple[int, int], confidence: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Bilinear resize (align_corners=True) and argmax, without storing the resized logits.

    Equal to ``upsample(logits, size).argmax(1)`` up to the rounding of the interpolation, but the
    memory it takes does not grow with classes times pixels. Ties take the lowest class.

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
    rows = height
    if logits.device.type == "cpu":
        rows = max(1, _BAND_BYTES // (max(n, 1) * c * width * logits.element_size()))
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        if h == height:
            values = wide[:, :, band]
        else:
            values = torch.lerp(wide[:, :, top[band]], wide[:, :, bottom[band]], weight[band])
        labels[:, band] = values.argmax(1)
        if chosen is not None:
            chosen[:, band] = F.softmax(values.float(), 1).amax(1)
    return labels, chosen
