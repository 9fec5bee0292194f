"""The paper's own code, official STDC-Seg, whose names without aliases are the canonical ones."""

from __future__ import annotations

import re

import torch

from stdc_fast.checkpoints.families.family import Family, State
from stdc_fast.errors import UserError


def _drop_aliases(tensors: State) -> State:
    """Drop the second name (``x8.0.2`` for ``features.2``) of each backbone tensor."""
    state, aliases = {}, {}
    for key, value in tensors.items():
        alias = re.match(r"cp\.backbone\.x\d+\.0\.(\d+\..+)", key)
        if alias:
            aliases[f"cp.backbone.features.{alias[1]}"] = (key, value)
        else:
            state[key] = value
    for name, (key, value) in aliases.items():
        if name not in state:
            state[name] = value
        elif not torch.equal(state[name], value):
            raise UserError(
                f"{key} and {name} should be the same tensor but differ; the checkpoint is damaged"
            )
    return state


def _plain_norm(state: State) -> tuple[State, str]:
    """In-place batch norm of the decoder, which scales by ``|gamma| + 1e-5``, as plain batch norm.

    In-place batch norm counts no batches, which tells it from the plain norm of retrained files.
    """
    decoder = [k for k in state if not k.startswith("cp.backbone.")]
    if any(k.endswith("num_batches_tracked") for k in decoder):
        return state, ""
    converted = dict(state)
    for key in decoder:
        # Integers stay as they are, to be refused as such.
        if re.search(r"\.(bn|bn_atten)\.weight$", key) and state[key].is_floating_point():
            converted[key] = state[key].double().abs() + 1e-5
    return converted, "in-place batch norm of the decoder converted (|gamma| + 1e-5)"


def _features(tensors: State) -> State:
    return {k: v for k, v in tensors.items() if k.startswith("features.")}


FAMILY = Family(
    name="official",
    names=r"cp\.backbone\.(features\.|x\d+\.)",
    training_only=r"conv_out(16|32|_sp\d+)\.|cp\.backbone\.(conv_last|fc|bn|linear)\.",
    rename=_drop_aliases,
    convert=_plain_norm,
    backbone_names=r"features\.",
    backbone=_features,
)
