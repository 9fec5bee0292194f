"""What convolutions in 8 bits are worth on GPUs, by the model of the CUDA kernels' time.

    python -m bench.int8_gpu --out docs/results/int8_gpu_prediction.json

The CUDA kernels of levels are those of float16 with pairs of levels for channels: a unit of products,
``mma.m16n8k32``, has 32 channels instead of 16 and the same bytes. Cycles of their steps are what ``python -m
bench.sass`` simulates for them. Maps and weights have half the bytes. What the epilogue converts is added,
and so are the passes that make levels where the plan has them. Tiles and fusions are chosen anew. Simulated,
not measured.

The network is in 8 bits but for what no plan has so: stem, gates, classifier, labels. "first in float16"
leaves the second convolution as it is too, which then shares the stem's kernel.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from types import ModuleType

import torch

from bench import ahead
from bench.cuda_ladder import NETWORKS, Fresh
from bench.words import table
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.tiles import CudaModel
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.plan import Plan
from stdc_fast.plan.ops import Conv, Stem
from stdc_fast.plan.quantise import candidates

CLASSES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90")
PAYS = 1.3  # how many times faster a frame had to be for kernels in 8 bits to be written


def second(plan: Plan) -> str:
    """The convolution that reads the stem's map."""
    stem = next(op for op in plan.ops if isinstance(op, Stem))
    return next(op.name for op in plan.ops if isinstance(op, Conv) and op.inputs == (stem.output,))


@functools.cache
def plans(variant: str) -> dict[str, Plan]:
    """A network in float16, and in 8 bits in the two ways."""
    plan = ahead.network(variant)
    names = candidates(plan)
    rest = [name for name in names if name != second(plan)]
    return {
        "float16": plan,
        "int8": ahead.levelled(plan, names),
        "first in float16": ahead.levelled(plan, rest),
    }


def row(native: ModuleType, key: str, variant: str, size: tuple[int, int], batch: int) -> dict[str, object]:
    """Microseconds of a frame or a batch to labels, and how many times faster 8 bits are."""
    device, microseconds = DEVICES[key], {}
    for name, plan in plans(variant).items():
        executable = cuda.CudaExecutable(
            plan, cuda.PRECISIONS[0], torch.device("cpu"), native, Fresh(CudaModel(native, device))
        )
        lowered = executable.lower(Request(batch, size, size, size))
        microseconds[name] = round(lowered.predicted(device) * 1e6, 1)
    best = min(microseconds["int8"], microseconds["first in float16"])
    return {
        "device": device.name,
        "class": key,
        "network": variant,
        "size": list(size),
        "batch": batch,
        "microseconds": microseconds,
        "gain": round(microseconds["float16"] / best, 2),
    }


def table_of(rows: list[dict]) -> str:
    """As docs/performance-notes.md has it."""
    kinds = ("float16", "int8", "first in float16")
    cells = [
        [
            f"{r['network'].upper()} {r['size'][0]}x{r['size'][1]}, batch {r['batch']}", r["device"],
            *(f"{r['microseconds'][kind]:.0f} us" for kind in kinds), f"{r['gain']:.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    return table(["network", "GPU", "float16", "8 bits", "first in float16", "gain"], cells, "..rrrr")


def text(rows: list[dict[str, object]]) -> str:
    """The record as its file has it."""
    pays = sorted({str(r["device"]) for r in rows if r["gain"] >= PAYS})
    return json.dumps({"modelled": True, "pays_from": PAYS, "pays_on": pays, "rows": rows}, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.int8_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    native = cuda.native()
    if native is None:
        raise UserError("the model asks the CUDA kernels what they need, and none were built; install nvcc")
    found = text([row(native, key, *network) for key in CLASSES for network in NETWORKS])
    if options.out:
        write_atomic(options.out, lambda path: Path(path).write_text(found))
    print(found, end="")


if __name__ == "__main__":
    main()
