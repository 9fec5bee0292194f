"""The official STDC-Seg network, and the same retrained with plain batch norm."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from families.parts import (
    LARGE,
    CodeBase,
    Wired,
    bilinear,
    cascade,
    chain,
    conv,
    dense,
    nearest,
    pool,
    stages_of,
    steps_of,
    unit,
)


class InPlaceNorm(nn.Module):
    """The official decoder's norm in eval mode: scales by |weight| + 1e-5 and counts no batches."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (
            t[:, None, None] for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * (gamma.abs() + 1e-5) + beta


def official_block(cin: int, cout: int, stride: int) -> nn.Module:
    def wire(m: nn.Module, x: Tensor) -> Tensor:
        steps = list(m.conv_list)
        if stride == 2:
            steps[1] = nn.Sequential(m.avd_layer, steps[1])
        return dense(x, steps, stride)

    block = Wired(wire, conv_list=nn.ModuleList(unit(*step) for step in steps_of(cin, cout)))
    if stride == 2:
        half = cout // 2
        block.avd_layer = nn.Sequential(conv(half, half, 3, 2, half), nn.BatchNorm2d(half))
    return block


class Official(nn.Module):
    """Keys ``cp.backbone.features.N`` with aliases ``x2`` to ``x32``, ``cp.*``, ``ffm.*``, ``conv_out.*``.

    ``norm`` is the decoder's; the backbone always has ordinary batch norm.
    """

    def __init__(self, variant: str, classes: int, norm: type[nn.Module] = InPlaceNorm):
        super().__init__()

        def arm(cin: int) -> nn.Module:
            def wire(m: nn.Module, x: Tensor) -> Tensor:
                x = m.conv(x)
                return x * torch.sigmoid(m.bn_atten(m.conv_atten(pool(x))))

            return Wired(wire, conv=unit(cin, 128, norm=norm), conv_atten=conv(128, 128), bn_atten=norm(128))

        def head(cin: int, mid: int, out: int) -> nn.Module:
            return chain(conv=unit(cin, mid, norm=norm), conv_out=conv(mid, out))

        def fuse(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            x = m.convblk(torch.cat([x, y], 1))
            return x * torch.sigmoid(m.conv2(F.relu(m.conv1(pool(x))))) + x

        s8, s16, s32 = stages_of(variant, official_block)
        backbone = nn.Module()
        backbone.features = nn.Sequential(unit(3, 32, stride=2), unit(32, 64, stride=2), *s8, *s16, *s32)
        backbone.conv_last = unit(1024, 1024, 1)
        backbone.fc = nn.Linear(1024, 1024, bias=False)
        backbone.bn = nn.BatchNorm1d(1024)
        backbone.linear = nn.Linear(1024, 1000, bias=False)
        # A slice of a Sequential keeps its numbers, which is how x8.0.2 comes to be features.2.
        ends = [0, 1, 2, 2 + len(s8), 2 + len(s8) + len(s16), None]
        for i in range(5):
            alias = nn.Sequential(backbone.features[ends[i] : ends[i + 1]])
            backbone.add_module(f"x{2 << i}", alias)
        self.cp = nn.Module()
        self.cp.backbone = backbone
        self.cp.arm16, self.cp.arm32 = arm(512), arm(1024)
        self.cp.conv_head32, self.cp.conv_head16 = unit(128, 128, norm=norm), unit(128, 128, norm=norm)
        self.cp.conv_avg = unit(1024, 128, 1, norm=norm)
        self.ffm = Wired(fuse, convblk=unit(384, 256, 1, norm=norm), conv1=conv(256, 64), conv2=conv(64, 256))
        self.conv_out = head(256, 256, classes)
        self.conv_out16, self.conv_out32 = head(128, 64, classes), head(128, 64, classes)
        for stride, width in ((2, 32), (4, 64), (8, 256), (16, 512)):
            self.add_module(f"conv_out_sp{stride}", head(width, 64, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        body = self.cp.backbone
        return cascade(x, [body.x2, body.x4, body.x8, body.x16, body.x32])

    def forward(self, x: Tensor) -> Tensor:
        cp = self.cp
        f8, f16, f32 = self.features(x)[2:]
        y = cp.conv_head32(nearest(cp.arm32(f32) + cp.conv_avg(pool(f32)), f16))
        y = cp.conv_head16(nearest(cp.arm16(f16) + y, f8))
        return bilinear(self.conv_out(self.ffm(f8, y)), x)


class Evaluated(Official):
    """As the paper's code runs it, in eval mode too: with auxiliary logits, and details if ``boundary``."""

    boundary = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        cp = self.cp
        f8, f16, f32 = self.features(x)[2:]
        y16 = cp.conv_head32(nearest(cp.arm32(f32) + cp.conv_avg(pool(f32)), f16))
        y8 = cp.conv_head16(nearest(cp.arm16(f16) + y16, f8))
        main = self.conv_out(self.ffm(f8, y8))
        outputs = tuple(bilinear(y, x) for y in (main, self.conv_out16(y8), self.conv_out32(y16)))
        return (*outputs, self.conv_out_sp8(f8)) if self.boundary else outputs


OFFICIAL = CodeBase(
    Official,
    training_only=(
        *(f"conv_out{i}." for i in ("16", "32", "_sp2", "_sp4", "_sp8", "_sp16")),
        *(f"cp.backbone.{i}." for i in ("conv_last", "fc", "bn", "linear")),
    ),
    # A norm has four tensors beside its counter, so a head without bias has 1 + 4 + 1.
    dropped=6 * 6 + 5 + 1 + 4 + 1,  # heads, conv_last, fc, bn, linear
    sizes={"stdc1": LARGE, "stdc2": [(1, 97, 131), (2, 64, 96)]},
    samples={
        "cp.arm16.conv.conv.weight": "cp.arm16.conv.conv.weight",
        "conv_out.conv_out.weight": "conv_out.conv_out.weight",
        "ffm.convblk.bn.running_var": "ffm.convblk.bn.running_var",
    },
    strangers={
        "cp.arm64.conv.conv.weight": "cp.arm64.conv.conv.weight",
        "cp.backbone.features.0.conv.bias": "cp.backbone.features.0.conv.bias",
        # Under the alias only, which must not hide it.
        "cp.backbone.x8.0.2.conv_list.4.bn.bias": "cp.backbone.features.2.conv_list.4.bn.bias",
    },
)

#: An official network that was retrained with plain norms.
OFFICIAL_PLAIN = dataclasses.replace(
    OFFICIAL,
    network=lambda variant, classes: Official(variant, classes, nn.BatchNorm2d),
    sizes={"stdc1": [(2, 97, 131)], "stdc2": [(1, 97, 131)]},
)
