"""Numbers, lists and tables as the benchmark report writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.measured import Found, Spread

NONE = "-"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def significant(value: float, digits: int = 3) -> str:
    """Never in powers of ten, and without rounding what is left of the point."""
    return f"{value:.{_decimals(value, digits)}f}"


def _decimals(value: float, digits: int = 3) -> int:
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0


def spread(value: Spread | None, scale: float = 1, decimals: int | None = None) -> str:
    """``p50 (p20..p80)``, all with the decimals of the median."""
    if value is None:
        return NONE
    decimals = _decimals(scale * value.p50) if decimals is None else decimals
    low, middle, high = (f"{scale * v:.{decimals}f}" for v in value[:3])
    return f"{middle} ({low}..{high})"


def amount(value: float, unit: str) -> str:
    """``170 GFLOP/s``, ``20.0 GB/s``."""
    unit = {"flop/s": "FLOP/s", "byte/s": "B/s"}.get(unit, unit)
    size, prefix = next(((s, p) for s, p in _PREFIXES if value >= s), (1, ""))
    return f"{significant(value / size)} {prefix}{unit}"


def megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value / 1e6:.1f}"


def percent(share: float | None) -> str:
    """Rounded down, so that only full agreement reads 100."""
    return NONE if share is None else f"{math.floor(1e4 * share + 1e-9) / 100:.2f} %"


def listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))


def sizes(pairs: Iterable[tuple[int, int]]) -> str:
    return listed(f"{height}x{width}" for height, width in sorted(pairs))


def runs_of(rows: Iterable[Found]) -> str:
    """``run 2``, or ``runs 1, 2``."""
    numbers = sorted({found.run.number for found in rows})
    return f"run{'s' * (len(numbers) > 1)} {listed(numbers)}"


def text(words: object) -> str:
    """Anything as one line of Markdown that is shown as it is."""
    line = " ".join(str(words).split())
    for mark in "\\`*|<>[]":
        line = line.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}"))
    return line


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: str = "") -> str:
    """A Markdown table of ready cells; ``numbers`` has an ``r`` for each column that is set to the right."""
    rule = ["---:" if mark == "r" else "---" for mark in numbers.ljust(len(head), ".")[: len(head)]]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def between(text: str, begin: str, end: str, part: str) -> str:
    """``text`` with ``part`` in place of what is between two lines of it."""
    head, rest = text.split(begin)
    return f"{head}{begin}\n{part}\n{end}{rest.split(end)[1]}"
