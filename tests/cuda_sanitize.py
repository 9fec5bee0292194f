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
from concurrent.futures import ThreadPoolExecutor, as_completed
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
# Those in which several warps, tiles and chunks meet the edges of maps; names of tests and cases. Each has a
# process of its own, several at a time, so those that take longest come first.
TESTS = [
    ("tests/backends/test_ops.py", f"emulated_cuda and ({' or '.join(KINDS)})"),
    ("tests/backends/test_ops.py", f"emulated_wgmma and ({' or '.join(KINDS)})"),
    ("tests/backends/cuda/test_cuda_tiles.py", "core or share or chunks or (order and (random or backward))"),
    ("tests/backends/cuda/test_fusion.py", "first_two or classifiers"),
    ("tests/backends/test_network.py", "emulated_cuda and small_network"),
    ("tests/backends/cuda/test_launches.py", "wrong_launches"),
]
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


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    """The finished process; what it wrote is kept, as several run at once."""
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


def planted_is_seen(name: str, environment: dict[str, str]) -> tuple[bool, str]:
    """(Whether a planted error is reported, what to print)."""
    report = PLANTED[name][1]
    done = run([__file__, "--planted", name], environment)
    if done.returncode != 0 and report in done.stderr:
        return True, f"planted, {name}: {report}"
    return False, f"planted, {name}: NOT SEEN\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def tests_pass(file: str, names: str, environment: dict[str, str]) -> tuple[bool, str]:
    """(Whether all of them do, what to print); pytest fails, too, where there are none."""
    start = time.perf_counter()
    done = run(["-m", "pytest", "-p", "no:cacheprovider", "-x", file, "-k", names], environment)
    said = "FAILED" if done.returncode else "passed"
    text = f"{file}, {names}: {said} in {time.perf_counter() - start:.0f} s"
    lines = done.stdout.rstrip().splitlines()
    if done.returncode:
        return False, f"{text}\n{done.stdout[-20000:]}{done.stderr[-20000:]}"
    return True, f"{text}: {lines[-1] if lines else ''}"


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
    environment = {**os.environ, **OPTIONS, READY: str(path), "LD_PRELOAD": preload, "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2))) as pool:
        found = [pool.submit(planted_is_seen, name, environment) for name in PLANTED]
        found += [pool.submit(tests_pass, *test, environment) for test in TESTS]
        for one in as_completed(found):
            print(one.result()[1], flush=True)
    return 0 if all(one.result()[0] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
