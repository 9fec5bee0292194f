"""The text of docs/benchmarks.md, from what :mod:`bench.measured` read."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator

from bench.measured import (
    AXES,
    DEVICES,
    PROMISED,
    SCOPES,
    STATUSES,
    Device,
    Found,
    Prediction,
    Run,
    Workload,
    merge,
    not_measured,
    search,
)
from bench.plots import Plot
from bench.words import NONE, amount, listed, megabytes, percent, significant, sizes, spread, table, text

_HEAD = """\
# Benchmarks

`python -m bench.report` writes this page from `bench/results/*.jsonl` and `bench/predictions.json`.
Do not edit it. Add a record, then write it again.

## How to read this

- A scope says what is timed. **logits**: a normalised image to logits at 1/8 of its size. **labels**: a raw
  uint8 frame to labels at the network's size. **frame**: a uint8 frame of 1024x2048 to labels of 1024x2048.
  The frame is resized to the network's size inside.
- A time is the median of n rounds with its 20th and 80th percentiles: `p50 (p20..p80)`. "Cold" is the first
  frame after the caches were overwritten.
- Our rows are bold. Peers run in turn with ours, in the same rounds on the same machine.
- A ratio is a runner's time over the time of the named form of ours, round by round. Above 1 the runner is
  slower. "Same dtype" is the ratio to ours in the row's own dtype.
- "% of limit" is the time that the machine's limit allows, over the time taken. The limit is the matrix rate
  or the bandwidth of the same run. It counts the operations of direct convolution and the bytes that no
  runner can save. The rate is the best of torch's matrix products, so some convolutions exceed it.
- "Labels agree" is the share of labels that equal the reference's. "Logits error" is relative to it too. A
  runner that does not agree well enough is refused and gets no speed. Each missing speed has a numbered
  reason.
- The newest of repeated measurements is shown. The older ones say how well it repeats. "Run" is a number in
  the table of runs.
- Memory is that of a runner's own process with all scopes prepared, above what it had with torch imported.
  1 MB is 10^6 bytes.
