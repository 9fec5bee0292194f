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
        typer.Option(
            "--out", "-o", metavar="FILE", help="File to write; its suffix tells. Of triton: the repository."
        ),
    ] = None,
    format: Annotated[
        Optional[str],
        typer.Option(
            help="onnx, openvino, torch, plan, safetensors, ncnn, mnn, litert or executorch; triton or "
            "triton-onnx: a model's folder for Triton Inference Server."
        ),
    ] = None,
    dtype: Annotated[
        Optional[str],
        typer.Option(help="float32, the default; float16; bfloat16 for plans; int8. Of triton as of load."),
    ] = None,
    size: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH that the network sees. Default: every size.")
    ] = None,
    batch: Annotated[
        Optional[str],
        typer.Option(help='Images at once, or "any"; 1 by default. Of triton: at most, 8 by default.'),
    ] = None,
    input: Annotated[
        Optional[str],
        typer.Option(
            help="normalised, the default; or uint8 RGB: nhwc, of triton-onnx the default, or nchw."
        ),
    ] = None,
    output: Annotated[
        Optional[str],
        typer.Option(help="logits, the default; logits8 (at 1/8); or labels, of triton-onnx the default."),
    ] = None,
    frame: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH of the image, where the network sees it resized.")
    ] = None,
    opset: Annotated[Optional[int], typer.Option(help="Of ONNX; 18 by default.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Of torch: machine code for this processor.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Leave the file unchecked against the reference.")
    ] = False,
    report: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Write what was compared as JSON, too.")
    ] = None,
    calibrate: Annotated[
        Optional[str], typer.Option(metavar="FOLDER", help="Pictures for onnx in int8, which needs --size.")
    ] = None,
    option: Option = None,
    as_json: Json = False,
) -> None:
    """Write a network for another runtime, and compare it there with the reference.

    Example: stdc-fast export stdc1_camvid --out stdc1.onnx --size 512x1024
    """
    from stdc_fast import exporters, zoo
    from stdc_fast.exporters import triton

    given = {
        "dtype": dtype, "input": input, "output": output, "opset": opset,
        "frame": parse_size(frame, "--frame"), "size": parse_size(size),
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if format in triton.KINDS:
        if out is None:
            raise UserError("give --out REPOSITORY, the folder of the server's models")
        if batch is not None and not re.fullmatch("[0-9]{1,9}", batch):
            raise UserError(f"--batch must be a number of images here, not {batch!r}")
        if compiled or report is not None or calibrate is not None:
            raise UserError(f"format {format} has no --compiled, --report and --calibrate; leave them out")
        most = {} if batch is None else {"max_batch": int(batch)}
        done = triton.repository(
            model, out, kind=format, check=not no_check, **most, **given, **pairs(option, "--option")
        )
        _say(done, as_json)
        return
    if out is None:
        if format not in exporters.FORMATS:
            raise UserError(f"give --out FILE, or --format, one of {', '.join(exporters.FORMATS)}")
        out = Path(f"{zoo.title(model)}{exporters.FORMATS[format].suffix}")
    if batch not in (None, "any") and not re.fullmatch("[0-9]{1,9}", batch):
        raise UserError(f'--batch must be a number or "any", not {batch!r}')
    done = exporters.export(
        model, out, format=format, batch=None if batch == "any" else int(batch or 1), compiled=compiled,
        check=not no_check, report=report, calibrate=calibrate, **given, **pairs(option, "--option"),
    )  # fmt: skip
    _say(done, as_json)


def _say(done, as_json: bool) -> None:
    if as_json:
        print(json.dumps(done.to_dict()))
        return
    found = done.to_dict()
    for row in done.rows:
        error = "" if row.error is None else f"logits differ by {row.error:.1e} of the largest, "
        print(f"{row.height}x{row.width}, batch {row.batch}: {error}labels agree on {row.agreement:.3%}")
    versions = ", ".join(" ".join(item) for item in done.versions.items())
    print(f"{done.path}: {found['bytes'] / 1e6:.1f} MB, {done.format}, {done.settings.dtype}, {versions}")
    if done.unchecked is not None:
        note(f"{done.path}: unchecked: {done.unchecked}", False)
