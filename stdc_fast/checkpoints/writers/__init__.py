"""Checkpoints written as other code bases' files, so that these load them and compute the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from stdc_fast.checkpoints import families
from stdc_fast.checkpoints.canonical import Checkpoint
from stdc_fast.checkpoints.containers import open_file
from stdc_fast.checkpoints.families import State
from stdc_fast.checkpoints.writers import mmseg, official, super_gradients
from stdc_fast.checkpoints.writers.names import canonical_order
from stdc_fast.checkpoints.writers.writer import Writer
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.reference.networks import STAGES, STDCBackbone, STDCSeg

__all__ = ["WRITERS", "holds_backbone", "write", "write_backbone"]

#: By name, as of ``stdc-fast convert --to``.
WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in (official.OFFICIAL, official.OFFICIAL_PLAIN, mmseg.MMSEG, super_gradients.SUPER_GRADIENTS)
}


def write(checkpoint: Checkpoint, path: str | Path, to: str) -> list[str]:
    """Write a checkpoint as a file of the code base called ``to``, atomically.

    That code finds all of its inference tensors by name, and computes the same with them. Values stay in the
    checkpoint's dtype. ``docs/checkpoints.md`` says what each code base can express.

    Returns what the file does not hold and how to load it, a line each. Raises UserError for a network that
    the code base cannot express, and if the file cannot be written.
    """
    with torch.device("meta"):
        names = STDCSeg(checkpoint.variant, checkpoint.num_classes, checkpoint.module).state_dict()
    state = canonical_order(checkpoint.state, names)
    content, notes = WRITERS[to].content(dataclasses.replace(checkpoint, state=state))
    _save(content, path)
    return [note for note in notes if note]


def holds_backbone(path: str | Path) -> bool:
    """Whether a file is a classification backbone that can be read, and no segmentation network.

    Raises UserError, naming the file, for one that cannot be read.
    """
    try:
        return families.backbone(open_file(Path(path)).tensors) is not None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_backbone(state: State, path: str | Path, to: str) -> list[str]:
    """Write a backbone, tensors ``features.*`` as :func:`stdc_fast.checkpoints.read_backbone` gives them.

    Arguments, results and errors are those of :func:`write`, and ``to`` may be "safetensors" too. Only
    ``features.*`` are written.
    """
    state = {k: v for k, v in state.items() if k.startswith("features.")}
    module = "add" if any(".skip." in k for k in state) else "cat"
    blocks = 1 + max((int(k.split(".")[1]) for k in state), default=0)
    variant = next((name for name, stages in STAGES.items() if blocks == 2 + sum(stages)), None)
    if variant is None:
        raise UserError(f"the backbone has {blocks} blocks, so it is neither {' nor '.join(STAGES)}")
    with torch.device("meta"):
        expected = STDCBackbone(variant, module).state_dict()
    needed = [k for k in expected if not k.endswith("num_batches_tracked")]
    if missing := [k for k in needed if k not in state]:
        raise UserError(f"the backbone lacks {', '.join(missing[:3])}")
    state = canonical_order(state, expected)
    if to == "safetensors":
        bare, form = _bare(state, {}), {"format": "pt"}
        write_atomic(path, lambda p: safetensors.torch.save_file(bare, p, metadata=form))
        return []
    content, notes = WRITERS[to].backbone(state, variant)
    _save(content, path)
    return [note for note in notes if note]


def _save(content: dict[str, object], path: str | Path) -> None:
    """``torch.save``, atomically, and the same bytes for the same content."""

    def save(temporary: Path) -> None:
        # By a file: given a path, torch writes its name into the archive.
        with open(temporary, "wb") as file:
            torch.save(_bare(content, {}), file)

    write_atomic(path, save)


def _bare(value: object, made: dict[int, Tensor]) -> object:
    """``value`` with tensors on the CPU that own no more memory than they show; aliases stay aliases."""
    if isinstance(value, dict):
        return {k: _bare(v, made) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    if id(value) not in made:
        tensor = value.detach().cpu().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        made[id(value)] = tensor if whole else tensor.clone()
    return made[id(value)]
