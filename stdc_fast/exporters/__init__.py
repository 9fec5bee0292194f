"""Networks as files of other runtimes, each checked in its runtime before it is left in place."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stdc_fast.errors import UserError
from stdc_fast.exporters.formats import FORMATS, Format, format_of
from stdc_fast.exporters.settings import INPUTS, OUTPUTS, Settings
from stdc_fast.files import writable, write_atomic, write_errors
from stdc_fast.placement import on_cpu

if TYPE_CHECKING:
    from stdc_fast.exporters.parity import Row
    from stdc_fast.exporters.source import Source
    from stdc_fast.segmenter import Segmenter

__all__ = ["FORMATS", "INPUTS", "OUTPUTS", "Format", "Report", "Settings", "export", "format_of"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`export` wrote.

    Attributes:
        path: the file.
        format: its name.
        model: name of the network.
        settings: what it reads and gives.
        versions: of the packages that wrote and checked it.
        rows: one comparison with the reference each; empty if it is not checked.
        unchecked: why not, or None.
        limit: that logits must keep, as a share of the largest logit.
        seconds: for writing and checking.
    """

    path: Path
    format: str
    model: str
    settings: Settings
    versions: dict[str, str]
    rows: tuple[Row, ...]
    unchecked: str | None
    limit: float
    seconds: float

    @property
    def error(self) -> float | None:
        """The largest of the rows; None where there are only labels."""
        return max((row.error for row in self.rows if row.error is not None), default=None)

    @property
    def agreement(self) -> float | None:
        """The least of the rows."""
        return min((row.agreement for row in self.rows), default=None)

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        found = dataclasses.asdict(self)
        files = _files(Path(os.path.realpath(self.path)), FORMATS[self.format])
        bytes_ = sum(file.stat().st_size for file in files if file.exists())
        return {**found, "path": str(self.path), "bytes": bytes_}


@on_cpu
def export(
    model: Segmenter | str | Path,
    path: str | Path,
    *,
    format: str | None = None,
    dtype: str | torch.dtype = "float32",
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    input: str = "normalised",
    output: str = "logits",
    frame: tuple[int, int] | None = None,
    opset: int = 18,
    compiled: bool = False,
    check: bool = True,
    report: str | Path | None = None,
    calibrate: object = None,
    **options: object,
) -> Report:
    """Write a network as a file of another runtime, and check it there against the reference network.

    Args:
        model: a loaded model, or a name or file of weights as :func:`stdc_fast.load` takes it.
        path: file to write. Its suffix tells the format: .onnx, .xml (OpenVINO), .pt2 (torch.export), .plan,
            .safetensors, .param (ncnn), .mnn, .tflite (LiteRT), .pte (ExecuTorch).
        format: its name, as in :data:`FORMATS`; it must not contradict the suffix.
        dtype: of weights and, in ONNX, maps: "float32"; "float16" where the format has it; "bfloat16" for
            plans; "int8" for plans, with the model's own ranges and in the ops in which it runs with its
            memory, and for ONNX in QDQ form, by ``calibrate``.
            What the file reads and gives does not change with it.
        size: (H, W) that the network sees; None for every size, where the format has that.
        batch: images at once; None for any number.
        input: "normalised" float32 ``[N, 3, H, W]``, or raw uint8 RGB frames, "nhwc" or "nchw".
        output: "logits" float32 ``[N, C, H, W]``, "logits8" at 1/8 of the size, or "labels" uint8
            ``[N, H, W]``.
        frame: (H, W) of the image, where it is not ``size``: it is resized in the graph, and so are logits.
        opset: of ONNX.
        compiled: of torch: machine code for this processor, by AOTInductor and a C++ compiler.
        check: run the file on a photo and compare. Without it nothing says that the file is right.
        report: JSON file to write, too.
        calibrate: pictures that ONNX in int8 takes its ranges from, as ``load(calibrate=...)`` takes them; at
            most 32 of them, drawn by a seed.
        options: of the network, for a file that does not say them, as for :func:`stdc_fast.load`.

    The file is there only if it passed the check; ``docs/export.md`` has the limits. Raises UserError for
    what a format does not have, packages that are not installed, weights that are not finite, a .bin beside
    the file that is of something else, and a file that does not compute what the reference does.
    """
    # torch's and our own modules that only an export needs.
    from stdc_fast.exporters.source import Source

    start, path, dtype = time.perf_counter(), Path(path), str(dtype).removeprefix("torch.")
    form = format_of(path, format)
    settings = Settings(dtype, _pair(size), batch, input, output, _pair(frame), opset, compiled)
    settings.check(form, 0)
    quantised = form.name == "onnx" and dtype == "int8"
    if quantised and calibrate is None:
        raise UserError(
            "int8 in onnx takes its ranges from pictures; give --calibrate FOLDER, or calibrate=..."
        )
    if calibrate is not None and not quantised:
        raise UserError(f"calibrate is for onnx in int8, not for {form.name} in {dtype}; leave it out")
    form.check_installed()
    _check_places(path, form, model, report)
    source = Source.of(model, **options)
    settings.check(form, len(source.classes))
    if quantised:
        from stdc_fast.exporters import qdq

        source = dataclasses.replace(source, frames=qdq.frames_of(calibrate))
    with torch.autocast("cpu", enabled=False):  # a caller's would be in the reference, and in graphs by torch
        if dtype == "float16":
            _check_range(source)
        rows, unchecked = _write(source, form, settings, path, check)
    from stdc_fast.exporters.parity import LIMITS

    seconds = round(time.perf_counter() - start, 3)
    limit = LIMITS[dtype].logits
    result = Report(path, form.name, source.name, settings, form.versions(), rows, unchecked, limit, seconds)
    if report is not None:
        text = json.dumps(result.to_dict(), indent=1) + "\n"
        write_atomic(report, lambda p: p.write_text(text))
    return result


