"""``stdc-fast val``: the accuracy of a model on a labelled data set."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from stdc_fast.cli.options import (
    Backend,
    Device,
    Dtype,
    Json,
    Memory,
    Model,
    Quiet,
    Scale,
    Size,
    parse_size,
    progress,
    remark,
)
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.evaluation import Evaluation


def val(
    data: Annotated[Path, typer.Argument(help="Folder of a data set, see docs/data.md.")],
    model: Model = "stdc1_camvid",
    classes: Annotated[
        Optional[str],
        typer.Option(
            help="Names of the model's classes in its order, with commas, or cityscapes, camvid, voc."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split to take.")] = "val",
    protocol: Annotated[
        str, typer.Option(help="How images and logits are resized: as official or mmseg does.")
    ] = "official",
    scale: Scale = None,
    size: Size = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="ms+flip: --scales 0.5,0.75,1,1.25,1.5,1.75 --flip.")
    ] = False,
    scales: Annotated[
        Optional[str], typer.Option(help="Views at these multiples of the size, separated by commas.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Each view mirrored, too.")] = False,
    slide: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH of a sliding window. Default: the whole image.")
    ] = None,
    stride: Annotated[
        Optional[str], typer.Option(help="HEIGHTxWIDTH between windows. Default: the window's.")
    ] = None,
    limit: Annotated[
        Optional[int], typer.Option(min=1, help="Only N images: the first ones, or drawn by --seed.")
    ] = None,
    seed: Annotated[Optional[int], typer.Option(help="Draw the images of --limit with this seed.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read images ahead.")] = 2,
    check: Annotated[
        bool, typer.Option("--check", help="Read every image and label before the first is scored.")
    ] = False,
    confusion: Annotated[Optional[Path], typer.Option(help="Write the confusion matrix as CSV.")] = None,
    plot: Annotated[
        Optional[Path], typer.Option(help="Write the confusion matrix as a figure, .png or .svg.")
    ] = None,
    per_image: Annotated[
        Optional[Path], typer.Option(help="Write the figures of each image, one JSON object a line.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    memory: Memory = "fast",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Intersection over union per class and its mean, at the labels' full size.

    Files appear at the end, whole.

    Examples: stdc-fast val CAMVID; stdc-fast val CITYSCAPES -m model.pth --protocol mmseg --tta
    """
    import stdc_fast
    from stdc_fast import datasets
    from stdc_fast.evaluation import evaluate
    from stdc_fast.protocol import MULTI_SCALE, Protocol

    if tta and (scales or flip):
        raise UserError("--tta is --scales and --flip; give it or those")
    if seed is not None and limit is None:
        raise UserError("--seed draws the images of --limit; give that too")
    how = Protocol(
        protocol,
        scale,
        parse_size(size),
        MULTI_SCALE if tta else _numbers(scales),
        flip or tta,
        parse_size(slide, "--slide"),
        parse_size(stride, "--stride"),
    )
    _check_outputs(confusion, plot, per_image)
    folder = datasets.open_folder(data, split)
    count = min(limit or len(folder), len(folder))
    indices = None if count == len(folder) else range(count)  # of None, evaluate warns of what labels lack
    if indices and seed is not None:
        indices = sorted(random.Random(seed).sample(range(len(folder)), count))
    datasets.check(folder, everything=check, shares=indices is not None)
    names = [name.strip() for name in classes.split(",")] if classes and "," in classes else classes
    segmenter = stdc_fast.load(
        model, device=device, dtype=dtype, backend=backend, memory=memory, classes=names
    )
    remark(segmenter.report, quiet)
    result = evaluate(
        segmenter, folder, protocol=how, indices=indices, workers=workers,
        progress=lambda pairs: progress(pairs, "val", quiet, total=count),
    )  # fmt: skip
    if not result.matrix.any():
        raise UserError(
            f"{folder.labels[0].parent}: none of {count} label images has a pixel of a class, so there is "
            "no mean IoU; check the labels"
        )
    drawn = "all" if count == len(folder) else "first" if seed is None else f"seed {seed}"
    title = f"{segmenter.name} on {data} {split}, {count} images"
    title += "" if drawn == "all" else f" of {len(folder)} ({drawn})"
    if confusion:
        result.save_confusion(confusion)
    if per_image:
        result.save_images(per_image)
    if plot:
        from stdc_fast.viewer.confusion import figure
        from stdc_fast.viewer.save import save_figure

        save_figure(plot, lambda: figure(result, title))
    if as_json:
        about = {"data": str(data), "split": split, "images_of_split": len(folder), "drawn": drawn}
        asked = {"scale": how.scale, "size": how.size}
        default = {"default_short_side": segmenter.input_size.short_side}
        print(json.dumps(about | asked | default | result.to_dict(), indent=1))
    else:
        _print(result, title)


def _numbers(text: str | None) -> tuple[float, ...]:
    """``--scales`` as numbers."""
    if text is None:
        return (1.0,)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--scales must be numbers separated by commas, not {text!r}") from None


def _check_outputs(confusion: Path | None, plot: Path | None, per_image: Path | None) -> None:
    """UserError for files that can not be written, before minutes of work."""
    from stdc_fast.files import writable
    from stdc_fast.viewer.save import figure_format

    given = [path for path in (confusion, plot, per_image) if path is not None]
    if len(set(given)) < len(given):
        raise UserError(f"{given[0]}: two files are to be written there; give each a name of its own")
    if plot is not None:
        figure_format(plot)
    for path in given:
        writable(path)


def _print(result: Evaluation, title: str) -> None:
    print(title)
    print(result.how())
    for name, value in zip(result.classes.names, result.iou().tolist(), strict=True):
        print(f"  {name:<16} {'  absent' if value != value else f'{value:8.2%}'}")
    print(f"  {'mean IoU':<16} {result.miou():8.2%}")
    print(f"  {'pixel accuracy':<16} {result.pixel_accuracy():8.2%}")