"""

_GPU = {
    "capability": "capability {}",
    "memory_gib": "{} GiB",
    "driver": "driver {}",
    "max_clock_mhz": "at most {} MHz",
    "power_limit_w": "at most {} W",
}


def document(
    devices: list[Device], predictions: list[Prediction], plots: list[Plot], image: Callable[[Plot], str]
) -> str:
    """The whole text; ``image`` gives the address of a plot as seen from it."""
    pictures: dict[str, str] = {}
    for plot in plots:
        pictures[plot.place] = f"![{text(plot.alt)}]({image(plot)})"
    parts = [_HEAD.rstrip()]
    if not any(device.rows or device.scaling for device in devices):
        parts.append("**Nothing is measured: there are no records.**")
    for kind, name in DEVICES.items():
        present = [device for device in devices if device.kind == kind]
        for device in present:
            parts += [f"## {name}: {text(device.name)}", *_device(device, pictures)]
        if not present:
            parts += [f"## {name}", "Not measured."]
    if predictions:
        parts += ["## Predictions", *_predictions(devices, predictions, pictures)]
    parts += ["## Not measured", *_missing(devices)]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------- a device


def _device(device: Device, pictures: dict[str, str]) -> Iterator[str]:
    yield "### Runs"
    yield from _runs(device)
    if device.limits:
        yield "### Limits"
        yield _limits(device)
        yield pictures.get(f"{device.name} roofline", "")
    reasons = _Reasons(device.rows + device.scaling)
    groups: dict[Workload, list[Found]] = {}
    for found in device.rows:
        groups.setdefault(found.row.workload, []).append(found)
    if groups:
        yield "### Speed"
        yield from _glance(groups.values())
        yield pictures.get(f"{device.name} six", "")
        yield pictures.get(f"{device.name} latency", "")
        yield pictures.get(f"{device.name} throughput", "")
    for workload, rows in sorted(
        groups.items(), key=lambda g: (g[0].model, g[0].batch, g[0][1] * g[0][2], g[0])
    ):
        yield f"#### {text(workload)}"
        yield from _workload(rows, reasons)
    if reasons.groups:
        yield "### Without a speed"
        yield reasons.table()
    if device.scaling or device.fits:
        yield "### Scaling"
        yield pictures.get(f"{device.name} pixels", "")
        yield from _scaling(device)
    yield "### Repeatability"
    yield from _repeats(device)


def _runs(device: Device) -> Iterator[str]:
    lines = []
    for run in device.runs:
        header, load = run.header, run.header["load"] or {}
        average = load.get("average")
        lines.append([
            run.number, f"{run.time:%Y-%m-%d %H:%M}", run.kind, text(header["commit"] or NONE),
            header["threads"] or NONE, _clock(run), listed(f"{v:.2f}" for v in average) if average else NONE,
            _share(load.get("busy")), _share(load.get("steal")), text(run.id),
        ])  # fmt: skip
    head = [
        "run",
        "time (UTC)",
        "kind",
        "commit",
        "threads",
        "GHz",
        "load average",
        "busy",
        "stolen",
        "record",
    ]
    yield table(head, lines, "r...rr.rr")
    groups: dict[str, list[int]] = {}
    for run in device.runs:
        groups.setdefault(_machine(run), []).append(run.number)
    yield "\n".join(
        f"- Run{'s' * (len(numbers) > 1)} {listed(numbers)}:\n{machine}"
        for machine, numbers in groups.items()
    )


def _machine(run: Run) -> str:
    """A list of the machine's processor, GPUs and versions."""
    cpu, versions = run.header["cpu"], run.header["versions"]
    features = listed(cpu.get("features") or ["none named"])
    parts = [f"{cpu['model']}, {cpu['machine']}, {cpu['cores']} cores, {cpu['threads']} threads; {features}."]
    for gpu in run.header["gpus"] or ():
        told = [form.format(gpu[name]) for name, form in _GPU.items() if gpu.get(name) is not None]
        parts.append(listed([gpu["name"], *told]) + ".")
    parts.append(f"Versions: {listed(f'{k} {v}' for k, v in sorted(versions.items()) if v)}.")
    absent = listed(sorted(name for name, version in versions.items() if not version))
    parts += [f"Not installed: {absent}."] if absent else []
    return "\n".join(textwrap.fill(f"  - {text(part)}", 110, subsequent_indent=4 * " ") for part in parts)


def _clock(run: Run) -> str:
    clocks = run.header["clock_mhz"] or []
    if run.header["device"] == "cuda":
        clocks = [gpu["clock_mhz"] for gpu in run.header["gpus"] or () if gpu.get("clock_mhz")]
    bounds = [f"{f(clocks) / 1e3:.2f}" for f in (min, max)] if clocks else [NONE]
    return "..".join(dict.fromkeys(bounds))


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _limits(device: Device) -> str:
    lines = []
    for run, limit, values in device.limits:
        span = f"{amount(min(values), limit.unit)} to {amount(max(values), limit.unit)}"
        lines.append([
            limit.what, limit.dtype or NONE, limit.threads or NONE, amount(limit.value, limit.unit),
            run.number, f"{span} in {len(values)}" if len(values) > 1 else NONE,
        ])  # fmt: skip
    return table(["limit", "dtype", "threads", "newest", "run", "range of all runs"], lines, "..rrr.")


def _glance(groups: Iterable[list[Found]]) -> Iterator[str]:
    """Ours as it runs by default beside the best of the peers, without 8 bits and with them."""
    lines = []
    for rows in groups:
        timed = sorted((f for f in rows if f.row.measured), key=_order)
        for scope in dict.fromkeys(f.row.scope for f in timed):
            here = [f for f in timed if f.row.scope == scope]
            own = next((f for f in here if (f.row.runner, f.row.dtype) == f.row.baseline), None)
            if own is None:
                continue
            peers = [f for f in here if not f.row.ours]
            wide = next((f for f in peers if f.row.dtype != "int8"), None)
            small = next((f for f in peers if f.row.dtype == "int8"), None)
            row = own.row
            lines.append([
                text(row.workload), scope, f"**{text(row.runner)} {text(row.dtype)}**",
                significant(1e3 * row.seconds.p50), *_against(wide), *_against(small),
            ])  # fmt: skip
    if lines:
        yield (
            "Ours as it runs by default, the fastest peer in 16 or 32 bits, and the fastest in 8 bits.\n"
            "A ratio is the peer's time over ours: above 1 ours is faster."
        )
        head = ["workload", "scope", "ours", "ms", "fastest peer", "ms", "ratio", "in 8 bits", "ms", "ratio"]
        yield table(head, lines, "...r.rr.rr")


