"""Write docs/triton-kernels.md from the records of ``bench.ahead``.

    python -m bench.ahead_report docs/results/triton_ahead.jsonl

Two tables: each target's kernels as compiled, and the kernels of STDC1 on an H100, with predicted times.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import ahead
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.files import write_atomic
from stdc_fast.precision import FLOAT16

OUT = Path("docs/triton-kernels.md")
NETWORKS = (
    ("stdc1", (512, 1024), 1),
    ("stdc2", (512, 1024), 1),
    ("stdc1", (768, 1536), 1),
    ("stdc1", (512, 1024), 16),
)
SHOWN = "sm_90"


def predicted(target: str, variant: str, size: tuple[int, int], batch: int) -> float:
    """Microseconds of all kernels of a network in float16, one after the other."""
    device = DEVICES[target]
    whole = ahead.lowered(ahead.network(variant), device, FLOAT16, size, batch)
    return sum(launch.predicted(device).seconds for launch in whole.launches) * 1e6


def by_target(records: list[dict]) -> Iterator[str]:
    yield (
        "| target | kernels | products by | with asynchronous copies | most shared memory, KB (limit) | "
        "most registers | with stack or local memory | problems |"
    )
    yield "| --- | --: | --- | --: | --: | --: | --: | --: |"
    for target, device in DEVICES.items():
        own = [r for r in records if r["target"] == target]
        if not own:
            continue
        kinds = sorted({r["instruction"] for r in own} - {""})
        units = ", ".join(f"{kind} ({sum(r['instruction'] == kind for r in own)})" for kind in kinds)
        copies = sum(r["asynchronous"] > 0 for r in own)
        shared = max(r["shared"] for r in own)
        spills = sum(r["stack"] + r["local"] > 0 for r in own)
        problems = sum(bool(ahead.problems(r)) for r in own)
        yield (
            f"| {target} ({device.name}) | {len(own)} | {units} | {copies} | {shared / 1024:.0f} "
            f"({device.shared >> 10}) | {max(r['registers'] for r in own)} | {spills} | {problems} |"
        )


def by_network(targets: list[str]) -> Iterator[str]:
    names = [f"{v} {h}x{w}, batch {n}" for v, (h, w), n in NETWORKS]
    yield "| target | " + " | ".join(names) + " |"
    yield "| --- |" + " --: |" * len(names)
    for target in targets:
        times = [predicted(target, *network) for network in NETWORKS]
        yield f"| {target} ({DEVICES[target].name}) | " + " | ".join(f"{t:.0f}" for t in times) + " |"


def by_kernel(records: list[dict]) -> Iterator[str]:
    device, known = DEVICES[SHOWN], {r["key"]: r for r in records}
    whole = ahead.lowered(ahead.network("stdc1"), device, FLOAT16, (512, 1024))
    yield (
        "| op | tile, channels, split | programs | instruction | shared KB | registers | products us | "
        "fetch us | predicted us |"
    )
    yield "| --- | --- | --: | --- | --: | --: | --: | --: | --: |"
    for launch in whole.launches:
        record = known[ahead.job_of(launch, device, "").key]
        p, t = launch.predicted(device), launch.tiles
        tile = "-"
        if t is not None:
            tile = f"{t.height}x{t.width}x{t.channels}" + (f"/{t.split}" if t.split > 1 else "")
        yield (
            f"| {launch.kind} {launch.name} | {tile} | {p.programs} | {record['instruction'] or '-'} | "
            f"{record['shared'] / 1024:.0f} | {record['registers']} | {p.products * 1e6:.1f} | "
            f"{p.fetch * 1e6:.1f} | {p.seconds * 1e6:.1f} |"
        )


TEXT = """# The Triton kernels, compiled ahead

`python -m bench.ahead_report {source}` writes this page. Do not edit it. Triton {versions}. **Nothing here
was measured on a GPU.** The machine code was made and inspected without one. All times are predictions.

## As compiled

The table covers every kernel that STDC1 and STDC2 need with the shipped tiles, in float16 and bfloat16.
Network sizes are {sizes}; frames have that size or twice that size. Only the gates and the labels have no
matrix product.

`python -m bench.ahead` fails unless each kernel has

- tensor core instructions where there are products: `wgmma` on sm_90 for tiles of at least 64 pixels a warp
  group;
- asynchronous copies in pipelined convolutions;
- no more shared memory than the limit;
- no stack and no local memory, so no spilled registers;
- on sm_90 and later, a wait for the kernel before it.

{by_target}

{problems}

## Predicted, all kernels one after the other

Microseconds in float16, uint8 frame to uint8 labels, in a CUDA graph. On a GPU: not measured.

The model is `stdc_fast/backends/triton/tiles.py`. For each kernel it takes the longer of two times: its
products, and what its tiles fetch from L2. It adds the launch. Its constants are assumptions that rank
tiles.

{by_network}

## Predicted, kernel by kernel: STDC1, 512x1024, batch 1, float16, {shown}

{by_kernel}
"""


def document(records: list[dict], source: Path) -> str:
    """The whole text."""
    bad = [f"- {problem}" for record in records for problem in ahead.problems(record)]
    return TEXT.format(
        source=source,
        versions=", ".join(sorted({record["triton"] for record in records})),
        sizes=" and ".join(f"{h}x{w}" for h, w in ahead.SIZES),
        by_target="\n".join(by_target(records)),
        problems="\n".join(bad) or "No kernel has a problem.",
        by_network="\n".join(by_network([t for t in DEVICES if any(r["target"] == t for r in records)])),
        shown=DEVICES[SHOWN].name,
        by_kernel="\n".join(by_kernel(records)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ahead_report", description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="records of bench.ahead")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    records = [json.loads(line) for line in options.records.read_text().splitlines()]
    text = document(records, options.records)
    write_atomic(options.out, lambda path: Path(path).write_text(text))
    print(options.out, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
