"""``python tests/sanitize.py``: the engine under AddressSanitizer, UBSan and ThreadSanitizer.

Writes plans, inputs and what the eager backend makes of them in float64; builds the library with sanitizers
and tests/native/sanitize.cpp; runs that. Exit code 1 for any report, mismatch or hang.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from paths import ROOT
from PIL import Image
from plans import randomise_norms
from torch import Tensor

from stdc_fast import _native, checkpoints, zoo
from stdc_fast.backends import cpu, eager
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.images import normalise
from stdc_fast.numerics import relative_error, tolerance
from stdc_fast.plan import build, optimise
from stdc_fast.plan.quantise import Range, candidates, quantise, wanted
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference import layers
from stdc_fast.reference.networks import upsample

# Kind of sanitizer, instruction sets and further checks, and how a report ends the program.
RUNS = {
    "address,undefined": (
        ["all", "damaged"],
        {
            # NOTE: the fake stack of GCC 12 is not aligned for vectors of 64 bytes, so it stays off.
            "ASAN_OPTIONS": "detect_stack_use_after_return=0:strict_init_order=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        },
    ),
    "thread": (["ends"], {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}),
}
# Constructor and channels of the inputs. In bfloat16 channels are read in pairs, and 32 of them make a tile.
BLOCKS = {
    "float32": [
        ("ConvBNReLU", (5, 7), [5]),
        ("ConvBNReLU", (3, 67), [3]),
        ("ConvBNReLU", (64, 35), [64]),
        ("ConvBNReLU", (5, 33, 1), [5]),
        ("ConvBNReLU", (7, 18, 3, 2), [7]),
        ("STDCModule", (5, 16), [5]),
        ("STDCModule", (9, 24, 3, 2, False), [9]),
        ("STDCModule", (6, 72, 4, 2), [6]),
        ("AttentionRefinement", (5, 7), [5]),
        ("FeatureFusion", (9, 8), [4, 5]),
        ("SegHead", (5, 9, 3, True), [5]),
    ],
    "bfloat16": [
        ("ConvBNReLU", (6, 7), [6]),
        ("ConvBNReLU", (32, 35), [32]),
        ("ConvBNReLU", (64, 34, 3, 2), [64]),
        ("ConvBNReLU", (32, 66, 1), [32]),
        ("STDCModule", (6, 16, 3, 2, False), [6]),
        ("STDCModule", (32, 128, 4, 2), [32]),
        ("STDCModule", (32, 128), [32]),
        ("AttentionRefinement", (32, 34), [32]),
        ("FeatureFusion", (64, 32), [32, 32]),
        ("SegHead", (32, 32, 11, True), [32]),
    ],
}
# In 8 bits channels are read by four, and 64 of them make a tile.
LEVELS = [
    ("ConvBNReLU", (8, 7), [8]),
    ("ConvBNReLU", (64, 34, 3, 2), [64]),
    ("STDCModule", (8, 32, 4, 2), [8]),
    ("STDCModule", (64, 128), [64]),
    ("FeatureFusion", (64, 32), [32, 32]),
]
# N, H, W; the last is wide enough for tasks that transform their own tiles.
SIZES = [(1, 1, 1), (1, 1, 7), (2, 5, 3), (1, 17, 9), (1, 3, 49), (1, 37, 61)]


class Cases:
    """A folder of plans, arrays and cases.txt, a line a case."""

    def __init__(self, folder: Path):
        self.folder, self.lines = folder, []

    def plan(self, name: str, plan, dtype: str) -> str:
        cpu.save(plan, getattr(torch, dtype), self.folder / f"{name}.plan")
        return f"{name}.plan"

    def array(self, name: str, x: Tensor) -> str:
        """``x`` is ``[N, H, W, C]``."""
        dtype = str(x.dtype).removeprefix("torch.")
        raw = x.contiguous().view(torch.int16) if x.dtype == torch.bfloat16 else x.contiguous()
        (self.folder / name).write_bytes(raw.numpy().tobytes())
        return f"{name} {dtype} {' '.join(map(str, x.shape))}"

    def add(self, name, plan, size, inputs, expected, limit, exact=True, whole=False) -> None:
        arrays = [self.array(f"{name}.{i}", x) for i, x in enumerate(inputs)]
        words = [name, plan, *size, int(exact), int(whole), limit, len(arrays), *arrays]
        self.lines.append(" ".join(map(str, [*words, self.array(f"{name}.out", expected)])))

    def close(self) -> None:
        (self.folder / "cases.txt").write_text("\n".join(self.lines) + "\n")


def write_blocks(cases: Cases, dtype: str) -> None:
    for kind, arguments, channels in BLOCKS[dtype]:
        block = getattr(layers, kind)(*arguments)
        randomise_norms(block, *(torch.randn(2, c, 17, 19) for c in channels))
        block = block.double().requires_grad_(False)
        if kind == "SegHead":
            torch.nn.init.normal_(block.conv_out.bias)
        plan = optimise(build(block, channels=channels))
        name = "-".join([dtype, kind, *map(str, arguments)])
        saved = cases.plan(name, plan, dtype)
        exact, rounding = eager.compile(plan, torch.float64), None
        if dtype == "bfloat16":
            forms = cpu.compile(plan, torch.bfloat16, isa="portable").forms
            tiles = [name for name, form in forms.items() if form.startswith("F(")]
            rounding = eager.compile(plan, torch.float32, rounding=Rounding(torch.bfloat16, tiles))
        for n, height, width in SIZES:
            inputs = [torch.randn(n, c, height, width).to(getattr(torch, dtype)) for c in channels]
            with torch.no_grad():
                expected = exact(*(x.double() for x in inputs))
                limit = tolerance(dtype).op
                if rounding is not None:
                    # Weights, inner maps and the output are rounded, each by half a unit roundoff on
                    # average; tiles are as well, on the instruction sets where they pay.
                    error = relative_error(rounding(*(x.float() for x in inputs)), expected)
                    limit = max(1e-2, tolerance(dtype).emulation * error)
            stored = torch.float32 if kind == "SegHead" else getattr(torch, dtype)
            given = [x.permute(0, 2, 3, 1) for x in inputs]
            expected = expected.permute(0, 2, 3, 1).to(stored)
            cases.add(f"{name}-{n}x{height}x{width}", saved, (height, width), given, expected, limit)


def write_levels(cases: Cases, dtype: str) -> None:
    """Blocks in 8 bits, of which every op that can multiply levels does, against the same in eager."""
    for kind, arguments, channels in LEVELS:
        block = getattr(layers, kind)(*arguments)
        randomise_norms(block, *(torch.randn(2, c, 17, 19) for c in channels))
        plan = optimise(build(block.double().requires_grad_(False), channels=channels))
        names = candidates(plan)
        one = {key: torch.ones(n, dtype=torch.float64) for key, n in wanted(plan, names).items()}
        plan = quantise(plan, {key: Range(-3 * n, 3 * n, 0 * n) for key, n in one.items()}, names)
        name = "-".join(["levels", dtype, kind, *map(str, arguments)])
        saved = cases.plan(name, plan, dtype)
        rounding = None if dtype == "float32" else Rounding(torch.bfloat16)
        same = eager.compile(plan, torch.float32, rounding=rounding)
        for n, height, width in SIZES:
            inputs = [torch.randn(n, c, height, width).to(getattr(torch, dtype)) for c in channels]
            expected = same(*(x.float() for x in inputs)).permute(0, 2, 3, 1).to(getattr(torch, dtype))
            given = [x.permute(0, 2, 3, 1) for x in inputs]
            # A level beside a tie may be another one.
            cases.add(f"{name}-{n}x{height}x{width}", saved, (height, width), given, expected, 2e-2)


def write_network(cases: Cases, dtype: str) -> None:
    """The trained network on the photo: random ones enlarge rounding errors."""
    network = checkpoints.read(zoo.find("stdc1_camvid")).network(torch.float64).requires_grad_(False)
    photo = Image.open(ROOT / "stdc_fast" / "assets" / "street.jpg").convert("RGB")
    reference = eager.compile(optimise(build(network, frames=False)), torch.float64)
    frames, images = (
        cases.plan(f"{dtype}-{kind}", optimise(build(network, frames=kind == "frames")), dtype)
        for kind in ("frames", "images")
    )
    limits = tolerance(dtype)

    def add(name, batch, given, seen, labels=None, exact=True, plan=frames):
        size = given[::-1]
        large = photo.resize((2 * size[0], 2 * size[1]))
        crops = [large.crop((i, i, i + size[0], i + size[1])) for i in range(batch)]
        frame = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
        image = normalise(frame, torch.float32)
        seen_image = image.double() if seen == given else upsample(image.double(), seen)
        expected = reference(seen_image)
        limit = limits.logits
        if labels:
            expected = upsample(expected, seen) if exact else expected
            expected = resize_argmax(expected, labels, False)[0][..., None]
            limit = max(1 - limits.agreement, 1.5 / expected.numel())  # one tie
        else:
            expected = expected.permute(0, 2, 3, 1).float()
        given = frame if plan is frames else image.permute(0, 2, 3, 1)
        cases.add(f"{dtype}-{name}", plan, seen, [given], expected, limit, exact, whole=True)

    add("whole", 1, (64, 96), (64, 96), (64, 96))
    add("logits", 1, (33, 47), (33, 47))
    add("labels", 2, (32, 32), (32, 32), (32, 32))
    add("resized", 1, (50, 41), (33, 47), (50, 41))
    add("straight", 1, (40, 61), (32, 37), (71, 19), exact=False)
    add("image", 1, (33, 47), (33, 47), (1, 1), plan=images)
    add("small", 1, (1, 1), (1, 1), (3, 5))
    add("one-row", 1, (1, 40), (1, 40))


def one_a_width(sets: list[str]) -> list[str]:
    """Without sets that differ from an earlier one by an instruction alone: loads and stores are the same."""
    widths: dict[str, str] = {}
    for name in sets:
        widths.setdefault(name.partition("_")[0] if name.startswith("avx") else name, name)
    return list(widths.values())


def build_program(kind: str, folder: Path, sets: list[str]) -> Path:
    """With the instruction sets that are to run: to compile others here takes minutes and shows nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STDC_FAST_")}
    environment |= {"STDC_FAST_SANITIZE": kind, "STDC_FAST_SETS": ";".join(sets)}
    folder.mkdir()
    library = [sys.executable, "setup.py", "-q", "library", "--out", str(folder)]
    subprocess.run(library, cwd=ROOT, env=environment, check=True)
    cxx = shlex.split(os.environ.get("CXX") or next(filter(shutil.which, ["g++", "c++", "clang++"]), "g++"))
    flags = [
        "-std=c++17",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        f"-fsanitize={kind}",
        "-pthread",
        "-Icsrc/include",
    ]
    files = [
        "tests/native/sanitize.cpp",
        str(folder / "libstdc_fast.a"),
        "-pthread",
        "-o",
        str(folder / "sanitize"),
    ]
    subprocess.run([*cxx, *flags, *files], cwd=ROOT, check=True)
    return folder / "sanitize"


