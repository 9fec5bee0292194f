"""Write the table by which "auto" chooses between CUDA and Triton, ``stdc_fast/tables/gpu_backends.json``.

    python -m bench.gpu_backends [gpu_*.jsonl ...]

Predictions are made anew, for all classes of GPUs: the whole network in one graph, frame to labels. Measured
times come from the files of bench/gpu.sh that are given, the last of a class and precision; without any, the
table keeps what it had.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import ahead
from stdc_fast import _native
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.tiles import CudaModel
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES, Device
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.backends.gpu.preference import FILE
from stdc_fast.files import write_atomic
from stdc_fast.precision import Precision

NETWORK, SIZE = "stdc1", (512, 1024)


def predicted(device: Device, precision: Precision, native: ModuleType) -> dict[str, float]:
    """Microseconds of the network by backend; ``native`` has the CUDA kernels, or stands for them."""
    plan = ahead.network_of(NETWORK, precision.levels)
    chooser = Chooser(CudaModel(native, device))
    executable = cuda.CudaExecutable(plan, precision, torch.device("cpu"), native, chooser)
    ours = executable.lower(Request(1, SIZE, SIZE, SIZE)).predicted(device)
    triton = sum(
        one.predicted(device).seconds for one in ahead.lowered(plan, device, precision, SIZE).launches
    )
    return {"cuda": round(ours * 1e6, 1), "triton": round(triton * 1e6, 1)}


def predictions(native: ModuleType) -> dict[str, dict[str, dict[str, float]]]:
    """By class and precision, of those that both backends compute in."""
    return {
        key: {precision.name: predicted(device, precision, native) for precision in cuda.PRECISIONS}
        for key, device in DEVICES.items()
    }


def measurements(records: Iterable[dict[str, Any]]) -> tuple[dict, dict]:
    """(Microseconds by class, precision and backend; by class where) of records, the last of each."""
    times: dict[str, dict[str, dict[str, float]]] = {}
    where: dict[str, dict[str, str]] = {}
    for record in records:
        if not is_network(record):
            continue
        key, head = record["device_class"], record["header"]
        of = times.setdefault(key, {}).setdefault(record["dtype"], {})
        of[record["backend"]] = round(record["together_us"], 1)
        where[key] = {"device": head["device_name"], "commit": head["commit"], "time": record["time"]}
    return times, where


def is_network(record: dict[str, Any]) -> bool:
    """Whether it is a time of the network of the table, by kernels as they are built by default."""
    return (
        record.get("kind") == "kernels"
        and (record.get("model"), record.get("batch")) == (NETWORK, 1)
        and (record.get("height"), record.get("width")) == SIZE
        and not record.get("options")
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_backends", description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="*", help="files of results of bench/gpu.sh")
    options = parser.parse_args(arguments)
    old = json.loads(FILE.read_text()) if FILE.exists() else {}
    times, where = old.get("measured_us", {}), old.get("measured_on", {})
    if options.measured:
        lines = [line for path in options.measured for line in path.read_text().splitlines()]
        times, where = measurements(json.loads(line) for line in lines if line.strip())
    table = {
        "network": NETWORK, "images": 1, "size": SIZE, "predicted_us": predictions(_native.module().gpu),
        "measured_us": times, "measured_on": where,
    }  # fmt: skip
    text = json.dumps(table, indent=1) + "\n"
    write_atomic(FILE, lambda path: Path(path).write_text(text))
    print(FILE, file=sys.stderr)


if __name__ == "__main__":
    main()
