"""``stdc-fast doctor``: what a checkpoint file is, and what loading it carelessly would change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import Json, Option, pairs


def doctor(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Checkpoint file, or embedded name.")],
    photo: Annotated[
        Optional[Path],
        typer.Option(help="Image to compare on. Default: a street that comes with the package."),
    ] = None,
    option: Option = None,
    as_json: Json = False,
) -> None:
    """What a checkpoint is: family, options and where they were read, names, batch norm, suspicious values.

    It also measures on a photo how many labels a careless loader would change. Exit code 1 for a file that
    cannot be loaded.

    Example: stdc-fast doctor model_maxmIOU50.pth
    """
    from stdc_fast import doctor as checks
    from stdc_fast import zoo

    found = checks.examine(zoo.find(source), photo or checks.PHOTO, **pairs(option, "--option"))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        for name, text in _lines(found):
            print(f"{name:<12} {text}")
    if found["refused"] is not None:
        raise typer.Exit(1)


def _lines(found: dict):
    """(first column, rest) of the report's lines."""
    file, tensors, weights = found["file"], found.get("tensors"), found.get("weights")
    yield "file", f"{file['name']}, {file['bytes'] / 1e6:.1f} MB"
    named = {True: " (its name says so)", False: " (its name says another: damaged or renamed)", None: ""}
    yield "sha256", file["sha256"] + named[file.get("name_has_its_hash")]
    if found["refused"] is not None:
        yield "refused", found["refused"]
    if weights:
        form = "not loaded"
        if weights["kind"] == "backbone":
            form = "a classification backbone; start a training with it, or convert it"
        elif "variant" in weights:
            form = f"{weights['variant']}, {weights['num_classes']} classes, modules {weights['module']!r}"
        yield "weights", f"{weights['family'] or 'of no known family'}: {form}"
        yield "container", weights["container"]
    if tensors:
        yield from _tensor_lines(tensors)
    if not weights or "variant" not in weights:
        return
    for note in weights["notes"]:
        yield "note", note
    norm = found["batch_norm"]
    yield "batch norm", f"decoder: {norm['decoder']} (from: {norm['from']})"
    for name, option in found["options"].items():
        yield "option", f"{name} = {option['value']} (from: {option['from']})"
    classes, palette = found["classes"], found["palette"]
    yield (
        "classes",
        f"{', '.join(classes['value'] or ['the file has no names'])} (from: {classes['from']})",
    )
    yield "palette", f"{len(palette['value'] or classes['value'] or [])} colours (from: {palette['from']})"
    yield "fp16", "fits" if found["fp16"] is None else f"would overflow: {found['fp16']}"
    for one in found["suspicious"]:
        yield "suspicious", f"{one['tensor']}: {one['channels']} of {one['of']} channels have {one['what']}"
    if not found["suspicious"]:
        yield "suspicious", "nothing"
    photo = found["photo"]
    yield (
        "photo",
        f"{photo['file']}, {photo['width']}x{photo['height']}; labels that careless loading changes:",
    )
    for one in found["careless"]:
        yield "", f"{one['changed']:7.2%} {one['how']}"


def _tensor_lines(tensors: dict):
    dtypes = ", ".join(f"{count} {name}" for name, count in tensors["dtypes"].items())
    yield (
        "tensors",
        f"{tensors['in_file']} in the file, of which {dtypes}; first {', '.join(tensors['first'])}",
    )
    if "mapped" in tensors:
        parts = [
            f"{tensors['mapped']} mapped",
            f"{tensors['training_only']} only for training",
            f"{tensors['second_names']} second names",
            f"{tensors['batch_counters']} batch counters",
        ]
        yield "", ", ".join(parts)
        if tensors["first_training_only"]:
            yield "", f"first for training: {', '.join(tensors['first_training_only'])}"
