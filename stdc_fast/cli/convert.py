"""``stdc-fast convert``: a checkpoint of any known family as our safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.errors import UserError


def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of any known family.")],
    target: Annotated[Path, typer.Argument(help="Our safetensors file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store convolutions as fp16.")] = False,
    meta: Annotated[
        Optional[list[str]],
        typer.Option(help='KEY=VALUE to add or replace in its metadata, e.g. terms="...".'),
    ] = None,
) -> None:
    """Convert a checkpoint of any known family to our safetensors."""
    from stdc_fast import checkpoints

    checkpoint = checkpoints.read(source)
    metadata = {
        "variant": checkpoint.variant,
        "family": checkpoint.family,
        **checkpoint.metadata,
    }
    for item in meta or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--meta must be KEY=VALUE, not {item!r}")
        try:
            metadata[key] = json.loads(value)
        except json.JSONDecodeError:
            metadata[key] = value
    checkpoints.check_metadata(metadata, checkpoint.state)
    checkpoints.save(checkpoint.state, target, metadata, half)
    print(f"{checkpoint.report}\n{target}: {target.stat().st_size / 1e6:.1f} MB")
