"""The worth of new main loops by the model of tiles: networks with steps of machine code before and now.

    python -m bench.cuda_ladder --out docs/results/cuda_ladder.json

Before: docs/results/cuda_sass_before.jsonl, with steps of four units of any taps. In a checkout of revision
1ac2303 that was built, at OLD: python -m bench.sass --build OLD/build/native --targets sm_90a --out FILE.
Tiles are chosen anew for each. Simulated, not measured.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from bench import ahead, sass
from stdc_fast import _native
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda import tiles
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.files import write_atomic

BEFORE = Path("docs/results/cuda_sass_before.jsonl")
NETWORKS = {"stdc1": (512, 1024), "stdc2": (768, 1536)}
CLASSES = ("sm_90", "sm_80", "sm_89")


def microseconds() -> dict[str, float]:
    """Of each network and class, one frame to labels in float16, as the model is now."""
    native, found = _native.module().gpu, {}
    for key in CLASSES:
        device = DEVICES[key]
        for variant, size in NETWORKS.items():
            choose = Chooser(tiles.CudaModel(native, device), tables=())
            plan, cpu = ahead.network(variant), torch.device("cpu")
            lowered = cuda.CudaExecutable(plan, cuda.PRECISIONS[0], cpu, native, choose).lower(
                Request(1, size, size, size)
            )
            found[f"{variant} {size[0]}x{size[1]} {key}"] = round(lowered.predicted(device) * 1e6, 1)
    return found


def four_units(work: tiles.Work, t: tiles.CudaTiles) -> int:
    """Steps of the loop before: four units of any taps, anew with each chunk."""
    if work.kind == "stem":
        return 1
    parts = [min(t.chunk, c - start) for c in work.inputs for start in range(0, c, t.chunk)]
    return sum(math.ceil(work.kernel**2 * math.ceil(c / tiles.UNIT) / 4) for c in parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_ladder", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in BEFORE.read_text().splitlines()]
    now, before = tiles.CYCLES, sass.cycles(rows)
    found = {"now": microseconds()}
    tiles.CYCLES = now | {"copy": before["copy"]}
    found["copies of pixels as before"] = microseconds()
    tiles.CYCLES = now | before
    tiles._step, tiles._steps = (lambda work: 4), four_units
    found["all as before"] = microseconds()
    text = json.dumps(found, indent=1) + "\n"
    if options.out:
        write_atomic(options.out, lambda path: Path(path).write_text(text))
    print(text, end="")


if __name__ == "__main__":
    main()
