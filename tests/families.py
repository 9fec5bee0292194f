"""The other code bases' STDC-Seg networks in small: what a checkpoint of theirs must compute.

Written from the facts of each layout (names, graph, norms) and sharing no code with stdc_fast, so that
a mistake of the package is not made a second time here. Training heads exist, since their tensors are in
the files, but never run.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}
FAMILIES = ("official", "official-plain", "mmseg", "super-gradients")

_OFFICIAL = (
    *(f"conv_out{i}." for i in ("16", "32", "_sp2", "_sp4", "_sp8", "_sp16")),
    *(f"cp.backbone.{i}." for i in ("conv_last", "fc", "bn", "linear")),
)
#: Prefixes of what only training uses.
TRAINING_ONLY = {
    "official": _OFFICIAL,
    "official-plain": _OFFICIAL,
    "mmseg": ("auxiliary_head.",),
    "super-gradients": ("aux_head_s16.", "aux_head_s32.", "detail_head8."),
}


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


class Wired(nn.Module):
    """Children under the names that the files use, and a function that says how they are connected."""

    def __init__(self, wire: Callable[..., Tensor], **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.wire = wire

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.wire(self, *inputs)


def chain(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def conv(cin: int, cout: int, k: int = 1, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=bias)


def unit(cin, cout, k=3, stride=1, groups=1, relu=True, norm=nn.BatchNorm2d) -> nn.Sequential:
    """``conv``, ``bn`` and, without tensors, ReLU."""
    parts = {"conv": conv(cin, cout, k, stride, groups), "bn": norm(cout)}
    return chain(**parts, relu=nn.ReLU()) if relu else chain(**parts)


def pool(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def cascade(x: Tensor, steps: Iterable[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """Every step's output, each fed by the one before."""
    outputs = []
    for step in steps:
        x = step(x)
        outputs.append(x)
    return outputs


def dense(x: Tensor, steps: list[Callable[[Tensor], Tensor]], stride: int) -> Tensor:
    """The outputs of a cascade concatenated; the first is pooled where the second strides."""
    outputs = cascade(x, steps)
    if stride == 2:
        outputs[0] = F.avg_pool2d(outputs[0], 3, stride=2, padding=1)
    return torch.cat(outputs, 1)


def steps_of(cin: int, cout: int) -> list[tuple[int, int, int]]:
    """(in, out, kernel) of a block's four convolutions."""
    half, quarter, eighth = cout // 2, cout // 4, cout // 8
    return [(cin, half, 1), (half, quarter, 3), (quarter, eighth, 3), (eighth, eighth, 3)]


def stages_of(variant: str, block: Callable[[int, int, int], nn.Module]) -> Iterator[list[nn.Module]]:
    """The blocks of the stages at 1/8, 1/16 and 1/32."""
    width = 64
    for out, count in zip((256, 512, 1024), BLOCKS[variant], strict=True):
        yield [block(out if i else width, out, 1 if i else 2) for i in range(count)]
        width = out


def nearest(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="nearest")


def bilinear(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


# ---- official STDC-Seg -----------------------------------------------------------------------------


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


# ---- mmsegmentation 1.2.2 --------------------------------------------------------------------------


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


# ---- super-gradients 3.7.1 -------------------------------------------------------------------------


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


# ---- making networks and files ---------------------------------------------------------------------


def randomise(network: nn.Module, seed: int) -> None:
    """Random weights and statistics of a trained network's size; a quarter of all norm weights negative."""
    g = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=g) * (high - low) + low

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=g) * std

    with torch.no_grad():
        for m in network.modules():
            if hasattr(m, "running_var"):
                sign = torch.where(uniform(m.weight, 0, 1) < 0.25, -1.0, 1.0)
                m.weight.copy_(uniform(m.weight, 0.5, 1.5) * sign)
                m.bias.copy_(normal(m.bias, 0.2))
                m.running_mean.copy_(normal(m.running_mean, 0.2))
                m.running_var.copy_(uniform(m.running_var, 0.5, 1.5))
                if hasattr(m, "num_batches_tracked"):
                    m.num_batches_tracked.fill_(60000)
            elif isinstance(m, (nn.Conv2d, nn.Linear)):
                m.weight.copy_(normal(m.weight, math.sqrt(2 / m.weight[0].numel())))
                if m.bias is not None:
                    m.bias.copy_(normal(m.bias, 0.5))


def build(family: str, variant: str, classes: int = 19, seed: int = 0) -> nn.Module:
    """A float32 network of the family in eval mode with random weights."""
    network = {
        "official": Official,
        "official-plain": lambda v, n: Official(v, n, nn.BatchNorm2d),
        "mmseg": Mmseg,
        "super-gradients": SuperGradients,
    }[family](variant, classes)
    randomise(network, seed)
    return network.eval()


def contents(family: str, state: dict[str, Tensor]) -> dict[str, object]:
    """What the family's training writes around a state dict."""
    if family == "mmseg":
        meta = {"CLASSES": ("road", "sidewalk"), "PALETTE": [[128, 64, 128]], "config": "model = dict()\n"}
        return {"meta": meta, "state_dict": state}
    if family == "super-gradients":
        # The plain weights beside the averaged ones that are wanted.
        raw = {k: v + 1 for k, v in state.items()}
        return {"net": raw, "ema_net": state, "epoch": 7, "acc": torch.tensor(0.7)}
    return state
