"""What a training run starts from, besides chance: a backbone, or the weights of a whole network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stdc_fast import checkpoints, zoo
from stdc_fast.checkpoints import Checkpoint
from stdc_fast.checkpoints.options import differing
from stdc_fast.classes import ClassSet
from stdc_fast.errors import UserError
from stdc_fast.reference import STDCBackbone, STDCSeg


def load_backbone(network: STDCSeg, path: str | Path) -> None:
    """Copy the backbone of a checkpoint or name; UserError unless it is the network's, exactly."""
    state = checkpoints.read_backbone(zoo.find(path, backbone=True))
    copy_backbone(network.cp.backbone, state, path)


def copy_backbone(backbone: STDCBackbone, state: Mapping[str, Tensor], name: object) -> None:
    """Copy a backbone's weights; UserError, which begins with ``name``, unless they fit exactly."""
    mine = backbone.state_dict()
    wrong = [k for k in mine if k in state and state[k].shape != mine[k].shape]
    wrong += [k for k in mine if k not in state and not k.endswith("num_batches_tracked")]
    wrong += [k for k in state if k not in mine]
    if wrong:
        raise UserError(f"{name}: its backbone is not {backbone.variant}'s; first difference at {wrong[0]}")
    backbone.load_state_dict(state, strict=False)


def load_whole(network: STDCSeg, path: str | Path, classes: ClassSet) -> str:
    """Copy the weights of a segmentation checkpoint or name; returns a line that says what starts anew.

    The heads that only training uses always do: checkpoints do not keep them. So does the last layer, unless
    the checkpoint names the same classes in the same order.

    Raises UserError for a checkpoint of another form than ``network``.
    """
    checkpoint = checkpoints.read(zoo.find(path))
    names = checkpoint.metadata.get("classes") or []
    same = [n.lower() for n in names] == [n.lower() for n in classes.names]
    remedy = "take its backbone only, with --backbone"
    if checkpoint.variant != network.variant:  # whose backbones are others, too
        remedy = f"choose --variant {checkpoint.variant}"
    copy_whole(network, checkpoint, path, same, remedy)
    if same:
        return f"{path}: all weights taken; the training heads start anew"
    why = (
        f"has other classes ({', '.join(names[:3])}, ... {len(names)} in all)"
        if names
        else "names no classes"
    )
    return f"{path}: {why}, so the last layer starts anew, as do the training heads"


def copy_whole(network: STDCSeg, checkpoint: Checkpoint, name: object, same: bool, remedy: str) -> None:
    """Copy a checkpoint's weights, those of the last layer only if it has the ``same`` classes.

    UserError, which begins with ``name`` and ends with the ``remedy``, for a checkpoint of another form than
    ``network``.
    """
    mine, theirs = checkpoints.inference_state(network), dict(checkpoint.state)
    if not same:
        for key in [k for k in theirs if k.startswith("conv_out.conv_out.")]:
            del theirs[key]
    wrong = [k for k in theirs if k not in mine or theirs[k].shape != mine[k].shape]
    wrong += [k for k in mine if k not in theirs and (same or not k.startswith("conv_out.conv_out."))]
    wrong += [option for option in differing(checkpoint.metadata) if option != "threshold"]
    if wrong:
        raise UserError(
            f"{name}: a {checkpoint.variant} that differs from the {network.variant} to be trained, first at "
            f"{wrong[0]}; {remedy}"
        )
    network.load_state_dict(theirs, strict=False)
