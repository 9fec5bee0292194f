"""``stdc-fast convert``: a checkpoint or backbone of any known family as our file or another code base's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stdc_fast.cli.options import Option, pairs
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.checkpoints import Checkpoint

#: Suffixes that only files of torch have.
TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt")


def convert(
    source: Annotated[str, typer.Argument(help="Embedded name, checkpoint or backbone of any family.")],
    target: Annotated[Path, typer.Argument(help="File to write.")],
    to: Annotated[
        str, typer.Option(help="safetensors (ours), official, official-plain, mmseg or super-gradients.")
    ] = "safetensors",
    half: Annotated[bool, typer.Option("--half", help="Store convolutions as fp16.")] = False,
    meta: Annotated[
        Optional[list[str]],
        typer.Option(help='KEY=VALUE to add or replace in its metadata, e.g. terms="...".'),
    ] = None,
    option: Option = None,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="Only the backbone of a segmentation network.")
    ] = False,
) -> None:
    """Convert a checkpoint, or a classification backbone, to our safetensors or to another code base's file.

    Example: stdc-fast convert stdc1_camvid camvid_mmseg.pth --to mmseg
    """
    from stdc_fast import checkpoints, zoo
    from stdc_fast.checkpoints import writers

    known = ("safetensors", *writers.WRITERS)
    if to not in known:
        raise UserError(f"--to must be one of {', '.join(known)}, not {to!r}")
    _check_suffix(target, to)
    if half and to != "safetensors":
        raise UserError("--half is for --to safetensors; leave one of them out")
    path = zoo.find(source)
    if backbone or writers.holds_backbone(path):
        if meta or half or option:
            raise UserError(
                "a backbone has neither metadata nor options, and stays in its dtype; leave --meta, --half "
                "and --option out"
            )
        state = checkpoints.read_backbone(path)
        print(f"{path}: backbone of {len(state)} tensors")
        notes = _named(path, writers.write_backbone, state, target, to)
    else:
        checkpoint = _described(checkpoints.read(path, **pairs(option, "--option")), meta)
        ranges = zoo.own_ranges(checkpoint.calibration, path, needed=False)
        print(checkpoint.report)
        if to == "safetensors":
            checkpoints.save(checkpoint.state, target, checkpoint.metadata, half, ranges)
            notes = []
        else:
            notes = _named(path, writers.write, checkpoint, target, to)
            notes += [f"its {ranges} are left out"] if ranges else []
    for note in notes:
        print(f"note: {note}")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def _described(checkpoint: Checkpoint, items: list[str] | None) -> Checkpoint:
    """The checkpoint with what ``--meta`` adds to its metadata."""
    from stdc_fast import checkpoints

    known = {"variant": checkpoint.variant, "family": checkpoint.family, **checkpoint.metadata}
    given = pairs(items, "--meta")
    options = checkpoints.options.OPTIONS
    for name in given:
        if name in ("variant", "family", "format", *options):
            remedy = f"use --option {name}=VALUE" if name in options else "leave it out"
            raise UserError(f"--meta {name} would change how the weights are read; {remedy}")
    metadata = {**known, **given}
    checkpoints.check_metadata(metadata, checkpoint.state)
    return dataclasses.replace(checkpoint, metadata=metadata)


def _named(path: Path, write: Callable[..., list[str]], *arguments: object) -> list[str]:
    """``write``'s notes; a UserError of it names the file that cannot be written so, but not twice."""
    try:
        return write(*arguments)
    except UserError as error:
        named = any(str(a) in str(error) for a in arguments if isinstance(a, Path))
        raise error if named else UserError(f"{path}: {error}") from None


def _check_suffix(target: Path, to: str) -> None:
    """UserError for a name that says another kind of file than is written."""
    suffix = target.suffix.lower()
    if to == "safetensors" and suffix in TORCH_SUFFIXES:
        raise UserError(f"{target}: {suffix} is for torch files; name it .safetensors, or give --to")
    if to != "safetensors" and suffix == ".safetensors":
        raise UserError(f"{target}: --to {to} writes a torch file; name it .pth, or leave --to out")
