"""The table of what real tools write, and what the library makes of it.

    python -m tests.media.table --out docs/results/media.jsonl [--only TEXT]

Each case runs in a folder of its own. A case whose tool is missing, or that ends in an exception, is a row
that says so. Exit code 1 if a case does not hold.
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

from tests.media.case import Case, version, why_not

#: Modules with ``CASES``, a sequence of :class:`Case`.
MODULES = ("pictures", "videos", "labels")


def cases() -> list[Case]:
    found = []
    for name in MODULES:
        if (Path(__file__).parent / f"{name}.py").exists():
            found += importlib.import_module(f"tests.media.{name}").CASES
    return found


def row(case: Case) -> dict[str, object]:
    """What came of a case, as plain values."""
    tool = version(case.tool)
    if tool is None:
        said = f"not measured: {why_not(case.tool)}"
        return {"case": case.name, "tool": case.tool, "outcome": said, "holds": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = case.measure(Path(folder))
        except Exception as error:  # a row says so, and the others still run
            outcome = f"{type(error).__name__}: {error}".split("\n")[0]
    if isinstance(outcome, str):
        outcome = outcome.replace(f"{folder}/", "").replace(folder, "")
    if isinstance(outcome, float):
        outcome = round(outcome, 5)
    return {
        "case": case.name,
        "tool": tool,
        "outcome": outcome,
        "target": case.target,
        "holds": case.holds(outcome),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--out", type=Path, help="JSON Lines, a row a case")
    arguments = parser.parse_args()
    rows = []
    for case in cases():
        if arguments.only in case.name:
            rows.append(row(case))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    sys.exit(any(r["holds"] is False for r in rows))


if __name__ == "__main__":
    main()
