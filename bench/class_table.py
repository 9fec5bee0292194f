"""The table of docs/quantisation.md from the JSON of ``stdc-fast val``: python -m bench.class_table"""

from __future__ import annotations

import json
from pathlib import Path

from bench.words import between

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "quantisation.md"
RECORDS = ("int8_val_float32.json", "int8_val_bfloat16.json", "int8_val_int8.json")
BEGIN, END = "<!-- written by bench.class_table -->\n", "<!-- end -->\n"


def table() -> str:
    """A row a class, a column a dtype, and the difference of the last dtype to the first."""
    found = [json.loads((ROOT / "docs" / "results" / name).read_text()) for name in RECORDS]
    links = [f"[{r['dtype']}](results/{name})" for r, name in zip(found, RECORDS, strict=True)]
    rows = [f"| IoU % | {' | '.join(links)} | difference |", "| --- | ---: | ---: | ---: | ---: |"]
    for what in (*found[0]["iou"], "mean"):
        values = [100 * (r["miou"] if what == "mean" else r["iou"][what]) for r in found]
        cells = (*(f"{value:.2f}" for value in values), f"{values[-1] - values[0]:+.2f}")
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The document with the table of now."""
    return between(text, BEGIN, END, table())


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
