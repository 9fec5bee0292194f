"""Files of the paper's own code."""

from __future__ import annotations

import re
from collections.abc import Callable

from stdc_fast.checkpoints.canonical import Checkpoint
from stdc_fast.checkpoints.families import State
from stdc_fast.checkpoints.writers.names import place
from stdc_fast.checkpoints.writers.norms import in_place
from stdc_fast.checkpoints.writers.writer import (
    BIASES,
    EPS,
    MEAN,
    STD,
    Writer,
    Written,
    averages_differ,
    eps_of,
    normalisation,
    refuse,
    unkept,
    with_counters,
    without_zero_biases,
)

_BACKBONE = "cp.backbone."
_HEADS = (
    "the training heads and the classifier of ImageNet are not in it, so load it with "
    "load_state_dict(..., strict=False)"
)


def _aliased(state: State, variant: str) -> State:
    """With the second name of each backbone tensor, behind the backbone as that code has it."""
    backbone = {k: v for k, v in state.items() if k.startswith(_BACKBONE)}
    aliases = {}
    for key, value in backbone.items():
        if found := re.match(r"cp\.backbone\.features\.(\d+)\.", key):
            stage, _ = place(int(found[1]), variant)
            alias = f"{_BACKBONE}x{2 << stage}.0.{key.removeprefix(_BACKBONE + 'features.')}"
            aliases[alias] = value
    return {**backbone, **aliases, **{k: v for k, v in state.items() if k not in backbone}}


def _content(norms: Callable[[State], tuple[State, str]], biases: bool) -> Callable[[Checkpoint], Written]:
    """``biases``: whether the code that loads the file may be given biases that the published one lacks."""

    def content(checkpoint: Checkpoint) -> Written:
        metadata = checkpoint.metadata
        state = without_zero_biases(checkpoint.state, BIASES)
        reasons = averages_differ(checkpoint)
        if not metadata.get("align_corners", True):
            reasons.append("align_corners=False")
        if set(eps_of(checkpoint).values()) != {EPS}:
            reasons.append(f"eps={metadata['eps']} (its norms have {EPS})")
        biased = [k for k in BIASES if k in state]
        if biased and not biases:
            reasons.append(f"a bias ({', '.join(biased)}; with --to official-plain it is kept)")
        refuse("official STDC-Seg", reasons, "keep it with --to safetensors, or use --to mmseg")
        state, note = norms(state)
        notes = [_HEADS, note]
        if biased:
            notes.append(f"give its modules the bias that they lack ({', '.join(biased)})")
        if metadata.get("conv_last"):
            notes.append("build the network with use_conv_last=True")
        if checkpoint.module == "add":
            notes.append('build its backbone with type="add"')
        if normalisation(checkpoint) != (MEAN, STD):
            mean, std = normalisation(checkpoint)
            notes.append(f"its images have to be normalised with mean {mean} and deviation {std}")
        notes += unkept(checkpoint, "classes", "palette", "threshold", "short_side", "scale")
        return _aliased(state, checkpoint.variant), notes

    return content


def _counted(state: State) -> State:
    # Where conv_last is used, its counter must be that of the rest and not 0: by that readers can tell it.
    return with_counters(state, int(any(k.startswith(f"{_BACKBONE}conv_last.") for k in state)))


def _plain(state: State) -> tuple[State, str]:
    return _counted(state), "its decoder needs nn.BatchNorm2d in the place of in-place batch norm"


def _in_place(state: State) -> tuple[State, str]:
    state, note = in_place(state)
    backbone = {k: v for k, v in state.items() if k.startswith(_BACKBONE)}
    return _counted(backbone) | {k: v for k, v in state.items() if k not in backbone}, note


def _backbone(state: State, variant: str) -> Written:
    note = f"{variant}, the classifier of ImageNet is not in it; that code loads the rest where it trains"
    return {"state_dict": with_counters(state)}, [note]


OFFICIAL = Writer("official", _content(_in_place, biases=False), _backbone)
OFFICIAL_PLAIN = Writer("official-plain", _content(_plain, biases=True), _backbone)
