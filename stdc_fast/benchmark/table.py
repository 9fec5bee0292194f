"""A record as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

COLUMNS = (
    "",
    "dtype",
    "ms",
    "p20..p80",
    "cold",
    "img/s",
    "/ ours",
    "p20..p80",
    "limit",
    "logits",
    "labels",
    "MB",
)

COLD = "! slower hot than cold: the difference is noise, or clocks fell under load; distrust both"


def header(record: dict) -> list[str]:
    """Machine, versions and load, a few lines."""
    head = record["header"]
    cpu = head["cpu"]
    clocks = head["clock_mhz"]
    clock = f", {max(clocks):.0f} MHz" if clocks else ""
    lines = [f"{cpu['model']}, {cpu['cores']} cores{clock}, {' '.join(cpu['features']) or cpu['machine']}"]
    for gpu in head["gpus"]:
        lines.append(
            f"{gpu['name']}, compute {gpu['capability']}, {gpu['memory_gib']} GiB, "
            f"driver {gpu.get('driver')}, "
            f"{_plain(gpu.get('clock_mhz'))} of {_plain(gpu.get('max_clock_mhz'))} MHz"
        )
    lines.append(", ".join(f"{name} {version}" for name, version in head["versions"].items() if version))
    load = head["load"]
    average = " ".join(map(str, load["average"])) if load["average"] else "unknown"
    others = "unknown" if load["busy"] is None else f"{load['busy']:.0%}, stolen {load['steal']:.0%}"
    lines.append(
        f"commit {head['commit']}, {head['threads']} threads; load {average}; "
        f"busy with other things before the start: {others}"
    )
    return lines + _limits(record["limits"])


def _limits(limits: Iterable[dict]) -> list[str]:
    parts: dict[int | None, list[str]] = {}
    for entry in limits:
        giga = f"{entry['value'] / 1e9:.0f}"
        text = f"{giga} GB/s" if entry["what"] == "bandwidth" else f"{entry['dtype']} {giga} GFLOP/s"
        parts.setdefault(entry["threads"], []).append(text)
    of = {None: "", 1: ", 1 thread"}
    return [f"limits{of.get(n, f', {n} threads')}: {', '.join(texts)}" for n, texts in parts.items()]


def rows(record: dict, scopes: dict[str, str]) -> list[str]:
    """A table for each workload and scope, the fastest first, and who has no speed, with the reason."""
    lines: list[str] = []
    measured = [row for row in record["rows"] if row["status"] == "measured"]
    for scope in dict.fromkeys(row["scope"] for row in record["rows"]):
        some = sorted((r for r in measured if r["scope"] == scope), key=lambda r: r["seconds"]["p50"])
        if some:
            first = some[0]
            base = next((r["baseline"] for r in some if r["baseline"]), None)
            count = first["seconds"]["n"]
            compared = f"; {count} round{'s' * (count > 1)}"
            if base:
                compared += f", ratios to {base['runner']} {base['dtype']}"
            lines += [
                "",
                f"{first['model']} {first['height']}x{first['width']}, batch {first['batch']}, {scope}: "
                f"{scopes[scope]}{compared}",
                *aligned([COLUMNS, *map(_cells, some)]),
                *([COLD] if any(map(_odd, some)) else []),
            ]
    left = {
        (r["runner"], r["dtype"]): f"{r['runner']} {r['dtype']}: {r['status']}: {r['reason']}"
        for r in record["rows"]
        if r["status"] != "measured"
    }
    return [*lines, *([""] if left else []), *left.values()]


def _cells(row: dict) -> tuple[str, ...]:
    seconds, ratio, limit = row["seconds"], row["ratio"], row["limit"]
    parity, memory = row["parity"] or {}, row["memory"] or {}
    used = memory.get("device_peak")
    if used is None and memory.get("host_peak") is not None:
        used = memory["host_peak"] - (memory["host_before"] or 0)
    return (
        row["runner"],
        row["dtype"],
        ms(seconds["p50"]),
        _spread(seconds, ms),
        ms(row["cold"]["p50"]) + (" !" if _odd(row) else ""),
        f"{row['batch'] / seconds['p50']:.1f}",
        "" if ratio is None else f"{ratio['p50']:.2f}",
        "" if ratio is None else _spread(ratio, "{:.2f}".format),
        "" if limit is None else f"{limit['percent']:.0f} %",
        "" if parity.get("logits") is None else f"{parity['logits']:.1e}",
        "" if parity.get("labels") is None else f"{parity['labels']:.2%}",
        "" if used is None else f"{used / 1e6:.0f}",
    )


def _odd(row: dict) -> bool:
    """Whether frames from warm caches took longer than the one before, from memory."""
    return row["seconds"]["p50"] > row["cold"]["p50"]


def _spread(values: dict, form: Callable[[float], str]) -> str:
    """p20..p80; one or two rounds have none."""
    return f"{form(values['p20'])}..{form(values['p80'])}" if values["n"] > 2 else ""


def ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _plain(value: object) -> str:
    return "unknown" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)


def fits(record: dict) -> list[str]:
    """Time against what was scaled, and the exponents."""
    lines: list[str] = []
    for axis in dict.fromkeys(row["axis"] for row in record["rows"]):
        lines += ["", f"{axis}:"]
        cells = [("", "dtype", axis, "ms", "img/s")]
        for row in record["rows"]:
            if row["axis"] == axis and row["status"] == "measured":
                rate = f"{row['batch'] / row['seconds']['p50']:.1f}"
                cells.append(
                    (row["runner"], row["dtype"], str(row["value"]), ms(row["seconds"]["p50"]), rate)
                )
        lines += aligned(cells)
        for fit in record["fits"]:
            if fit["axis"] == axis:
                good = "" if fit["r2"] is None else f" (R2 {fit['r2']:.3f})"
                lines.append(
                    f"{fit['runner']} {fit['dtype']}: time grows as {axis}^{fit['exponent']:.2f}{good}"
                )
    return lines


def aligned(cells: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        texts = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    return lines
