"""Time the library against the plain PyTorch forms of the network, in turns, and write the ratios as JSON.

    python bench/inference.py --out bench/results/inference_cpu.json

All map a uint8 frame to uint8 labels with the embedded weights, on the CPU, without training heads:
normalise, network, bilinear, argmax. Peers are the reference network in channels_last; the same with batch
norm folded; and frozen TorchScript, optimised for inference. Each round runs all forms of a dtype, in
rotating order; ratios are taken round by round. A dtype is timed only if its labels agree with those
of the float32 reference on a real photo, as numerics.TOLERANCES says.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import stdc_fast
from stdc_fast import checkpoints, info, zoo
from stdc_fast.images import normalise
from stdc_fast.numerics import label_agreement, tolerance
from stdc_fast.reference.networks import STDCSeg, upsample

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((360, 480), (512, 1024), (720, 960), (1024, 2048))


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=10)
    return {"p20": round(cuts[1], 5), "p50": round(cuts[4], 5), "p80": round(cuts[7], 5)}


def folded(network: STDCSeg) -> STDCSeg:
    """A copy with each batch norm folded into the convolution before it, by torch's own function."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        names = list(module._modules)
        for first, second in itertools.pairwise(names):
            conv, norm = module._modules[first], module._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module._modules[first], module._modules[second] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network


class Logits(nn.Module):
    """Logits at 1/8, for tracing."""

    def __init__(self, network: STDCSeg):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.logits8(x)


def scripted(network: STDCSeg, x: torch.Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but still a form that people run
        traced = torch.jit.trace(Logits(network).eval(), x)
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


def forms(model, reference: STDCSeg, dtype: torch.dtype, frames: torch.Tensor) -> dict:
    """Name to function from frames to labels; ours is called "ours"."""
    network = copy.deepcopy(reference).to(dtype, memory_format=torch.channels_last)
    example = normalise(frames).to(dtype)
    networks = {
        "eager": network.logits8,
        "folded": folded(reference).to(dtype, memory_format=torch.channels_last).logits8,
        "torchscript": scripted(copy.deepcopy(reference).to(dtype), example),
    }

    def labels(logits8):
        def run() -> torch.Tensor:
            logits = logits8(normalise(frames).to(dtype)).float()
            return upsample(logits, frames.shape[1:3]).argmax(1).to(torch.uint8)

        return run

    ours = {"ours": lambda: model.label(frames, size="native")}
    return ours | {name: labels(logits8) for name, logits8 in networks.items()}


def measure(model, reference: STDCSeg, size: tuple[int, int], rounds: int, photo: Image.Image) -> dict:
    frame = np.asarray(photo.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))
    frames = torch.from_numpy(frame[None].copy())
    runs = forms(model, reference, model.dtype, frames)
    expected = reference(normalise(frames)).argmax(1).to(torch.uint8)
    agreement = {name: label_agreement(run(), expected) for name, run in runs.items()}
    if agreement["ours"] < tolerance(model.dtype).agreement:
        raise SystemExit(f"{size}: labels agree on {agreement['ours']:.4%} only; nothing is timed")
    for run in runs.values():
        run(), run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    result = {
        "size": f"{size[0]}x{size[1]}",
        "dtype": str(model.dtype).removeprefix("torch."),
        "seconds": {name: quantiles(values) for name, values in times.items()},
        "label_agreement": agreement,
        "speedup": {},
    }
    for name in runs:
        if name != "ours":
            ratios = [peer / ours for peer, ours in zip(times[name], times["ours"], strict=True)]
            result["speedup"][name] = quantiles(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=zoo.DEFAULT)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    reference = checkpoints.read(zoo.find(arguments.model)).network().eval().requires_grad_(False)
    photo = Image.open(ROOT / "stdc_fast" / "assets" / "street.jpg")
    rows = []
    with torch.inference_mode():
        for dtype in arguments.dtypes:
            model = stdc_fast.load(arguments.model, device="cpu", dtype=dtype)
            for size in SIZES:
                rows.append(measure(model, reference, size, arguments.rounds, photo))
                print(json.dumps({k: rows[-1][k] for k in ("size", "dtype", "speedup")}))
    result = {
        "what": "uint8 frame to uint8 labels, batch 1, in turns; speedup = peer / ours in the same dtype",
        "rounds": arguments.rounds,
        "model": arguments.model,
        "backend": model.reason,
        "commit": info.commit(),
        "versions": info.versions(),
        "cpu": info.cpu(),
        "rows": rows,
    }
    checkpoints.write_atomic(arguments.out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))


if __name__ == "__main__":
    main()
