"""The table of docs/evaluation.md from the JSON of ``stdc-fast val``: python -m bench.evaluation_table"""

from __future__ import annotations

import json
from pathlib import Path

from bench.words import between

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "evaluation.md"
#: Of what the table is made: output of ``stdc-fast val --json``, with a protocol.
RECORDS = ("camvid_val*.json",)
BEGIN, END = "<!-- written by bench.evaluation_table -->\n", "<!-- end -->\n"


def records() -> dict[str, dict]:
    """By file name, those that say their protocol."""
    found = {}
    for path in sorted(path for glob in RECORDS for path in (ROOT / "docs" / "results").glob(glob)):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and "protocol" in record:
            found[path.name] = record
    return found


def table(found: dict[str, dict]) -> str:
    """A row each: where it was measured, by what, the figures, and the file."""
    rows = ["| protocol | seen at | views | windows | mIoU % | pixels % | file |",
            "| --- | --- | --- | --- | ---: | ---: | --- |"]  # fmt: skip
    for name, record in found.items():
        how = record["protocol"]
        seen = [f"{h}x{w}" for (h, w) in _unique(view for size in record["sizes"] for view in size["seen"])]
        sizes = seen[0] if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"
        scales = len(how["scales"])
        said = f"{scales}" + " scales" * (scales > 1) + ", each mirrored too" * how["flip"]
        window = "x".join(map(str, how["window"])) if how["window"] else "none"
        window += f" every {'x'.join(map(str, how['stride']))}" if how["window"] else ""
        cells = (how["name"], sizes, said, window, f"{100 * record['miou']:.2f}",
                 f"{100 * record['pixel_accuracy']:.2f}", f"[{name}](results/{name})")  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    facts = {
        f"{r['model']} on {r['data']} {r['split']}, {r['images']} of {r['images_of_split']} images of "
        f"{'x'.join(map(str, r['sizes'][0]['size']))}, {r['dtype']}, backend {r['backend']}"
        for r in found.values()
    }
    return "\n".join([*(f"{fact}:" for fact in sorted(facts)), "", *rows]) + "\n"


def _unique(sizes) -> list[tuple[int, int]]:
    return sorted({tuple(size) for size in sizes})


def written(text: str) -> str:
    """The document with the table of now."""
    return between(text, BEGIN, END, table(records()))


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
