"""Times two trees of this library in turns, frames to labels: did a change make it slower?

    python -m bench.turns OLD NEW --out docs/results/turns.json

Each tree has a process of its own, and was built before by ``python setup.py build_ext --inplace``. A round
gives both a turn of a workload, in alternating order. A ratio is that of the two turns of one round, and the
median counts, as the machine's speed changes within minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from stdc_fast import info
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu

#: Frames at the network's size, which no one resizes, and frames that the model resizes by default.
SCOPES = {"labels": ((512, 1024), "native"), "frame": ((720, 960), None)}
BACKENDS, DTYPES = ("cpu", "eager"), ("bfloat16", "float32")

# The process of a tree: a workload a line, and its median in seconds back.
_WORKER = """
import json, statistics, sys, time
import torch
import stdc_fast
print(stdc_fast.__file__, flush=True)
models = {}
for line in sys.stdin:
    backend, dtype, height, width, size, seconds = json.loads(line)
    if (backend, dtype) not in models:
        models[backend, dtype] = stdc_fast.load(backend=backend, dtype=dtype, device="cpu")
    model, seed = models[backend, dtype], torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=seed)
    model.label(frames, size=size)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        model.label(frames, size=size)
        times.append(time.perf_counter() - start)
    print(json.dumps(statistics.median(times)), flush=True)
"""


class Tree:
    """A process that runs the library of a tree."""

    def __init__(self, root: Path):
        environment = os.environ | {"PYTHONPATH": str(root)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WORKER], cwd=root, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        found = Path(self.process.stdout.readline().strip()).parent.parent
        if found.resolve() != root.resolve():
            raise RuntimeError(f"{root} is hidden by {found}")

    def time(self, *workload: object) -> float:
        self.process.stdin.write(json.dumps(workload) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.turns", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.8, help="of a turn")
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    trees = {"old": Tree(options.old), "new": Tree(options.new)}
    rows = []
    for (scope, (frame, size)), backend, dtype in itertools.product(SCOPES.items(), BACKENDS, DTYPES):
        times: dict[str, list[float]] = {"old": [], "new": []}
        for i in range(options.rounds):
            for name in ("old", "new") if i % 2 else ("new", "old"):
                times[name].append(trees[name].time(backend, dtype, *frame, size, options.seconds))
        ratios = [new / old for new, old in zip(times["new"], times["old"], strict=True)]
        row = {"backend": backend, "dtype": dtype, "scope": scope, "ratio": quantiles(ratios)}
        rows.append(row | {name: statistics.median(values) for name, values in times.items()})
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        about = {"cpu": cpu(), "rounds": options.rounds, "commit": info.commit(), "rows": rows}
        write_atomic(options.out, lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))


if __name__ == "__main__":
    main()
