"""PaddleSeg 2.x, whose names are the official ones but for the parts of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stdc_fast.checkpoints.families.family import Family, Said, State
from stdc_fast.checkpoints.families.official import backbone, drop_aliases

if TYPE_CHECKING:
    from stdc_fast.checkpoints.containers import Content

_PARTS = (
    ("._conv.", ".conv."),
    ("._batch_norm.", ".bn."),
    ("._mean", ".running_mean"),
    ("._variance", ".running_var"),
)
# Convolutions with a bias, by the norm that follows them.
_NORMS = {".conv.bias": ".bn.running_mean", ".conv_atten.bias": ".bn_atten.running_mean"}


def _rename(tensors: Mapping[str, Tensor]) -> State:
    state = {}
    for key, value in tensors.items():
        for part, ours in _PARTS:
            key = key.replace(part, ours)
        # NumPy has no bfloat16; PaddlePaddle writes its bits as uint16.
        state[key] = value.view(torch.bfloat16) if value.dtype == torch.uint16 else value
    return drop_aliases(state)


def _said(content: Content, state: State) -> Said:
    # Its pools leave the padding out of their average, and its configurations normalise to -1..1.
    options = {"count_include_pad": False, "mean": [0.5] * 3, "std": [0.5] * 3}
    return Said(options, dict.fromkeys(options, "PaddleSeg's own defaults"))


def _fold_biases(state: State, options: Mapping[str, object]) -> tuple[State, str]:
    """Biases before a norm as part of its mean, in float64."""
    folded, count = dict(state), 0
    for key, bias in state.items():
        end = next((e for e in _NORMS if key.endswith(e)), None)
        mean = key.removesuffix(end) + _NORMS[end] if end else None
        if mean in folded and folded[mean].shape == bias.shape and bias.is_floating_point():
            folded[mean] = folded[mean].double() - bias.double()
            del folded[key]
            count += 1
    return folded, f"{count} biases became part of the norms behind them" if count else ""


FAMILY = Family(
    name="paddle",
    names=r"cp\.(arm\d+\.conv|conv_avg|conv_head\d+)\._(conv|batch_norm)\.",
    training_only=r"conv_out(8|16|_sp\d+)\.",
    rename=_rename,
    said=_said,
    convert=_fold_biases,
    backbone_names=r"features\.\d+\.(.*\.)?_mean$",
    backbone=lambda tensors: backbone(_rename(tensors)),
)
