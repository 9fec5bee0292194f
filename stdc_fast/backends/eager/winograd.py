"""Emulates the CPU engine's convolutions by Winograd's tiles, which round in other places than direct ones.

Tiles of 4x4 outputs come from (r + 3) x (r + 3) inputs and as many products, r the number of taps (Lavin and
Gray, arXiv 1509.09308). Transformed inputs and weights are rounded; nothing else is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stdc_fast.backends.eager.convolution import Subpixel, activate

TILE = 4

#: By the number of taps; the last point of all is infinity.
POINTS = {3: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2), 2: (1 / 2, -1 / 2, 5 / 4, -5 / 4)}


def matrices(taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(A, B, G) in float64: outputs are ``A.T @ ((G @ g) * (B.T @ d))``, for ``taps`` g and inputs d.

    A is ``[r + 3, 4]``, B ``[r + 3, r + 3]``, G ``[r + 3, r]``.
    """
    points = POINTS[taps]
    n = len(points) + 1
    assert n == taps + TILE - 1
    a, b, g = (torch.zeros(n, columns, dtype=torch.float64) for columns in (TILE, n, taps))
    for i, point in enumerate(points):
        others = points[:i] + points[i + 1 :]
        powers = torch.tensor([point**k for k in range(TILE)], dtype=torch.float64)
        a[i], g[i] = powers, powers[:taps] / math.prod(point - other for other in others)
        b[: n - 1, i] = _product(others)
    a[-1, -1] = g[-1, -1] = 1
    b[:, -1] = _product(points)
    return a, b, g


def _product(points: tuple[float, ...]) -> Tensor:
    """Coefficients of the product of (x - point), the constant first."""
    result = torch.ones(1, dtype=torch.float64)
    for point in points:
        result = F.pad(result, (1, 0)) - point * F.pad(result, (0, 1))
    return result


class Tiles:
    """``act(conv2d(x) + bias)`` of square kernels, with rounded tiles.

    Args:
        weight: ``[out, in, r, r]``, not rounded.
        bias: ``[out]`` or None.
        act: as in :mod:`stdc_fast.plan.ops`.
        dtype: that transformed weights and inputs are rounded to.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str, dtype: torch.dtype):
        self.taps = weight.shape[-1]
        self.a, self.b, g = matrices(self.taps)
        self.bias, self.act, self.dtype = bias, act, dtype
        weight = torch.einsum("ik,ockl,jl->ijoc", g, weight.double(), g)
        self.weight = weight.to(dtype)

    def __call__(self, x: Tensor, size: tuple[int, int], before: tuple[int, int] = (1, 1)) -> Tensor:
        """``x`` ``[N, in, h, w]`` to ``[N, out, *size]``; the first tap of the first output is ``before`` the
        first input, in rows and columns.
        """
        n = self.taps + TILE - 1
        high, wide = (-(-count // TILE) for count in size)
        (top, left), (height, width) = before, x.shape[2:]
        bottom, right = TILE * high + self.taps - 1 - top - height, TILE * wide + self.taps - 1 - left - width
        x = F.pad(x, (left, right, top, bottom))
        windows = x.unfold(2, n, TILE).unfold(3, n, TILE)  # [N, in, high, wide, n, n]
        a, b, weight = (m.to(x.dtype) for m in (self.a, self.b, self.weight))
        inputs = torch.einsum("ki,bchwkl,lj->ijbhwc", b, windows, b).to(self.dtype).to(x.dtype)
        products = torch.einsum("ijbhwc,ijoc->ijbhwo", inputs, weight)
        y = torch.einsum("ik,ijbhwo,jl->bohkwl", a, products, a).flatten(4).flatten(2, 3)
        y = y[:, :, : size[0], : size[1]]
        if self.bias is not None:
            y = y + self.bias.to(x.dtype).view(1, -1, 1, 1)
        return activate(y.contiguous(memory_format=torch.channels_last), self.act)


class SubpixelTiles:
    """A sub-pixel convolution, each parity of row and column by tiles; the last row and column of odd sizes,
    which have weights of their own, by direct products.

    Args:
        weight: ``[3, 3, out, in, 2, 2]``, not rounded.
        bias, act, dtype: as :class:`Tiles` has them.
        maps: dtype of the inputs.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        act: str,
        dtype: torch.dtype,
        maps: torch.dtype = torch.float32,
    ):
        self.parities = [[Tiles(weight[i, j], bias, act, dtype) for j in range(2)] for i in range(2)]
        self.direct = Subpixel(weight.to(dtype).to(maps), bias, act)

    def __call__(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """As :class:`Subpixel`."""
        y = self.direct(x, size)
        half = size[0] // 2, size[1] // 2
        for i, row in enumerate(self.parities):
            for j, conv in enumerate(row):
                if not all(half):
                    continue
                y[:, :, i : 2 * half[0] : 2, j : 2 * half[1] : 2] = conv(x, half, (1 - i, 1 - j))
        return y
