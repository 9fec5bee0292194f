"""Put what bench/gpu.sh has gathered into one file of JSON lines, print a table of the steps.

    python bench/gpu_summary.py FOLDER FILE [CALL]
    python bench/gpu_summary.py --passed GPU FILE...

FOLDER has ``steps`` (lines of name, status and seconds, between tabs), ``NAME.log`` of each step,
``nvidia_smi`` (CSV, one GPU) and perhaps ``records`` of bench.suite and ``kernels`` of bench.gpu_kernels.
Exit code 0 if no step failed or timed out, else 1. The last line is the verdict on the
call. The second form prints the steps that passed in these files, of the same sources on a GPU of that name.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import os
import sys
from pathlib import Path

TAIL = 20


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def steps(folder: Path) -> list[dict[str, object]]:
    found = []
    for line in read(folder / "steps").splitlines():
        name, status, seconds = line.split("\t")
        tail = "\n".join(read(folder / f"{name}.log").splitlines()[-TAIL:])
        found.append({"name": name, "status": status, "seconds": int(seconds), "tail": tail})
    return found


def nvidia_smi(text: str) -> dict[str, str]:
    """The card as nvidia-smi tells it, or its complaint as "error"."""
    rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or len(rows[0]) < 2:
        return {"error": text.strip()}
    return dict(zip(rows[0], rows[1], strict=True))


def records(text: str) -> tuple[list[str], int]:
    """Whole records, one line each, and the number of broken ones: the suite may have been stopped in one."""
    whole, broken = [], 0
    for line in filter(str.strip, text.splitlines()):
        try:
            json.loads(line)
            whole.append(line)
        except ValueError:
            broken += 1
    return whole, broken


ROOT = Path(__file__).resolve().parent.parent


def sources(root: Path = ROOT) -> str:
    """A digest of the sources of all that a step may depend on, built or not, with or without git."""
    found = hashlib.sha256()
    kinds = (".py", ".sh", ".cu", ".cuh", ".h", ".cpp", ".json")
    for folder in ("stdc_fast", "kernels", "csrc", "bench", "tests"):
        for path in sorted(root.joinpath(folder).rglob("*")):
            if path.suffix in kinds and not {"results", "prebuilt", "tuned", "_build_info.json"} & {
                *path.relative_to(root).parts
            }:
                found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def passed(gpu: str, files: list[Path]) -> list[str]:
    """Steps that need not run again. The build is none of them: each machine needs its own."""
    own, found = sources(), set()
    for path in files:
        first = json.loads(read(path).partition("\n")[0] or "{}")
        if (first.get("sources"), first.get("nvidia_smi", {}).get("name")) == (own, gpu):
            found |= {step["name"] for step in first["steps"] if step["status"] == "passed"}
    return sorted(found - {"build"})


def verdict(call: str, done: list[dict[str, object]]) -> str:
    """One line: how many steps passed, and which did not, with the reasons of those that did not run."""
    found: dict[str, list[str]] = {}
    for step in done:
        name, status, last = step["name"], step["status"], str(step["tail"]).rpartition("\n")[2]
        if status == "timed out" and last.startswith("not started"):
            status = "not started for want of time"
        because = status == "skipped" and last != "passed before"
        if status == "skipped" and not because:
            status = "passed before"
        found.setdefault(status, []).append(f"{name} ({last})" if because else name)
    ran = len(found.pop("passed", []))
    rest = [f"{status}: {', '.join(names)}" for status, names in found.items()]
    bad = {"failed", "timed out", "not started for want of time"} & found.keys()
    return f"{call}: {'NOT GOOD' if bad else 'good'}; {'; '.join([f'{ran} passed', *rest])}"


def main(folder: Path, target: Path, call: str = "steps") -> int:
    done = steps(folder)
    lines, broken = records("\n".join(read(folder / name) for name in ("records", "kernels")))
    summary = {
        "schema": 1,
        "kind": "gpu_run",
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sources": sources(),
        "steps": done,
        "broken_records": broken,
        "nvidia_smi": nvidia_smi(read(folder / "nvidia_smi")),
    }
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text("\n".join([json.dumps(summary), *lines]) + "\n", encoding="utf-8")
    os.replace(temporary, target)
    print()
    for step in done:
        print(f"{step['name']:<12}{step['status']:<12}{step['seconds']:>4} s")
    print(f"{len(lines)} records{f', {broken} broken' if broken else ''}: {target}")
    print(verdict(call, done))
    return int(any(step["status"] in ("failed", "timed out") for step in done))


if __name__ == "__main__":
    if sys.argv[1] == "--passed":
        print(*passed(sys.argv[2], [Path(name) for name in sys.argv[3:]]))
        sys.exit(0)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
