"""What 16 and 8 bits cost with the embedded weights: emulated, and as eager and native really run.

    python bench/rounding.py --data CAMVID --out docs/results/rounding.json

Logits and labels on the bundled photo are compared with the float64 reference network; on CamVid val, at the
weights' own input size, with the float32 plan. The 8-bit grid is calibrated on every 24th image of CamVid
train. Without --data only the photo is done.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import stdc_fast
from stdc_fast import checkpoints, files, info, zoo
from stdc_fast.backends import cpu, eager
from stdc_fast.backends.eager.ranges import observe
from stdc_fast.backends.eager.rounding import Grid, Rounding
from stdc_fast.evaluation import Confusion
from stdc_fast.images import normalise, read_image
from stdc_fast.numerics import label_agreement, relative_error
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

ROOT = Path(__file__).resolve().parent.parent


def photo(size: tuple[int, int]) -> torch.Tensor:
    """The bundled photo, uint8 ``[1, H, W, 3]``."""
    image = Image.fromarray(read_image(ROOT / "stdc_fast" / "assets" / "street.jpg")).resize(size[::-1])
    return torch.from_numpy(np.array(image))[None]


def resized(image: torch.Tensor, target: tuple[int, int]) -> torch.Tensor:
    """As ``predict`` and ``val`` show an image to the network: float32 ``[1, 3, *target]``."""
    x = normalise(image, torch.float32)
    return x if x.shape[2:] == target else upsample(x, target)


def emulated(plan, dtype: torch.dtype = torch.float32, rounding=None):
    """(raw frame, size that the network sees) to logits, on the eager backend."""
    executable = eager.compile(plan, dtype, rounding=rounding)
    return lambda image, target: executable(resized(image, target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default=zoo.DEFAULT)
    arguments = parser.parse_args()
    model = stdc_fast.load(arguments.model, device="cpu", dtype="float32")
    plan = model.plan(frames=False)
    runs = {
        "float32": emulated(plan),
        "float32 native": cpu.compile(model.plan(), torch.float32).logits,
        "float16 emulated": emulated(plan, rounding=Rounding(torch.float16)),
        "bfloat16 emulated": emulated(plan, rounding=Rounding(torch.bfloat16)),
        "bfloat16 eager": emulated(plan, torch.bfloat16),
        "bfloat16 native": cpu.compile(model.plan(), torch.bfloat16).logits,
        "bfloat16 native, small": cpu.compile(model.plan(), torch.bfloat16, small=True).logits,
    }
    folders = {}
    if arguments.data is not None:
        from stdc_fast.datasets import open_folder

        folders = {split: open_folder(arguments.data, split) for split in ("train", "val")}
        train = folders["train"]
        pictures = (train.load(i)[0] for i in range(0, len(train), 24))
        batches = (
            resized(torch.from_numpy(p)[None], model.input_size.resolve(*p.shape[:2])) for p in pictures
        )
        runs["int8 emulated"] = emulated(plan, rounding=Grid(observe(plan, batches)))
    rows = {name: {} for name in runs}

    size = model.input_size.resolve(720, 960)
    x = photo(size)
    reference = checkpoints.read(zoo.find(arguments.model)).network(torch.float64).eval()
    with torch.inference_mode():
        expected = reference.logits8(normalise(x, torch.float64))
        expected_labels = upsample(expected, size).argmax(1)
        for name, run in runs.items():
            logits = run(x, size)
            rows[name]["photo"] = {
                "logits_relative_error": relative_error(logits, expected),
                "label_agreement": label_agreement(resize_argmax(logits, size)[0], expected_labels),
            }
            print(name, rows[name])
        if folders:
            evaluate(runs, rows, folders["val"], model)
    result = {
        "what": "errors against float64 (photo) and against the float32 plan (CamVid val)",
        "model": arguments.model,
        "photo_input": list(size),
        "commit": info.commit(),
        "versions": info.versions(),
        "cpu": info.cpu(),
        "rows": rows,
    }
    files.write_atomic(arguments.out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))


def evaluate(runs: dict, rows: dict, val, model) -> None:
    """mIoU of each form, and its differences to float32 image by image."""
    scores = {name: Confusion(len(val.classes)) for name in runs}
    found = {name: {"errors": [], "agreement": []} for name in runs}
    for i in range(len(val)):
        image, labels = val.load(i)
        target = model.input_size.resolve(*image.shape[:2])
        x, first = torch.from_numpy(image)[None], None
        for name, run in runs.items():
            logits = run(x, target)
            guess = resize_argmax(upsample(logits, target), image.shape[:2])[0]
            first = first or (logits, guess)
            found[name]["errors"].append(relative_error(logits, first[0]))
            found[name]["agreement"].append(label_agreement(guess, first[1]))
            scores[name].update(labels, guess[0].numpy())
    for name in runs:
        errors, agreement = found[name]["errors"], found[name]["agreement"]
        rows[name]["camvid_val"] = {
            "miou": scores[name].miou(),
            "logits_relative_error_median": statistics.median(errors),
            "logits_relative_error_max": max(errors),
            "label_agreement_mean": statistics.mean(agreement),
            "label_agreement_min": min(agreement),
        }
        print(name, rows[name]["camvid_val"])


if __name__ == "__main__":
    main()
