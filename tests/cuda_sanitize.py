"""``python tests/cuda_sanitize.py``: the CUDA kernels and their emulator under AddressSanitizer and UBSan.

Builds the emulator's module with both in a folder of its own, and runs tests with it, in which each buffer
has an allocation of its own. Exit code 1 for any report or failure, and if planted errors are not seen.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # as conftest.py has it
os.environ["STDC_FAST_SANITIZE"] = "address,undefined"

import torch
from hosted import READY, ROOT, Hosted, NotBuilt, build, module
from oracle import HALF, given
from sketch import plain

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:detect_odr_violation=0:"
    "allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
KINDS = ("conv", "logits", "subpixel", "stem", "down", "gate", "prologue", "labels_of_some_sizes")
# Those in which several warps, tiles and chunks meet the edges of maps; names of tests and cases.
TESTS = {
    "tests/backends/test_ops.py": f"(emulated_cuda or emulated_wgmma) and ({' or '.join(KINDS)})",
    "tests/backends/test_network.py": "emulated_cuda and small_network",
    "tests/backends/cuda/test_cuda_tiles.py": "core or share or chunks or (order and (random or backward))",
    "tests/backends/cuda/test_fusion.py": "first_two or classifiers",
    "tests/backends/cuda/test_launches.py": "wrong_launches",
}
# What is planted: what of a launch is changed, and what must be reported.
PLANTED = {
    "reads and writes beyond the end": ({"images": 2}, "heap-buffer-overflow"),
    "a sum beyond 32 bits": ({"out_height": (1 << 31) - 1}, "signed integer overflow"),
}


def planted(fields: dict[str, int]) -> None:
    """Runs a convolution whose arguments do not fit its memory, of which the emulator knows nothing."""
    plan = plain(16, 16, 3, 1)()
    executable = Hosted(plan, HALF)
    executable(*given(plan, HALF, 1, 5, 7))
    arguments = executable.last.launches[0].arguments
    for name, value in fields.items():
        setattr(arguments, name, value)
    module().set_memory([])
    module().run([arguments], 0, False)


def library(name: str) -> str:
    """Path of a library of the compiler: what it links to must be there before Python itself is."""
    usual = next(filter(shutil.which, ["g++", "c++", "clang++"]), "g++")
    command = [*shlex.split(os.environ.get("CXX") or usual), f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"{shlex.join(command)} does not know where {name} is; install g++")
    return found


def run(command: list[str], environment: dict[str, str], **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False, **options)


def main() -> int:
    if sys.argv[1:2] == ["--planted"]:
        torch.set_num_threads(1)
        planted(PLANTED[sys.argv[2]][0])
        return 0
    start = time.perf_counter()
    try:
        path = build()
    except NotBuilt as error:
        print(f"nothing to sanitize: {error}")
        return 1
    print(f"address,undefined: built in {time.perf_counter() - start:.0f} s", flush=True)
    # NOTE: with the C++ library, or AddressSanitizer does not find what throws.
    preload = f"{library('libasan.so')} {library('libstdc++.so.6')}"
    environment = {**os.environ, **OPTIONS, READY: str(path), "LD_PRELOAD": preload, "OMP_NUM_THREADS": "2"}
    failed = []
    for name, (_, report) in PLANTED.items():
        done = run([__file__, "--planted", name], environment, capture_output=True, text=True)
        seen = done.returncode != 0 and report in done.stderr
        print(f"planted, {name}: {report if seen else 'NOT SEEN'}", flush=True)
        if not seen:
            print(done.stdout[-2000:], done.stderr[-4000:])
            failed.append(name)
    for file, names in TESTS.items():
        start = time.perf_counter()
        done = run(["-m", "pytest", "-p", "no:cacheprovider", "-x", file, "-k", names], environment)
        if done.returncode:
            failed.append(file)
        said = "FAILED" if done.returncode else "passed"
        print(f"{file}: {said} in {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
