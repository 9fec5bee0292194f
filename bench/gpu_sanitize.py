"""Runs every kernel of the CUDA backend under a tool of compute-sanitizer, after a mistake for it to find.

    python -m bench.gpu_sanitize memcheck

Small maps, no graphs, and each buffer in an allocation of its own: torch's allocator would hide who reaches
beyond one. Kernels of others are not looked at. Exit code 1 if the tool finds something, or not the mistake.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench import gpu_constants
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.fusion import possible
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.errors import UserError
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.plan.quantise import candidates
from stdc_fast.reference import layers

TOOLS = ("memcheck", "racecheck", "synccheck")
SOURCE = Path(__file__).with_name("gpu_planted.cu")
FOUND = 9  # the tool's exit code
ROOT = Path(__file__).resolve().parent.parent
#: (frame, what the network sees, labels): as they are, resized on the way in, resized there and back.
REQUESTS = (
    ((64, 96), (64, 96), (64, 96)),
    ((50, 71), (64, 96), (64, 96)),
    ((47, 81), (33, 70), (47, 81)),
)


def command(tool: str, *arguments: str) -> list[str]:
    """This module under the tool."""
    return [
        "compute-sanitizer", "--tool", tool, "--target-processes", "application-only", "--kernel-name",
        "kernel_substring=4stdc3gpu", "--error-exitcode", str(FOUND), "--launch-timeout", "120",
        sys.executable, "-m", "bench.gpu_sanitize", tool, *arguments,
    ]  # fmt: skip


def plans() -> Iterator[tuple[Plan, tuple[Request, ...]]]:
    """Plans with all kinds of ops, and what is asked of each."""
    from bench.ahead import network

    yield network("stdc1"), tuple(Request(1, *sizes) for sizes in REQUESTS)
    torch.manual_seed(0)
    block = layers.AttentionRefinement(70, 34).eval()  # ends with a prologue of its own
    yield optimise(build(block)), (Request(2, (17, 23), (17, 23)),)


def in_levels(plan: Plan) -> Plan:
    """All of it in 8 bits that can be."""
    from bench.ahead import levelled

    return levelled(plan, candidates(plan))


def choices(executable: cuda.CudaExecutable) -> Iterator[Callable]:
    """The usual tiles, then each compiled form wherever it can be, every other one with shared tiles."""
    usual = executable._tiles
    yield usual
    model = usual.model
    ranked = remembered(model.ranked)
    of_conv = len(model.forms.by_block["conv"]) + len(model.forms.by_block["wgmma"])
    for i in range(max(of_conv, *map(len, model.forms.by_block.values()))):

        def choose(work, i=i):
            known = [(block, 0) for block in model.forms.by_block[work.kind]]
            if work.kind == "conv" and work.dtype != "int8":
                known += [(block, 1) for block in model.forms.by_block["wgmma"]]
            wanted = known[i % len(known)]
            found = [t for t in ranked(work) if (t.block, t.wgmma) == wanted]
            shared = [t for t in found if t.split > 1]
            return next(iter((shared if i % 2 else found) or found), usual(work))

        yield remembered(choose)


def remembered(choose: Callable) -> Callable:
    known: dict[object, object] = {}

    def look(work):
        if work not in known:
            known[work] = choose(work)
        return known[work]

    return look


def device() -> torch.device:
    return torch.device("cuda", 0)


def run_all() -> int:
    """The number of launches."""
    count = 0
    for (plan, requests), precision, fused in itertools.product(plans(), cuda.PRECISIONS, (False, possible)):
        if precision.levels and fused:  # what multiplies levels computes nothing else
            continue
        plan = in_levels(plan) if precision.levels else plan
        executable = cuda.compile(plan, precision, device(), graphs=False, fused=fused)
        for j, choose in enumerate(choices(executable)):
            for request in requests if j == 0 else requests[:1]:
                lowered = executable.lower(request, tiles=choose, apart=True)
                for x in lowered.inputs.values():
                    _ = x.normal_() if x.is_floating_point() else x.random_(0, 256)
                lowered.poison()
                lowered.launch(first=True)
                torch.cuda.synchronize()
                count += len(lowered.launches)
    return count


def inside(tool: str, planted: str | None) -> int:
    """What runs under the tool."""
    torch.zeros(1, device="cuda")
    if planted is not None:
        return ctypes.CDLL(planted).planted(tool.encode())
    print(f"{run_all()} launches", flush=True)
    return 0


def check(tool: str) -> list[str]:
    """What is wrong; empty if the tool finds its mistake and nothing else."""
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    wrong = []

    def call(*arguments: str) -> int:
        done = subprocess.run(command(tool, "--inside", *arguments), cwd=ROOT, env=environment)
        print(f"exit code {done.returncode}", flush=True)
        return done.returncode

    with tempfile.TemporaryDirectory() as folder:
        capability = torch.cuda.get_device_capability(0)
        options = ("-shared", "-Xcompiler", "-fPIC")
        library = gpu_constants.made(SOURCE, Path(folder, "planted.so"), capability, *options)
        if call("--planted", str(library)) != FOUND:
            wrong.append(
                f"{tool} did not find the planted mistake: what it says of the kernels is worth nothing"
            )
    if code := call():
        what = "found something" if code == FOUND else f"ended with code {code}"
        wrong.append(f"{tool} {what} in the library's kernels")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--inside", action="store_true", help="of this module alone: runs under the tool")
    parser.add_argument("--planted", help="likewise: the library with the mistakes")
    options = parser.parse_args(arguments)
    if reason := cuda.BACKEND.why_not_here():
        raise UserError(f"there is nothing to check: {reason}")
    if options.inside:
        return inside(options.tool, options.planted)
    if shutil.which("compute-sanitizer") is None:
        raise UserError("compute-sanitizer was not found; it comes with the CUDA toolkit")
    wrong = check(options.tool)
    print("\n".join(wrong) or f"{options.tool}: the planted mistake was found, and nothing else")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.gpu_sanitize: {error}", file=sys.stderr)
        sys.exit(2)
