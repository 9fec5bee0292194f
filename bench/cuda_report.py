"""Write docs/cuda-kernels.md from the records of the CUDA kernels that need no GPU.

python -m bench.ptxas --out docs/results/cuda_ptxas.jsonl
python -m bench.sass --ship --out docs/results/cuda_sass.jsonl
python -m bench.build_time --out docs/results/cuda_build.json
python tests/cuda_bugs.py --out docs/results/cuda_bugs.jsonl
python -m bench.cuda_report
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import ahead
from stdc_fast import _native
from stdc_fast.backends.cuda import CudaExecutable
from stdc_fast.backends.cuda.launches import CudaLowered
from stdc_fast.backends.cuda.tiles import CudaModel
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.files import write_atomic
from stdc_fast.precision import FLOAT16

OUT = Path("docs/cuda-kernels.md")
RESULTS = Path("docs/results")
NETWORKS = (
    ("stdc1", (512, 1024), 1),
    ("stdc2", (512, 1024), 1),
    ("stdc1", (768, 1536), 1),
    ("stdc2", (768, 1536), 1),
    ("stdc1", (512, 1024), 16),
)
SHOWN = "sm_90"


def lowered(target: str, variant: str, size: tuple[int, int], batch: int) -> CudaLowered:
    """A network's launches in float16, frame to labels, for a class of GPUs; nothing runs."""
    return _executable(target, variant).lower(Request(batch, size, size, size))


@functools.lru_cache(2)  # of a class both networks
def _executable(target: str, variant: str) -> CudaExecutable:
    native = _native.module().gpu
    chooser = Chooser(CudaModel(native, DEVICES[target]))
    return CudaExecutable(_plan(variant), FLOAT16, torch.device("cpu"), native, chooser)


_plan = functools.cache(ahead.network)


def by_target(rows: list[dict]) -> Iterator[str]:
    yield (
        "| kernel | target | forms | most registers | spilled bytes | stack bytes | products (least) | "
        "asynchronous copies (least) | waits for other kernels (least) | local loads and stores |"
    )
    yield "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
    for base, arch in dict.fromkeys((r["base"], r["arch"]) for r in rows):
        own = [r for r in rows if (r["base"], r["arch"]) == (base, arch)]
        seen = [r for r in own if r.get("HMMA") is not None]

        def least(*names, seen=seen):
            return str(min(sum(r[name] for name in names) for r in seen)) if seen else "not looked at"

        spilled = sum(r["spill_stores"] + r["spill_loads"] for r in own)
        local = str(sum(r["LDL"] + r["STL"] for r in seen)) if seen else "not looked at"
        yield (
            f"| {base} | {arch} | {len(own)} | {max(r['registers'] for r in own)} | {spilled} | "
            f"{sum(r['stack'] for r in own)} | {least('HMMA', 'IMMA', 'HGMMA')} | {least('LDGSTS')} | "
            f"{least('ACQBULK')} | {local} |"
        )


def by_network() -> Iterator[str]:
    names = [f"{v} {h}x{w}, batch {n}" for v, (h, w), n in NETWORKS]
    yield "| class | " + " | ".join(names) + " |"
    yield "| --- |" + " --: |" * len(names)
    for target, device in DEVICES.items():
        times = [lowered(target, *network).predicted(device) * 1e6 for network in NETWORKS]
        yield f"| {target} ({device.name}) | " + " | ".join(f"{t:.0f}" for t in times) + " |"
    yield f"| measured | {' | '.join(['not measured'] * len(names))} |"


def by_kernel() -> Iterator[str]:
    device = DEVICES[SHOWN]
    yield "| op | tiles | blocks | shared KB | products us | fetch us | predicted us | measured us |"
    yield "| --- | --- | --: | --: | --: | --: | --: | --: |"
    for launch in lowered(SHOWN, "stdc1", (512, 1024), 1).launches:
        p = launch.predicted(device)
        shared = f"{launch.form.shared / 1024:.0f}" if launch.form else "-"
        yield (
            f"| {launch.kind} {launch.name} | {launch.tiles or '-'} | {p.programs} | {shared} | "
            f"{p.products * 1e6:.1f} | {p.fetch * 1e6:.1f} | {p.seconds * 1e6:.1f} | not measured |"
        )


