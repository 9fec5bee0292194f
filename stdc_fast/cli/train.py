"""``stdc-fast train``: trains a network on a labelled data set."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import Device, Quiet, parse_size
from stdc_fast.errors import UserError


def train(
    data: Annotated[Path, typer.Argument(help="Folder of a data set with train and val.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    variant: Annotated[str, typer.Option(help="stdc1 or stdc2.")] = "stdc1",
    iterations: Annotated[int, typer.Option(help="Length of the schedule.")] = 60000,
    batch: Annotated[int, typer.Option(help="Crops per step and process.")] = 12,
    crop: Annotated[str, typer.Option(help="HEIGHTxWIDTH of a crop, multiples of 32.")] = "512x1024",
    crop_start: Annotated[
        Optional[str], typer.Option(help="Crop size at the start; it grows in steps of 32.")
    ] = None,
    scales: Annotated[str, typer.Option(help="Range of the random scale: LOW,HIGH.")] = "0.5,2.0",
    aspect: Annotated[float, typer.Option(help="Largest random stretch of the width.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="Largest change of brightness, contrast, colour.")] = 0.5,
    white_balance: Annotated[
        float, typer.Option(help="Largest relative gain of red against blue; half of it for green.")
    ] = 0.0,
    gamma: Annotated[float, typer.Option(help="Exponents of brightness from 1/(1+G) to 1+G.")] = 0.0,
    hue: Annotated[float, typer.Option(help="Largest rotation of the hue, 0.5 is half a turn.")] = 0.0,
    grey: Annotated[float, typer.Option(help="Share of the crops without colour.")] = 0.0,
    blur: Annotated[float, typer.Option(help="Largest deviation of a blur in pixels.")] = 0.0,
    noise: Annotated[float, typer.Option(help="Largest deviation of noise, 1 is white.")] = 0.0,
    jpeg: Annotated[float, typer.Option(help="Share of the crops that go through JPEG.")] = 0.0,
    balance: Annotated[float, typer.Option(help="Share of crops placed on a random class.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="Of convolution weights.")] = 5e-4,
    warmup: Annotated[int, typer.Option(help="Iterations of linear warm-up.")] = 1000,
    class_weights: Annotated[
        float, typer.Option(help="W > 1 weights classes by 1 / log(W + share); 0 is off.")
    ] = 0.0,
    aux_weight: Annotated[float, typer.Option(help="Weight of each auxiliary head.")] = 1.0,
    detail_weight: Annotated[float, typer.Option(help="Weight of the detail loss.")] = 1.0,
    jaccard_weight: Annotated[float, typer.Option(help="Weight of a soft IoU loss.")] = 0.0,
    jaccard_from: Annotated[int, typer.Option(help="Iteration at which the soft IoU loss joins.")] = 0,
    loss_stride: Annotated[int, typer.Option(help="Compare every N-th row and column only.")] = 1,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights; 0 is off.")] = 0.999,
    eval_scale: Annotated[float, typer.Option(help="Scale of the image in validation.")] = 1.0,
    val_every: Annotated[int, typer.Option(help="Iterations between validations.")] = 1000,
    save_every: Annotated[int, typer.Option(help="Iterations between checkpoints.")] = 200,
    amp: Annotated[str, typer.Option(help="auto, bfloat16, float16 or off.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    splits: Annotated[str, typer.Option(help="Splits to train on, with commas between.")] = "train",
    init: Annotated[Optional[Path], typer.Option(help="Weights to start the whole network from.")] = None,
    backbone: Annotated[Optional[Path], typer.Option(help="Checkpoint to start the backbone from.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every image and label first; otherwise not all of val's.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that augment.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train STDC-Seg. Kill it at any time; --resume goes on with the same schedule.

    Several GPUs: torchrun --nproc-per-node 4 -m stdc_fast train DATA --out RUN
    """
    arguments = dict(locals())
    from stdc_fast import train as training

    low, _, high = scales.partition(",")
    try:
        arguments["scales"] = (float(low), float(high))
    except ValueError:
        raise UserError(f"--scales must be LOW,HIGH, for example 0.5,2.0, not {scales!r}") from None
    arguments["crop"] = parse_size(crop, "--crop")
    arguments["crop_start"] = parse_size(crop_start, "--crop-start")
    arguments["splits"] = tuple(splits.split(","))
    names = {f.name for f in dataclasses.fields(training.TrainConfig)}
    config = training.TrainConfig(**{k: v for k, v in arguments.items() if k in names})
    best = training.train(
        config, data, out, resume=resume, backbone=backbone, init=init, device=device, workers=workers,
        quiet=quiet, check_all=check,
    )  # fmt: skip
    if os.environ.get("RANK", "0") != "0":
        return
    if best is None:
        print(f"averaged weights, not validated: {out / training.UNVALIDATED}")
    else:
        print(f"best validation mIoU {best:.2%}: {out / training.BEST}")
