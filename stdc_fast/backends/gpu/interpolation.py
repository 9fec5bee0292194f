"""Bilinear interpolation as tables: which numbers a line of the result reads, and their weights."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=256)
def cells(
    logits: tuple[int, int],
    labels: tuple[int, int],
    between: tuple[int, int] | None,
    device: torch.device,
) -> tuple[dict[str, Tensor], int]:
    """The tables of ``kernels/upsample.py``, by their names there, and the most columns that a cell has.

    They are kept, so that there is nothing to copy from the host where somebody captures a graph.

    Args:
        logits, labels: (H, W).
        between: (H, W) to which logits are interpolated first.
    """
    rows, row_weights = interpolation(logits[0], labels[0], between and between[0])
    columns, column_weights = interpolation(logits[1], labels[1], between and between[1])
    starts = torch.searchsorted(columns, torch.arange(logits[1] + 1, dtype=torch.int32)).to(torch.int32)
    tables = {
        "row_base": rows,
        "row_weight": row_weights,
        "column_start": starts,
        "column_weight": column_weights,
    }
    most = int((starts[1:] - starts[:-1]).max())
    return {name: table.to(device) for name, table in tables.items()}, most


def interpolation(source: int, target: int, between: int | None = None) -> tuple[Tensor, Tensor]:
    """How a bilinear interpolation with align_corners=True reads a line of ``source`` numbers.

    Args:
        target: numbers of the result.
        between: interpolate to as many first, then from these; three taps instead of two.

    Returns the first of the consecutive numbers that each result reads, int32 ``[target]``, not falling, and
    their weights, float32 ``[target, 2 or 3]``, computed in float32 as torch does.
    """
    if between is None:
        base, part = _bilinear(source, target)
        return base, torch.stack([1 - part, part], 1)
    second, part = _bilinear(between, target)
    first, inner = _bilinear(source, between)
    following = (second + 1).clamp(max=between - 1).long()
    second = second.long()
    base, weights = first[second], torch.zeros(target, 3)
    for index, share in ((second, 1 - part), (following, part)):
        shift = first[index] - base
        for tap, weight in ((shift, 1 - inner[index]), (shift + 1, inner[index])):
            weights.scatter_add_(1, tap.long()[:, None], (share * weight)[:, None])
    return base, weights


def _bilinear(source: int, target: int) -> tuple[Tensor, Tensor]:
    """(index, share of the next) of each of ``target`` numbers."""
    scale = torch.tensor((source - 1) / (target - 1) if target > 1 else 0.0, dtype=torch.float32)
    place = torch.arange(target, dtype=torch.float32) * scale
    index = place.to(torch.int32).clamp(max=source - 1)
    return index, place - index
