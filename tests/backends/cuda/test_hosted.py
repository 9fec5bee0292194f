"""The emulator's module: beside the one with kernels for GPUs in a process, and where it can not be built."""

import os
import subprocess
import sys

import hosted
import pytest
from hosted import module

from stdc_fast.backends import cuda


def test_both_modules_in_one_process():
    """The one with the kernels for GPUs, where it was built, and their emulation have types of their own."""
    native = cuda.native()
    if native is None:
        pytest.skip("the kernels were not built for GPUs")
    assert native.ConvArgs is not module().ConvArgs
    if native.forms() != module().forms():
        pytest.skip("the kernels for GPUs were built from other sources")
    given, other = (argument_of(m) for m in (native, module()))
    assert native.shared_bytes(given) == module().shared_bytes(other)


def argument_of(native):
    made = native.ConvArgs()
    made.tiling = native.Tiling(0, 8, 16, 32, 1)
    made.kernel, made.stride, made.channels, made.outputs = 3, 1, 64, 64
    return made


def test_without_a_compiler_these_tests_are_skipped(tmp_path):
    """With the reason; and nothing is left where they were started."""
    code = "import hosted\ntry:\n    hosted.build()\nexcept hosted.NotBuilt as error:\n    print(error)"
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(hosted.ROOT / "tests"), str(hosted.ROOT), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no-compiler does not run" in done.stdout and not list(tmp_path.iterdir())
