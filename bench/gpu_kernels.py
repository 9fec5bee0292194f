"""Time each kernel of the Triton backend alone on a GPU, beside what the model predicted.

    python -m bench.gpu_kernels --seconds 30 --out bench/results/kernels.jsonl

One record a network, appended to the file as soon as it is measured: the header of all measurements, a row a
kernel, their sum, and the time of all of them in one graph, as they run. A kernel alone finds its inputs in
the cache; in the network's graph it may overlap with its neighbours. So the two differ, in either direction.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import torch

from bench.ahead import network
from stdc_fast.backends import tiles, triton
from stdc_fast.backends.placed import Request
from stdc_fast.benchmark import header, records
from stdc_fast.benchmark.table import aligned
from stdc_fast.errors import UserError
from stdc_fast.tune import Clock, GraphClock

VARIANTS = ("stdc1", "stdc2")
SIZE = (512, 1024)


def measure(
    variant: str, executable, size: tuple[int, int], device: tiles.Device, clock: Clock, end: float
) -> dict[str, object]:
    """The record of one network, without its header.

    Args:
        executable: of the Triton backend.
        size: (H, W) of a frame.
        device: class of the GPU, whose model predicts.
        end: of time.monotonic, after which no further kernel is timed.
    """
    launches = executable.lower(Request(1, size, size, size)).launches
    together = clock.launches(launches)  # first, so that kernels alone find what they will find
    rows = []
    for launch in launches:
        if time.monotonic() > end:
            break
        expected = launch.predicted(device)
        rows.append(
            {
                "op": launch.op.name,
                "kind": launch.op.kind,
                "work": launch.work.key if launch.work else None,
                "tiles": str(launch.tiles) if launch.tiles else None,
                "programs": math.prod(launch.grid),
                "measured_us": clock.launches([launch]) * 1e6,
                "predicted_us": expected.seconds * 1e6,
                "predicted_products_us": expected.products * 1e6,
                "predicted_fetch_us": expected.fetch * 1e6,
            }
        )
    finished = len(rows) == len(launches)
    return {
        "model": variant,
        "height": size[0],
        "width": size[1],
        "batch": 1,
        "dtype": str(executable.dtype).removeprefix("torch."),
        "finished": finished,
        "rows": rows,
        "sum_us": sum(row["measured_us"] for row in rows) if finished else None,
        "predicted_sum_us": sum(launch.predicted(device).seconds for launch in launches) * 1e6,
        "together_us": together * 1e6,
    }


def table(record: dict) -> list[str]:
    """A line a kernel, the slowest last, and a line of totals."""
    cells = [("", "tiles", "programs", "us", "predicted", "ratio")]
    for row in sorted(record["rows"], key=lambda row: row["measured_us"]):
        cells.append(
            (
                row["op"],
                row["tiles"] or "",
                str(row["programs"]),
                f"{row['measured_us']:.1f}",
                f"{row['predicted_us']:.1f}",
                f"{row['measured_us'] / row['predicted_us']:.2f}",
            )
        )
    ratios = [row["measured_us"] / row["predicted_us"] for row in record["rows"]]
    middle = f"; median ratio {statistics.median(ratios):.2f}" if ratios else ""
    alone = "not all timed" if record["sum_us"] is None else f"{record['sum_us']:.0f} us one by one"
    return [
        *aligned(cells),
        f"{record['model']} {record['height']}x{record['width']} {record['dtype']}: "
        f"{record['together_us']:.0f} us in one graph, {alone}, "
        f"{record['predicted_sum_us']:.0f} us predicted{middle}",
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="after which no further kernel is timed")
    parser.add_argument("--out", type=Path, required=True, help="file of records to append to")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    status, reason = triton.available()
    if not status or triton.interpreted():
        raise UserError(f"there is nothing to time: {reason}")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    kind = tiles.device_class((properties.major, properties.minor), properties.multi_processor_count)
    head = header.header(str(device), torch.get_num_threads())
    left = []
    for variant in VARIANTS:
        if time.monotonic() > end:
            left.append(variant)
            continue
        executable = triton.compile(network(variant), torch.float16, device)
        found = measure(variant, executable, SIZE, kind, GraphClock(), end)
        record = header.identity() | {"kind": "kernels", "header": head, "device_class": kind.key} | found
        records.append(record, options.out)
        print("\n".join(table(record)), flush=True)
        if not found["finished"]:
            left.append(variant)
    if left:
        print(f"not measured to the end, no time: {', '.join(left)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.gpu_kernels: {error}", file=sys.stderr)
        sys.exit(2)
