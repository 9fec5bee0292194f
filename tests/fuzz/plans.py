"""Saved plans under libFuzzer, AddressSanitizer and UBSan.

    python -m tests.fuzz.plans --seconds 900 --keep build/fuzz

Builds the engine and ``plan.cpp`` by clang, writes headers of sound plans and lets libFuzzer change them.
Finds and the corpus stay in ``--keep``, so that a later run goes on. Exit code 2 without clang.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from paths import ROOT

from stdc_fast.backends import cpu
from stdc_fast.backends.cpu import program
from stdc_fast.plan import build, optimise
from stdc_fast.reference import layers

#: Small blocks, with constructor and channels of the inputs.
BLOCKS = [
    ("ConvBNReLU", (5, 7), [5]),
    ("ConvBNReLU", (5, 33, 1), [5]),
    ("STDCModule", (9, 24, 3, 2, False), [9]),
    ("STDCModule", (6, 72, 4, 2), [6]),
    ("AttentionRefinement", (5, 7), [5]),
    ("FeatureFusion", (9, 8), [4, 5]),
    ("SegHead", (5, 9, 3, True), [5]),
]
SANITIZERS = "address,undefined"
WORDS = (
    "float32", "bfloat16", "frame", "image", "act", "vector", "logits", "labels", "import", "conv", "gate",
    "prologue", "export", "upsample", "down", "mean", "inputs", "output", "data", "buffers", "weights", "ops",
    "-1", "65536", "2147483647", "4294967296",
)  # fmt: skip


def write_seeds(folder: Path) -> None:
    """A header a block and dtype: the text to its data."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, arguments, channels in BLOCKS:
        plan = optimise(build(getattr(layers, kind)(*arguments).eval(), channels=channels))
        for precision in program.PRECISIONS:
            if program.why_not(plan, precision) is None:
                path = folder / f"{kind}-{'-'.join(map(str, arguments))}-{precision.name}"
                cpu.save(plan, precision, path)
                content = path.read_bytes()
                path.write_bytes(content[: content.index(b"\ndata\n") + 6])


def build_target(folder: Path) -> Path:
    """The program, with the fuzzer's counters in the engine too."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STDC_FAST_")}
    environment |= {"STDC_FAST_SANITIZE": f"fuzzer-no-link,{SANITIZERS}", "CXX": "clang++"}
    library = [sys.executable, "setup.py", "-q", "library", "--out", str(folder)]
    subprocess.run(library, cwd=ROOT, env=environment, check=True)
    program_file = folder / "plan"
    command = ["clang++", "-std=c++17", "-O1", "-g", f"-fsanitize=fuzzer,{SANITIZERS}", "-Icsrc/include"]
    command += ["tests/fuzz/plan.cpp", str(folder / "libstdc_fast.a"), "-pthread", "-o", str(program_file)]
    subprocess.run(command, cwd=ROOT, check=True)
    return program_file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    arguments = parser.parse_args()
    if shutil.which("clang++") is None:
        print("there is no clang++; install clang and its compiler-rt")
        return 2
    keep = arguments.keep.resolve()
    write_seeds(keep / "seeds")
    (keep / "corpus").mkdir(exist_ok=True)
    (keep / "words").write_text("".join(f'"{word}"\n' for word in WORDS))
    options = [
        f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=2000", "-max_len=4096",
        f"-dict={keep / 'words'}", f"-artifact_prefix={keep}/", "-print_final_stats=1",
    ]  # fmt: skip
    command = [build_target(keep), *options, keep / "corpus", keep / "seeds"]
    asan = {"ASAN_OPTIONS": "detect_stack_use_after_return=0:allocator_may_return_null=1"}
    return subprocess.run([str(part) for part in command], env=os.environ | asan, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
