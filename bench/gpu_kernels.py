"""Time each kernel of the GPU backends alone, beside what the model predicted.

    python -m bench.gpu_kernels --seconds 30 --out bench/results/kernels.jsonl

One record a backend and network, appended to the file as soon as it is measured: the header of all
measurements, a row a kernel, their sum, and the time of all of them in one graph, as they run. A kernel
alone finds its inputs in the cache; in the network's graph it may overlap with its neighbours. So the two
differ, in either direction. With ``--constants`` also a record of what the model assumes of the GPU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

from bench import gpu_constants
from bench.ahead import network_of
from stdc_fast import _native
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.gpu.model import Device, device_class
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.benchmark import header, records
from stdc_fast.benchmark.table import aligned
from stdc_fast.errors import UserError
from stdc_fast.precision import precision_of
from stdc_fast.tune import Clock, GraphClock, fill

BACKENDS = {"cuda": cuda, "triton": triton}
VARIANTS = ("stdc1", "stdc2")
SIZE = (512, 1024)


def measure(
    variant: str,
    backend: str,
    executable,
    size: tuple[int, int],
    device: Device,
    clock: Clock,
    end: float,
    whole: bool = False,
) -> dict[str, object]:
    """The record of one network on one backend, without its header.

    Args:
        size: (H, W) of a frame.
        device: class of the GPU, whose model predicts.
        end: of time.monotonic, after which no further kernel is timed.
        whole: time no kernel alone.
    """
    lowered = executable.lower(Request(1, size, size, size))
    fill(lowered)
    together = clock.launches(lowered)  # first, so that kernels alone find what they will find
    rows = []
    for launch in lowered.launches:
        if whole or time.monotonic() > end:
            break
        expected = launch.predicted(device)
        rows.append(
            {
                "op": launch.name,
                "kind": launch.kind,
                "work": launch.work.key if launch.work else None,
                "tiles": str(launch.tiles) if launch.tiles else None,
                "programs": expected.programs,
                "measured_us": clock.launches(lowered, [launch]) * 1e6,
                "predicted_us": expected.seconds * 1e6,
                "predicted_products_us": expected.products * 1e6,
                "predicted_fetch_us": expected.fetch * 1e6,
            }
        )
    finished = len(rows) == len(lowered.launches)
    beside = getattr(lowered, "predicted", None)  # where kernels may run beside others
    return {
        "model": variant,
        "backend": backend,
        "height": size[0],
        "width": size[1],
        "batch": 1,
        "dtype": executable.precision.name,
        "options": _native.cuda_info().get("options", []) if backend == "cuda" else [],
        "finished": finished,
        "rows": rows,
        "sum_us": sum(row["measured_us"] for row in rows) if finished else None,
        "predicted_sum_us": sum(launch.predicted(device).seconds for launch in lowered.launches) * 1e6,
        "together_us": together * 1e6,
        "predicted_together_us": None if beside is None else beside(device) * 1e6,
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
    whole = record["predicted_together_us"]
    beside = "" if whole is None else f" ({whole:.0f} us predicted)"
    return [
        *aligned(cells),
        f"{record['backend']} {record['model']} {record['height']}x{record['width']} {record['dtype']}: "
        f"{record['together_us']:.0f} us in one graph{beside}, {alone}, "
        f"{record['predicted_sum_us']:.0f} us predicted{middle}",
    ]


def usable(names: list[str]) -> dict[str, str]:
    """Why each of the backends can not be timed here; empty if all can."""
    reasons = {}
    for name in names:
        backend = BACKENDS[name].BACKEND
        if reason := backend.why_not_here() or backend.why_not_by_default():
            reasons[name] = reason
    return reasons


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="after which no further kernel is timed")
    parser.add_argument("--out", type=Path, required=True, help="file of records to append to")
    parser.add_argument("--backend", choices=["all", *BACKENDS], default="all")
    parser.add_argument("--constants", action="store_true", help="measure what the model assumes, too")
    parser.add_argument("--whole", action="store_true", help="whole networks alone, in each precision")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    names = list(BACKENDS) if options.backend == "all" else [options.backend]
    missing = usable(names)
    if len(missing) == len(names):
        told = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise UserError(f"there is nothing to time: {told}")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    kind = device_class((properties.major, properties.minor), properties.multi_processor_count)
    head = {"kind": "kernels", "device_class": kind.key}
    head["header"] = header.header(str(device), torch.get_num_threads())
    left = []
    if options.constants:
        try:
            constants = gpu_constants.measure(kind)
        except UserError as error:
            left.append(f"constants ({error})")
        else:
            records.append(header.identity() | head | constants, options.out)
            print("\n".join(gpu_constants.table(constants)), flush=True)
    # Whole networks last, in what one kernel after the other was not timed in.
    some = [] if options.whole else [("float16", False)]
    some += [("float16", True)] * options.whole + [("int8", True), ("bfloat16", True)]
    for (dtype, whole), variant, name in itertools.product(some, VARIANTS, names):
        what = f"{name} {variant} {dtype}"
        if name in missing or time.monotonic() > end:
            left.append(f"{what} ({missing.get(name, 'no time')})")
            continue
        plan = network_of(variant, precision_of(dtype).levels)
        executable = BACKENDS[name].compile(plan, dtype, device)
        found = measure(variant, name, executable, SIZE, kind, GraphClock(), end, whole)
        records.append(header.identity() | head | found, options.out)
        print("\n".join(table(found)), flush=True)
        if not found["finished"] and not whole:
            left.append(f"{what} (no time)")
    if left:
        print(f"not measured to the end: {', '.join(left)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.gpu_kernels: {error}", file=sys.stderr)
        sys.exit(2)
