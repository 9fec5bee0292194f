"""The network of mmsegmentation 1.2.2."""

from __future__ import annotations

import torch
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


def mmseg_block(cin: int, cout: int, stride: int) -> nn.Module:
    def wire(m: nn.Module, x: Tensor) -> Tensor:
        first, second, *rest = m.layers
        down = m.downsample if stride == 2 else nn.Identity()
        return dense(x, [first, lambda y: second(down(y)), *rest], stride)

    block = Wired(wire, layers=nn.ModuleList(unit(*step) for step in steps_of(cin, cout)))
    if stride == 2:
        block.downsample = unit(cout // 2, cout // 2, 3, 2, cout // 2, relu=False)
    return block


class Mmseg(nn.Module):
    """Keys ``backbone.backbone.stages``, ``backbone.arms|convs|conv_avg|ffm``, ``decode_head``."""

    def __init__(self, variant: str, classes: int):
        super().__init__()

        def arm(cin: int) -> nn.Module:
            def wire(m: nn.Module, x: Tensor) -> Tensor:
                x = m.conv_layer(x)
                return x * m.atten_conv_layer(x)

            gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), unit(128, 128, 1, relu=False), nn.Sigmoid())
            return Wired(wire, conv_layer=unit(cin, 128), atten_conv_layer=gate)

        def head(cin: int, mid: int, out: int) -> nn.Module:
            def wire(m: nn.Module, x: Tensor) -> Tensor:
                return m.conv_seg(m.convs(x))

            return Wired(wire, convs=nn.Sequential(unit(cin, mid)), conv_seg=conv(mid, out, bias=True))

        def fuse(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            x = m.conv0(torch.cat([x, y], 1))
            return x * m.attention(x) + x

        attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            chain(conv=conv(256, 64), relu=nn.ReLU()),
            chain(conv=conv(64, 256)),
            nn.Sigmoid(),
        )
        self.backbone = nn.Module()
        self.backbone.backbone = nn.Module()
        self.backbone.backbone.stages = nn.ModuleList(
            [
                unit(3, 32, stride=2),
                unit(32, 64, stride=2),
                *(nn.Sequential(*stage) for stage in stages_of(variant, mmseg_block)),
            ]
        )
        self.backbone.arms = nn.ModuleList([arm(1024), arm(512)])
        self.backbone.convs = nn.ModuleList([unit(128, 128), unit(128, 128)])
        self.backbone.conv_avg = unit(1024, 128, 1)
        self.backbone.ffm = Wired(fuse, conv0=unit(384, 256, 1), attention=attention)
        self.decode_head = head(256, 256, classes)
        self.auxiliary_head = nn.ModuleList(
            [head(128, 64, classes), head(128, 64, classes), head(256, 64, 2)]
        )
        self.auxiliary_head[2].register_buffer("laplacian_kernel", torch.ones(1, 1, 3, 3))
        self.auxiliary_head[2].fusion_kernel = nn.Parameter(torch.ones(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        return cascade(x, self.backbone.backbone.stages)

    def forward(self, x: Tensor) -> Tensor:
        body, features = self.backbone, self.features(x)
        y = body.conv_avg(pool(features[4]))
        for i in range(2):
            source, target = features[4 - i], features[3 - i]
            y = body.convs[i](nearest(body.arms[i](source) + y, target))
        return bilinear(self.decode_head(body.ffm(features[2], y)), x)


def _mmseg_file(state: dict[str, Tensor]) -> dict[str, object]:
    meta = {"CLASSES": ("road", "sidewalk"), "PALETTE": [[128, 64, 128]], "config": "model = dict()\n"}
    return {"meta": meta, "state_dict": state}


MMSEG = CodeBase(
    Mmseg,
    training_only=("auxiliary_head.",),
    dropped=3 * 7 + 2,  # three heads with bias, two kernels
    sizes={"stdc1": LARGE, "stdc2": [(1, 97, 131), (2, 64, 96)]},
    samples={
        "backbone.arms.1.conv_layer.conv.weight": "cp.arm16.conv.conv.weight",
        "decode_head.convs.0.bn.weight": "conv_out.conv.bn.weight",
        "decode_head.conv_seg.weight": "conv_out.conv_out.weight",
        # Its classifier has a bias: without it the labels would be silently wrong.
        "decode_head.conv_seg.bias": "conv_out.conv_out.bias",
        "backbone.backbone.stages.3.1.layers.2.bn.bias": "cp.backbone.features.5.conv_list.2.bn.bias",
    },
    strangers={
        "backbone.arms.2.conv_layer.conv.weight": "backbone.arms.2.conv_layer.conv.weight",
        "backbone.ffm.attention.3.conv.weight": "backbone.ffm.attention.3.conv.weight",
    },
    classifier_bias=True,
    contents=_mmseg_file,
)
