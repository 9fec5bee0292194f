"""Each op of the native engine against this machine's limits: ``stdc-fast benchmark --roofline``."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stdc_fast import zoo
from stdc_fast.benchmark import run
from stdc_fast.benchmark.run import Settings, percent, quantiles
from stdc_fast.benchmark.runners import Spec
from stdc_fast.benchmark.table import aligned, ms
from stdc_fast.benchmark.worker import Profile
from stdc_fast.benchmark.workloads import Workload
from stdc_fast.errors import UserError
from stdc_fast.plan import Plan
from stdc_fast.plan.cost import costs
from stdc_fast.plan.ops import Conv, Stem
from stdc_fast.precision import precision_of
from stdc_fast.viewer.facts import short, sort_of
from stdc_fast.viewer.save import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is profiled: a raw frame to labels, all ops of the plan.
SCOPE = "labels"
#: Kinds of op whose time is that of the matrix units, or should be.
CONVOLUTIONS = ("stem", "down", "conv")

COLUMNS = ("op", "kind", "ms", "share", "MFLOP", "GFLOP/s", "KB", "GB/s", "FLOP/B", "limit", "by")
NOTE = """\
ms: seconds of all threads in an op, over the threads; what they wait is the rest. limit: the time that the
matrix rate or the memory bandwidth of this run would allow (the longer of both), over that time; of the
convolutions (stem, conv, down) and of a frame against the matrix rate alone. FLOP are those of direct
convolution, bytes those of the plan, each map and weight once. More than 100 % is possible: by bandwidth, as
maps stay in caches, which are faster than memory; by matrix, where an op needs fewer products than direct
convolution (Winograd), or does better than torch's matrix products."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What an op of the engine computes and moves in one call.

    Attributes:
        sort: for legends, see :func:`stdc_fast.viewer.facts.sort_of`.
        bytes: None where that is not known.
        levels: whether it multiplies levels of 8 bits.
    """

    sort: str
    flop: int
    bytes: int | None
    levels: bool = False


def work(
    plan: Plan, ops: Iterable[tuple[str, str]], batch: int, height: int, width: int, itemsize: int
) -> list[Work]:
    """Of each of the engine's ops, given as (name, kind).

    Those that no op of the plan has the name of are what the engine puts before one: ``NAME:image`` turns
    frames into a map of four channels, ``NAME:input`` is the prologue of a convolution. They have bytes, but
    no operations, and the op itself then reads what they wrote.
    """
    ops = list(ops)
    names = {name for name, _ in ops}
    found: dict[str, Work] = {}
    for op, cost in zip(plan.ops, costs(plan, batch, height, width, itemsize), strict=True):
        read = cost.read
        if isinstance(op, Stem) and f"{op.name}:image" in names:
            image = batch * height * width * 4 * itemsize
            found[f"{op.name}:image"] = Work("frame", 0, read + image)
            read = image
        elif isinstance(op, Conv) and f"{op.name}:input" in names:
            rows, columns = plan.size(op.inputs[0].buffer, height, width)
            ready = batch * rows * columns * op.inputs[0].channels * itemsize
            found[f"{op.name}:input"] = Work("prologue", 0, read + ready)
            read = ready
        moved = read + cost.written + cost.weights
        found[op.name] = Work(sort_of(op), 2 * cost.macs, moved, bool(getattr(op, "multipliers", None)))
    return [found.get(name, Work(kind, 0, None)) for name, kind in ops]


@dataclasses.dataclass
class Profiled(run.Entry):
    """An entry whose turns are profiles."""

    profiles: list[Profile] = dataclasses.field(default_factory=list)

    def turn(self, scope: str) -> None:
        answer = self.ask("profile", scope, self.frames[scope])
        if answer is not None:
            self.profiles.append(answer)
            self.cold.setdefault(scope, []).append(answer.cold)
            self.hot.setdefault(scope, []).append(answer.seconds)


def measure(
    workload: Workload, specs: list[Spec], settings: Settings, dtypes: list[str]
) -> dict[str, object]:
    """A record of kind "roofline": a row of each of ``specs``, which are of the native engine.

    Rows are as of :func:`stdc_fast.benchmark.run.rows`, with what :func:`analyse` finds.
    """
    began = time.monotonic()
    settings = dataclasses.replace(settings, scopes=(SCOPE,))
    record = run.opened("roofline", settings)
    entries = [Profiled(spec, workload, settings.threads) for spec in specs]
    with contextlib.closing(run.Meter(settings, dtypes)) as meter:
        run.in_turns(entries, settings, began + settings.seconds, meter)
    record["limits"], record["rows"] = meter.best, []
    for entry in entries:
        (row,) = run.rows(run.Compared(entry), settings, meter.best)
        row |= dict.fromkeys(("isa", "ops", "totals"))
        if row["status"] == "measured":
            plan = planned(workload, entry.spec)
            row |= analyse(entry.profiles, plan, workload, entry.spec.dtype, settings, meter.best)
        record["rows"].append(row)
    return record


def planned(workload: Workload, spec: Spec) -> Plan:
    """What a runner of ours computes: in int8 some ops are on levels."""
    precision = precision_of(spec.dtype)
    if not precision.levels:
        return workload.plan()
    return zoo.load(workload.weights, device="cpu", dtype=precision, backend="cpu").compiled_plan()


def analyse(
    profiles: list[Profile],
    plan: Plan,
    workload: Workload,
    dtype: str,
    settings: Settings,
    limits: list[dict[str, object]],
) -> dict[str, object]:
    """What the profiles of several rounds say.

    Returns ``isa``; ``ops`` in the engine's order, each with name, kind, dtype that it multiplies in, seconds
    (of the wall: of all threads, over their number; quantiles over rounds), flop, bytes and limit; and
    ``totals`` with the same by name: "convolutions", "ops", "rest" (waiting for other threads, and Python),
    "clocked" (a frame with a clock around each op) and "frame" (without). A limit has seconds, percent and
    by, or is None where none was measured.
    """
    threads = settings.threads
    names = [(name, kind) for name, kind, _ in profiles[0].ops]
    floats = precision_of(dtype).maps
    works = work(plan, names, workload.batch, *workload.size, floats.itemsize)

    def limit(seconds: float, flop: dict[str, int], moved: int | None) -> dict[str, object] | None:
        if moved is None or seconds <= 0:
            return None
        return percent(seconds, flop, moved, dtype, threads, settings, limits)

    ops = []
    for i, ((name, _), does) in enumerate(zip(names, works, strict=True)):
        seconds = quantiles([profile.ops[i][2] / threads for profile in profiles])
        kind = "int8" if does.levels else str(floats).removeprefix("torch.")
        ops.append(
            {
                "name": name,
                "kind": does.sort,
                "dtype": kind,
                "seconds": seconds,
                "flop": does.flop,
                "bytes": does.bytes,
                "limit": limit(seconds["p50"], {kind: does.flop}, does.bytes),
            }
        )
    convolutions = [op for op in ops if op["kind"].startswith(CONVOLUTIONS)]
    clocked = statistics.median(profile.clocked for profile in profiles)
    frame = statistics.median(profile.seconds for profile in profiles)
    spent = sum(op["seconds"]["p50"] for op in ops)
    flop = _by_dtype(ops)

    def total(seconds: float, some: list[dict], floor: dict | None) -> dict[str, object]:
        return {
            "seconds": seconds,
            "flop": sum(op["flop"] for op in some),
            "bytes": sum(op["bytes"] or 0 for op in some),
            "limit": floor,
        }

    of_convolutions = sum(op["seconds"]["p50"] for op in convolutions)
    floors = [op["limit"]["seconds"] for op in ops if op["limit"]]
    each = None
    if floors and spent > 0:
        each = {"seconds": sum(floors), "percent": 100 * sum(floors) / spent, "by": "op by op"}
    # No bytes: these are held against the matrix rate alone.
    matrix = limit(of_convolutions, _by_dtype(convolutions), 0)
    return {
        "isa": profiles[0].isa,
        "ops": ops,
        "totals": {
            "convolutions": total(of_convolutions, convolutions, matrix),
            "ops": total(spent, ops, each),
            "rest": total(clocked - spent, [], None),
            "clocked": total(clocked, ops, limit(clocked, flop, 0)),
            "frame": total(frame, ops, limit(frame, flop, 0)),
        },
    }


def _by_dtype(ops: list[dict]) -> dict[str, int]:
    """Operations of several ops, by the dtype that they are multiplied in."""
    found: dict[str, int] = {}
    for op in ops:
        found[op["dtype"]] = found.get(op["dtype"], 0) + op["flop"]
    return found


_TOTALS = {
    "convolutions": "all convolutions",
    "ops": "all ops",
    "rest": "rest: waiting, Python",
    "clocked": "frame with these clocks",
    "frame": "frame",
}


def lines(record: dict) -> list[str]:
    """A table for each dtype, and who has no speed, with the reason."""
    found: list[str] = []
    for row in record["rows"]:
        if row["status"] != "measured":
            found += ["", f"{row['runner']} {row['dtype']}: {row['status']}: {row['reason']}"]
            continue
        whole = row["totals"]["clocked"]["seconds"]
        cells = [COLUMNS]
        cells += [_cells(short(op["name"]), op["kind"], op, op["seconds"]["p50"], whole) for op in row["ops"]]
        ends = row["totals"].items()
        for name, part in ends:
            of = None if name == "frame" else whole  # without clocks it is no part of the others
            cells.append(_cells(_TOTALS[name], "", part, part["seconds"], of))
        count = row["seconds"]["n"]
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        table = aligned(cells)
        rule = "-" * max(map(len, table))
        table = [table[0], rule, *table[1 : -len(ends)], rule, *table[-len(ends) :]]
        found += [
            "",
            f"{row['model']} {row['height']}x{row['width']}, batch {row['batch']}, {row['scope']}: "
            f"{row['runner']} {row['dtype']}, {row['isa']}, {threads}; {count} round{'s' * (count > 1)}",
            *table,
        ]
    if any(row["status"] == "measured" for row in record["rows"]):
        found += ["", NOTE]
    return found


def _cells(name: str, kind: str, part: dict, seconds: float, whole: float | None) -> tuple[str, ...]:
    flop, moved, limit = part["flop"], part["bytes"], part["limit"]
    timed = seconds > 0
    return (
        name,
        kind,
        ms(seconds),
        "" if whole is None else f"{100 * seconds / whole:.1f} %",
        f"{flop / 1e6:.1f}" if flop else "",
        f"{flop / seconds / 1e9:.1f}" if flop and timed else "",
        f"{moved / 1e3:.1f}" if moved else "",
        f"{moved / seconds / 1e9:.1f}" if moved and timed else "",
        f"{flop / moved:.1f}" if flop and moved else "",
        f"{limit['percent']:.0f} %" if limit else "",
        limit["by"] if limit else "",
    )


def draw(record: dict, path: str | Path) -> None:
    """Write the figure of a record, SVG or PNG: a panel for each dtype.

    Raises UserError without matplotlib, for another suffix, where nothing was measured, and where ``path``
    can not be written.
    """
    rows = [row for row in record["rows"] if row["status"] == "measured"]
    if not rows:
        raise UserError(f"{path}: not written; nothing was measured")

    def make() -> Figure:
        from stdc_fast.benchmark.roofline_figure import figure

        return figure(record, rows)

    save_figure(path, make)


def check(device: str, backends: str) -> None:
    """UserError unless it is the native engine that is asked for: no other's ops have clocks."""
    if device != "cpu":
        raise UserError(f"--roofline needs backend cpu, which does not run on {device}; use --device cpu")
    if backends not in ("all", "cpu"):
        raise UserError(
            f"--roofline needs backend cpu, whose ops have clocks; leave out --backends {backends}"
        )
