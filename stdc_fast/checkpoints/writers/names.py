"""Canonical names as those of other code bases: the way back from what the families' ``rename`` does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from stdc_fast.checkpoints.families import State
from stdc_fast.reference.networks import STAGES

_BLOCK = re.compile(r"cp\.backbone\.features\.(\d+)\.")


def place(index: int, variant: str) -> tuple[int, int]:
    """(stage, block in it) of the backbone's block of that number; stages 0 to 4 are at 1/2 to 1/32."""
    for stage, count in enumerate((1, 1, *STAGES[variant])):
        if index < count:
            return stage, index
        index -= count
    raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a code base calls the modules of the network.

    Attributes:
        stages: by stage what its blocks' names start with; ``#`` stands for the number of the block in it.
        modules: pairs of our name and theirs; the first that fits counts. ``#`` is any number. Blocks of the
            backbone are ``block``, or ``halving`` for the first ones of the stages from 1/8 on.
    """

    stages: tuple[str, ...]
    modules: tuple[tuple[str, str], ...]

    def __call__(self, name: str, variant: str) -> str:
        """Their name of the tensor that has this canonical name; KeyError if they have no such module."""
        prefix = ""
        if found := _BLOCK.match(name):
            stage, block = place(int(found[1]), variant)
            prefix = self.stages[stage].replace("#", str(block))
            name = ("halving." if stage > 1 and block == 0 else "block.") + name[found.end() :]
        for ours, theirs in self.modules:
            pattern = re.escape(ours).replace(r"\#", r"(\d+)").replace("block", "(?:block|halving)")
            if found := re.match(rf"{pattern}(?=\.)", name):
                number = found[1] if found.groups() else ""
                return prefix + theirs.replace("#", number) + name[found.end() :]
        raise KeyError(name)


def canonical_order(state: State, names: Iterable[str]) -> State:
    """The tensors in the order of ``names``, which a reference network has; what it lacks is last."""
    return {k: state[k] for k in [*(n for n in names if n in state), *(k for k in state)]}


def ordered(state: State, starts: Iterable[str]) -> State:
    """The tensors whose names start so, in the order of the starts; every tensor must have one of them."""
    result = {k: v for start in starts for k, v in state.items() if k.startswith(start)}
    if missing := state.keys() - result.keys():
        raise KeyError(", ".join(sorted(missing)))
    return result
