"""The record of one format that checkpoints are written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch

from stdc_fast.checkpoints.canonical import Checkpoint
from stdc_fast.checkpoints.families import State
from stdc_fast.checkpoints.options import OPTIONS, PARTS
from stdc_fast.errors import UserError

#: What the published networks have where a checkpoint's metadata says nothing.
EPS, MEAN, STD = (OPTIONS[name][2] for name in ("eps", "mean", "std"))

#: Convolutions of the decoder may have these; the published network's have none.
BIASES = ("conv_out.conv_out.bias", "ffm.conv1.bias", "ffm.conv2.bias")

#: Content of a file, and what of the network it does not hold, a sentence each.
Written = tuple[dict[str, object], list[str]]


@dataclasses.dataclass(frozen=True)
class Writer:
    """How one code base's files are written. Functions leave their arguments as they are.

    Attributes:
        name: as of ``--to``.
        content: what ``torch.save`` is to write of a checkpoint; UserError for a network that the code base
            cannot express.
        backbone: the same of a classification backbone, tensors ``features.*`` with the network's name.
    """

    name: str
    content: Callable[[Checkpoint], Written]
    backbone: Callable[[State, str], Written]


def eps_of(checkpoint: Checkpoint) -> dict[str, float]:
    """The norms' eps by part of the network."""
    given = checkpoint.metadata.get("eps", EPS)
    return {part: given.get(part, EPS) if isinstance(given, Mapping) else given for part in PARTS}


def normalisation(checkpoint: Checkpoint) -> tuple[list[float], list[float]]:
    """Mean and deviation that images are normalised with, RGB of 0..1."""
    return list(checkpoint.metadata.get("mean", MEAN)), list(checkpoint.metadata.get("std", STD))


def refuse(name: str, reasons: list[str], remedy: str) -> None:
    """UserError if there are reasons why the code base called ``name`` has no such network."""
    if reasons:
        raise UserError(f"{name} has no network with {', '.join(reasons)}; {remedy}")


def without_zero_biases(state: State, biases: tuple[str, ...]) -> State:
    """Without those of these biases that are zero everywhere, which change nothing."""
    return {k: v for k, v in state.items() if k not in biases or v.any()}


def averages_differ(checkpoint: Checkpoint) -> list[str]:
    """Why no torch code base has the network, if its average pools leave the border out."""
    excluded = checkpoint.module == "cat" and not checkpoint.metadata.get("count_include_pad", True)
    return (
        ["count_include_pad=False (PaddleSeg's average pools, which leave the border out)"]
        if excluded
        else []
    )


def unkept(checkpoint: Checkpoint, *names: str) -> list[str]:
    """The line that says which of these values the file does not hold; none where there are none."""
    lost = [name for name in names if checkpoint.metadata.get(name) is not None]
    return [f"the file has no place for {', '.join(lost)}"] if lost else []


def with_counters(state: State, count: int = 0) -> State:
    """With a batch counter behind each norm that has none: plain batch norm stores one."""
    result = {}
    for key, value in state.items():
        result[key] = value
        norm = key.removesuffix("running_var")
        if norm != key and f"{norm}num_batches_tracked" not in state:
            result[f"{norm}num_batches_tracked"] = torch.tensor(count)
    return result
