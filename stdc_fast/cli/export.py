"""``stdc-fast export``: a network as a file of another runtime, checked there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import Json, Option, note, pairs, parse_size
from stdc_fast.errors import UserError


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or checkpoint file.")],
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", metavar="FILE", help="File to write; its suffix tells."),
    ] = None,
    format: Annotated[
        Optional[str],
        typer.Option(help="onnx, openvino, torch, plan, safetensors, ncnn, mnn, litert or executorch."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32; float16, or bfloat16 for plans.")] = "float32",
    size: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH that the network sees. Default: every size.")
    ] = None,
    batch: Annotated[str, typer.Option(help='Images at once, or "any".')] = "1",
    input: Annotated[
        str, typer.Option(help="normalised, or raw frames: nhwc or nchw, uint8 RGB.")
    ] = "normalised",
    output: Annotated[str, typer.Option(help="logits, logits8 (at 1/8), or labels.")] = "logits",
    frame: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH of the image, where the network sees it resized.")
    ] = None,
    opset: Annotated[int, typer.Option(help="Of ONNX.")] = 18,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Of torch: machine code for this processor.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Leave the file unchecked against the reference.")
    ] = False,
    report: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write what was compared as JSON, too.")
    ] = None,
    option: Option = None,
    as_json: Json = False,
) -> None:
    """Write a network for another runtime, and compare it there with the reference.

    Example: stdc-fast export stdc1_camvid --out stdc1.onnx --size 512x1024
    """
    from stdc_fast import exporters, zoo

    if out is None:
        if format not in exporters.FORMATS:
            raise UserError(f"give --out FILE, or --format, one of {', '.join(exporters.FORMATS)}")
        out = Path(f"{zoo.title(model)}{exporters.FORMATS[format].suffix}")
    if batch != "any" and not re.fullmatch("[0-9]{1,9}", batch):
        raise UserError(f'--batch must be a number or "any", not {batch!r}')
    done = exporters.export(
        model, out, format=format, dtype=dtype, size=parse_size(size) if size != "native" else size,
        batch=None if batch == "any" else int(batch), input=input, output=output,
        frame=parse_size(frame, "--frame"), opset=opset, compiled=compiled, check=not no_check,
        report=report, **pairs(option, "--option"),
    )  # fmt: skip
    if as_json:
        print(json.dumps(done.to_dict()))
        return
    found = done.to_dict()
    for row in done.rows:
        error = "" if row.error is None else f"logits differ by {row.error:.1e} of the largest, "
        print(f"{row.height}x{row.width}, batch {row.batch}: {error}labels agree on {row.agreement:.3%}")
    versions = ", ".join(" ".join(item) for item in done.versions.items())
    print(f"{out}: {found['bytes'] / 1e6:.1f} MB, {done.format}, {dtype}, {versions}")
    if done.unchecked is not None:
        note(f"{out}: unchecked: {done.unchecked}", False)
