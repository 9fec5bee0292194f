"""Committed records as the report sees them: read, checked, and the newest of each workload and runner."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stdc_fast.errors import UserError

SCHEMA = 1
SCOPES = ("logits", "labels", "frame")
STATUSES = ("measured", "missing", "refused", "failed")
AXES = ("pixels", "batch", "threads")
DEVICES = {"cpu": "CPU", "cuda": "NVIDIA GPU"}

#: What the library promises to have measured, as (device, model, size, batch, scope).
PROMISED = tuple(
    itertools.product(
        DEVICES, ("stdc1", "stdc2"), ((512, 1024), (768, 1536), (1024, 2048), (720, 960)), (1, 16), SCOPES
    )
)


class Spread(NamedTuple):
    """Median and quantiles of ``n`` rounds."""

    p20: float
    p50: float
    p80: float
    n: int

    def overlaps(self, other: Spread) -> bool:
        return self.p20 <= other.p80 and other.p20 <= self.p80


class Baseline(NamedTuple):
    runner: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.runner} {self.dtype}"


class Bound(NamedTuple):
    """The time that the run's own limits leave: seconds, percent of it reached, which limit binds."""

    seconds: float
    percent: float
    by: str


class Memory(NamedTuple):
    """Bytes; None where the runner does not say."""

    host: float | None  # peak above the start
    device: float | None
    arena: float | None
    weights: float | None


class Limit(NamedTuple):
    what: str
    dtype: str | None
    threads: int | None
    value: float
    unit: str


class Fit(NamedTuple):
    axis: str
    runner: str
    dtype: str
    exponent: float
    r2: float | None


class Workload(NamedTuple):
    model: str
    height: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"{self.model} {self.height}x{self.width} batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One runner at one workload. Times are None in rows that were not measured, whatever the file holds."""

    workload: Workload
    scope: str
    runner: str
    ours: bool
    dtype: str
    threads: int | None
    status: str
    reason: str
    seconds: Spread | None
    cold: Spread | None
    ratio: Spread | None
    baseline: Baseline | None
    ratio_same_dtype: Spread | None
    error: float | None  # of logits
    agreement: float | None  # of labels
    bound: Bound | None
    flop: float | None
    bytes: float | None
    memory: Memory | None
    prepare: float | None
    axis: str | None  # of scaling rows
    value: float | None

    @property
    def measured(self) -> bool:
        return self.status == "measured"

    @property
    def key(self) -> tuple:
        return (self.axis, self.workload, self.scope, self.runner, self.dtype, self.threads)

    @property
    def cell(self) -> tuple:
        """Model, size, batch and scope, as in :data:`PROMISED`."""
        model, height, width, batch = self.workload
        return model, (height, width), batch, self.scope

    @property
    def images(self) -> float:
        """A second."""
        return self.workload.batch / self.seconds.p50


@dataclasses.dataclass(frozen=True)
class Run:
    """One record; ``number`` counts the runs of its device by time, from 1."""

    id: str
    time: datetime.datetime
    kind: str
    header: dict[str, Any]
    limits: list[Limit]
    rows: list[Row]
    fits: list[Fit]
    number: int = 0


class Found(NamedTuple):
    """A row with the run it is from."""

    run: Run
    row: Row


class Prediction(NamedTuple):
    device: str
    workload: Workload
    dtype: str
    scope: str
    rung: str
    backend: str
    low: float  # seconds
    high: float
    basis: str

    def matches(self, device: str, row: Row) -> bool:
        return (
            self.device in device
            and row.workload.model.startswith(self.workload.model)
            and row.workload[1:] == self.workload[1:]
            and (row.dtype, row.scope, row.runner) == (self.dtype, self.scope, f"ours {self.backend}")
        )


class Repeat(NamedTuple):
    """The same measurement in two runs of one commit; ``what`` is "ratio" or "seconds"."""

    what: str
    earlier: Found
    later: Found
    before: Spread
    after: Spread

    @property
    def change(self) -> float:
        return self.after.p50 / self.before.p50 - 1

    @property
    def agrees(self) -> bool:
        return self.before.overlaps(self.after)


