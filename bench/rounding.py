"""What 16 and 8 bits cost with the embedded weights: emulated, and as the eager backend really runs.

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

import torch
from PIL import Image

import stdc_fast
from stdc_fast import checkpoints, info, zoo
from stdc_fast.backends import eager
from stdc_fast.backends.rounding import Grid, Rounding, observe
from stdc_fast.evaluate import Confusion
from stdc_fast.images import normalise, read_image
from stdc_fast.numerics import label_agreement, relative_error
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

ROOT = Path(__file__).resolve().parent.parent


def photo(size: tuple[int, int]) -> torch.Tensor:
    """The bundled photo, normalised, float64 ``[1, 3, H, W]``."""
    image = Image.fromarray(read_image(ROOT / "stdc_fast" / "assets" / "street.jpg")).resize(size[::-1])
    return normalise(torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(1, *size, 3), torch.float64)


def resized(image, target: tuple[int, int]) -> torch.Tensor:
    """As ``predict`` and ``val`` show an image to the network."""
    return upsample(normalise(torch.from_numpy(image)[None], torch.float32), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default=zoo.DEFAULT)
    arguments = parser.parse_args()
    model = stdc_fast.load(arguments.model, device="cpu", dtype="float32")
    plan = model.plan(frames=False)
    runs = {
        "float32": eager.compile(plan),
        "float16 emulated": eager.compile(plan, rounding=Rounding(torch.float16)),
        "bfloat16 emulated": eager.compile(plan, rounding=Rounding(torch.bfloat16)),
        "bfloat16 eager": eager.compile(plan, torch.bfloat16),
    }
    folders = {}
    if arguments.data is not None:
        from stdc_fast.data import open_folder

        folders = {split: open_folder(arguments.data, split) for split in ("train", "val")}
        train = folders["train"]
        pictures = (train.load(i)[0] for i in range(0, len(train), 24))
        batches = (resized(p, model.input_size.resolve(*p.shape[:2])) for p in pictures)
        runs["int8 emulated"] = eager.compile(plan, rounding=Grid(observe(plan, batches)))
    rows = {name: {} for name in runs}

    size = model.input_size.resolve(720, 960)
    x = photo(size)
    reference = checkpoints.read(zoo.find(arguments.model)).network(torch.float64).eval()
    with torch.inference_mode():
        expected = reference.logits8(x)
        expected_labels = upsample(expected, size).argmax(1)
        for name, run in runs.items():
            logits = run(x.float())
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
    checkpoints.write_atomic(arguments.out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))


def evaluate(runs: dict, rows: dict, val, model) -> None:
    """mIoU of each form, and its differences to float32 image by image."""
    scores = {name: Confusion(len(val.classes)) for name in runs}
    found = {name: {"errors": [], "agreement": []} for name in runs}
    for i in range(len(val)):
        image, labels = val.load(i)
        target = model.input_size.resolve(*image.shape[:2])
        x, first = resized(image, target), None
        for name, run in runs.items():
            logits = run(x)
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