def run(kind: str, folder: Path) -> tuple[bool, str]:
    """(Whether all is well under a kind of sanitizer, what to print)."""
    arguments, options = RUNS[kind]
    start = time.perf_counter()
    sets = _native.module().isas()
    sets = one_a_width(sets) if "all" in arguments else [sets[0], sets[-1]]
    program = build_program(kind, folder / kind, sets)
    middle = time.perf_counter()
    # ThreadSanitizer needs the memory where it expects it.
    fixed = ["setarch", "--addr-no-randomize"] if kind == "thread" and shutil.which("setarch") else []
    command = [*fixed, str(program), str(folder), *arguments]
    done = subprocess.run(command, env={**os.environ, **options}, check=False)
    built, end = middle - start, time.perf_counter()
    said = "FAILED" if done.returncode else "passed"
    return not done.returncode, f"{kind}: {said}, built in {built:.0f} s, run in {end - middle:.0f} s"


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = Cases(folder)
        torch.manual_seed(0)
        for dtype in ("float32", "bfloat16"):
            write_blocks(cases, dtype)
            write_levels(cases, dtype)
            write_network(cases, dtype)
        cases.close()
        # One is built while the other runs, as a run has few threads.
        with ThreadPoolExecutor(len(RUNS)) as pool:
            found = [pool.submit(run, kind, folder) for kind in RUNS]
            for one in as_completed(found):
                print(one.result()[1], flush=True)
    return 0 if all(one.result()[0] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
