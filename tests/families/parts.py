"""What the code bases' networks are built of, and the record of one code base."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {"stdc1": (2, 2, 2), "stdc2": (4, 5, 3)}
# CamVid's 720x960 gives odd maps (45x60, 23x30), where upsampling by two would be wrong.
LARGE = [(1, 512, 1024), (1, 720, 960), (2, 97, 131)]


@dataclasses.dataclass(frozen=True)
class CodeBase:
    """A code base's network, and facts of its files that reading must reproduce.

    ``network(variant, classes)`` builds it and ``contents`` is what its training writes around a state dict.
    ``training_only`` are prefixes of what only training uses, ``dropped`` the number of such tensors.
    ``sizes`` are inputs [N, H, W] by variant on which logits are compared. ``samples`` are some of its names
    with ours, ``strangers`` names that no network of it has, with what errors call them.
    """

    network: Callable[[str, int], nn.Module]
    training_only: tuple[str, ...]
    dropped: int
    sizes: dict[str, list[tuple[int, int, int]]]
    samples: dict[str, str]
    strangers: dict[str, str]
    classifier_bias: bool = False
    contents: Callable[[dict[str, Tensor]], dict[str, object]] = dict


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
