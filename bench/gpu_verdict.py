"""Say in ten lines what held on a GPU, from the files of all calls of bench/gpu.sh.

    python bench/gpu_verdict.py FILE...

The last word on each step counts. "Within" is a kernel's measured time over its simulated one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WITHIN = 1.3
Record = dict[str, Any]


def read(paths: list[Path]) -> tuple[dict[str, Record], list[Record]]:
    """(The last run of each step, all records), in the order of the files' names."""
    steps: dict[str, Record] = {}
    records: list[Record] = []
    for path in sorted(paths, key=lambda path: path.name):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record.get("kind") != "gpu_run":
                records.append(record)
                continue
            for step in record["steps"]:
                if step["status"] != "skipped" or step["name"] not in steps:
                    steps[step["name"]] = step
    return steps, records


def status(steps: dict[str, Record], *names: str) -> str:
    return ", ".join(f"{name} {steps[name]['status'] if name in steps else 'not run'}" for name in names)


def whole(records: list[Record], dtype: str = "float16") -> dict[tuple[str, str], float]:
    """Microseconds of stdc1 in one graph by backend and options of the build, the last of each."""
    return {
        (r["backend"], "+".join(r.get("options", [])) or "default"): r["together_us"]
        for r in records
        if r.get("kind") == "kernels" and (r.get("model"), r.get("dtype")) == ("stdc1", dtype)
    }


def kernels(records: list[Record], backend: str) -> str:
    found = [r for r in records if r.get("kind") == "kernels" and r.get("rows") and not r.get("options")]
    rows = [row for r in found if r["backend"] == backend for row in r["rows"]]
    ratios = {row["op"]: row["measured_us"] / row["predicted_us"] for row in rows}
    if not ratios:
        return "not measured"
    off = {op: ratio for op, ratio in ratios.items() if not 1 / WITHIN <= ratio <= WITHIN}
    worst = sorted(off, key=lambda op: -max(off[op], 1 / off[op]))
    told = f"; not: {', '.join(f'{op} {off[op]:.2f}' for op in worst)}" if off else ""
    return f"{len(ratios) - len(off)} of {len(ratios)} within 30 %{told}"


def peers(records: list[Record]) -> str:
    rows = [
        row
        for r in records
        if r.get("kind") == "latency"
        for row in r["rows"]
        if row["status"] == "measured" and row["scope"] == "logits" and row["batch"] == 1
        and (row["height"], row["width"]) == (512, 1024) and row["model"].startswith("stdc1")
        and row["dtype"] in ("float16", "bfloat16")
    ]  # fmt: skip
    ours = [row["seconds"]["p50"] for row in rows if row["ours"]]
    if not ours:
        return "not measured"
    said = [f"ours {min(ours) * 1e6:.0f} us"]
    for name in ("torch.compile", "cuDNN graph"):
        times = [row["seconds"]["p50"] for row in rows if row["runner"] == name]
        said.append(f"{name} {min(times) / min(ours):.2f} times that" if times else f"{name} not measured")
    return ", ".join(said)


def lines(steps: dict[str, Record], records: list[Record]) -> Iterator[str]:
    times = whole(records)
    yield "correctness: " + status(steps, "build", "tests", "cuda", "triton", "kernels")
    yield "staleness, two frames in turns: " + status(steps, "repeats")
    yield "sanitizers: " + status(steps, "memcheck", "racecheck", "synccheck")
    for backend in ("cuda", "triton"):
        yield f"kernels of {backend} against their simulation: {kernels(records, backend)}"
    tuned = re.findall(
        r"(\w+), \S+, batch \d+: (\d+) us before, (\d+) us after", steps.get("tune", {}).get("tail", "")
    )
    said = "; ".join(f"{name} {before} us by the model, {after} us tuned" for name, before, after in tuned)
    yield f"tuned against the model's choice: {said or status(steps, 'tune')}"
    yield "stdc1 512x1024, logits: " + peers(records)
    both = {name: times[name, "default"] for name in ("cuda", "triton") if (name, "default") in times}
    said = ", ".join(f"{name} {us:.0f} us" for name, us in both.items()) or "not measured"
    best = (
        f"{min(both, key=both.get)}; python -m bench.gpu_backends FILE..." if len(both) == 2 else "undecided"
    )
    yield f"auto should take: {best} ({said})"
    usual = times.get(("cuda", "default"))
    built = {way: us for (name, way), us in times.items() if name == "cuda" and way != "default"}
    said = ", ".join(f"{way} {us:.0f} us ({us / usual:.2f})" if usual else way for way, us in built.items())
    yield f"variants of the build: {said or 'not measured'}; {status(steps, 'variants')}"
    bad = [name for name, step in steps.items() if step["status"] in ("failed", "timed out")]
    yield f"to look at: {', '.join(bad) or 'nothing'}"


def main(paths: list[Path]) -> int:
    steps, records = read(paths)
    if not steps:
        print("gpu_verdict: there are no results; run bench/gpu.sh correctness first", file=sys.stderr)
        return 2
    print("\n".join(lines(steps, records)))
    return int(any(step["status"] in ("failed", "timed out") for step in steps.values()))


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
