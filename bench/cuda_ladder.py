"""What each part of the CUDA kernels is worth by the model of tiles: networks without it, tiles chosen anew.

    python -m bench.cuda_ladder --out docs/results/cuda_ladder.json

The model takes its steps from machine code (``python -m bench.sass``). Simulated, not measured. What it said
of the kernels of revision 26fd6fb ("now" there), and of those of 1ac2303 before them, is
docs/results/cuda_ladder_before.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench import ahead
from stdc_fast import _native
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.tiles import CompiledForms, CudaModel
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.files import write_atomic

NETWORKS = (("stdc1", (512, 1024), 1), ("stdc2", (768, 1536), 1), ("stdc1", (512, 1024), 16))
CLASSES = ("sm_90", "sm_80", "sm_89", "sm_87")


def without_slices(forms: CompiledForms) -> None:
    for kind, blocks in forms.by_block.items():
        forms.by_block[kind] = {block: form for block, form in blocks.items() if len(block) == 2}


def without_wgmma(forms: CompiledForms) -> None:
    forms.by_block["wgmma"] = {}


def without_clusters(forms: CompiledForms) -> None:
    forms.clusters = (1,)


def pairs_alone(forms: CompiledForms) -> None:
    forms.clusters = (1, 2)


def both(forms: CompiledForms) -> None:
    without_slices(forms)
    without_wgmma(forms)


#: The parts: what is taken out of the forms, and whether launches may cover several ops.
LADDER: dict[str, tuple[Callable[[CompiledForms], None] | None, bool]] = {
    "now": (None, True),
    "clusters of two alone": (pairs_alone, True),
    "no clusters": (without_clusters, True),
    "one kernel an op": (None, False),
    "no wgmma": (without_wgmma, True),
    "no slices": (without_slices, True),
    "none of these": (both, False),
}


def microseconds(
    change: Callable[[CompiledForms], None] | None, fused: bool, classes: Sequence[str] = CLASSES
) -> dict[str, float]:
    """Of each network and class, a frame or a batch to labels in float16."""
    native, found = _native.module().gpu, {}
    for key in classes:
        device = DEVICES[key]
        for variant, size, batch in NETWORKS:
            model = CudaModel(native, device)
            if change:
                change(model.forms)
            executable = cuda.CudaExecutable(
                ahead.network(variant), cuda.PRECISIONS[0], torch.device("cpu"), native,
                Fresh(model), fused=fused,
            )  # fmt: skip
            lowered = executable.lower(Request(batch, size, size, size))
            name = f"{variant} {size[0]}x{size[1]}, batch {batch}, {key}"
            found[name] = round(lowered.predicted(device) * 1e6, 1)
    return found


class Fresh(Chooser):
    """Without tables, and without what was chosen of other forms before."""

    def __init__(self, model: CudaModel):
        super().__init__(model, tables=())
        self._known: dict = {}

    def __call__(self, work):
        if work not in self._known:
            self._known[work] = self.model.ranked(work)[0]
        return self._known[work]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_ladder", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--classes", default=",".join(CLASSES), help="some of them; the others in --out stay")
    options = parser.parse_args(arguments)
    found = {name: microseconds(*how, options.classes.split(",")) for name, how in LADDER.items()}
    if options.out and options.out.is_file():
        old = json.loads(options.out.read_text())
        found = {name: old.get(name, {}) | times for name, times in found.items()}
    text = json.dumps(found, indent=1) + "\n"
    if options.out:
        write_atomic(options.out, lambda path: Path(path).write_text(text))
    print(text, end="")


if __name__ == "__main__":
    main()
