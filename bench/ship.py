"""Writes the tables of tiles that the library ships, ``stdc_fast/tables/sm_*.json`` and ``cuda_sm_*.json``.

    python -m bench.ship [--backend triton|cuda] [--targets sm_90,...] [--dtypes int8,...]

For each class of devices: the best tiles by the model; of Triton's kernels those that compile without
spilling registers and within the device's shared memory. No GPU is needed, and nothing here is measured. With
``--dtypes`` the entries of other works stay.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from bench import ahead
from stdc_fast import _native
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.tiles import CudaModel, CudaTiles
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES, Device, Work
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.backends.gpu.tables import FOLDER, dump, read
from stdc_fast.backends.triton.tiles import TritonTiles, ranked
from stdc_fast.files import write_atomic
from stdc_fast.precision import Precision, precision_of

#: (images, H, W) of what the network sees.
SIZES = ((1, 512, 1024), (16, 512, 1024), (1, 768, 1536), (1, 1024, 2048))


def table(device: Device, precisions: Sequence[Precision], most: int = 40) -> dict[str, TritonTiles]:
    """The tiles of every work of both networks; RuntimeError if none of the ``most`` best compiles well."""
    chosen: dict[str, TritonTiles] = {}
    rank: dict[str, int] = {}

    def choose(work: Work) -> TritonTiles:
        if work.key not in chosen:
            options = ranked(work, device)
            if (place := rank.get(work.key, 0)) >= min(most, len(options)):
                raise RuntimeError(f"{device.key}: no tiles of {work.key} compile well")
            chosen[work.key] = options[place]
        return chosen[work.key]

    good: set[str] = set()
    while True:
        todo: dict[str, ahead.Job] = {}
        for variant, precision, (n, height, width) in itertools.product(
            ("stdc1", "stdc2"), precisions, SIZES
        ):
            size = (height, width)
            full = (2 * height, 2 * width)
            for given in (size, full):
                whole = ahead.lowered(
                    ahead.network_of(variant, precision.levels),
                    device, precision, size, n, choose, given=given, labels=None,
                )  # fmt: skip
                for launch in whole.launches:
                    if launch.work is not None:
                        job = ahead.job_of(launch, device, launch.work.key)
                        if job.key not in good:
                            todo.setdefault(job.key, job)
        if not todo:
            return chosen
        print(f"{device.key}: {len(todo)} kernels to try", file=sys.stderr)
        for (key, job), record in zip(todo.items(), ahead.compile_all(list(todo.values())), strict=True):
            if ahead.problems(record):
                # Every work that has this kernel takes its next best.
                rank[job.work] = rank.get(job.work, 0) + 1
                chosen.pop(job.work, None)
            else:
                good.add(key)


def cuda_table(device: Device, precisions: Sequence[Precision]) -> dict[str, CudaTiles]:
    """The tiles of every work of both networks that the CUDA kernels have."""
    native = _native.module().gpu
    chooser = Chooser(CudaModel(native, device), tables=())
    chosen: dict[str, CudaTiles] = {}

    def choose(work: Work) -> CudaTiles:
        chosen[work.key] = chooser(work)
        return chosen[work.key]

    for variant, precision in itertools.product(("stdc1", "stdc2"), precisions):
        plan = ahead.network_of(variant, precision.levels)
        executable = cuda.CudaExecutable(plan, precision, torch.device("cpu"), native, choose)
        for n, height, width in SIZES:
            executable.lower(Request(n, (height, width), (height, width)))
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ship", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="", help="classes, such as sm_90; by default all")
    parser.add_argument("--backend", default="triton", choices=("triton", "cuda"))
    parser.add_argument("--dtypes", help="of Triton's; by default float16,bfloat16,int8, and none else")
    options = parser.parse_args(arguments)
    dtypes = [precision_of(name) for name in (options.dtypes or "float16,bfloat16,int8").split(",")]
    kind = CudaTiles if options.backend == "cuda" else TritonTiles
    for target in options.targets.split(",") if options.targets else DEVICES:
        device = DEVICES[target]
        if kind is CudaTiles:
            found, origin = cuda_table(device, cuda.PRECISIONS), "the model; not measured"
        else:
            found = table(device, dtypes)
            origin = f"the model, and Triton {triton.__version__} compiling without spills; not measured"
        path = FOLDER / f"{kind.prefix}{target}.json"
        path.parent.mkdir(exist_ok=True)
        if options.dtypes and path.is_file():
            found = read(path, kind)["tiles"] | found
        text = dump({"device": device.name, "from": origin, "tiles": found})
        write_atomic(path, lambda p, text=text: Path(p).write_text(text))
        print(f"{path}: {len(found)} entries", file=sys.stderr)


if __name__ == "__main__":
    main()