@dataclasses.dataclass(frozen=True)
class Device:
    """All runs of one device, oldest first."""

    name: str
    kind: str
    runs: list[Run]

    @property
    def rows(self) -> list[Found]:
        """The newest of each key from latency runs."""
        return [found for found in self._newest() if found.row.axis is None]

    @property
    def scaling(self) -> list[Found]:
        return [found for found in self._newest() if found.row.axis is not None]

    def _newest(self) -> list[Found]:
        return list({row.key: Found(run, row) for run in self.runs for row in run.rows}.values())

    @property
    def fits(self) -> list[tuple[Run, Fit, list[Row]]]:
        """The newest fit of each runner and axis at the same workloads, with the rows it went through."""
        found = {}
        for run in self.runs:
            for fit in run.fits:
                key = (fit.axis, fit.runner, fit.dtype)
                rows = [r for r in run.rows if (r.axis, r.runner, r.dtype) == key and r.measured]
                rows.sort(key=lambda r: r.value)
                sort = tuple(sorted({(r.workload.model, r.scope) for r in rows}))
                if rows:
                    found[(*key, sort)] = (run, fit, rows)
        return list(found.values())

    @property
    def limits(self) -> list[tuple[Run, Limit, list[float]]]:
        """The newest of each limit, with the values of all runs."""
        found: dict[tuple, tuple[Run, Limit, list[float]]] = {}
        for run in self.runs:
            for limit in run.limits:
                key = limit._replace(value=0)
                values = found[key][2] if key in found else []
                found[key] = (run, limit, [*values, limit.value])
        return sorted(found.values(), key=lambda f: (f[1].what, f[1].dtype or "", f[1].threads or 0))

    @property
    def repeats(self) -> list[Repeat]:
        """Each row beside the same one of the run before, where both ran the same commit.

        A tree with changes that were not committed is not known to be the same code.
        """
        found, last = [], {}
        for run in self.runs:
            commit = run.header["commit"]
            if commit in (None, "unknown") or commit.endswith("-dirty"):
                continue
            for row in run.rows:
                if not row.measured:
                    continue
                now, before = Found(run, row), last.get((commit, row.key))
                last[commit, row.key] = now
                if before is None or before.run is run:
                    continue
                found.append(Repeat("seconds", before, now, before.row.seconds, row.seconds))
                if before.row.ratio and row.ratio and before.row.baseline == row.baseline:
                    found.append(Repeat("ratio", before, now, before.row.ratio, row.ratio))
        return found


