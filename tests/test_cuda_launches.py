"""In which order, on which streams and how the CUDA backend launches its kernels, with no GPU."""

import contextlib
import re
import types

import pytest
import torch
from engines import HALF, trained_plan
from hosted import CPU, module
from small_tree import ROOT

from stdc_fast.backends import cuda
from stdc_fast.backends.cuda import launches as cuda_launches
from stdc_fast.backends.gpu.placed import MOST_IMAGES, Request


class Stream:
    """Writes down who waits for whom."""

    def __init__(self, number, log):
        self.cuda_stream, self.log = number, log

    def wait_stream(self, other):
        self.log.append(("wait", self.cuda_stream, other.cuda_stream))


@pytest.fixture
def recorded(monkeypatch):
    """A network's launches as on a second GPU: (launches, log, stream)."""
    log, native = [], module()
    main = Stream(7, log)
    current = [main]

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    def run(steps, stream, dependent, device):
        log.extend((step, stream, dependent, device) for step in steps)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    size = (64, 96)
    executable = cuda.Executable(trained_plan(), HALF, CPU, native, cuda.Chooser(native))
    lowered = executable.lower(Request(1, size, size, size))
    lowered.device, lowered.dependent = torch.device("cuda", 1), True
    lowered.native = types.SimpleNamespace(run=run)
    return lowered, log, main


def test_in_order_on_one_stream(recorded):
    lowered, log, _ = recorded
    lowered.launch()
    assert [entry[0] for entry in log] == [launch.arguments for launch in lowered.launches]
    assert {entry[1] for entry in log} == {7} and {entry[3] for entry in log} == {1}
    assert [entry[2] for entry in log] == [False] + [True] * (len(log) - 1)


def test_a_branch_on_a_second_stream(recorded):
    """Streams wait for each other at fork and join, and what follows starts after whole kernels."""
    lowered, log, _ = recorded
    lowered.launch(side=Stream(9, log))
    before, branch, others, after = lowered.parts()
    assert min(map(len, (before, branch, others, after))) > 1
    expected = []
    for part, stream in ((before, 7), (branch, 9), (others, 7), (after, 7)):
        if part is branch:
            expected.append(("wait", 9, 7))
        if part is after:
            expected.append(("wait", 7, 9))
        expected += [(step, stream, i > 0, 1) for i, step in enumerate(part)]
    assert log == expected


def test_an_error_says_what_else_runs(recorded):
    lowered, _, _ = recorded

    def run(*arguments):
        raise RuntimeError("conv, grid 1x1x1: invalid argument")

    lowered.native = types.SimpleNamespace(run=run)
    with pytest.raises(RuntimeError, match="invalid argument; STDC_FAST_BACKEND=triton or eager runs it"):
        lowered.launch()


def test_too_many_images_are_said(recorded):
    lowered, _, _ = recorded
    with pytest.raises(ValueError, match=f"{MOST_IMAGES + 1} images at once; use batches of at most"):
        type(lowered)(
            lowered.plan, lowered.packed, Request(MOST_IMAGES + 1, (1, 1), (1, 1)), HALF,
            torch.device("meta"), lowered.choose, module(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("gate", "kOutputs", cuda_launches.GATE_OUTPUTS),
        ("upsample", "kWarps", cuda_launches.ROWS),
        ("upsample", "kColumns", cuda_launches.COLUMNS),
    ],
)
def test_predictions_know_what_a_block_does(source, name, value):
    text = (ROOT / "csrc" / "cuda" / f"{source}.cu").read_text()
    assert re.findall(rf"constexpr int {name} = (\w+);", text) == [str(value)]
