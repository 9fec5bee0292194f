"""``stdc-fast predict``: overlays and labels of images, videos and cameras."""

from __future__ import annotations

import json
import os
import sys
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
    parse_range,
    parse_size,
    progress,
    remark,
)
from stdc_fast.errors import UserError

_NO_LABELS = (
    "{}: labels of videos are not written; leave out --labels, or use predict(..., stream=True) in Python"
)


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
    overlay: Annotated[bool, typer.Option(help="Write NAME_overlay.png, of videos .mp4.")] = True,
    labels: Annotated[
        Optional[bool],
        typer.Option(help="Write NAME_labels.png of images, pixels are class ids."),
    ] = None,
    label_ids: Annotated[
        bool,
        typer.Option("--label-ids", help="Pixels of label PNGs are Cityscapes' labelIds, as 7 for road."),
    ] = False,
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
    """Label images: overlay PNG with a legend, and label PNG, for each. Of videos and cameras: overlay video.

    A bad image does not stop the others, and a damaged video is labelled as far as it goes. Failures are
    listed at the end, with exit code 1, or 2 if nothing could be labelled. A camera (0, or /dev/video0) is
    labelled until Ctrl-C. Ctrl-C on a file keeps what is labelled; exit code 130.

    Examples: stdc-fast predict street.jpg photos/ --out out; stdc-fast predict drive.mp4 --legend
    """
    import stdc_fast
    from stdc_fast import images, listing, video, web
    from stdc_fast.classes import cityscapes_ids
    from stdc_fast.input_size import check_request
    from stdc_fast.record import output_names, print_result, record
    from stdc_fast.segmentation import save_image

    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha must lie between 0 and 1, not {alpha}")
    network_size = parse_size(size)
    check_request(scale, network_size)
    samples = parse_range(range)
    files, failures = [], []
    for source in sources:
        try:
            # An address as it is: a path would lose one of its slashes.
            files.extend([source] if video.is_video(source) else listing.expand(source)[0])
        except UserError as error:
            failures.append((web.shown(source), str(error)))
    files = listing.without_results(files)
    videos = {file for file in files if video.is_video(file)}
    certain = {file for file in videos if not web.address(file)}  # others may turn out to be pictures
    if max_frames is not None and files and not videos:
        raise UserError("--max-frames is about videos and cameras, and there is none; leave it out")
    if matrix is not None and files and not videos:
        raise UserError("--matrix is about videos, and there is none; leave it out")
    if samples is not None and files and len(certain) == len(files):
        raise UserError("--range is about pictures, and there is none; leave it out")
    if labels and certain:
        raise UserError(_NO_LABELS.format(min(certain)))
    segmenter = stdc_fast.load(model, device=device, dtype=dtype, backend=backend, memory=memory)
    if label_ids:
        if labels is False:
            raise UserError("--label-ids is about label PNGs; leave out --no-labels")
        cityscapes_ids(segmenter.classes)  # known before minutes of work
    remark(segmenter.report, quiet)
    results, interrupted = [], None
    names = output_names(files)
    inputs = {os.path.realpath(f) for f in files}
    kinds = [kind for kind, wanted in (("overlay", overlay), ("labels", labels is not False)) if wanted]
    begun = 0
    for path, name in progress(list(zip(files, names, strict=True)), "predict", quiet, len(files) > 1):
        begun += 1
        try:
            source = images.opened(path)
            is_video = path in videos and source is path
            if is_video and labels:
                raise UserError(_NO_LABELS.format(path))
            if is_video:
                targets = {"overlay": out / f"{name}_overlay.mp4"} if overlay else {}
            else:
                targets = {kind: out / f"{name}_{kind}.png" for kind in kinds}
            for kind, target in targets.items():
                if os.path.realpath(target) in inputs:
                    raise UserError(
                        f"{path}: its {kind} would overwrite {target}, an input; choose another --out"
                    )
            if is_video:
                row = record(segmenter, path, targets.get("overlay"), scale=scale, size=network_size,
                             alpha=alpha, legend=bool(legend), side_by_side=side_by_side,
                             max_frames=max_frames, matrix=matrix, progress=not quiet)  # fmt: skip
            else:
                result = segmenter.predict(source, scale=scale, size=network_size, range=samples)
                row = result.to_dict() | {kind: str(target) for kind, target in targets.items()}
                if "overlay" in targets:
                    save_image(result.overlay(alpha, legend is not False, side_by_side), targets["overlay"])
                if "labels" in targets:
                    result.save(targets["labels"], label_ids=label_ids)
        except UserError as error:
            failures.append((web.shown(str(path)), str(error)))
            continue
        results.append(row)
        interrupted = row.pop("signal", None)
        if not as_json and (len(files) == 1 or is_video):
            print_result(row, segmenter.name)
        if interrupted:
            break
    if as_json:
        print(json.dumps({"model": segmenter.name, "results": results,
                          "failures": [{"name": n, "error": e} for n, e in failures]}, indent=1))  # fmt: skip
    elif len(files) > 1:
        seconds = sum(r["seconds"] for r in results)
        print(f"{len(results)} {'files' if videos else 'images'} labelled in {out} ({seconds:.2f} s)")
    partial = [row["error"] for row in results if "error" in row]
    for message in partial + [message for _, message in failures]:
        print(f"stdc-fast: {message}", file=sys.stderr)
    if interrupted and begun < len(files):
        print(f"stdc-fast: {len(files) - begun} not begun, from {files[begun]} on", file=sys.stderr)
    if failures and len(failures) + len(results) > 1:
        total = len(failures) + len(results)
        print(f"stdc-fast: {len(failures)} of {total} failed", file=sys.stderr)
    if interrupted:
        raise typer.Exit(128 + interrupted)
    if failures or partial:
        raise typer.Exit(1 if results else 2)