def read(folder: Path) -> list[Device]:
    """Devices by kind and name, from all ``*.jsonl`` of a folder.

    Raises UserError, naming file and line, for what is not a record.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one with the record files")
    runs: dict[str, tuple[str, Run]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(_text(path).split("\n"), 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            run = _parsed(line, place, _run)
            if run is None:
                continue
            if run.id in runs:
                raise UserError(f"{place}: record {run.id} is in {runs[run.id][0]} too; remove one of them")
            runs[run.id] = place, run
    by_device: dict[tuple[str, str], list[Run]] = {}
    for _, run in sorted(runs.values(), key=lambda r: (r[1].time, r[1].id)):
        key = run.header["device"], run.header["device_name"]
        numbered = by_device.setdefault(key, [])
        numbered.append(dataclasses.replace(run, number=len(numbered) + 1))
    return [Device(name, kind, runs) for (kind, name), runs in sorted(by_device.items())]


def read_predictions(path: Path) -> list[Prediction]:
    """Raises UserError, naming the file, for what is no list of predictions."""
    return _parsed(_text(path), str(path), lambda data: [_prediction(item) for item in data])


def search(devices: Iterable[Device], prediction: Prediction) -> Iterator[tuple[Device, Found]]:
    """Rows that a prediction speaks of, one a device and key: of latency runs, else of scaling runs."""
    for device in devices:
        for rows in (device.rows, device.scaling):
            hits = [found for found in rows if prediction.matches(device.name, found.row)]
            yield from ((device, found) for found in hits)
            if hits:
                break


def not_measured(devices: Iterable[Device]) -> list[tuple[frozenset, ...]]:
    """What was promised less what our runners measured, as few products of sets as :func:`merge` finds."""
    done = {
        (device.kind, *row.cell)
        for device in devices
        for _, row in device.rows + device.scaling
        if row.measured and row.ours
    }  # fmt: skip
    left = [
        cell for cell in PROMISED
        if not any(d[0] == cell[0] and d[1].startswith(cell[1]) and d[2:] == cell[2:] for d in done)
    ]  # fmt: skip
    return merge(left)


def merge(cells: Iterable[tuple]) -> list[tuple[frozenset, ...]]:
    """Disjoint products of sets that together are the given cells; innermost dimension first."""
    merged = [tuple(frozenset([value]) for value in cell) for cell in dict.fromkeys(cells)]
    for k in reversed(range(len(merged[0]) if merged else 0)):
        groups: dict[tuple, frozenset] = {}
        for cell in merged:
            rest = (*cell[:k], *cell[k + 1 :])
            groups[rest] = groups.get(rest, frozenset()) | cell[k]
        merged = [(*rest[:k], values, *rest[k:]) for rest, values in groups.items()]
    return merged


# ---------------------------------------------------------------- parsing


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can not be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; take it from the repository again") from None


def _parsed(text: str, place: str, parse: Callable) -> Any:
    def refuse(constant: str):
        raise ValueError(f"{constant} is no number")

    try:
        return parse(json.loads(text, parse_constant=refuse))
    except json.JSONDecodeError as error:
        why = f"not JSON ({error.msg} at character {error.pos + 1})"
    except KeyError as error:
        why = f"lacks {error.args[0]!r}"
    except (TypeError, ValueError, AttributeError) as error:
        why = str(error)
    raise UserError(f"{place}: damaged: {why}; take the file from the repository again")


def _run(data: dict) -> Run | None:
    """None for what no document shows: the summary of bench/gpu.sh, its kernels, rooflines."""
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r} where {SCHEMA} is known")
    if data["kind"] in ("gpu_run", "kernels", "roofline"):
        return None
    time = datetime.datetime.fromisoformat(data["time"])
    if time.tzinfo is None:
        raise ValueError(f"time {data['time']} without a time zone")
    header = data["header"]
    _one_of(header["device"], DEVICES, "device")
    for name in ("device_name", "cpu", "gpus", "versions", "commit", "threads", "clock_mhz", "load"):
        header[name]  # a KeyError here rather than halfway through a document
    for word in (header["device_name"], header["commit"] or "unknown"):
        _word(word)
    for name in ("model", "machine", "cores", "threads"):
        header["cpu"][name]
    for gpu in header["gpus"] or ():
        gpu["name"]
    return Run(
        _word(data["id"]), time.astimezone(datetime.timezone.utc),
        _one_of(data["kind"], ("latency", "scaling"), "kind"), header,
        [_limit(item) for item in data["limits"]],
        [_row(item) for item in data["rows"]],
        [_fit(item) for item in data.get("fits") or ()],
    )  # fmt: skip


def _row(data: dict) -> Row:
    status = _one_of(data["status"], STATUSES, "status")
    if status == "measured" and not data["seconds"]:
        raise ValueError(f"{data['runner']} is measured, but has no seconds")
    # What was refused has times that nobody may read as speed.
    timed = data if status == "measured" else {}
    parity, baseline, axis = data.get("parity") or {}, timed.get("baseline"), data.get("axis")
    bound, memory = timed.get("limit"), timed.get("memory")
    return Row(
        workload=_workload(data),
        scope=_one_of(data["scope"], SCOPES, "scope"),
        runner=_word(data["runner"]),
        ours=bool(data["ours"]),
        dtype=_word(data["dtype"]),
        threads=_optional(data["threads"]),
        status=status,
        reason=data.get("reason") or "",
        seconds=_spread(timed.get("seconds")),
        cold=_spread(timed.get("cold")),
        ratio=_spread(timed.get("ratio")),
        baseline=baseline and Baseline(_word(baseline["runner"]), _word(baseline["dtype"])),
        ratio_same_dtype=_spread(timed.get("ratio_same_dtype")),
        error=_optional(parity.get("logits")),
        agreement=_optional(parity.get("labels")),
        bound=bound and Bound(_number(bound["seconds"]), _number(bound["percent"]), _word(bound["by"])),
        flop=_optional(data.get("flop")),
        bytes=_optional(data.get("bytes")),
        memory=memory and _memory(memory),
        prepare=_optional(timed.get("prepare_seconds")),
        axis=axis and _one_of(axis, AXES, "axis"),
        value=axis and _number(data["value"]),
    )


def _memory(data: dict) -> Memory:
    peak, before = _optional(data.get("host_peak")), _optional(data.get("host_before"))
    host = None if peak is None or before is None else peak - before
    return Memory(host, *(_optional(data.get(name)) for name in ("device_peak", "arena", "weights")))


def _limit(data: dict) -> Limit:
    what = _one_of(data["what"], ("matrix", "bandwidth"), "limit")
    if not _number(data["value"]) > 0:
        raise ValueError(f"{what} limit of {data['value']}")
    return Limit(what, data["dtype"], data["threads"], data["value"], _word(data["unit"]))


def _fit(data: dict) -> Fit:
    axis = _one_of(data["axis"], AXES, "axis")
    words = _word(data["runner"]), _word(data["dtype"])
    return Fit(axis, *words, _number(data["exponent"]), _optional(data["r2"]))


def _prediction(data: dict) -> Prediction:
    words = [_word(data[name]) for name in ("dtype", "scope", "rung", "backend")]
    low, high = (_number(data[name]) / 1e6 for name in ("low_us", "high_us"))
    if not 0 < low <= high:
        raise ValueError(f"{data['rung']}: {data['low_us']} to {data['high_us']} us is no interval")
    return Prediction(_word(data["device"]), _workload(data), *words, low, high, _word(data["basis"]))


def _workload(data: dict) -> Workload:
    return Workload(_word(data["model"]), *(_number(data[name]) for name in ("height", "width", "batch")))


def _spread(data: dict | None) -> Spread | None:
    if data is None:
        return None
    spread = Spread(*(_number(data[name]) for name in Spread._fields))
    if not 0 < spread.p20 <= spread.p50 <= spread.p80:
        raise ValueError(f"quantiles {spread[:3]} are not in order")
    return spread


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return value


def _optional(value: object) -> float | None:
    return None if value is None else _number(value)


def _word(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no name")
    return value


def _one_of(value: str, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"{what} {value!r} is none of {', '.join(known)}")
    return value
