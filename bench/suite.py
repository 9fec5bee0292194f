"""Measure the workloads that the library promises, one by one, and append a record of each to a file.

    python -m bench.suite --device cpu --seconds 3600 --out bench/results/cpu.jsonl

The most important come first; what the time does not suffice for is left out, and said. A workload that the
file already has, of this commit and device, is skipped: a run that was broken off goes on. ``--again``
measures it once more, for repeatability.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from stdc_fast import info
from stdc_fast.benchmark import records, run, scaling, workloads
from stdc_fast.benchmark.selection import parse
from stdc_fast.errors import UserError

ALL = ("logits", "labels", "frame")
# Those that were the fastest where all were measured.
FEW = "eager folded,torch.compile,ONNX Runtime,OpenVINO,ncnn,MNN"
GPU = "eager as published,eager channels_last,cuDNN graph,torch.compile,ONNX Runtime,TensorRT"
GPU_FEW = "eager channels_last,cuDNN graph"


@dataclasses.dataclass(frozen=True)
class Job:
    """One record.

    Attributes:
        size: (H, W) of the network's input.
        seconds: that it takes at most, unless three rounds take longer.
    """

    model: str
    size: tuple[int, int]
    batch: int = 1
    scopes: tuple[str, ...] = ALL
    peers: str = "all"
    dtype: str = "auto,float32"
    int8: bool = False
    kind: str = "latency"
    seconds: float = 240.0

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.kind} {self.model} {height}x{width}, batch {self.batch}"


CPU_JOBS = (
    Job("stdc1_camvid", (512, 1024), dtype="auto,float32,int8", int8=True, seconds=330),
    Job("stdc1_camvid", (768, 1536), peers=FEW, seconds=200),
    Job("stdc2", (512, 1024), peers=FEW, seconds=200),
    Job("stdc1_camvid", (512, 1024), 16, ("logits", "labels"), FEW, "auto", seconds=200),
    Job("stdc1_camvid", (512, 1024), peers="OpenVINO", dtype="auto", kind="scaling", seconds=200),
    Job("stdc1_camvid", (1024, 2048), peers=FEW, seconds=300),
    Job("stdc1_camvid", (720, 960), peers=FEW, seconds=200),
    Job("stdc2", (768, 1536), peers=FEW, seconds=300),
    Job("stdc2", (720, 960), peers=FEW, seconds=200),
    Job("stdc2", (1024, 2048), peers=FEW, seconds=400),
)
GPU_JOBS = (
    Job("stdc1_camvid", (512, 1024), peers=GPU, dtype="auto", seconds=150),
    Job(
        "stdc1_camvid", (512, 1024), peers="eager as published,eager,cuDNN graph", dtype="float32", seconds=30
    ),
    Job("stdc1_camvid", (512, 1024), 16, ("logits", "labels"), GPU_FEW, "auto", seconds=30),
    Job("stdc2", (512, 1024), peers=GPU_FEW, dtype="auto", seconds=30),
    Job("stdc1_camvid", (768, 1536), peers=GPU_FEW, dtype="auto", seconds=30),
    Job("stdc1_camvid", (720, 960), peers=GPU_FEW, dtype="auto", seconds=30),
    Job("stdc1_camvid", (1024, 2048), peers=GPU_FEW, dtype="auto", seconds=30),
    Job("stdc1_camvid", (512, 1024), peers="cuDNN graph", dtype="auto", kind="scaling", seconds=60),
    Job("stdc2", (768, 1536), peers=GPU_FEW, dtype="auto", seconds=30),
    Job("stdc2", (512, 1024), 16, ("logits", "labels"), GPU_FEW, "auto", seconds=30),
)


def measure(job: Job, device: str, folder: Path, seconds: float) -> dict[str, object]:
    selection = parse(
        dtype=job.dtype,
        scopes=",".join(job.scopes),
        peers=job.peers,
        int8=job.int8,
        device=device,
    )
    weights = workloads.resolve(job.model, folder)
    workload = workloads.Workload(job.model, weights, *job.size, job.batch)
    settings = run.Settings(
        device=selection.device,
        scopes=selection.scopes,
        threads=torch.get_num_threads(),
        rounds=15,
        seconds=seconds,
        say=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
    )
    one = scaling.measure if job.kind == "scaling" else run.measure
    return one(workload, selection.specs, settings, selection.dtypes) | {"job": str(job)}


def done(path: Path, device: str) -> set[str]:
    """The jobs that a file has of this commit on this kind of device."""
    if not path.exists():
        return set()
    found = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {
        record["job"]
        for record in found
        if record.get("job")
        and record["header"]["commit"] == info.commit()
        and record["header"]["device"] == torch.device(device).type
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=3600, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="file of records to append to")
    parser.add_argument(
        "--have", type=Path, action="append", default=[], help="a file whose records count as measured, too"
    )
    parser.add_argument("--jobs", type=int, help="only the first so many")
    parser.add_argument("--again", action="store_true", help="also those that the file has")
    arguments = parser.parse_args()
    began = time.monotonic()
    jobs = (CPU_JOBS if arguments.device == "cpu" else GPU_JOBS)[: arguments.jobs]
    known = [] if arguments.again else [arguments.out, *arguments.have]
    skip = set().union(*(done(path, arguments.device) for path in known))
    left, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            remaining = arguments.seconds - (time.monotonic() - began)
            if str(job) in skip:
                print(f"{job}: already measured", file=sys.stderr)
            elif remaining < job.seconds / 2:
                left.append(str(job))
            else:
                print(f"{job}: at most {min(job.seconds, remaining):.0f} s", file=sys.stderr, flush=True)
                record = measure(job, arguments.device, Path(folder), min(job.seconds, remaining))
                records.append(record, arguments.out)
                failed += sum(row["ours"] and row["status"] != "measured" for row in record["rows"])
    for job in left:
        print(f"{job}: left out, no time", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.suite: {error}", file=sys.stderr)
        sys.exit(2)