def _against(found: Found | None) -> list[object]:
    if found is None:
        return [NONE, NONE, NONE]
    row = found.row
    name = f"{text(row.runner)} {text(row.dtype)}"
    return [name, significant(1e3 * row.seconds.p50), spread(row.ratio, decimals=2)]


def _workload(rows: list[Found], reasons: _Reasons) -> Iterator[str]:
    timed = sorted((f for f in rows if f.row.measured), key=_order)
    named = sorted({str(f.row.baseline) for f in timed if f.row.ratio and f.row.baseline})
    if timed:
        yield f"Ratios are to {text(named[0])}." if len(named) == 1 else ""
        head = [
            "scope", "runner", "dtype", "threads", "ms", "n", "cold ms", "images/s", "ratio", "same dtype",
            "% of limit", "labels agree", "logits error", "run",
        ]  # fmt: skip
        yield table(head, (_speed(found, len(named) > 1) for found in timed), "...rrrrrrrrrrr")
    reason = reasons.line(f for f in rows if not f.row.measured)
    yield f"No speed: {reason}." if reason else ""
    # A runner's memory is that of its process, with all scopes in it.
    every = {f.row.key[3:]: f for f in reversed(timed) if f.row.memory or f.row.prepare is not None}
    stored = list(reversed(every.values()))
    if stored:
        head = [
            "runner", "dtype", "threads", "peak above start, MB", "device peak, MB", "arena, MB",
            "weights, MB", f"prepare s ({stored[0].row.scope})", "run",
        ]  # fmt: skip
        yield table(head, map(_memory, stored), "..rrrrrrr")


def _order(found: Found) -> tuple:
    row = found.row
    return SCOPES.index(row.scope), row.seconds.p50, row.runner, row.dtype, row.threads or 0


def _names(found: Found) -> list[str]:
    row = found.row
    runner = f"**{text(row.runner)}**" if row.ours else text(row.runner)
    return [row.scope, runner, text(row.dtype), row.threads or NONE]


def _speed(found: Found, several: bool) -> list[object]:
    row = found.row
    ratio = spread(row.ratio, decimals=2)
    if several and row.ratio and row.baseline:
        ratio += f" to {text(row.baseline)}"
    return [
        *_names(found), spread(row.seconds, 1e3), row.seconds.n, spread(row.cold, 1e3),
        significant(row.images), ratio, spread(row.ratio_same_dtype, decimals=2),
        f"{row.bound.percent:.0f} {text(row.bound.by)}" if row.bound else NONE,
        percent(row.agreement), NONE if row.error is None else f"{row.error:.1e}", found.run.number,
    ]  # fmt: skip


def _memory(found: Found) -> list[object]:
    memory = found.row.memory or (None,) * 4
    prepare = NONE if found.row.prepare is None else significant(found.row.prepare)
    return [*_names(found)[1:], *map(megabytes, memory), prepare, found.run.number]


