"""The families of checkpoints, and how a state dict is told to be of one."""

from __future__ import annotations

from collections.abc import Collection

from stdc_fast.checkpoints.families import mmseg, official, paddle, stdc_fast, super_gradients
from stdc_fast.checkpoints.families.family import Family, State
from stdc_fast.errors import UserError

__all__ = ["CANONICAL", "FAMILIES", "OURS", "Family", "State", "backbone", "known_names", "recognise"]

#: Code bases whose checkpoints are read; the first whose names fit is taken.
FAMILIES: tuple[Family, ...] = (paddle.FAMILY, official.FAMILY, mmseg.FAMILY, super_gradients.FAMILY)

#: State dicts that come with our metadata.
OURS = stdc_fast.FAMILY

#: The family whose names are the network's.
CANONICAL = official.FAMILY

# Networks that are taken for STDC-Seg, by names that only they have.
_OTHERS = (
    (("cp.resnet.", "cp.backbone.layer"), "BiSeNet with a ResNet backbone"),
    (("detail.S1.", "segment.S1S2.", "bga."), "BiSeNetV2"),
    (("stage1.", "arm4.", "stage3.0.conv."), "another project's network that is called STDC as well"),
)


def known_names(names: Collection[str]) -> bool:
    """Whether some of them are names of a segmentation network or a backbone of a family."""
    return any(f.holds(names) or f.holds_backbone(names) for f in FAMILIES)


def recognise(tensors: State) -> Family:
    """The family of a segmentation network's state dict, by its names; UserError if it is of none."""
    for family in FAMILIES:
        if family.holds(tensors):
            return family
    if backbone(tensors) is not None:
        raise UserError(
            "holds a classification backbone, not a segmentation network; "
            "use it to start a training: stdc-fast train --backbone FILE"
        )
    first = ", ".join(list(tensors)[:3])
    for starts, what in _OTHERS:
        if any(name.startswith(starts) for name in tensors):
            raise UserError(f"seems to be {what}, not STDC-Seg; its first keys are {first}")
    raise UserError(
        f"is not an STDC-Seg checkpoint of a known layout ({', '.join(f.name for f in FAMILIES)}, "
        f"stdc_fast safetensors); its first keys are {first}"
    )


def backbone(tensors: State) -> tuple[Family, State] | None:
    """A classification backbone's family, and its tensors as ``features.*``; None if it is none."""
    for family in FAMILIES:
        if family.holds_backbone(tensors) and not family.holds(tensors):
            return family, family.backbone(tensors)
    return None
