"""Emulates in float32 how low-precision backends round stored tensors; tests compare against it.

The eager backend passes each tensor that a backend would store through one of these, under a key: the name
of its buffer, ``OP:input`` for what a prologue makes of it, ``OP:inner`` for the map inside of a ``down``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from stdc_fast.plan.ops import Conv, Down, Op


class Rounding:
    """Every stored tensor and weight is rounded to ``dtype``; sums, biases and logits are not.

    Args:
        tiles: names of convolutions that round transformed tiles, as
            :mod:`stdc_fast.backends.eager.winograd` has it.
    """

    def __init__(self, dtype: torch.dtype, tiles: Iterable[str] = ()):
        self.dtype = dtype
        self.tiles = frozenset(tiles)

    def tensor(self, key: str, x: Tensor, offset: int = 0) -> Tensor:
        return x.to(self.dtype).to(x.dtype)

    def weight(self, op: Op, name: str, weight: Tensor) -> Tensor:
        return weight.to(self.dtype).to(weight.dtype)


class Observer:
    """Rounds nothing and records the least and greatest value of every stored tensor in ``ranges``."""

    tiles: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[float, float]] = {}

    def tensor(self, key: str, x: Tensor, offset: int = 0) -> Tensor:
        low, high = (v.item() for v in torch.aminmax(x))
        before = self.ranges.get(key, (low, high))
        # Unlike Python's, numpy's minimum and maximum of NaN and anything are NaN.
        self.ranges[key] = (float(np.minimum(low, before[0])), float(np.maximum(high, before[1])))
        return x

    def weight(self, op: Op, name: str, weight: Tensor) -> Tensor:
        return weight


class Grid:
    """Maps on a grid of 8 bits; the convolutions between them with int8 weights.

    A tensor that was never negative has 255 steps to its greatest value, any other 127 steps to its greatest
    magnitude; one scale a buffer, so that a concatenation has one. Weights have 127 steps a output
    channel. The stem, depthwise layers, gates and the classifier keep weights in fp16.

    Args:
        ranges: least and greatest value by key, as an :class:`Observer` finds them. What is not in it
            is rounded to fp16.
    """

    tiles: frozenset[str] = frozenset()

    def __init__(self, ranges: Mapping[str, tuple[float, float]]):
        self.ranges = dict(ranges)

    def tensor(self, key: str, x: Tensor, offset: int = 0) -> Tensor:
        if key not in self.ranges:
            return x.to(torch.float16).to(x.dtype)
        low, high = self.ranges[key]
        if low >= 0:
            return _quantise(x, high / 255, 0, 255)
        return _quantise(x, max(-low, high) / 127, -127, 127)

    def weight(self, op: Op, name: str, weight: Tensor) -> Tensor:
        if not (isinstance(op, (Conv, Down)) and name == op.weight) or getattr(op, "depthwise", False):
            return weight.to(torch.float16).to(weight.dtype)
        if isinstance(op, Conv) and op.act == "none":  # the classifier
            return weight.to(torch.float16).to(weight.dtype)
        dims = [d for d in range(weight.ndim) if d != weight.ndim - 4]
        return _quantise(weight, weight.abs().amax(dims, keepdim=True) / 127, -127, 127)


def _quantise(x: Tensor, scale: Tensor | float, low: int, high: int) -> Tensor:
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / scale).round().clamp(low, high) * scale
