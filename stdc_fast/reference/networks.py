"""STDC backbones and STDC-Seg as plain eager networks: what every backend is checked against.

The graph and the parameter names are those of the paper's own code (arXiv 2104.13188), without the
second alias under which that code stores each backbone tensor. Layouts are NCHW; H, W >= 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdc_fast.errors import UserError
from stdc_fast.reference.layers import (
    AttentionRefinement,
    ConvBNReLU,
    FeatureFusion,
    SegHead,
    STDCAddModule,
    STDCModule,
)

#: STDC modules in the stages at 1/8, 1/16 and 1/32 (paper table 1).
STAGES = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}
MIN_SIZE = 32
#: Mean and deviation of ImageNet, RGB in 0..1, which all families of weights normalise with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def check_variant(variant: str) -> None:
    if variant not in STAGES:
        raise ValueError(f"unknown network {variant!r}; choose one of {', '.join(STAGES)}")


def check_input(x: Tensor) -> None:
    """UserError unless ``x`` is ``[N, 3, H, W]`` with H, W >= 32."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise UserError(f"expected an input of shape [N, 3, H, W], got {list(x.shape)}")
    height, width = x.shape[2:]
    if min(height, width) < MIN_SIZE:
        raise UserError(f"input of {height}x{width} (HxW) is too small; both must be at least {MIN_SIZE}")


