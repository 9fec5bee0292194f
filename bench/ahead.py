"""Compiles Triton's kernels ahead for GPUs that are not here, and looks at what came out.

    python -m bench.ahead --out docs/results/triton_ahead.jsonl

One record a kernel and target: the instructions that matter in its PTX, its shared memory, and its registers,
stack and local memory from the cubin, with the limits that :func:`problems` holds them to. No GPU is needed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import torch
import triton.language as tl

from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.graphs import DEPENDENT
from stdc_fast.backends.gpu.model import DEVICES, Device, Work
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.backends.triton import packed
from stdc_fast.backends.triton.tiles import TritonModel, TritonTiles
from stdc_fast.files import write_atomic
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.plan.quantise import Range, candidates, quantise, wanted
from stdc_fast.precision import Precision, precision_of
from stdc_fast.reference.networks import STDCSeg

Choose = Callable[[Work], TritonTiles]
#: STDC-Seg as most use it.
SIZES = ((512, 1024), (768, 1536))
CLASSES = 19


@functools.cache
def network(variant: str) -> Plan:
    """The plan of a network for raw frames, with whatever weights."""
    torch.manual_seed(0)
    return optimise(build(STDCSeg(variant, CLASSES).eval()))


def levelled(plan: Plan, names: Collection[str]) -> Plan:
    """With these ops in 8 bits, of ranges that are no frame's: they decide no kernel and no time."""
    ranges = {
        key: Range(*(torch.full((channels,), float(value)).double() for value in (-1, 1, 0)))
        for key, channels in wanted(plan, names).items()
    }
    return quantise(plan, ranges, names)


@functools.cache
def network_of(variant: str, levels: bool) -> Plan:
    """The plan, with all that fits in 8 bits if it is to have levels."""
    plan = network(variant)
    return levelled(plan, candidates(plan)) if levels else plan


@dataclasses.dataclass(frozen=True)
class Job:
    """One kernel to compile: everything that its machine code depends on.

    ``where`` says which op of which network at which size asked for it first.
    """

    kernel: str
    target: str
    constants: tuple[tuple[str, object], ...]
    signature: tuple[tuple[str, str], ...]
    warps: int
    stages: int
    where: str = dataclasses.field(compare=False)
    work: str = dataclasses.field(compare=False)
    tiles: str = dataclasses.field(compare=False)
    predicted_us: float = dataclasses.field(compare=False)

    @property
    def key(self) -> str:
        given = tuple(pair for pair in self.constants if pair[1] is not None)
        parts = (self.kernel, self.target, given, self.signature, self.warps, self.stages)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.uint8: "*u8",
    torch.int32: "*i32", torch.int8: "*i8",
}  # fmt: skip


def lowered(
    plan: Plan,
    device: Device,
    precision: Precision,
    size: tuple[int, int],
    batch: int = 1,
    choose: Choose | None = None,
    **request,
):
    """The launches of a plan on a class of devices, with the tiles that it would get there.

    Args:
        choose: tiles other than those.
        request: sizes other than that of the frames, as of :class:`stdc_fast.backends.gpu.placed.Request`.
    """
    from stdc_fast.backends.triton.launches import TritonLowered  # imports Triton

    cpu = torch.device("cpu")
    request = Request(**{"batch": batch, "given": size, "seen": size, "labels": size} | request)
    weights, usual = packed(plan, precision, cpu), Chooser(TritonModel(device))
    dependent = device.capability >= DEPENDENT
    return TritonLowered(plan, weights, request, precision, cpu, choose or usual, dependent=dependent)


def jobs(
    variants: Iterable[str], targets: Iterable[str], precisions: Iterable[Precision], sizes=SIZES
) -> list[Job]:
    """What these networks need, each kernel once: of frames of the size that they see, and of twice that."""
    found: dict[str, Job] = {}
    for target, precision, variant, size in itertools.product(targets, precisions, variants, sizes):
        device, full = DEVICES[target], (2 * size[0], 2 * size[1])
        plan = network_of(variant, precision.levels)
        for request in ({}, {"given": full, "labels": full}):
            for launch in lowered(plan, device, precision, size, **request).launches:
                job = job_of(launch, device, f"{variant} {size[0]}x{size[1]}")
                found.setdefault(job.key, job)
    return list(found.values())


def job_of(launch, device: Device, where: str) -> Job:
    """What compiles a launch for that device."""
    constants, signature = {}, {}
    function = launch.kernel.fn  # the Python function, compiled or interpreted
    constexprs = {n for n, kind in function.__annotations__.items() if kind is tl.constexpr}
    for name, value in launch.arguments.items():
        if name in constexprs or value is None:
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            aligned = value.data_ptr() % 16 == 0
            signature[name] = _POINTERS[value.dtype] + (":16" if aligned else "")
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    predicted = launch.predicted(device).seconds * 1e6
    return Job(
        kernel=function.__name__, target=device.key, constants=tuple(sorted(constants.items())),
        signature=tuple(sorted(signature.items())), warps=launch.warps, stages=launch.stages,
        where=f"{where} {launch.op.name}", work=launch.work.key if launch.work else "",
        tiles=str(launch.tiles or ""), predicted_us=predicted,
    )  # fmt: skip