class _Reasons:
    """Why rows have no speed, numbered."""

    def __init__(self, rows: Iterable[Found]):
        every = list(rows)
        self.all = {found.row.cell for found in every}
        self.groups: dict[tuple, list[Found]] = {}
        for found in sorted((f for f in every if not f.row.measured), key=self._key):
            self.groups.setdefault(self._key(found), []).append(found)
        self.numbers = {key: number for number, key in enumerate(self.groups, 1)}

    @staticmethod
    def _key(found: Found) -> tuple:
        row = found.row
        return STATUSES.index(row.status), row.runner, row.reason

    def line(self, rows: Iterable[Found]) -> str:
        """``openvino float16 (logits, labels) refused [1]; ...``."""
        found: dict[tuple, list[str]] = {}
        for item in sorted(rows, key=lambda f: (self._key(f), f.row.dtype, SCOPES.index(f.row.scope))):
            scopes = found.setdefault((self._key(item), item.row.dtype, item.row.status), [])
            scopes += [item.row.scope] * (item.row.scope not in scopes)
        return "; ".join(
            f"{text(key[1])} {text(dtype)} ({listed(scopes)}) {status} {text(f'[{self.numbers[key]}]')}"
            for (key, dtype, status), scopes in found.items()
        )

    def table(self) -> str:
        lines = []
        for (status, runner, reason), rows in self.groups.items():
            cells = {found.row.cell for found in rows}
            where = "every workload" if cells == self.all else "; ".join(map(_place, merge(sorted(cells))))
            lines.append([
                self.numbers[status, runner, reason], STATUSES[status], text(runner),
                text(listed(sorted({f.row.dtype for f in rows}))), text(reason or "no reason recorded"),
                text(where), listed(sorted({f.run.number for f in rows})),
            ])  # fmt: skip
        return table(["reason", "status", "runner", "dtype", "why", "where", "run"], lines, "r")


def _place(cell: tuple[frozenset, ...]) -> str:
    models, pairs, batches, scopes = cell
    found = [scope for scope in SCOPES if scope in scopes]
    return f"{listed(sorted(models))} {sizes(pairs)} batch {listed(sorted(batches))} ({listed(found)})"


def _scaling(device: Device) -> Iterator[str]:
    lines = []
    for run, fit, rows in sorted(device.fits, key=lambda f: (AXES.index(f[1].axis), f[1][1:3], f[0].number)):
        sort = listed(sorted({f"{row.workload.model} {row.scope}" for row in rows}))
        # A line goes through any two points.
        good = NONE if fit.r2 is None or len(rows) < 3 else f"{fit.r2:.4f}"
        lines.append([
            fit.axis, text(fit.runner), text(fit.dtype), text(sort), f"{rows[0].value} to {rows[-1].value}",
            len(rows), f"{fit.exponent:.3f}", good, run.number,
        ])  # fmt: skip
    if lines:
        yield "Time as a power of what grows, fitted to the medians:"
        head = ["axis", "runner", "dtype", "what", "from..to", "points", "exponent", "R²", "run"]
        yield table(head, lines, ".....rrrr")
    for axis in AXES:
        grown = [f for f in device.scaling if f.row.axis == axis and f.row.measured]
        if not grown:
            continue
        values = sorted({f.row.value for f in grown})
        groups: dict[tuple, dict[float, Found]] = {}
        for found in grown:
            row, model = found.row, found.row.workload.model
            fixed = {
                "pixels": f"batch {row.workload.batch}, {row.threads} threads",
                "batch": f"{row.workload.height}x{row.workload.width}, {row.threads} threads",
                "threads": f"{row.workload.height}x{row.workload.width} batch {row.workload.batch}",
            }[axis]
            key = (f"{model} {row.scope}, {fixed}", not row.ours, row.runner, row.dtype)
            groups.setdefault(key, {})[row.value] = found
        yield f"Milliseconds by {axis}:"
        head = ["what", "runner", "dtype", *map(str, values), "run"]
        yield table(
            head,
            (_grown(key, by, values) for key, by in sorted(groups.items(), key=_first)),
            "..." + "r" * 20,
        )


def _first(item: tuple) -> object:
    return item[0]


def _grown(key: tuple, by: dict[float, Found], values: list[float]) -> list[object]:
    times = [spread(by[v].row.seconds, 1e3) if v in by else NONE for v in values]
    runs = listed(sorted({found.run.number for found in by.values()}))
    what, peer, runner, dtype = key
    return [text(what), text(runner) if peer else f"**{text(runner)}**", text(dtype), *times, runs]