def _pair(size: object) -> object:
    """Lists, arrays and torch's sizes as tuples of Python's numbers; anything else is refused later."""
    try:
        return size if isinstance(size, (str, bytes)) else tuple(map(operator.index, size))
    except TypeError:
        return size


def _files(path: Path, form: Format) -> list[Path]:
    """All files of an export, the one that names it last."""
    return [*(path.with_suffix(suffix) for suffix in form.beside), path]


def _check_places(path: Path, form: Format, model: object, report: str | Path | None) -> None:
    """UserError for places that can not be written, and where a file of something else would be replaced."""
    there = writable(path)
    places = [Path(os.path.realpath(file)) for file in _files(path, form)]
    if report is not None:
        if Path(os.path.realpath(report)) in places:
            raise UserError(f"{report}: the export itself is written there; give another place")
        writable(Path(report))
    for file in places[:-1]:
        others = (path.with_suffix(f.suffix) for f in FORMATS.values() if f is not form and f.beside)
        other = next((other.name for other in others if other.exists()), None)
        source = isinstance(model, (str, Path)) and Path(os.path.realpath(model)) == file
        if file.exists() and (other or source or not there):
            whose = other or ("the model" if source else "something else")
            raise UserError(
                f"{path}: its weights would replace {file.name} of {whose}; choose another name or folder"
            )


def _check_range(source: Source) -> None:
    """UserError for what float16 can not hold, which runtimes that compute in float32 would hide."""
    from stdc_fast.backends.eager.ranges import fp16_overflow
    from stdc_fast.plan import build, optimise

    if (problem := fp16_overflow(optimise(build(source.network)))) is not None:
        raise UserError(f"{source.name}: float16 would overflow: {problem}; export float32")


def _write(
    source: Source, form: Format, settings: Settings, path: Path, check: bool
) -> tuple[tuple[Row, ...], str | None]:
    """Write a file in a folder of its own, check it, and only then put it in its place."""
    from stdc_fast import _native
    from stdc_fast.exporters import parity
    from stdc_fast.exporters.writers import WRITERS

    unchecked = None if check else "not asked for"
    if check and form.name == "plan":
        unchecked = _native.why_not()
    real = Path(os.path.realpath(path))
    with (
        write_errors(path),
        tempfile.TemporaryDirectory(dir=real.parent, prefix=f".{path.stem}.tmp") as folder,
    ):
        # Some writers take their suffix in small letters only.
        made = Path(folder) / f"{real.stem}{form.suffix}"
        try:
            WRITERS[form.name](source, settings, made)
            rows = () if unchecked else tuple(parity.check(source, form, settings, made))
        except UserError as error:  # which may name the file where it is made
            raise UserError(str(error).replace(str(made), str(path))) from error
        except OSError:
            raise
        except Exception as error:
            versions = ", ".join(" ".join(item) for item in form.versions().items())
            reason = " ".join(str(error).split())[:600] or type(error).__name__
            raise UserError(f"{path}: not written, as {versions}: {reason}") from error
        for file, place in zip(_files(made, form), _files(real, form), strict=True):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            os.replace(file, place)
    return rows, unchecked
