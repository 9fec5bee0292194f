"""Exports weights in every format that can be written here, checks each file in its runtime, and records it.

    python -m bench.export_parity --out docs/results/export.jsonl --calibrate photos/

One line an export: what was asked for, the errors at each size, or why there is no file. Formats whose
packages are not installed are left as the file has them, so that several environments can add theirs.
Ranges of ONNX in int8 are taken from the photos. The table of docs/export.md is written from the file, by
``--document docs/export.md`` too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import stdc_fast
from bench.words import NONE, between, listed, table
from stdc_fast import UserError, files, info
from stdc_fast.exporters import FORMATS, Format

#: The least, one of a single row at 1/32, and those whose map at 1/16 is odd.
SIZES = ((32, 32), (32, 64), (97, 131), (720, 960))
BEGIN, END = "<!-- written by bench.export_parity -->", "<!-- end of what it wrote -->"


def requests(form: Format) -> list[dict]:
    """What is asked of a format, beside the defaults."""
    sized = [{"size": size} for size in SIZES] if form.graph else []
    found = [*([{}] if form.any_size else []), *sized]
    if form.any_size and form.graph:
        found.append({"batch": None, "input": "nhwc", "output": "labels"})
    if form.graph and form.frames:
        found.append({"size": (64, 96), "frame": (97, 131), "input": "nhwc", "output": "labels"})
    if form.name == "torch":
        found += [{**how, "compiled": True} for how in ({}, sized[2])]
    low = [{"size": (97, 131)}] if form.graph else [{}]
    found += [{**how, "dtype": dtype} for dtype in form.dtypes[1:] if dtype != "int8" for how in low]
    if "int8" in form.dtypes:
        found += [{**how, "dtype": "int8"} for how in (sized[2:] if calibrated(form) else low)]
    return found


def calibrated(form: Format) -> bool:
    """Whether its int8 takes ranges from photos, and not from the weights."""
    return "int8" in form.dtypes and form.graph


def attempt(model: str, form: Format, how: dict, folder: Path, photos: Path | None) -> dict:
    """A line of the file."""
    asked = {"format": form.name, "model": model, **how, "commit": info.commit()}
    if how.get("dtype") == "int8" and calibrated(form):
        how = {**how, "calibrate": photos}
    try:
        done = stdc_fast.export(model, folder / f"{model}{form.suffix}", **how).to_dict()
    except UserError as error:
        return {**asked, "versions": form.versions(), "refused": str(error).replace(f"{folder}/", "")}
    return {**asked, **{key: done[key] for key in ("versions", "rows", "unchecked", "limit", "bytes")}}


def summary(lines: list[dict]) -> str:
    """The table of the document: a row for each format and dtype."""
    rows = []
    for form in FORMATS.values():
        for dtype in form.dtypes:
            mine = [a for a in lines if a["format"] == form.name and a.get("dtype", form.dtypes[0]) == dtype]
            seen = [row for a in mine for row in a.get("rows", [])]
            errors = [row["error"] for row in seen if row["error"] is not None]
            sizes = sorted({(row["height"], row["width"]) for row in seen})
            rows.append(
                [
                    form.name,
                    form.suffix,
                    dtype,
                    listed(" ".join(item) for item in mine[0]["versions"].items()) if mine else NONE,
                    listed(f"{h}x{w}" for h, w in sizes) or "not recorded",
                    f"{max(errors):.1e}" if errors else NONE,
                    f"{min(row['agreement'] for row in seen):.3%}" if seen else NONE,
                    sum("refused" in a for a in mine),
                ]
            )
    head = ["format", "suffix", "dtype", "checked with", "sizes", "largest error", "labels agree", "refused"]
    return table(head, rows, ".....rrr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="stdc1_camvid")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--calibrate", type=Path, help="folder of photos, for ONNX in int8")
    parser.add_argument("--document", type=Path)
    arguments = parser.parse_args()
    chosen = [FORMATS[name] for name in arguments.formats]
    if not arguments.calibrate and any(calibrated(form) and not form.missing for form in chosen):
        parser.error("ONNX in int8 takes its ranges from photos; give --calibrate FOLDER")
    text = arguments.out.read_text() if arguments.out.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        for form in chosen:
            name = form.name
            if form.missing:
                print(f"{name}: {listed(form.missing)} not installed; left as it is")
                continue
            photos = arguments.calibrate
            made = [attempt(arguments.model, form, how, Path(folder), photos) for how in requests(form)]
            lines = [line for line in lines if line["format"] != name] + made
            order = list(FORMATS)
            lines.sort(key=lambda line: order.index(line["format"]))
            content = "".join(json.dumps(line) + "\n" for line in lines)
            files.write_atomic(arguments.out, lambda p, content=content: p.write_text(content))
            print("\n".join(json.dumps(line) for line in made), flush=True)
    if arguments.document:
        page = between(arguments.document.read_text(), BEGIN, END, "\n" + summary(lines) + "\n")
        files.write_atomic(arguments.document, lambda p: p.write_text(page))


if __name__ == "__main__":
    main()
