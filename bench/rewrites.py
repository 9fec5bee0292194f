"""The relative error of each rewrite on its own, in float64 against the reference network, as JSON.

    python bench/rewrites.py --out docs/results/rewrites.json

Random networks (tests/plans.py) read raw frames. A rewrite that recognises nothing in a plan as built is
applied after those that it needs; "composed" is all of them in order. The tests prove the same to 1e-10.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch

from stdc_fast import files, info
from stdc_fast.backends import eager
from stdc_fast.images import normalise
from stdc_fast.plan import REWRITES, build, optimise
from stdc_fast.plan.rewrites import concat_views, fold_batch_norm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from plans import VARIANTS, error, random_frames, random_network

SIZES = ((64, 96), (65, 97), (71, 103), (720, 960))
NEEDS = {
    "fuse_down": (fold_batch_norm,),
    "fuse_means": (fold_batch_norm, concat_views),
    "fuse_gates": (fold_batch_norm,),
}


def rewritten(plan, rewrite):
    """(plan after the rewrite, whether it changed anything)."""
    for needed in NEEDS.get(rewrite.__name__, ()):
        plan = needed(plan)
    result = rewrite(plan)
    return result, result.ops != plan.ops


def row(variant: str, count_include_pad: bool, size: tuple[int, int]) -> dict:
    frames = random_frames(1, *size)
    network = random_network(variant, count_include_pad=count_include_pad, training_heads=True)
    expected = network.logits8(normalise(frames, torch.float64))
    plan = build(network)
    errors = {"as written": error(eager.compile(plan, torch.float64)(frames), expected)}
    for rewrite in REWRITES:
        result, changed = rewritten(plan, rewrite)
        if not changed:
            raise SystemExit(f"{rewrite.__name__} changed nothing in {plan.name}")
        errors[rewrite.__name__] = error(eager.compile(result, torch.float64)(frames), expected)
    errors["composed"] = error(eager.compile(optimise(plan), torch.float64)(frames), expected)
    return {
        "network": variant,
        "count_include_pad": count_include_pad,
        "size": f"{size[0]}x{size[1]}",
        "relative_errors": {name: float(f"{value:.2e}") for name, value in errors.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    with torch.inference_mode():
        for variant, pad, size in itertools.product(VARIANTS, (True, False), SIZES):
            rows.append(row(variant, pad, size))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "what": "||logits - reference|| / ||reference|| in float64, by rewrite",
        "worst": max(value for r in rows for value in r["relative_errors"].values()),
        "commit": info.commit(),
        "versions": info.versions(),
        "rows": rows,
    }
    files.write_atomic(arguments.out, lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))


if __name__ == "__main__":
    main()
