"""``stdc-fast calibrate``: the ranges that int8 needs, from a folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stdc_fast.cli.options import Json, Option, Quiet, Range, note, pairs, parse_range, progress
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.calibration.record import Calibration


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or checkpoint file.")],
    frames: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...", help="Pictures like those to be labelled: folders, globs, files."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Weights with ranges; NAME.ranges.safetensors has ranges alone.",
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Frames at most, drawn by --seed.")] = 32,
    seed: Annotated[int, typer.Option(help="Which frames are drawn, and which of them held out.")] = 0,
    range: Range = None,
    method: Annotated[str, typer.Option(help="max, mse, percentile:P, or the best of these.")] = "best",
    keep: Annotated[
        Optional[list[str]],
        typer.Option(metavar="OP", help="An op to leave out of 8 bits; may be repeated."),
    ] = None,
    limit: Annotated[
        Optional[float],
        typer.Option(
            min=0, help="Leave out ops that alone move logits by more. Default: 0.006. 0: leave none out."
        ),
    ] = None,
    sensitivity: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write what each op alone costs as JSON.")
    ] = None,
    plot: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="And as a figure, .svg or .png.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store convolutions as fp16.")] = False,
    option: Option = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take the ranges that --dtype int8 needs from pictures, and write them with the weights.

    A quarter of the pictures, eight at most, is held out: by them methods are compared, and each op alone is
    looked at. Nothing is written if a picture can not be read.

    Example: stdc-fast calibrate stdc1_camvid CAMVID/train --out q.safetensors
    """
    import stdc_fast
    from stdc_fast import checkpoints, listing
    from stdc_fast.calibration import record, run
    from stdc_fast.files import writable, write_atomic
    from stdc_fast.viewer.save import figure_format, save_figure

    alone = out.name.endswith(record.SUFFIX)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: files with ranges are safetensors; name it .safetensors")
    if half and alone:
        raise UserError(
            f"--half is of weights, and {out} has ranges alone; leave it out, or name another file"
        )
    if plot is not None:
        figure_format(plot)
    values = parse_range(range)
    targets = [path for path in (out, sensitivity, plot) if path is not None]
    if len(set(targets)) < len(targets):
        raise UserError(f"{targets[0]}: two files are to be written there; give each a name of its own")
    for path in targets:
        writable(path)
    files = [file for text in frames for file in listing.expand(text)[0]]
    source = frames[0] if len(frames) == 1 else files
    loaded = stdc_fast.load(model, device="cpu", dtype="float32", **pairs(option, "--option"))
    limits = {} if limit is None else {"limit": limit or None}
    found = run.calibrate(
        loaded, source, count=count, seed=seed, range=values, method=method, keep=keep or (),
        progress=lambda items, what, total: progress(items, what, quiet, total=total), **limits,
    )  # fmt: skip
    loaded.calibration = found
    if alone:
        checkpoints.save_ranges(found, out)
    else:
        loaded.save_file(out, half=half)
    facts = {"model": loaded.name, **found.facts()}
    if sensitivity is not None:
        write_atomic(sensitivity, lambda p: p.write_text(json.dumps(facts, indent=1) + "\n"))
    if plot is not None:

        def draw():
            from stdc_fast.viewer.sensitivity import figure

            return figure(found, loaded.name)

        save_figure(plot, draw)
    if as_json:
        print(json.dumps({**facts, "file": str(out)}, indent=1))
        return
    print("\n".join(_lines(found, loaded.name)))
    for path in targets:
        note(f"{path}: written", quiet)


def _lines(found: Calibration, name: str) -> list[str]:
    about = found.about
    held = about["held_out"]
    more = f"{held} more were held out" if held else "errors are of these frames themselves"
    lines = [f"{name}: {found}; {more}", ""]
    lines.append(f"{'ranges':<22} {'error':>8} {'labels':>9}")
    for row in about["compared"]:
        taken = "  taken" if row["method"] == found.method and len(about["compared"]) > 1 else ""
        lines.append(f"{row['method']:<22} {row['error']:>8.1e} {row['agreement']:>9.3%}{taken}")
    lines += ["", f"{'op alone in 8 bits':<30} {'error':>8} {'labels':>9}  multiplied here in"]
    for row in about["alone"]:
        where = "8 bits" if row["name"] in about["ops"] else "floats"
        where += f": {row['kept']}" if row["kept"] else ""
        text = _short(row["name"])
        lines.append(f"{text:<30} {row['error']:>8.1e} {row['agreement']:>9.3%}  {where}")
    count = len(about["ops"])
    lines.append(f"{f'{count} ops together':<30} {about['error']:>8.1e} {about['agreement']:>9.3%}")
    return lines


def _short(name: str) -> str:
    from stdc_fast.viewer.facts import short

    return short(name)
