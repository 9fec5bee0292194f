"""Time and memory of reading checkpoints, beside torch.load with weights_only of the same files.

    python -m bench.load_time FILE... [--rounds 20] [--out docs/results/load_time.json]

Both read each file in turns within one process, which has its pages in memory; ratios are of the medians.
Peak memory is what a process of its own adds to that of its imports, over the file's size. What torch refuses
to read has no ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from stdc_fast import checkpoints
from stdc_fast.files import write_atomic

warnings.filterwarnings("ignore")

READERS = {
    "ours": checkpoints.read,
    "torch": lambda path: torch.load(path, map_location="cpu", weights_only=True),
}


def seconds(read, path: Path) -> float:
    start = time.perf_counter()
    read(path)
    return time.perf_counter() - start


def added(path: Path) -> int:
    """Bytes that reading it adds to the peak of this process; Linux only."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    kept = checkpoints.read(path)  # noqa: F841, as a caller keeps it
    return status("VmHWM") - before


def row(path: Path, rounds: int) -> dict[str, object]:
    times: dict[str, list[float]] = {name: [] for name in READERS}
    refused = None
    for _ in range(rounds):
        for name, read in READERS.items():
            try:
                times[name].append(seconds(read, path))
            except Exception as error:  # of torch, for what it does not know
                refused = str(error).split("\n")[0][:80]
    medians = {k: statistics.median(v) if v else None for k, v in times.items()}
    child = [sys.executable, "-m", "bench.load_time", "--peak", str(path)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    size = path.stat().st_size
    return {
        "file": path.name,
        "bytes": size,
        **{f"{k}_ms": None if v is None else round(v * 1e3, 2) for k, v in medians.items()},
        "ratio": round(medians["ours"] / medians["torch"], 3) if medians["torch"] else None,
        "torch_refused": refused,
        "peak_over_file": round(int(done.stdout) / size, 3),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(added(options.files[0]))
        return
    rows = [row(path, options.rounds) for path in options.files]
    for r in rows:
        print(json.dumps(r))
    if options.out:
        text = json.dumps(
            {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, indent=1
        )
        write_atomic(options.out, lambda place: Path(place).write_text(text + "\n"))


if __name__ == "__main__":
    main()
