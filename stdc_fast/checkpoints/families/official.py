"""The paper's own code, official STDC-Seg, whose names without aliases are the canonical ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stdc_fast.checkpoints.families.family import Family, Said, State, merge_aliases

if TYPE_CHECKING:
    from stdc_fast.checkpoints.containers import Content

_NORM = re.compile(r"(.+\.(?:bn|bn_atten))\.weight$")
_LAST, _FIRST = (
    "cp.backbone.conv_last.bn.num_batches_tracked",
    "cp.backbone.features.0.bn.num_batches_tracked",
)


def drop_aliases(tensors: State) -> State:
    """Drop the second name (``x8.0.2`` for ``features.2``) of each backbone tensor."""
    state, aliases = {}, {}
    for key, value in tensors.items():
        alias = re.match(r"((?:cp\.backbone\.)?)x\d+\.0\.(\d+\..+)", key)
        if alias:
            aliases[f"{alias[1]}features.{alias[2]}"] = (key, value)
        else:
            state[key] = value
    return merge_aliases(state, aliases)


def _said(content: Content, state: State) -> Said:
    options, origins, unsure = {}, {}, {}
    kind, origin = _kind_of_norm(content, state)
    if kind is not None:
        options["batch_norm"], origins["batch_norm"] = kind, origin
    elif any(not k.startswith("cp.backbone.") and _NORM.match(k) for k in state):
        unsure["batch_norm"] = (
            "has no batch counters, so that the decoder's batch norm may be in-place, which scales by "
            "|gamma| + 1e-5 as the published weights do, or plain; say batch_norm='in-place' or 'plain'"
        )
    # conv_last is in every file, and its norm counts batches where the forward runs it.
    counts = [_count(state.get(name)) for name in (_LAST, _FIRST)]
    if None not in counts and counts[0] != counts[1]:
        options["conv_last"], origins["conv_last"] = False, "batch counters"
    elif counts[0]:
        unsure["conv_last"] = (
            f"has run its conv_last in training as often as the rest, {counts[0]} batches; say "
            "conv_last=True if it was trained with --use_conv_last, else conv_last=False"
        )
    return Said(options, origins, unsure=unsure)


def _count(counter: Tensor | None) -> int | None:
    if counter is None or counter.numel() != 1 or counter.is_meta or counter.is_complex():
        return None
    return int(counter) if bool(torch.isfinite(counter)) else None  # in half precision 65,504 is the most


def _kind_of_norm(content: Content, state: State) -> tuple[str | None, str]:
    """Of the decoder, and how that is known.

    In-place batch norm counts no batches, and its class has the version 1, that of plain batch norm 2. The
    backbone's is plain, so that its counters tell whether counters were kept at all.
    """
    decoder = [m[1] for k in state if not k.startswith("cp.backbone.") and (m := _NORM.match(k))]
    if any(f"{name}.num_batches_tracked" in state for name in decoder):
        return "plain", "batch counters"
    if any(k.startswith("cp.backbone.") and k.endswith("num_batches_tracked") for k in state):
        return "in-place", "batch counters"
    versions = {content.versions.get(name) for name in decoder}
    if versions == {2}:
        return "plain", "module versions"
    if versions == {1}:
        return "in-place", "module versions"
    return None, ""


def plain_norm(state: State, options: Mapping[str, object]) -> tuple[State, str]:
    """In-place batch norm of the decoder, which scales by ``|gamma| + 1e-5``, as plain batch norm."""
    if options.get("batch_norm") != "in-place":
        return state, ""
    decoder = [k for k in state if not k.startswith("cp.backbone.") and _NORM.match(k)]
    converted = dict(state)
    for key in decoder:
        # Integers, and what is too large for a norm, stay as they are, to be refused as such.
        if state[key].is_floating_point() and state[key].numel() <= 1 << 16:
            converted[key] = state[key].double().abs() + 1e-5
    return converted, "in-place batch norm of the decoder converted (|gamma| + 1e-5)"


def backbone(tensors: Mapping[str, Tensor]) -> State:
    return {k: v for k, v in drop_aliases(dict(tensors)).items() if k.startswith("features.")}


FAMILY = Family(
    name="official",
    names=r"cp\.backbone\.(features\.|x\d+\.)",
    training_only=r"conv_out(16|32|_sp\d+)\.|cp\.backbone\.(fc|bn|linear)\.",
    rename=drop_aliases,
    said=_said,
    convert=plain_norm,
    backbone_names=r"(features|x\d+\.0)\.\d+\.(conv|bn|conv_list|avd_layer)\.",
    backbone=backbone,
)
