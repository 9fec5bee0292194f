"""Averages the weights of two networks of one recipe's family, and measures the norm statistics anew.

    python -m bench.average OLD.safetensors NEW.safetensors --share 0.5 --data CAMVID --out BOTH.safetensors

Averages of weights along one path of fine-tuning often do better than their ends on photos unlike those
trained on (arXiv 2109.01903). Statistics of batch norm are not linear in the weights, so they are measured on
training crops of NEW's recipe; --batches 0 averages them too.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from stdc_fast import checkpoints
from stdc_fast.data import Augmentation, TrainingStream
from stdc_fast.datasets import histograms, open_folders
from stdc_fast.errors import UserError
from stdc_fast.images import normalise
from stdc_fast.recipe import TrainConfig, amp_dtype
from stdc_fast.reference import STDCSeg
from stdc_fast.zoo import find


def interpolate(old: dict, new: dict, share: float) -> dict:
    """``(1 - share) old + share new`` in float32; UserError unless both are one kind of network."""
    if {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()}:
        raise UserError("the two checkpoints are of different networks; average two of one kind")
    return {k: torch.lerp(old[k].float(), new[k].float(), share) for k in new}


def recipe(metadata: dict) -> TrainConfig:
    """The recipe that a trained checkpoint names."""
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["recipe"].items() if k in names}
    return TrainConfig(**kept)


@torch.no_grad()
def measure_norms(network: STDCSeg, config: TrainConfig, data: Path, batches: int) -> None:
    """Set the statistics of every batch norm to their mean over training crops, none of them seen twice."""
    folder = open_folders(data, config.splits)
    augmentation = Augmentation(config.scales, config.aspect, config.balance, config.appearance)
    stream = TrainingStream(
        folder, histograms(folder)[:, :-1], augmentation, lambda k: config.crop, seed=config.seed + 1
    )
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    network.train()
    amp = amp_dtype(config, torch.device("cpu"))
    for i in tqdm(range(batches), "norms"):
        crops = torch.stack([stream[i * config.batch + j][0] for j in range(config.batch)])
        with torch.autocast("cpu", amp, enabled=amp is not None):
            network(normalise(crops))
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new", help="its metadata is kept, but for its mIoU")
    parser.add_argument("--share", type=float, required=True, help="of NEW, between 0 and 1")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    old, new = (checkpoints.read(find(p)) for p in (arguments.old, arguments.new))
    state = interpolate(old.state, new.state, arguments.share)
    network = dataclasses.replace(new, state=state).network()
    if arguments.batches:
        measure_norms(network, recipe(new.metadata), arguments.data, arguments.batches)
    metadata = {k: v for k, v in new.metadata.items() if k not in ("miou", "miou_split", "format")}
    metadata["average"] = {Path(arguments.old).stem: 1 - arguments.share, "this run": arguments.share}
    metadata["norm_batches"] = arguments.batches
    checkpoints.save(checkpoints.inference_state(network), arguments.out, metadata)


if __name__ == "__main__":
    main()
