"""The network of super-gradients 3.7.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from families.parts import (
    CodeBase,
    Wired,
    cascade,
    chain,
    conv,
    dense,
    stages_of,
    steps_of,
    unit,
)


def sg_unit(*args: int, **kwargs: object) -> nn.Module:
    return chain(seq=unit(*args, **kwargs))


def sg_block(cin: int, cout: int, stride: int) -> nn.Module:
    layers = [sg_unit(*step) for step in steps_of(cin, cout)]
    if stride == 2:
        half = cout // 2
        layers[1] = nn.Sequential(sg_unit(half, half, 3, 2, half, relu=False), layers[1])
    return Wired(lambda m, x: dense(x, list(m.conv_list), stride), conv_list=nn.ModuleList(layers))


class SuperGradients(nn.Module):
    """Keys ``cp.backbone.stages.block_s*``, ``cp.*``, ``ffm.*``, ``segmentation_head``.

    It enlarges by fixed factors, so H and W must be multiples of 32.
    """

    def __init__(self, variant: str, classes: int):
        super().__init__()

        def arm(cin: int) -> nn.Module:
            def wire(m: nn.Module, x: Tensor) -> Tensor:
                x = m.conv_first(x)
                return x * m.attention_block(x)

            gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), sg_unit(128, 128, 1, relu=False), nn.Sigmoid())
            return Wired(wire, conv_first=sg_unit(cin, 128), attention_block=gate)

        def head(cin: int, mid: int, out: int) -> nn.Module:
            return chain(seg_head=nn.Sequential(sg_unit(cin, mid), nn.Dropout(), conv(mid, out)))

        def double() -> nn.Module:
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), sg_unit(128, 128))

        def enlarge(factor: int) -> nn.Module:
            return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)

        def fuse(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            x = m.pw_conv(torch.cat([x, y], 1))
            return x * m.attention_block(x) + x

        gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            chain(seq=chain(conv=conv(256, 64), relu=nn.ReLU())),
            conv(64, 256),
            nn.Sigmoid(),
        )
        self.cp = nn.Module()
        self.cp.backbone = nn.Module()
        self.cp.backbone.stages = nn.ModuleDict(
            {
                "block_s2": nn.Sequential(sg_unit(3, 32, stride=2)),
                "block_s4": nn.Sequential(sg_unit(32, 64, stride=2)),
            }
        )
        for i, stage in enumerate(stages_of(variant, sg_block)):
            self.cp.backbone.stages[f"block_s{8 << i}"] = nn.Sequential(*stage)
        context = nn.Sequential(nn.AdaptiveAvgPool2d(1), sg_unit(1024, 128, 1))
        self.cp.context_embedding = chain(context_embedding=context)
        self.cp.arm32, self.cp.upsample32 = arm(1024), double()
        self.cp.arm16, self.cp.upsample16 = arm(512), double()
        self.ffm = Wired(fuse, pw_conv=sg_unit(384, 256, 1), attention_block=gate)
        self.segmentation_head = nn.Sequential(head(256, 256, classes), enlarge(8))
        self.aux_head_s16 = nn.Sequential(head(512, 64, classes), enlarge(16))
        self.aux_head_s32 = nn.Sequential(head(1024, 64, classes), enlarge(32))
        self.detail_head8 = head(256, 64, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        return cascade(x, self.cp.backbone.stages.values())

    def forward(self, x: Tensor) -> Tensor:
        cp = self.cp
        f8, f16, f32 = self.features(x)[2:]
        y = cp.upsample32(cp.arm32(f32) + cp.context_embedding(f32))
        y = cp.upsample16(cp.arm16(f16) + y)
        return self.segmentation_head(self.ffm(f8, y))


def _super_gradients_file(state: dict[str, Tensor]) -> dict[str, object]:
    # The plain weights beside the averaged ones that are wanted.
    raw = {k: v + 1 for k, v in state.items()}
    return {"net": raw, "ema_net": state, "epoch": 7, "acc": torch.tensor(0.7)}


SUPER_GRADIENTS = CodeBase(
    SuperGradients,
    training_only=("aux_head_s16.", "aux_head_s32.", "detail_head8."),
    dropped=3 * 6,
    sizes={"stdc1": [(1, 512, 1024), (1, 736, 960), (2, 64, 96)], "stdc2": [(1, 96, 160)]},
    samples={
        "cp.upsample32.1.seq.conv.weight": "cp.conv_head32.conv.weight",
        "ffm.pw_conv.seq.bn.weight": "ffm.convblk.bn.weight",
        "cp.backbone.stages.block_s32.0.conv_list.1.0.seq.bn.weight": (
            "cp.backbone.features.6.avd_layer.1.weight"
        ),
    },
    strangers={"ffm.attention_block.2.bias": "ffm.conv2.bias"},
    contents=_super_gradients_file,
)
