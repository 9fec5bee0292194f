"""Convolutions of the eager backend: the fastest that torch has for each dtype and device."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

_NHWC = torch.channels_last


def activate(x: Tensor, act: str) -> Tensor:
    """The activation of that name, in place where that saves a pass."""
    if act == "relu":
        return x.relu_()
    if act == "none":
        return x
    return x.sigmoid_() if act == "sigmoid" else x.sigmoid_().add_(1)


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether this CPU has kernels for ``dtype``. Of 16 bits those are oneDNN's, which refuses others.

    Torch's own kernels of 16 bits run everywhere, twenty times slower.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    known = torch.ops.mkldnn
    return known._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else known._is_mkldnn_fp16_supported()


class Convolution:
    """``act(conv2d(x) + bias)`` with packed weights.

    On a CPU in float32, and in bfloat16 where there are kernels, oneDNN has the weights in the layout it
    prefers, and adds bias and ReLU before it rounds. In float64, which no library has fast kernels for, each
    tap is one matrix product.

    Args:
        weight: ``[out, in / groups, k, k]``.
        bias: ``[out]``, float32 or float64, or None.
        act: as in :mod:`stdc_fast.plan.ops`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        act: str = "none",
    ):
        self.weight = weight.contiguous(memory_format=_NHWC)
        self.bias = bias
        self.rounded_bias = None if bias is None else bias.to(weight.dtype)
        self.stride, self.padding, self.groups, self.act = stride, padding, groups, act
        self.onednn = (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and torch.backends.mkldnn.is_available()
            and has_kernels(weight.dtype)
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        )
        self.packed: Tensor | None = None  # takes the place of weight when it is made
        self.plain: Tensor | None = None  # for NCHW maps: weights in channels_last would make the result so
        self.lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64 and x.device.type == "cpu" and self.groups == 1:
            return activate(self._taps(x), self.act)
        nchw = x.is_contiguous() and not x.is_contiguous(memory_format=_NHWC)
        if self.onednn and x.numel() and not nchw:
            return self._onednn(x)
        weight = self._plain() if nchw or self.weight is None else self.weight
        y = F.conv2d(x, weight, self.rounded_bias, self.stride, self.padding, 1, self.groups)
        return activate(y, self.act)

    def _onednn(self, x: Tensor) -> Tensor:
        geometry = [self.padding] * 2, [self.stride] * 2, [1, 1], self.groups
        with self.lock:
            if self.packed is None:
                # The layout is chosen for the first size and holds for all.
                self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
                    self.weight.to_mkldnn(), *geometry, list(x.shape)
                )
                self.weight = None
        fused = self.act if self.act == "relu" else "none"
        x = x.contiguous(memory_format=_NHWC)
        y = torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *geometry, fused, [], "")
        return y if fused == self.act else activate(y, self.act)

    def _plain(self) -> Tensor:
        with self.lock:
            if self.plain is None:
                weight = self.packed.to_dense() if self.weight is None else self.weight
                self.plain = weight.contiguous()
            return self.plain

    def _taps(self, x: Tensor) -> Tensor:
        height, width = (
            (n + 2 * self.padding - k) // self.stride + 1
            for n, k in zip(x.shape[2:], self.weight.shape[2:], strict=True)
        )
        x = F.pad(x, [self.padding] * 4).permute(0, 2, 3, 1)
        s = self.stride
        y = 0 if self.bias is None else self.bias
        for i in range(self.weight.shape[2]):
            for j in range(self.weight.shape[3]):
                rows = slice(i, i + s * (height - 1) + 1, s)
                columns = slice(j, j + s * (width - 1) + 1, s)
                # Flat, so that the strides of dimensions of size one do not choose the algorithm.
                pixels = x[:, rows, columns].reshape(-1, x.shape[3]).contiguous()
                y = y + pixels @ self.weight[:, :, i, j].T
        return y.view(len(x), height, width, len(self.weight)).permute(0, 3, 1, 2)


class Subpixel:
    """3x3 convolution of a map that nearest up-sampling has doubled, on the small map.

    All four parities together are one transposed convolution 4x4 with stride 2: output row y = 2i - 1 + k
    gets row i times tap k. The last row and column of odd sizes have weights of their own.

    Args:
        weight: sub-pixel weights ``[3, 3, out, in, 2, 2]``.
        bias: ``[out]`` or None.
        act: as in :mod:`stdc_fast.plan.ops`.
    """

    # Parity and tap of the sub-pixel weights at each tap k of the transposed convolution.
    _SETS = ((1, 1), (0, 1), (1, 0), (0, 0))
    # Those of a last row of odd height, as a transposed convolution with two taps, padding 1.
    _LAST = ((2, 1), (2, 0))

    def __init__(self, weight: Tensor, bias: Tensor | None, act: str):
        self.bias = None if bias is None else bias.to(weight.dtype)
        self.act = act
        self.inner = _transposed(weight, self._SETS, self._SETS)
        self.row = _transposed(weight, self._LAST, self._SETS)
        self.column = _transposed(weight, self._SETS, self._LAST)
        self.corner = _transposed(weight, self._LAST, self._LAST)

    def __call__(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``x`` ``[N, in, h, w]`` to ``[N, out, *size]``, where ``size`` is twice as large, or one less."""
        y = F.conv_transpose2d(x, self.inner, self.bias, stride=2, padding=1)
        height, width = size
        if y.shape[2:] == size:
            return activate(y, self.act)
        y = y[:, :, :height, :width].contiguous(memory_format=_NHWC)
        rows, columns = (F.pad(x, p) for p in ((0, 0, 1, 0), (1, 0, 0, 0)))
        if height % 2:
            last = F.conv_transpose2d(rows[:, :, -2:], self.row, self.bias, stride=(1, 2), padding=1)
            y[:, :, -1:] = last[..., :width]
        if width % 2:
            last = F.conv_transpose2d(columns[..., -2:], self.column, self.bias, stride=(2, 1), padding=1)
            y[..., -1:] = last[:, :, :height]
        if height % 2 and width % 2:
            patch = F.pad(x, (1, 0, 1, 0))[:, :, -2:, -2:]
            y[:, :, -1:, -1:] = F.conv_transpose2d(patch, self.corner, self.bias, padding=1)
        return activate(y, self.act)


def _transposed(weight: Tensor, rows, columns) -> Tensor:
    """Weights ``[in, out, len(rows), len(columns)]`` of a transposed convolution, from sub-pixel ones."""
    taps = [[weight[a, b, :, :, i, j].T for b, j in columns] for a, i in rows]
    return torch.stack([torch.stack(row, -1) for row in taps], -2).contiguous()
