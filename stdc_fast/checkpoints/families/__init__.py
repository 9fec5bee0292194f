"""The families of checkpoints, and how a state dict is told to be of one."""

from __future__ import annotations

from stdc_fast.checkpoints.families import mmseg, official, stdc_fast, super_gradients
from stdc_fast.checkpoints.families.family import Family, State
from stdc_fast.errors import UserError

__all__ = ["CANONICAL", "FAMILIES", "OURS", "Family", "State", "backbone", "recognise"]

#: Code bases whose checkpoints are read; the first whose names fit is taken.
FAMILIES: tuple[Family, ...] = (official.FAMILY, mmseg.FAMILY, super_gradients.FAMILY)

#: State dicts that come with our metadata.
OURS = stdc_fast.FAMILY

#: The family whose names are the network's.
CANONICAL = official.FAMILY


def recognise(tensors: State) -> Family:
    """The family of a segmentation network's state dict, by its names; UserError if it is of none."""
    for family in FAMILIES:
        if family.holds(tensors):
            return family
    for family in FAMILIES:
        if family.holds_backbone(tensors) and family.backbone is None:
            readable = " or ".join(f.name for f in FAMILIES if f.backbone is not None)
            raise UserError(
                "holds a classification backbone of another code base, whose layout is not read; "
                f"give the {readable} backbone file or a segmentation checkpoint"
            )
    if backbone(tensors) is not None:
        raise UserError(
            "holds a classification backbone, not a segmentation network; "
            "use it to start a training: stdc-fast train --backbone FILE"
        )
    first = ", ".join(list(tensors)[:3])
    raise UserError(
        f"is not an STDC-Seg checkpoint of a known layout ({', '.join(f.name for f in FAMILIES)}, "
        f"stdc_fast safetensors); its first keys are {first}"
    )


def backbone(tensors: State) -> State | None:
    """A classification backbone under the names ``features.*``; None if it is none whose layout is read."""
    for family in FAMILIES:
        if family.backbone is not None and family.holds_backbone(tensors):
            return family.backbone(tensors)
    return None
