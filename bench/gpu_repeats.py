"""Replays whole networks many times and compares each result with the first, bit by bit.

    python -m bench.gpu_repeats --times 1000

A race shows as a difference; whoever comes last in a sum that blocks share must not matter.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch

from bench.ahead import network
from stdc_fast.backends import cuda
from stdc_fast.errors import UserError

VARIANTS = ("stdc1", "stdc2")
SIZE = (512, 1024)


def differing(executable, frames: torch.Tensor, times: int) -> int:
    """How many of so many results are not as the first, of labels and of logits; nobody waits in between."""
    labels, logits = executable.labels(frames), executable(frames)
    wrong = torch.zeros((), dtype=torch.int64, device=frames.device)
    for _ in range(times):
        wrong += (executable.labels(frames) != labels).any()
        wrong += (executable(frames) != logits).any()
    return int(wrong.item())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_repeats", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=1000)
    options = parser.parse_args(arguments)
    if reason := cuda.BACKEND.why_not_here():
        raise UserError(f"there is nothing to run: {reason}")
    failed = 0
    for variant, precision in itertools.product(VARIANTS, cuda.PRECISIONS):
        executable = cuda.compile(network(variant), precision, "cuda")
        frames = torch.randint(0, 256, (1, *SIZE, 3), dtype=torch.uint8, device="cuda")
        wrong = differing(executable, frames, options.times)
        failed += wrong > 0
        print(
            f"{variant} {precision}: {wrong} of 2 x {options.times} results differ from the first", flush=True
        )
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.gpu_repeats: {error}", file=sys.stderr)
        sys.exit(2)
