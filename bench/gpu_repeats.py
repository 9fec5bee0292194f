"""Replays whole networks many times, on two frames in turns, and compares each result bit by bit.

    python -m bench.gpu_repeats --times 1000

What is right is computed kernel by kernel, each after the one before has ended, without a graph. There are
two frames, since what the same frame has left is the right value where a wait is missing. Whoever comes last
in a sum that blocks share must not matter.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

import torch

from bench.ahead import network_of
from stdc_fast.backends import cuda
from stdc_fast.errors import UserError
from stdc_fast.precision import Precision

VARIANTS = ("stdc1", "stdc2")
SIZE = (512, 1024)


def plain(backend, plan, precision: Precision, **options):
    """What is right, by a GPU backend's module: kernel by kernel, each after the last, without a graph."""
    executable = backend.compile(plan, precision, "cuda", graphs=False, **options)
    executable._dependent = False
    return executable


def differing(executable, expected, pair: Sequence[torch.Tensor], times: int) -> int:
    """How many of so many results, labels and logits, are not those of ``expected``; nobody waits.

    ``pair`` has two batches of frames, uint8 ``[N, H, W, 3]``.
    """
    right = [(frames, expected.labels(frames), expected(frames)) for frames in pair]
    wrong = torch.zeros((), dtype=torch.int64, device=pair[0].device)
    for i in range(times):
        frames, labels, logits = right[i % 2]
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
        plan = network_of(variant, precision.levels)
        executable, right = cuda.compile(plan, precision, "cuda"), plain(cuda, plan, precision)
        pair = torch.randint(0, 256, (2, 1, *SIZE, 3), dtype=torch.uint8, device="cuda").unbind()
        wrong = differing(executable, right, pair, options.times)
        failed += wrong > 0
        print(f"{variant} {precision}: {wrong} of 2 x {options.times} results are wrong", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"bench.gpu_repeats: {error}", file=sys.stderr)
        sys.exit(2)
