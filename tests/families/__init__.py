"""The other code bases' STDC-Seg networks in small: what a checkpoint of theirs must compute.

Written from the facts of each layout (names, graph, norms) and sharing no code with stdc_fast, so that
a mistake of the package is not made a second time here. Training heads exist, since their tensors are in
the files, but never run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from families.mmseg import MMSEG
from families.official import OFFICIAL, OFFICIAL_PLAIN, Official
from families.parts import BLOCKS, CodeBase
from families.super_gradients import SUPER_GRADIENTS

__all__ = ["BLOCKS", "RENAMED", "ROWS", "CodeBase", "build", "randomise"]

#: By family; "official-plain" are networks of the official one with plain norms.
ROWS = {
    "official": OFFICIAL,
    "official-plain": OFFICIAL_PLAIN,
    "mmseg": MMSEG,
    "super-gradients": SUPER_GRADIENTS,
}
#: The families whose tensors have other names than ours.
RENAMED = tuple(f for f in ROWS if not f.startswith("official"))


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
    network = ROWS[family].network(variant, classes)
    randomise(network, seed)
    if isinstance(network, Official):  # its conv_last ran only when the backbone was trained
        network.cp.backbone.conv_last.bn.num_batches_tracked.fill_(20000)
    return network.eval()
