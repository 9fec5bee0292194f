"""The building blocks of STDC-Seg as plain eager modules: the oracle of every fast kernel.

Layouts are NCHW, any float dtype, any memory format. Parameter names are those of the paper's own
code, so that its checkpoints map onto these modules one to one. "Paper" is arXiv 2104.13188.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU.

    Args:
        in_channels, out_channels: channel counts.
        kernel_size: 1 or 3 in this network; the padding is ``kernel_size // 2``.
        stride: 1 or 2.

    Shape: ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _depthwise_bn(channels: int) -> list[nn.Module]:
    """Depthwise 3x3 stride 2 and batch norm, without ReLU: how a stage halves its resolution."""
    conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def _conv_list(in_channels: int, out_channels: int, blocks: int) -> nn.ModuleList:
    """A 1x1 to C/2, then 3x3 to C/4, C/8, ...; the last width is repeated, so that they sum to C."""
    widths = [out_channels >> (i + 1) for i in range(blocks - 1)]
    widths.append(widths[-1])
    convs = [ConvBNReLU(in_channels, widths[0], 1)]
    return nn.ModuleList(convs + [ConvBNReLU(a, b) for a, b in pairwise(widths)])


def _check_module(out_channels: int, blocks: int, stride: int) -> None:
    if blocks < 2:
        raise ValueError(f"an STDC module needs at least 2 blocks, not {blocks}")
    if stride not in (1, 2):
        raise ValueError(f"the stride of an STDC module is 1 or 2, not {stride}")
    if out_channels % (1 << (blocks - 1)):
        raise ValueError(
            f"out_channels {out_channels} can not be halved {blocks - 1} times; "
            f"use a multiple of {1 << (blocks - 1)}"
        )


class STDCModule(nn.Module):
    """Short-Term Dense Concatenate module, "cat" form (paper section 3.1, figure 3).

    A 1x1 convolution to C/2 channels, then 3x3 convolutions to C/4, C/8, C/8, each fed by the one
    before; all four outputs are concatenated. With stride 2 a depthwise 3x3 stride 2 stands between
    the first two, and the first output joins through an average pool 3x3 stride 2.

    Args:
        in_channels, out_channels: channel counts.
        blocks: number of convolutions, 4 in the published networks.
        stride: 1 or 2.
        count_include_pad: whether the average pool divides by 9 at the border too, as torch does by
            default and all families but PaddleSeg do.

    Shape: ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int = 4,
        stride: int = 1,
        count_include_pad: bool = True,
    ):
        super().__init__()
        _check_module(out_channels, blocks, stride)
        self.stride = stride
        self.conv_list = _conv_list(in_channels, out_channels, blocks)
        if stride == 2:
            self.avd_layer = nn.Sequential(*_depthwise_bn(out_channels // 2))
            self.skip = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.conv_list[0](x)
        if self.stride == 2:
            first, x = self.skip(first), self.avd_layer(first)
        outputs = [first]
        for conv in self.conv_list[1:]:
            x = conv(x)
            outputs.append(x)
        return torch.cat(outputs, dim=1)


class STDCAddModule(nn.Module):
    """STDC module, "add" form: the concatenation is added to a shortcut of the input.

    With stride 1 the shortcut is the input itself, so ``in_channels`` must equal ``out_channels``;
    with stride 2 it is depthwise 3x3 stride 2, batch norm, 1x1, batch norm. The depthwise layer of
    the main path follows the first convolution, whose output joins the concatenation after it.

    Args and shapes as :class:`STDCModule`; there is no pooling here.
    """

    def __init__(self, in_channels: int, out_channels: int, blocks: int = 4, stride: int = 1):
        super().__init__()
        _check_module(out_channels, blocks, stride)
        if stride == 1 and in_channels != out_channels:
            raise ValueError(f"an add module of stride 1 keeps its channels: {in_channels} != {out_channels}")
        self.stride = stride
        self.conv_list = _conv_list(in_channels, out_channels, blocks)
        if stride == 2:
            self.avd_layer = nn.Sequential(*_depthwise_bn(out_channels // 2))
            self.skip = nn.Sequential(
                *_depthwise_bn(in_channels),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x) if self.stride == 2 else x
        outputs = []
        for i, conv in enumerate(self.conv_list):
            x = conv(x)
            if i == 0 and self.stride == 2:
                x = self.avd_layer(x)
            outputs.append(x)
        return torch.cat(outputs, dim=1) + shortcut


class AttentionRefinement(nn.Module):
    """Attention refinement module of BiSeNet (arXiv 1808.00897, figure 2b).

    3x3 convolution, then every channel scaled by the sigmoid of a 1x1 convolution and batch norm of
    its global average.

    Shape: ``[N, in_channels, H, W]`` to ``[N, out_channels, H, W]``.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels)
        self.conv_atten = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(pooled)))


class FeatureFusion(nn.Module):
    """Feature fusion module (paper section 3.2; arXiv 1808.00897, figure 2c).

    A 1x1 convolution over the concatenation of spatial and context features, then
    ``x + x * sigmoid(conv2(relu(conv1(global average of x))))``; the two 1x1 have no norm.

    Args:
        in_channels: channels of both inputs together.
        out_channels: channels of the output; the hidden layer of the gate has a quarter of them.
        bias: whether conv1 and conv2 have biases; only PaddleSeg's have.

    Shape: two inputs ``[N, C1, H, W]`` and ``[N, C2, H, W]`` to ``[N, out_channels, H, W]``.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False):
        super().__init__()
        self.convblk = ConvBNReLU(in_channels, out_channels, 1)
        self.conv1 = nn.Conv2d(out_channels, out_channels // 4, 1, bias=bias)
        self.conv2 = nn.Conv2d(out_channels // 4, out_channels, 1, bias=bias)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], dim=1))
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(pooled))))


class SegHead(nn.Module):
    """Segmentation head: 3x3 convolution to ``mid_channels``, then a 1x1 classifier.

    Args:
        in_channels, mid_channels, num_classes: channel counts.
        bias: whether the classifier has a bias; only mmsegmentation's checkpoints do.

    Shape: ``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``.
    """

    def __init__(self, in_channels: int, mid_channels: int, num_classes: int, bias: bool = False):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, mid_channels)
        self.conv_out = nn.Conv2d(mid_channels, num_classes, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))