def compiled(job: Job) -> dict[str, object]:
    """The record of one kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stdc_fast import kernels

    kernel = getattr(kernels, job.kernel)
    names = kernel.arg_names
    given, constants = dict(job.signature), dict(job.constants)
    signature = {n: "constexpr" if n in constants else given[n].partition(":")[0] for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if given.get(n, "").endswith(":16")
    }
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    capability = int(job.target.removeprefix("sm_"))
    options = {"num_warps": job.warps, "num_stages": job.stages, "launch_pdl": constants["DEPENDENT"]}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = binary.asm["ptx"]
    usage = _usage(binary.asm["cubin"])
    return {
        "key": job.key, "kernel": job.kernel, "target": job.target, "where": job.where, "work": job.work,
        "tiles": job.tiles, "warps": job.warps, "stages": job.stages,
        "dtype": dict(job.signature).get("x", dict(job.signature).get("y", "")).strip("*").partition(":")[0],
        "products": len(re.findall(r"\bmma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx)),
        "whole": len(re.findall(r"\bmma\.sync\S*\.s32\.s8\.s8\.s32|wgmma\.mma_async\S*\.s32\.s8\.s8", ptx)),
        "instruction": next((i for i in ("wgmma", "tcgen05.mma", "mma.sync") if i in ptx), ""),
        "asynchronous": len(re.findall(r"cp\.async\.c[ag]", ptx)),
        "dependent": "griddepcontrol.wait" in ptx, "shared": binary.metadata.shared, **usage,
        "predicted_us": job.predicted_us,
        "triton": triton.__version__,
    }  # fmt: skip


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes a thread of stack and local memory, as cuobjdump reports them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(numbers["REG"]), "stack": int(numbers["STACK"]), "local": int(numbers["LOCAL"])}


def problems(record: dict) -> list[str]:
    """What a kernel should not be."""
    found, device = [], DEVICES[record["target"]]
    multiplies = record["kernel"] in ("stem", "conv", "down")
    levels = record["dtype"] in ("u8", "i8")
    low = record["dtype"] in ("fp16", "bf16") or levels
    if levels and record["kernel"] in ("conv", "down") and record["whole"] != record["products"]:
        found.append("products of 8 bits in another dtype")
    if multiplies and low and not record["products"]:
        found.append("no tensor core instructions")
    warp_groups = device.wgmma and record["kernel"] == "conv" and _large(record)
    if warp_groups and low and record["instruction"] != "wgmma":
        found.append(f"{record['instruction']} where wgmma was expected")
    if device.capability >= DEPENDENT and not record["dependent"]:
        found.append("it does not wait for the kernel before it")
    if record["kernel"] == "conv" and record["stages"] > 1 and not record["asynchronous"]:
        found.append("no asynchronous copies")
    if record["shared"] > device.shared:
        found.append(f"{record['shared']} bytes of shared memory, of {device.shared}")
    if record["stack"] or record["local"]:
        found.append(f"{record['stack']} bytes of stack, {record['local']} of local memory")
    return [f"{record['kernel']} for {record['target']}, {record['where']}: {p}" for p in found]


def _large(record: dict) -> bool:
    """Whether each warp group has 64 rows."""
    height, width = map(int, record["tiles"].split(" ")[0].split("/")[0].split("x")[:2])
    return height * width >= 64 * (record["warps"] // 4)


def compile_all(todo: list[Job], workers: int | None = None) -> Iterator[dict]:
    """Records in the order of the jobs; processes of their own, as the compiler keeps Python busy."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context) as pool:
        yield from pool.map(compiled, todo)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ahead", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(DEVICES), help="such as sm_80,sm_90")
    parser.add_argument("--variants", default="stdc1,stdc2")
    parser.add_argument("--dtypes", default="float16,bfloat16")
    parser.add_argument("--sizes", default=",".join(f"{h}x{w}" for h, w in SIZES))
    parser.add_argument("--out", type=Path, required=True, help="file for the records, one JSON each")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    if unknown := set(options.targets.split(",")) - set(DEVICES):
        parser.error(f"unknown targets {', '.join(sorted(unknown))}; known are {', '.join(DEVICES)}")
    if not all(re.fullmatch(r"\d+x\d+", size) for size in options.sizes.split(",")):
        parser.error(f"--sizes must be like 512x1024,768x1536, not {options.sizes}")
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    precisions = [precision_of(name) for name in options.dtypes.split(",")]
    todo = jobs(options.variants.split(","), options.targets.split(","), precisions, sizes)
    print(f"{len(todo)} kernels", file=sys.stderr)
    records, bad = [], []
    for record in compile_all(todo):
        records.append(record)
        bad += problems(record)
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_atomic(options.out, lambda path: Path(path).write_text(text))
    print("\n".join(bad), file=sys.stderr)
    print(f"{len(records)} kernels compiled, {len(bad)} with problems", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
