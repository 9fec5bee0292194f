"""Writes the tables of tiles that the library ships, ``stdc_fast/tiles/sm_*.json``.

    python -m bench.ship

For each class of devices: the best tiles by the model whose kernels compile without spilling registers and
within the device's shared memory. No GPU is needed, and nothing here is measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import torch
import triton

from bench import ahead
from stdc_fast.backends import tiles
from stdc_fast.checkpoints import write_atomic

#: (images, H, W) of what the network sees.
SIZES = ((1, 512, 1024), (16, 512, 1024), (1, 768, 1536), (1, 1024, 2048))


def table(device: tiles.Device, dtypes: list[torch.dtype], most: int = 40) -> dict[str, tiles.Tiles]:
    """The tiles of every work of both networks; RuntimeError if none of the ``most`` best compiles well."""
    chosen: dict[str, tiles.Tiles] = {}
    rank: dict[str, int] = {}

    def choose(work: tiles.Work) -> tiles.Tiles:
        if work.key not in chosen:
            options = tiles.ranked(work, device)
            if (place := rank.get(work.key, 0)) >= min(most, len(options)):
                raise RuntimeError(f"{device.key}: no tiles of {work.key} compile well")
            chosen[work.key] = options[place]
        return chosen[work.key]

    good: set[str] = set()
    while True:
        todo: dict[str, ahead.Job] = {}
        for variant, dtype, (n, height, width) in itertools.product(("stdc1", "stdc2"), dtypes, SIZES):
            size = (height, width)
            full = (2 * height, 2 * width)
            for given in (size, full):
                whole = ahead.lowered(
                    ahead.network(variant), device, dtype, size, n, choose, given=given, labels=None
                )
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ship", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(tiles.DEVICES))
    options = parser.parse_args(arguments)
    for target in options.targets.split(","):
        device = tiles.DEVICES[target]
        found = table(device, [torch.float16, torch.bfloat16])
        contents = {
            "device": device.name,
            "from": f"the model, and Triton {triton.__version__} compiling without spills; not measured",
            "tiles": found,
        }
        path = tiles.FOLDER / f"{target}.json"
        path.parent.mkdir(exist_ok=True)
        text = tiles.dump(contents)
        write_atomic(path, lambda p, text=text: Path(p).write_text(text))
        print(f"{path}: {len(found)} entries", file=sys.stderr)


if __name__ == "__main__":
    main()
