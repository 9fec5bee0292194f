"""super-gradients 3.x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from stdc_fast.checkpoints.families.family import Family, KeyMap, Said, State
from stdc_fast.checkpoints.rebuild import value_of

if TYPE_CHECKING:
    from stdc_fast.checkpoints.containers import Content


def _said(content: Content, state: State) -> Said:
    """Names that its trainer keeps of the data set; its networks have no options that tensors do not show."""
    about = content.around.get("processing_params")
    return Said(classes=value_of(about.get("class_names")) if isinstance(about, Mapping) else None)


def _backbone(tensors: Mapping[str, Tensor]) -> State:
    return {
        k.removeprefix(_PREFIX): v
        for k, v in FAMILY.rename({f"cp.{k}": v for k, v in tensors.items()}).items()
        if k.startswith(_PREFIX + "features.")
    }


_PREFIX = "cp.backbone."

FAMILY = Family(
    name="super-gradients",
    names=r"cp\.backbone\.stages\.block_s",
    training_only=r"aux_head_s(16|32)\.|detail_head8\.",
    said=_said,
    rename=KeyMap(
        block=r"cp\.backbone\.stages\.(block_s\d+)\.(\d+)\.",
        stages=("block_s2", "block_s4", "block_s8", "block_s16", "block_s32"),
        rules=(
            (r"conv_list\.1\.0\.seq\.conv\.", "avd_layer.0."),
            (r"conv_list\.1\.0\.seq\.bn\.", "avd_layer.1."),
            (r"conv_list\.1\.1\.seq\.", "conv_list.1."),
            (r"^(cp\.backbone\..*)\.seq\.", r"\1."),
            (r"^(cp\.arm\d+)\.conv_first\.seq\.", r"\1.conv."),
            (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.conv\.", r"\1.conv_atten."),
            (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.bn\.", r"\1.bn_atten."),
            (r"^cp\.upsample(16|32)\.1\.seq\.", r"cp.conv_head\1."),
            (r"^cp\.context_embedding\.context_embedding\.1\.seq\.", "cp.conv_avg."),
            (r"^ffm\.pw_conv\.seq\.", "ffm.convblk."),
            (r"^ffm\.attention_block\.1\.seq\.conv\.", "ffm.conv1."),
            (r"^ffm\.attention_block\.2\.", "ffm.conv2."),
            (r"^segmentation_head\.0\.seg_head\.0\.seq\.", "conv_out.conv."),
            (r"^segmentation_head\.0\.seg_head\.2\.", "conv_out.conv_out."),
        ),
    ),
    backbone_names=r"backbone\.stages\.block_s",
    backbone=_backbone,
)