def _repeats(device: Device) -> Iterator[str]:
    repeats = device.repeats
    if not repeats:
        yield "Not measured: no two runs of one commit measured the same row."
        return
    where = listed(sorted({text(repeat.later.row.workload) for repeat in repeats}))
    yield (
        "Each row that two runs of one commit measured, the later run beside the one before it. They agree "
        "where the intervals from p20 to p80 overlap. Runs of trees with changes that were not "
        f"committed are left out. Repeated so far: {where}."
    )
    lines = []
    for what in ("ratio", "seconds"):
        pairs = [r for r in repeats if r.what == what]
        if pairs:
            changes = sorted(abs(r.change) for r in pairs)
            agree = sum(r.agrees for r in pairs)
            lines.append([
                what, len(pairs), agree, f"{100 * agree / len(pairs):.0f} %",
                f"{100 * statistics.median(changes):.1f} %", f"{100 * changes[-1]:.1f} %",
            ])  # fmt: skip
    head = ["what", "pairs", "agree", "share", "median change of the median", "largest"]
    yield table(head, lines, ".rrrrr")
    apart = [r for r in repeats if not r.agrees]
    if not apart:
        return
    apart.sort(key=lambda r: (-round(abs(r.change), 6), r.what, str(r.later.row.key)))
    yield f"The furthest apart, {min(10, len(apart))} of {len(apart)}:"
    lines = [
        [
            text(r.later.row.workload), *_names(r.later), r.what, *map(_either(r.what), (r.before, r.after)),
            f"{100 * r.change:+.1f} %", f"{r.earlier.run.number}, {r.later.run.number}",
        ]
        for r in apart[:10]
    ]  # fmt: skip
    head = ["workload", "scope", "runner", "dtype", "threads", "what", "before", "after", "change", "runs"]
    yield table(head, lines, "....r.rrr")


def _either(what: str) -> Callable:
    return (lambda v: spread(v, decimals=2)) if what == "ratio" else (lambda v: spread(v, 1e3) + " ms")


# ---------------------------------------------------------------- all devices


def _predictions(
    devices: list[Device], predictions: list[Prediction], pictures: dict[str, str]
) -> Iterator[str]:
    yield 'These are predictions. Only the column "measured" holds measurements.'
    for target in dict.fromkeys(p.device for p in predictions):
        yield f"### {text(target)}"
        yield pictures.get(f"{target} predictions", "")
        head = ["workload", "scope", "dtype", "step", "predicted µs", "measured µs", "verdict", "basis"]
        lines = []
        for p in (p for p in predictions if p.device == target):
            measured, verdict = _compared(p, list(search(devices, p)))
            lines.append([
                text(p.workload), p.scope, text(p.dtype), text(p.rung), f"{1e6 * p.low:g}..{1e6 * p.high:g}",
                measured, verdict, text(p.basis),
            ])  # fmt: skip
        yield table(head, lines, "....rr")


def _compared(prediction: Prediction, hits: list[tuple[Device, Found]]) -> tuple[str, str]:
    """What was measured of a prediction, and what came of it."""
    timed = [(device, found) for device, found in hits if found.row.measured]
    if not timed:
        reasons = dict.fromkeys(f"{f.row.status}: {f.row.reason}" for _, f in hits)
        return text("not measured" + (f" ({'; '.join(reasons)})" if reasons else "")), NONE
    measured, verdicts = [], []
    for device, (run, row) in timed:
        middle = row.seconds.p50
        whose = f"{device.name}, {row.workload.model}, run {run.number}"
        measured.append(f"{spread(row.seconds, 1e6)} [{whose}]")
        if middle < prediction.low:
            verdicts.append(f"faster, {middle / prediction.low:.2f} of the low end")
        elif middle > prediction.high:
            verdicts.append(f"slower, {middle / prediction.high:.2f} times the high end")
        else:
            verdicts.append("within")
    return text("; ".join(measured)), "; ".join(verdicts)


def _missing(devices: list[Device]) -> Iterator[str]:
    left = not_measured(devices)
    total = sum(len(k) * len(m) * len(s) * len(b) * len(c) for k, m, s, b, c in left)
    yield (
        f"Of the {len(PROMISED)} workloads that the library is meant for (devices, models, sizes, batches, "
        f"scopes), {len(PROMISED) - total} are measured and {total} are not" + (":" if left else ".")
    )
    if not left:
        return
    lines = [
        [
            listed(DEVICES[k] for k in DEVICES if k in kinds), listed(sorted(models)), sizes(pairs),
            listed(sorted(batches)), listed(s for s in SCOPES if s in scopes),
        ]
        for kinds, models, pairs, batches, scopes in left
    ]  # fmt: skip
    yield table(["device", "model", "size", "batch", "scope"], lines)
