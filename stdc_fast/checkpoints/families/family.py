"""The record of one code base's checkpoints, and the key map that most of them need."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from torch import Tensor

from stdc_fast.errors import UserError

State = dict[str, Tensor]


def _unchanged(state: State) -> tuple[State, str]:
    return state, ""


@dataclasses.dataclass(frozen=True)
class Family:
    """How one code base names and stores STDC networks. Functions leave their argument as it is.

    Attributes:
        name: what reports and ``Checkpoint.family`` call it.
        names: pattern of names that only segmentation networks of this family have, matched from the start.
        training_only: pattern of the names of what only training uses; such tensors are dropped first.
        rename: gives the other tensors their canonical names; UserError if two get the same.
        convert: changes values of the renamed tensors; returns them, and a note for the report or "".
        classifier_bias: whether the classifier must have a bias; it may have one in any family.
        backbone_names: pattern of names that only classification backbones of this code base have, or None.
        backbone: gives such a backbone the names ``features.*``; None if its layout is not read.
    """

    name: str
    names: str
    training_only: str
    rename: Callable[[State], State]
    convert: Callable[[State], tuple[State, str]] = _unchanged
    classifier_bias: bool = False
    backbone_names: str | None = None
    backbone: Callable[[State], State] | None = None

    def holds(self, tensors: State) -> bool:
        """Whether the names are those of a segmentation network of this family."""
        return _any_name(self.names, tensors)

    def holds_backbone(self, tensors: State) -> bool:
        """Whether the names are those of a classification backbone of this code base."""
        return self.backbone_names is not None and _any_name(self.backbone_names, tensors)

    def trains_only(self, name: str) -> bool:
        """Whether only training uses the tensor of this name."""
        return re.match(self.training_only, name) is not None


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """A ``rename`` by rules: numbers the backbone's blocks through, then applies the rules in order.

    Attributes:
        block: pattern of the start of a backbone tensor's name, with groups (stage, block);
            a stage that is one block may leave the second group out.
        stages: the stages' names from 1/2 to 1/32.
        rules: (pattern, replacement) for ``re.sub``.
    """

    block: str
    stages: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]

    def __call__(self, tensors: State) -> State:
        first = self._first_blocks(tensors)
        state = {}
        for key, value in tensors.items():
            name, found = key, re.match(self.block, key)
            if found and found[1] in first:
                index = first[found[1]] + int(found[2] or 0)
                name = f"cp.backbone.features.{index}.{key[found.end() :]}"
            for pattern, replacement in self.rules:
                name = re.sub(pattern, replacement, name)
            if name in state:
                raise UserError(
                    f"{key} stands for {name}, which is there already; the checkpoint mixes two layouts"
                )
            state[name] = value
        return state

    def _first_blocks(self, tensors: State) -> dict[str, int]:
        """The number of each stage's first block among all blocks."""
        blocks = {stage: set() for stage in self.stages}
        for key in tensors:
            found = re.match(self.block, key)
            if found and found[1] in blocks:
                blocks[found[1]].add(int(found[2] or 0))
        first, offset = {}, 0
        for stage in self.stages:
            first[stage] = offset
            offset += len(blocks[stage])
        return first


def _any_name(pattern: str, tensors: State) -> bool:
    return any(re.match(pattern, name) for name in tensors)
