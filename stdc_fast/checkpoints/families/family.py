"""The record of one code base's checkpoints, and the key map that most of them need."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.checkpoints.containers import Content

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Said:
    """What a checkpoint says of its network beyond tensors.

    Attributes:
        options: of those in :data:`stdc_fast.checkpoints.options.OPTIONS`.
        origins: where each was read, by its name.
        classes, palette: names of the classes and their RGB colours, or None.
        notes: what cannot be seen in the file, and was taken as published.
        unsure: why an option must be told, by its name.
    """

    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    classes: object = None
    palette: object = None
    notes: tuple[str, ...] = ()
    unsure: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _says_nothing(content: Content, state: State) -> Said:
    return Said()


def _unchanged(state: State, options: Mapping[str, object]) -> tuple[State, str]:
    return state, ""


@dataclasses.dataclass(frozen=True)
class Family:
    """How one code base names and stores STDC networks. Functions leave their argument as it is.

    Attributes:
        name: what reports and ``Checkpoint.family`` call it.
        names: pattern of names that only segmentation networks of this family have, matched from the start.
        training_only: pattern of the names of what only training uses; such tensors are dropped first.
        rename: gives the other tensors their canonical names; UserError if two get the same.
        said: what the file, and its tensors under canonical names, say of its network besides; UserError for
            what no network here has.
        convert: changes values of the renamed tensors by the options; returns them, and a note for the report
            or "".
        classifier_bias: whether the classifier must have a bias; it may have one in any family.
        backbone_names: pattern of names that only classification backbones of this code base have, or None.
        backbone: gives such a backbone the names ``features.*``, and leaves out what only classifies.
    """

    name: str
    names: str
    training_only: str
    rename: Callable[[State], State]
    said: Callable[[Content, State], Said] = _says_nothing
    convert: Callable[[State, Mapping[str, object]], tuple[State, str]] = _unchanged
    classifier_bias: bool = False
    backbone_names: str | None = None
    backbone: Callable[[State], State] | None = None

    def holds(self, tensors: Collection[str]) -> bool:
        """Whether the names are those of a segmentation network of this family."""
        return _any_name(self.names, tensors)

    def holds_backbone(self, tensors: Collection[str]) -> bool:
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
        made: names that were made before, as the rules take a seventh of the time of a load.
    """

    block: str
    stages: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    made: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __call__(self, tensors: State) -> State:
        first = self._first_blocks(tensors)
        state, block = {}, re.compile(self.block)
        for key, value in tensors.items():
            name, found = key, block.match(key)
            if found and found[1] in first:
                index = first[found[1]] + int(found[2] or 0)
                name = f"cp.backbone.features.{index}.{key[found.end() :]}"
            name = self.made.get(name) or self._by_rules(name)
            if name in state:
                raise UserError(
                    f"{key} stands for {name}, which is there already; the checkpoint mixes two layouts"
                )
            state[name] = value
        return state

    def _by_rules(self, name: str) -> str:
        made = name
        for pattern, replacement in self.rules:
            made = re.sub(pattern, replacement, made)
        if len(self.made) < 4096:  # names are the file's, and a file may have any number
            self.made[name] = made
        return made

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


def merge_aliases(state: State, aliases: Mapping[str, tuple[str, Tensor]]) -> State:
    """``state`` with second names (by the first: second name, tensor) merged; UserError where they differ."""
    merged = dict(state)
    for name, (key, value) in aliases.items():
        if name not in merged:
            merged[name] = value
        elif not same(merged[name], value):
            raise UserError(
                f"{key} and {name} should be the same tensor but differ; the checkpoint is damaged"
            )
    return merged


def same(a: Tensor, b: Tensor) -> bool:
    """Whether values and shapes are; without a look at them where both are one place in memory."""
    one = (
        a.data_ptr() == b.data_ptr()
        and a.stride() == b.stride()
        and a.shape == b.shape
        and a.dtype == b.dtype
    )
    return (one and not a.is_meta) or torch.equal(a, b)


def _any_name(pattern: str, tensors: Collection[str]) -> bool:
    return any(re.match(pattern, name) for name in tensors)
