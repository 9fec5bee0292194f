"""Averages photos much larger than the network's input, as two-tap interpolation would skip pixels."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# Pillow's reciprocals of the numbers of pixels have these bits.
_BITS = 24


def factors(sides: tuple[int, int], seen: tuple[int, int]) -> tuple[int, int]:
    """By which :func:`reduced` divides (h, w)."""
    return tuple(max(1, math.ceil(a / b) - 1) for a, b in zip(sides, seen, strict=True))


def reduced(image: Tensor, seen: tuple[int, int]) -> Tensor:
    """Frames uint8 ``[N, h, w, 3]`` or images ``[N, 3, h, w]``, at most twice as large as ``seen``, (H, W).

    A side more than twice as long is averaged by a whole factor: the smallest that brings it to that. Frames
    get the bits of ``PIL.Image.reduce`` on every device. The published scales, 0.5 and up, change nothing.
    """
    frame = image.dtype == torch.uint8
    steps = factors(image.shape[1:3] if frame else image.shape[2:], seen)
    if max(steps) == 1:
        return image
    if not frame:
        return F.avg_pool2d(image, steps, ceil_mode=True, count_include_pad=False)
    return _by_pillow(image, steps) if image.device.type == "cpu" else _by_torch(image, steps)


def _by_pillow(frames: Tensor, steps: tuple[int, int]) -> Tensor:
    made = [np.asarray(Image.fromarray(f).reduce(steps[::-1])) for f in frames.contiguous().numpy()]
    return torch.from_numpy(np.stack(made))


def _by_torch(frames: Tensor, steps: tuple[int, int]) -> Tensor:
    """:func:`_by_pillow`, on any device."""
    # Sums of bytes are whole in float32: no block has the 65,000 pixels that would be too many.
    sums = F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), steps, ceil_mode=True, divisor_override=1)
    rows, columns = (
        # The last block may be smaller.
        torch.tensor([min(step, side - at) for at in range(0, side, step)], device=frames.device)
        for side, step in zip(frames.shape[1:3], steps, strict=True)
    )
    count = rows[:, None] * columns
    means = (sums.long() + count // 2) * ((1 << _BITS) // count) >> _BITS
    return means.to(torch.uint8).permute(0, 2, 3, 1)
