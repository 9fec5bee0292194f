"""Time the library against the eager reference, in turns, and write the ratios as JSON.

    python bench/inference.py --out bench/results/inference_cpu.json

The peer is the reference network in eval mode, channels_last, without training heads, float32: uint8
frame, normalise, network, argmax. Each round runs both, in alternating order; the ratio is taken round
by round. A row is written only if the labels of both agree (99.99 % of the pixels of a real photo).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import stdc_fast
from stdc_fast import checkpoints, info
from stdc_fast.images import normalise
from stdc_fast.zoo import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((360, 480), (512, 1024), (720, 960), (1024, 2048))


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=10)
    return {"p20": round(cuts[1], 5), "p50": round(cuts[4], 5), "p80": round(cuts[7], 5)}


def measure(model, reference, size: tuple[int, int], rounds: int, photo: Image.Image) -> dict:
    frame = np.asarray(photo.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))
    frames = torch.from_numpy(frame[None].copy())

    def ours() -> torch.Tensor:
        return model.label(frames, size="native")

    def peer() -> torch.Tensor:
        with torch.inference_mode():
            return reference(normalise(frames)).argmax(1).to(torch.uint8)

    agreement = (ours() == peer()).double().mean().item()
    if agreement < 0.9999:
        raise SystemExit(f"{size}: labels agree on {agreement:.4%} of the pixels only; nothing is timed")
    for _ in range(2):
        ours(), peer()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for i in range(rounds):
        pair = [("ours", ours), ("peer", peer)]
        for name, run in pair if i % 2 else reversed(pair):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    ratios = [p / o for p, o in zip(times["peer"], times["ours"], strict=True)]
    return {
        "size": f"{size[0]}x{size[1]}",
        "label_agreement": agreement,
        "ours_seconds": quantiles(times["ours"]),
        "eager_reference_seconds": quantiles(times["peer"]),
        "speedup": quantiles(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=stdc_fast.zoo.DEFAULT)
    arguments = parser.parse_args()
    model = stdc_fast.load(arguments.model, device="cpu")
    path = WEIGHTS / f"{arguments.model}.safetensors"
    reference = checkpoints.read(path).network().to(memory_format=torch.channels_last)
    photo = Image.open(ROOT / "assets" / "street.jpg")
    rows = []
    for size in SIZES:
        rows.append(measure(model, reference, size, arguments.rounds, photo))
        print(json.dumps(rows[-1]))
    result = {
        "what": "uint8 frame to uint8 labels, float32, batch 1, in turns; speedup = reference / ours",
        "rounds": arguments.rounds,
        "model": arguments.model,
        "commit": info.commit(),
        "versions": info.versions(),
        "cpu": info.cpu(),
        "rows": rows,
    }
    checkpoints.write_atomic(arguments.out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))


if __name__ == "__main__":
    main()
