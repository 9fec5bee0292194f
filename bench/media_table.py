"""The tables of docs/media.md from docs/results/media*.jsonl, mutated.jsonl: python -m bench.media_table"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bench.words import NONE, between, table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "media.md"
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- {} written by bench.media_table -->\n", "<!-- end of {} -->\n"
_LONGEST = 90


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def said(outcome: object) -> str:
    """A share in percent, or the beginning of a line."""
    if isinstance(outcome, float):
        return f"{100 * outcome:.1f} %"
    text = str(outcome).replace("|", "/").split("\r")[0].split("\n")[0]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3].rsplit(" ", 1)[0] + " ..."


def cases(before: Iterable[dict], now: Iterable[dict]) -> str:
    """A row a case: the tool, what came out before and now, and what is asked for."""
    old = {row["case"]: row["outcome"] for row in before}
    rows = [
        (row["case"], _tool(row["tool"]), said(old[row["case"]]) if row["case"] in old else NONE,
         said(row["outcome"]), _target(row["target"]))
        for row in now
    ]  # fmt: skip
    return table(("file", "written by", "before", "now", "asked for"), rows)


def mutated(rows: Iterable[dict]) -> str:
    """A row a kind of file."""
    cells = [
        (row["kind"], row["files"], row.get("taken", 0), row.get("refused", 0), len(row["finds"]),
         f"{row['peak_megabytes']} MB")
        for row in rows
    ]  # fmt: skip
    return table(("kind", "files", "taken", "refused", "finds", "peak memory"), cells)


def written(text: str) -> str:
    """The document with the tables of now."""
    parts = {
        "cases": cases(read("media_before.jsonl"), read("media.jsonl")),
        "mutated": mutated(read("mutated.jsonl")),
    }
    for name, part in parts.items():
        text = between(text, BEGIN.format(name), END.format(name), part)
    return text


def _tool(version: str) -> str:
    name = version.removeprefix("Version: ").replace(" version ", " ")
    return " ".join(name.split()[:2]).split("-0+")[0]


def _target(target: float | str) -> str:
    return f"at least {100 * target:g} %" if isinstance(target, float) else f'a line with "{target}"'


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