def by_bug(rows: list[dict]) -> Iterator[str]:
    yield "| planted in | bug | schedules that find it, with and without the watch for races | report |"
    yield "| --- | --- | --- | --- |"
    for row in rows:
        said = textwrap.shorten(row["found"].replace("|", "\\|"), 120, placeholder=" ...")
        found = f"{row['watched']} and {row['unwatched']} of {row['of']}"
        yield f"| {row['file']} | {row['bug']} | {found} | {said} |"


def by_part(build: dict) -> Iterator[str]:
    yield "| part | lines that are not empty |"
    yield "| --- | --: |"
    names = {
        "kernels": "kernels and what they share", "primitives": "primitives, both bodies of one line",
        "launches": "launches, arguments and bindings", "emulator": "the emulator, `csrc/emulator`",
    }  # fmt: skip
    for part, number in build["lines"].items():
        yield f"| {names[part]} | {number} |"


TEXT = """# The CUDA kernels, without a GPU

`python -m bench.cuda_report` writes this page. Do not edit it. {compiler}, targets {targets}. **Nothing
here was measured on a GPU.** The machine code was made and inspected without one. The kernels ran in the
emulator, on a CPU. All times are predictions.

## As compiled

`ptxas -v` and `cuobjdump -sass` report on every form of every kernel. `python -m bench.ptxas` fails if a
kernel

- spills or has a stack;
- lacks tensor core instructions or asynchronous copies;
- on sm_90, lacks the wait for the kernel before it.

The code for all targets of sm_8x comes from the same PTX.

{by_target}

{kernels} kernels and targets, {problems} problems.

## From nothing

With {cores} cores, `python setup.py build_ext` takes {without:.0f} s without CUDA and {with_:.0f} s with
all targets. The module then has {megabytes:.0f} MB.

{by_part}

## Planted bugs

`tests/cuda_bugs.py` plants each bug into a copy of the real kernels, which then run in the emulator.

{by_bug}

## Predicted: microseconds from frame to labels

In float16, from a uint8 frame on the device to uint8 labels, one replay of a CUDA graph.

The model is `stdc_fast/backends/cuda/tiles.py`. For each kernel it takes the longest of three times: its
products, its reads from shared memory, and what it fetches from L2. It adds the launch. The branch at 1/16
runs beside the stage at 1/32 and costs nothing. Its constants are assumptions. Triton's predictions come
from another model: [triton-kernels.md](triton-kernels.md).

{by_network}

## Steps of the main loops, simulated

`python -m bench.sass` reads the machine code of each form in float16. A step is four units of products, of
1x1 and 2x2, or nine, of 3x3. Of forms with slices, as 64x64/4, it is eight or 36, shared among warps.
For wgmma the products are HGMMA. Stalls are the least cycles of one warp. "Cycles" are simulated, on one of a
processor's four schedulers, with one block there and with two. "Copy" is the stall cycles of one copy of 16
bytes of pixels. The model takes the cycles of one block alone. A step beyond its budget fails the command.

{by_step}

## Predicted, kernel by kernel: STDC1, 512x1024, batch 1, float16, {shown}

The kernels run one after the other here. The sum above is less, since two of them run side by side.

{by_kernel}
"""


def text(results: Path = RESULTS) -> str:
    """The document, from the files in a folder."""
    from bench import sass
    from bench.ptxas import problems

    steps = [json.loads(line) for line in (results / "cuda_sass.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (results / "cuda_ptxas.jsonl").read_text().splitlines()]
    bugs = [json.loads(line) for line in (results / "cuda_bugs.jsonl").read_text().splitlines()]
    build = json.loads((results / "cuda_build.json").read_text())
    made = build["with"]["cuda"]
    return TEXT.format(
        compiler=made["compiler"],
        targets=", ".join(made["targets"]),
        by_target="\n".join(by_target(rows)),
        kernels=len(rows),
        problems=len(problems(rows)),
        cores=build["cores"],
        without=build["without"]["seconds"],
        with_=build["with"]["seconds"],
        megabytes=build["with"]["bytes"] / 1e6,
        by_part="\n".join(by_part(build)),
        by_bug="\n".join(by_bug(bugs)),
        by_step=sass.page(row for row in steps if row["object"].endswith("-f16")),
        by_network="\n".join(by_network()),
        by_kernel="\n".join(by_kernel()),
        shown=f"{SHOWN} ({DEVICES[SHOWN].name})",
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_report", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    found = text()
    write_atomic(options.out, lambda path: Path(path).write_text(found))
    print(options.out, file=sys.stderr)


if __name__ == "__main__":
    main()
