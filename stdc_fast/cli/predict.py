"""``stdc-fast predict``: overlays and labels of images, videos and cameras."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import (
    Backend,
    Device,
    Dtype,
    Json,
    Memory,
    Model,
    Quiet,
    Range,
    Scale,
    Size,
    note,
    parse_range,
    parse_size,
    progress,
    remark,
)
from stdc_fast.errors import UserError
from stdc_fast.files import ends_with, write_errors


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...", help="Images, folders, globs, videos, cameras (0), addresses, - for stdin."
        ),
    ],
    model: Model = "stdc1_camvid",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    scale: Scale = None,
    size: Size = None,
    range: Range = None,
    alpha: Annotated[float, typer.Option(help="Weight of the colours in the overlay, 0 to 1.")] = 0.55,
    legend: Annotated[
        Optional[bool], typer.Option(help="Name the classes below the overlay. Default: of images only.")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="In overlays, the image itself to the left.")
    ] = False,
    overlay: Annotated[
        bool, typer.Option(help="Write NAME_overlay.jpg, or as --format says; of videos .mp4.")
    ] = True,
    format: Annotated[str, typer.Option(help="Of overlays of images: jpg, png or webp.")] = "jpg",
    quality: Annotated[
        Optional[int], typer.Option(help="Of overlays as jpg and webp, 1 to 100. Default: 90.")
    ] = None,
    labels: Annotated[
        Optional[bool],
        typer.Option(help="Write NAME_labels.png of images, pixels are class ids."),
    ] = None,
    label_ids: Annotated[
        bool,
        typer.Option("--label-ids", help="Pixels of label PNGs are Cityscapes' labelIds, as 7 for road."),
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Folders with their sub-folders, which --out gets too.")
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave out images whose results are there, made so."),
    ] = False,
    jsonl: Annotated[
        Optional[str],
        typer.Option(metavar="FILE", help="A JSON line for each result, as it comes; - for stdout."),
    ] = None,
    workers: Annotated[
        Optional[int],
        typer.Option(min=1, help="Threads that read and write. Default: the processors."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of one size that the network takes at once.")] = 1,
    max_frames: Annotated[
        Optional[int], typer.Option(min=1, help="Of each video or camera, only the first N frames.")
    ] = None,
    matrix: Annotated[
        Optional[str], typer.Option(help="Of videos' colours: bt601, bt709 or bt2020. Default: as they say.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    memory: Memory = "fast",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label images: overlay with a legend, and label PNG, for each. Of videos and cameras: overlay video.

    A bad image does not stop the others, and a damaged video is labelled as far as it goes. Failures are
    listed at the end, with exit code 1, or 2 if nothing could be labelled. A camera (0, or /dev/video0) is
    labelled until Ctrl-C. Ctrl-C otherwise keeps what is labelled; exit code 130.

    Examples: stdc-fast predict street.jpg photos/ --out out; stdc-fast predict drive.mp4 --legend
    """
    import stdc_fast
    from stdc_fast import video, web
    from stdc_fast.cli.sources import NO_LABELS, Run, found
    from stdc_fast.input_size import check_request
    from stdc_fast.pipeline import Workers, until_interrupted
    from stdc_fast.record import output_names, print_result, record
    from stdc_fast.to_files import Outputs, ToFiles

    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha must lie between 0 and 1, not {alpha}")
    network_size = parse_size(size)
    check_request(scale, network_size)
    samples = parse_range(range)
    outputs = Outputs(overlay, labels is not False, format, quality, alpha, legend is not False, side_by_side,
                      label_ids)  # fmt: skip
    if quality is not None and not overlay:
        raise UserError("--quality is about overlays; leave it out, or --no-overlay")
    if skip_existing and not overlay and labels is False:
        raise UserError("--skip-existing is about results, of which none are written; leave it out")
    if label_ids and labels is False:
        raise UserError("--label-ids is about label PNGs; leave out --no-labels")
    if jsonl == "-" and as_json:
        raise UserError("--json and --jsonl - both go to stdout; leave out one, or give --jsonl a file")
    files, folders, failures = found(sources, recursive)
    videos = {file for file in files if video.is_video(file)}
    certain = {file for file in videos if not web.address(file)}  # others may turn out to be pictures
    if max_frames is not None and files and not videos:
        raise UserError("--max-frames is about videos and cameras, and there is none; leave it out")
    if matrix is not None and files and not videos:
        raise UserError("--matrix is about videos, and there is none; leave it out")
    if files and len(certain) == len(files):
        of_pictures = {"--range": samples is not None, "--quality": quality is not None,
                       "--format": format != "jpg", "--label-ids": label_ids}  # fmt: skip
        for option in (name for name, given in of_pictures.items() if given):
            raise UserError(f"{option} is about pictures, and there is none; leave it out")
    if labels and certain:
        raise UserError(NO_LABELS.format(min(certain)))
    inputs = {os.path.realpath(f) for f in files}
    if jsonl is not None and os.path.realpath(jsonl) in inputs:
        raise UserError(f"--jsonl would overwrite {jsonl}, an input; choose another file")
    segmenter = stdc_fast.load(model, device=device, dtype=dtype, backend=backend, memory=memory)
    outputs.check(segmenter.classes)  # known before minutes of work
    remark(segmenter.report, quiet)
    results, number = [], None
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Workers(workers))
        work = ToFiles(segmenter, outputs, pool, batch=batch, scale=scale, size=network_size, range=samples)
        line = stack.enter_context(_lines(jsonl, skip_existing))
        for name, error in failures:
            line({"name": name, "error": error})
        names = output_names(files, folders)
        run = Run(work, out, files, names, videos, labels=bool(labels), skip_existing=skip_existing)

        def film(path: str | Path, target: Path | None) -> dict[str, object]:
            return record(segmenter, path, target, scale=scale, size=network_size, alpha=alpha,
                          legend=bool(legend), side_by_side=side_by_side, max_frames=max_frames,
                          matrix=matrix, progress=not quiet)  # fmt: skip

        signals = stack.enter_context(until_interrupted(run.stop))
        rows = stack.enter_context(contextlib.closing(run.rows(film)))
        for task, row in progress(rows, "predict", quiet, len(files) > 1, len(files)):
            if isinstance(row, UserError):
                failures.append((task.name, str(row)))
                line({"name": task.name, "error": str(row)})
                continue
            number = row.pop("signal", None)
            results.append(row)
            line(row)
            if not as_json and jsonl != "-" and (len(files) == 1 or task.is_video):
                print_result(row, segmenter.name)
    number = number or run.signal or next(iter(signals), None)
    seconds = time.perf_counter() - start
    busy, rate = work.clocks.seconds(), round(len(results) / seconds, 3)
    if as_json:
        print(json.dumps({"model": segmenter.name, "results": results,
                          "failures": [{"name": n, "error": e} for n, e in failures],
                          "skipped": len(run.skipped), "seconds": round(seconds, 6), "busy": busy,
                          "per_second": rate}, indent=1))  # fmt: skip
    elif len(files) > 1:
        took = f"{seconds:.2f} s, {rate:.1f} a second; threads " + ", ".join(
            f"{did} {busy[stage]:.2f} s"
            for stage, did in (("read", "read"), ("label", "labelled"), ("write", "wrote"))
        )
        text = f"{len(results)} {'files' if videos else 'images'} labelled in {out} ({took})"
        if run.skipped:
            text += f"; {len(run.skipped)} skipped, whose results are there"
        if jsonl == "-":
            note(text, quiet)
        else:
            print(text)
    partial = [row["error"] for row in results if "error" in row]
    for message in partial + [message for _, message in failures]:
        print(f"stdc-fast: {message}", file=sys.stderr)
    if number and run.left:
        print(f"stdc-fast: {run.said()}", file=sys.stderr)
    if failures and len(failures) + len(results) > 1:
        total = len(failures) + len(results)
        print(f"stdc-fast: {len(failures)} of {total} failed", file=sys.stderr)
    if number:
        raise typer.Exit(128 + number)
    if failures or partial:
        raise typer.Exit(1 if results or run.skipped else 2)


@contextlib.contextmanager
def _lines(file: str | None, more: bool) -> Iterator[Callable[[dict[str, object]], None]]:
    """What writes a value as a line of JSON to stdout or a file; with ``more`` after what is there."""
    if file is None:
        yield lambda row: None
    elif file == "-":
        yield lambda row: print(json.dumps(row), flush=True)
    else:
        with write_errors(file):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            opened = open(file, "ab" if more else "wb", buffering=0)  # noqa: SIM115, closed below
        with opened:
            if more and os.path.isfile(file):
                with write_errors(file):
                    if os.path.getsize(file) and not ends_with(file, b"\n"):  # cut by a kill or a full disk
                        opened.write(b"\n")

            def write(row: dict[str, object]) -> None:
                with write_errors(file):
                    opened.write(json.dumps(row).encode() + b"\n")

            yield write
