"""How time grows with pixels, batch and threads."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time

import numpy as np

from stdc_fast.benchmark import run
from stdc_fast.benchmark.run import Settings
from stdc_fast.benchmark.runners import Spec
from stdc_fast.benchmark.workloads import Workload

#: (H, W) of the points along "pixels": the paper's inputs, CamVid's, and a quarter of the smallest.
SIZES = ((256, 512), (512, 1024), (720, 960), (768, 1536), (1024, 2048))
BATCHES = (1, 2, 4, 8, 16)
#: (H, W) at which batch and threads are varied.
SMALL = (256, 512)
AXES = ("pixels", "batch", "threads")


def points(axis: str, workload: Workload, threads: int) -> list[tuple[int, Workload, int]]:
    """(value, workload, threads) of the points of an axis; sizes and batches have all threads."""
    if axis == "pixels":
        return [(height * width, _at(workload, height, width, 1), threads) for height, width in SIZES]
    if axis == "batch":
        return [(batch, _at(workload, *SMALL, batch), threads) for batch in BATCHES]
    counts = sorted({1, min(2, threads), threads})
    return [(count, _at(workload, *SMALL, 1), count) for count in counts]


def _at(workload: Workload, height: int, width: int, batch: int) -> Workload:
    return dataclasses.replace(workload, height=height, width=width, batch=batch)


def measure(
    workload: Workload, specs: list[Spec], settings: Settings, dtypes: list[str]
) -> dict[str, object]:
    """A record of kind "scaling": runners at each point, raw frame to labels, with a fitted exponent an axis.

    All points of an axis run in turns. Rows are as of :func:`stdc_fast.benchmark.run.rows`, with ``axis`` and
    ``value``; fits have axis, runner, dtype, exponent and r2.
    """
    began = time.monotonic()
    settings = dataclasses.replace(settings, scopes=("logits", "labels"))
    record = run.opened("scaling", settings)
    record["rows"] = []
    axes = [axis for axis in AXES if settings.device == "cpu" or axis != "threads"]
    with contextlib.closing(run.Meter(settings, dtypes)) as meter:
        done: list[tuple[str, int, run.Entry]] = []
        for i, axis in enumerate(axes):
            some = [
                (axis, value, run.Entry(spec, where, threads))
                for value, where, threads in points(axis, workload, settings.threads)
                for spec in specs
            ]
            deadline = began + settings.seconds * (i + 1) / len(axes)
            run.in_turns([entry for _, _, entry in some], settings, deadline, meter)
            done += some
    record["limits"] = meter.best
    for axis, value, entry in done:
        (row,) = run.rows(run.Compared(entry), dataclasses.replace(settings, scopes=("labels",)), meter.best)
        record["rows"].append(row | {"axis": axis, "value": value})
    record["fits"] = fits(record["rows"])
    return record


def fits(rows: list[dict]) -> list[dict[str, object]]:
    """Exponents of the power laws through the medians: least squares of log time over log value."""

    def key(row: dict) -> tuple[str, str, str]:
        return row["axis"], row["runner"], row["dtype"]

    measured = sorted((row for row in rows if row["status"] == "measured"), key=key)
    found = []
    for (axis, runner, dtype), group in itertools.groupby(measured, key):
        some = list(group)
        x = np.log([row["value"] for row in some])
        y = np.log([row["seconds"]["p50"] for row in some])
        if len(set(x.tolist())) < 2:
            continue
        slope, offset = np.polyfit(x, y, 1)
        rest, spread = ((y - slope * x - offset) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        # A line through two points says nothing of itself.
        r2 = None if len(x) < 3 or spread == 0 else float(1 - rest / spread)
        found.append({"axis": axis, "runner": runner, "dtype": dtype, "exponent": float(slope), "r2": r2})
    return found
