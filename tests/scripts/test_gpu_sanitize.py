"""bench/gpu_sanitize.py and bench/gpu_repeats.py with stubs for the tool and the card."""

import os
import sys
from collections import Counter

import hosted
import pytest
import torch

from bench import gpu_constants, gpu_repeats, gpu_sanitize
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.launches import CudaLowered
from stdc_fast.backends.cuda.tiles import CudaModel
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.errors import UserError

TOOL = """#!/bin/sh
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*" >>{folder}/asked
case "$*" in
    *--planted*) exit {planted} ;;
    *) exit {rest} ;;
esac
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a compute-sanitizer of given exit codes first on PATH; returns what it was asked."""

    def make(planted=9, rest=0):
        path = tmp_path / "compute-sanitizer"
        path.write_text(TOOL.format(folder=tmp_path, planted=planted, rest=rest))
        path.chmod(0o755)
        return tmp_path / "asked"

    built = []
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(type(cuda.BACKEND), "why_not_here", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu_constants, "build", lambda *arguments: built.append(arguments) or arguments[1])
    monkeypatch.setenv("PREBUILT", str(tmp_path / "prebuilt"))
    make.built, make.prebuilt = built, tmp_path / "prebuilt"
    return make


@pytest.mark.parametrize("name", gpu_sanitize.TOOLS)
def test_the_planted_mistake_is_looked_for_first(name, tool, capfd):
    asked = tool()
    assert gpu_sanitize.main([name]) == 0
    planted, rest = asked.read_text().splitlines()
    for line in (planted, rest):
        assert line.startswith(f"1 --tool {name} ") and "--error-exitcode 9 " in line
        assert f" {sys.executable} -m bench.gpu_sanitize {name} --inside" in line
        assert "kernel_substring=4stdc3gpu" in line
    assert planted.endswith("planted.so") and "--planted" not in rest
    assert "the planted mistake was found, and nothing else" in capfd.readouterr().out


def test_a_planted_mistake_that_was_built_elsewhere_needs_no_nvcc(tool):
    asked = tool()
    tool.prebuilt.mkdir()
    library = tool.prebuilt / "gpu_planted"
    library.write_bytes(b"")
    library.chmod(0o644)
    assert gpu_sanitize.main(["memcheck"]) == 0 and tool.built == []
    planted, _ = asked.read_text().splitlines()
    assert planted.endswith(f"--planted {library}") and os.access(library, os.X_OK)


CASES = {
    "blind": ({"planted": 0}, "did not find the planted mistake"),
    "found": ({"rest": 9}, "found something in the library's kernels"),
    "broken": ({"rest": 2}, "ended with code 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(case, tool, capfd):
    codes, message = CASES[case]
    tool(**codes)
    assert gpu_sanitize.main(["racecheck"]) == 1
    assert message in capfd.readouterr().out


def test_without_the_tool_or_the_backend_it_says_so(tool, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="compute-sanitizer was not found"):
        gpu_sanitize.main(["memcheck"])
    monkeypatch.setattr(type(cuda.BACKEND), "why_not_here", lambda _: "no nvcc")
    for call in (lambda: gpu_sanitize.main(["memcheck"]), lambda: gpu_repeats.main([])):
        with pytest.raises(UserError, match="no nvcc"):
            call()


def on_cpu(plan, precision, device, graphs=True, fused=True):
    native = hosted.module()
    return cuda.CudaExecutable(
        plan,
        precision,
        torch.device("cpu"),
        native,
        Chooser(CudaModel(native)),
        graphs=False,
        fused=fused,
    )


def test_every_compiled_form_is_launched(monkeypatch):
    """Without running them: each kind, each core, with and without shared tiles, each way to the labels."""
    launched = []
    monkeypatch.setattr(cuda, "compile", on_cpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_sanitize, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(CudaLowered, "launch", lambda self, first=False: launched.extend(self.launches))
    assert gpu_sanitize.run_all() == len(launched) < 4000
    kinds = Counter(launch.op.kind for launch in launched)
    assert {"stem", "conv", "down", "gate", "upsample", "scale"} <= kinds.keys()
    for kind in hosted.module().forms():
        products = [launch for launch in launched if launch.form is not None]
        found = {one.tiles.block for one in products if one.tiles.forms(one.work) == kind}
        assert found == set(hosted.cores(kind)), kind
    for kind in ("conv", "down"):  # each core of levels, too
        found = {one.tiles.block for one in products if one.work.kind == kind and one.work.dtype == "int8"}
        assert found == set(hosted.cores(kind)), kind
    assert {1, 2, 4, 8} <= {launch.tiles.split for launch in launched if launch.op.kind == "conv"}
    assert {2, 3} == {launch.arguments.taps for launch in launched if launch.op.kind == "upsample"}
    assert len({str(launch.arguments.type) for launch in launched if launch.op.kind == "conv"}) == 2


class Flaky:
    """Gives the same labels each time, but for some calls."""

    def __init__(self, wrong):
        self.wrong, self.calls = wrong, 0

    def labels(self, frames):
        self.calls += 1
        return frames + (self.calls - 1 in self.wrong)

    def __call__(self, frames):
        return frames.float()


def test_repeats_count_what_differs():
    pair = torch.arange(8, dtype=torch.uint8).view(2, 4)
    assert gpu_repeats.differing(Flaky(()), Flaky(()), pair, 10) == 0
    assert gpu_repeats.differing(Flaky((3, 8)), Flaky(()), pair, 10) == 2
    assert gpu_repeats.differing(Late(), Flaky(()), pair, 10) == 9


class Late(Flaky):
    """Labels of the call before, as where a kernel does not wait: of the same frame they would be right."""

    def __init__(self):
        super().__init__(())
        self.last = None

    def labels(self, frames):
        last, self.last = self.last, super().labels(frames)
        return self.last if last is None else last
