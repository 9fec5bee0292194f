"""Times two trees of this library in turns, frames to labels: did a change make it slower, or faster?

    python -m bench.turns OLD NEW --out docs/results/turns.json
    python -m bench.turns OLD NEW --backends cpu --workloads stdc1_camvid:512x1024 stdc2:768x1536:16

Each tree has a process of its own, and was built before by ``python setup.py build_ext --inplace``. A round
gives both a turn of a workload, in alternating order. A ratio is that of the two turns of one round, and the
median counts, as the machine's speed changes within minutes.

A workload is MODEL:HEIGHTxWIDTH, and :BATCH if that is not 1, of frames at the size that the network sees. By
default it is the embedded network, with frames of 512x1024 and with frames of 720x960 that the model resizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stdc_fast import info, zoo
from stdc_fast.benchmark.run import quantiles
from stdc_fast.benchmark.workloads import resolve
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu

BACKENDS, DTYPES = ("cpu", "eager"), ("bfloat16", "float32")

# The process of a tree: a workload a line, and its median in seconds back.
_WORKER = """
import json, statistics, sys, time
import torch
import stdc_fast
print(stdc_fast.__file__, flush=True)
models = {}
for line in sys.stdin:
    weights, backend, dtype, height, width, batch, size, seconds = json.loads(line)
    key = weights, backend, dtype
    if key not in models:
        models.clear()  # the last one's memory
        models[key] = stdc_fast.load(weights, backend=backend, dtype=dtype, device="cpu")
    model, seed = models[key], torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=seed)
    model.label(frames, size=size)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        model.label(frames, size=size)
        times.append(time.perf_counter() - start)
    print(json.dumps(statistics.median(times)), flush=True)
"""


class Tree:
    """A process that runs the library of a tree: it prints the library's file, then a line an answer."""

    def __init__(self, root: Path, worker: str = _WORKER, **more: str):
        environment = os.environ | {"PYTHONPATH": str(root)} | more
        self.process = subprocess.Popen(
            [sys.executable, "-c", worker], cwd=root, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        found = Path(self.process.stdout.readline().strip()).parent.parent
        if found.resolve() != root.resolve():
            raise RuntimeError(f"{root} is hidden by {found}")

    def ask(self, request: object) -> Any:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def parse(text: str) -> dict[str, object]:
    """A workload as in the command."""
    model, size, *batch = text.split(":")
    height, width = map(int, size.split("x"))
    return {"model": model, "frame": [height, width], "batch": int(*batch or [1]), "size": "native"}


DEFAULT = (
    parse(f"{zoo.DEFAULT}:512x1024"),
    {"model": zoo.DEFAULT, "frame": [720, 960], "batch": 1, "size": None},
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.turns", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--workloads", nargs="+", default=DEFAULT, type=parse, help="MODEL:HEIGHTxWIDTH[:BATCH]"
    )
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.8, help="of a turn")
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    trees = {"old": Tree(options.old), "new": Tree(options.new)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workload, backend, dtype in itertools.product(
            options.workloads, options.backends, options.dtypes
        ):
            weights = str(resolve(workload["model"], Path(folder)))
            job = weights, backend, dtype, *workload["frame"], workload["batch"], workload["size"]
            times: dict[str, list[float]] = {"old": [], "new": []}
            for i in range(options.rounds):
                for name in ("old", "new") if i % 2 else ("new", "old"):
                    times[name].append(trees[name].ask([*job, options.seconds]))
            ratios = [new / old for new, old in zip(times["new"], times["old"], strict=True)]
            row = {**workload, "backend": backend, "dtype": dtype, "ratio": quantiles(ratios)}
            rows.append(row | {name: statistics.median(values) for name, values in times.items()})
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        about = {"cpu": cpu(), "rounds": options.rounds, "commit": info.commit(), "rows": rows}
        write_atomic(options.out, lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))


if __name__ == "__main__":
    main()
