"""``stdc-fast val``: the accuracy of a model on a labelled data set."""

from __future__ import annotations

import json
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
    Scale,
    Size,
    note,
    parse_size,
    progress,
)


def val(
    data: Annotated[Path, typer.Argument(help="CamVid or Cityscapes folder.")],
    model: Model = "stdc1_camvid",
    split: Annotated[str, typer.Option(help="Which split to take.")] = "val",
    scale: Scale = None,
    size: Size = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only the first N images.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    memory: Memory = "fast",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Intersection over union per class and its mean, at the labels' full size."""
    import stdc_fast
    from stdc_fast.data import open_folder
    from stdc_fast.evaluate import evaluate

    network_size = parse_size(size)
    folder = open_folder(data, split)
    segmenter = stdc_fast.load(model, device=device, dtype=dtype, backend=backend, memory=memory)
    note(segmenter.report, quiet)
    count = min(limit or len(folder), len(folder))
    indices = progress(range(count), "val", quiet)
    confusion = evaluate(segmenter, folder, scale=scale, size=network_size, indices=indices)
    iou = dict(zip(folder.classes.names, confusion.iou().tolist(), strict=True))
    if as_json:
        print(json.dumps({
            "model": segmenter.name, "data": str(data), "split": split, "images": count,
            "scale": scale, "size": network_size,
            "default_short_side": segmenter.input_size.short_side,
            "backend": segmenter.backend, "dtype": str(segmenter.dtype).removeprefix("torch."),
            "miou": _finite(confusion.miou()), "pixel_accuracy": _finite(confusion.pixel_accuracy()),
            "iou": {k: _finite(v) for k, v in iou.items()},
            "confusion": confusion.matrix.tolist(),
        }, indent=1))  # fmt: skip
        return
    print(f"{segmenter.name} on {data} {split}, {count} images")
    for name, value in iou.items():
        print(f"  {name:<16} {'  absent' if value != value else f'{value:8.2%}'}")
    print(f"  {'mean IoU':<16} {confusion.miou():8.2%}")
    print(f"  {'pixel accuracy':<16} {confusion.pixel_accuracy():8.2%}")


def _finite(value: float) -> float | None:
    return value if value == value else None