def normalise(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """uint8 RGB ``[N, H, W, 3]`` to normalised ``[N, 3, H, W]``, channels_last in memory.

    ``mean`` and ``std`` are RGB, of values in 0..1.
    """
    x = images.permute(0, 3, 1, 2).to(dtype)
    mean, std = (torch.tensor(v, dtype=dtype, device=x.device).view(1, 3, 1, 1) * 255 for v in (mean, std))
    return (x - mean) / std


def _kaiming_normal(weight: Tensor, **kwargs) -> None:
    """As of ``nn.init``. On "meta" there is nothing to do, but torch would import its compiler for it."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **kwargs)


class STDCBackbone(nn.Module):
    """STDC1 or STDC2 backbone (paper section 3.1, table 1), as used for segmentation.

    Args:
        variant: "stdc1" (STDCNet813) or "stdc2" (STDCNet1446).
        module: "cat" (the published weights) or "add".
        count_include_pad: see :class:`STDCModule`; without effect on "add".
        conv_last: whether a 1x1 convolution of 1024 channels follows the last stage, as with the published
            code's option ``--use_conv_last`` and mmsegmentation's ``with_final_conv``.

    ``forward`` maps ``[N, 3, H, W]`` to the features at strides 2, 4, 8, 16, 32 with 32, 64, 256, 512
    and 1024 channels; sizes are rounded up at every stride.
    """

    channels = (32, 64, 256, 512, 1024)

    def __init__(
        self,
        variant: str = "stdc1",
        module: str = "cat",
        count_include_pad: bool = True,
        conv_last: bool = False,
    ):
        super().__init__()
        check_variant(variant)
        if module not in ("cat", "add"):
            raise ValueError(f"unknown STDC module {module!r}; choose cat or add")
        self.variant = variant
        self.stages = STAGES[variant]
        layers: list[nn.Module] = [ConvBNReLU(3, 32, stride=2), ConvBNReLU(32, 64, stride=2)]
        width = 64
        for out, count in zip(self.channels[2:], self.stages, strict=True):
            for i in range(count):
                stride = 2 if i == 0 else 1
                if module == "cat":
                    block = STDCModule(width, out, 4, stride, count_include_pad)
                else:
                    block = STDCAddModule(width, out, 4, stride)
                layers.append(block)
                width = out
        self.features = nn.Sequential(*layers)
        self.uses_conv_last = conv_last
        if conv_last:
            self.conv_last = ConvBNReLU(1024, 1024, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                _kaiming_normal(m.weight, mode="fan_out")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        ends = {0, 1}
        last = 1
        for count in self.stages:
            last += count
            ends.add(last)
        outputs = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in ends:
                outputs.append(x)
        if self.uses_conv_last:
            outputs[-1] = self.conv_last(outputs[-1])
        return tuple(outputs)


class STDCClassifier(STDCBackbone):
    """The ImageNet classifier over the backbone (paper table 1), with the published keys.

    As in the published code, ``conv_last`` is squared before the global average, and ``bn`` is stored
    but never applied.

    ``forward`` maps ``[N, 3, H, W]`` to logits ``[N, num_classes]``.
    """

    def __init__(
        self,
        variant: str = "stdc1",
        module: str = "cat",
        num_classes: int = 1000,
        dropout: float = 0.2,
        count_include_pad: bool = True,
    ):
        super().__init__(variant, module, count_include_pad)
        self.conv_last = ConvBNReLU(1024, 1024, 1)
        self.fc = nn.Linear(1024, 1024, bias=False)
        self.bn = nn.BatchNorm1d(1024)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(1024, num_classes, bias=False)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.normal_(self.linear.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_last(super().forward(x)[-1]).square()
        x = F.relu(self.fc(x.mean(dim=(2, 3))))
        return self.linear(self.dropout(x))


class ContextPath(nn.Module):
    """Backbone, global context and two attention refinements (paper section 3.2, figure 4).

    ``forward`` maps ``[N, 3, H, W]`` to (spatial features at 1/8 with 256 channels, context at 1/8 and
    at 1/16 with 128 channels each).
    """

    def __init__(
        self,
        variant: str = "stdc1",
        module: str = "cat",
        count_include_pad: bool = True,
        conv_last: bool = False,
    ):
        super().__init__()
        self.backbone = STDCBackbone(variant, module, count_include_pad, conv_last)
        self.arm16 = AttentionRefinement(512, 128)
        self.arm32 = AttentionRefinement(1024, 128)
        self.conv_head32 = ConvBNReLU(128, 128)
        self.conv_head16 = ConvBNReLU(128, 128)
        self.conv_avg = ConvBNReLU(1024, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, _, feat8, feat16, feat32 = self.backbone(x)
        context = self.conv_avg(feat32.mean(dim=(2, 3), keepdim=True))
        # Nearest up-sampling goes to the skip's own size, which is not always twice the source's.
        up16 = F.interpolate(self.arm32(feat32) + context, feat16.shape[2:], mode="nearest")
        up16 = self.conv_head32(up16)
        up8 = F.interpolate(self.arm16(feat16) + up16, feat8.shape[2:], mode="nearest")
        return feat8, self.conv_head16(up8), up16


class TrainingOutput(NamedTuple):
    """What the network returns in training mode, each at its own resolution; the loss resizes.

    ``main``, ``aux16`` and ``detail`` are at 1/8 of the input, ``aux32`` at 1/16; ``detail`` has one channel.
    """

    main: Tensor
    aux16: Tensor
    aux32: Tensor
    detail: Tensor


class STDCSeg(nn.Module):
    """STDC-Seg (paper section 3.2, figure 4).

    Args:
        variant: "stdc1" or "stdc2".
        num_classes: any number of classes >= 1.
        module: "cat" or "add", see :class:`STDCBackbone`.
        count_include_pad: see :class:`STDCModule`.
        training_heads: whether the heads that only training uses exist: two auxiliary ones and the
            detail head. In eval mode they never run.
        classifier_bias: whether the main classifier has a bias (mmsegmentation's has).
        fusion_bias: whether the two convolutions of the fusion's gate have biases (PaddleSeg's have).
        conv_last: see :class:`STDCBackbone`.
        align_corners: of the bilinear interpolation of logits; the published networks' is true.
        mean, std: what images are normalised with, RGB of 0..1; kept for those who do it.

    ``forward`` maps normalised ``[N, 3, H, W]`` to logits ``[N, num_classes, H, W]`` (bilinear from 1/8),
    or in training mode with training heads to a
    :class:`TrainingOutput`. H, W >= 32; else ValueError.
    """

    def __init__(
        self,
        variant: str = "stdc1",
        num_classes: int = 19,
        module: str = "cat",
        count_include_pad: bool = True,
        training_heads: bool = False,
        classifier_bias: bool = False,
        fusion_bias: bool = False,
        conv_last: bool = False,
        align_corners: bool = True,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):
        super().__init__()
        check_variant(variant)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.variant = variant
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.mean, self.std = tuple(mean), tuple(std)
        self.cp = ContextPath(variant, module, count_include_pad, conv_last)
        self.ffm = FeatureFusion(256 + 128, 256, bias=fusion_bias)
        self.conv_out = SegHead(256, 256, num_classes, bias=classifier_bias)
        self.training_heads = training_heads
        if training_heads:
            self.conv_out16 = SegHead(128, 64, num_classes)
            self.conv_out32 = SegHead(128, 64, num_classes)
            self.conv_out_sp8 = SegHead(256, 64, 1)
        for name, m in self.named_modules():
            if isinstance(m, nn.Conv2d) and not name.startswith("cp.backbone."):
                _kaiming_normal(m.weight, a=1)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def logits8(self, x: Tensor) -> Tensor:
        """Logits at 1/8 of the input's size, rounded up: ``[N, num_classes, ceil(H/8), ceil(W/8)]``."""
        feat8, context8, _ = self.cp(x)
        return self.conv_out(self.ffm(feat8, context8))

    def forward(self, x: Tensor) -> Tensor | TrainingOutput:
        check_input(x)
        size = x.shape[2:]
        if not (self.training and self.training_heads):
            return upsample(self.logits8(x), size, self.align_corners)
        feat8, context8, context16 = self.cp(x)
        return TrainingOutput(
            self.conv_out(self.ffm(feat8, context8)),
            self.conv_out16(context8),
            self.conv_out32(context16),
            self.conv_out_sp8(feat8),
        )


def upsample(x: Tensor, size: torch.Size | tuple[int, int], align_corners: bool = True) -> Tensor:
    """Bilinear resize, with align_corners=True as all families interpolate logits unless told otherwise."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)
