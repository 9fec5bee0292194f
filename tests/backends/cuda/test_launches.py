"""How the CUDA backend launches its kernels, with no GPU: order and streams, and what no kernel takes."""

import contextlib
import re
import types

import pytest
import torch
from hosted import CPU, Hosted, argument, chooser, cores, module
from oracle import HALF, trained_plan
from sketch import plain
from small_tree import ROOT

from stdc_fast.backends import cuda
from stdc_fast.backends.cuda import fusion
from stdc_fast.backends.cuda import launches as cuda_launches
from stdc_fast.backends.gpu.placed import MOST_IMAGES, Request
from stdc_fast.precision import FLOAT16


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
    executable = cuda.CudaExecutable(trained_plan(), FLOAT16, CPU, native, chooser())
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
            lowered.plan, lowered.packed, Request(MOST_IMAGES + 1, (1, 1), (1, 1)), FLOAT16,
            torch.device("meta"), lowered.choose, module(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("gate.cuh", "kGateOutputs", fusion.OUTPUTS),
        ("gate.cuh", "kTogether", fusion.TOGETHER),
        ("gate.cuh", "kMostResident", f"{fusion.RESIDENT >> 10} << 10"),
        ("stem_conv.cu", "kMiddle", fusion.MIDDLE),
        ("upsample.cu", "kWarps", cuda_launches.ROWS),
        ("upsample.cu", "kColumns", cuda_launches.COLUMNS),
    ],
)
def test_predictions_know_what_a_block_does(source, name, value):
    text = (ROOT / "csrc" / "cuda" / source).read_text()
    assert re.findall(rf"constexpr int {name} = ([^;]+);", text) == [str(value)]


# Launches that no kernel takes: an error with the values, and the next one runs.


# core (or None: one of 64 pixels, of down 96), height, width, chunk, split
WRONG = {
    "no tile": (None, 0, 0, 16, 1),
    "no width": (None, 8, 0, 16, 1),
    "a negative height": (None, -8, 8, 16, 1),
    "larger than the core": (None, 9, 9, 16, 1),
    "a chunk of 8": (None, 8, 8, 8, 1),
    "a chunk of 24": (None, 8, 8, 24, 1),
    "no chunk": (None, 8, 8, 0, 1),
    "a chunk for more threads than there are": (None, 8, 8, 2048, 1),
    "no block": (None, 8, 8, 16, 0),
    "more blocks than chunks": (None, 8, 8, 16, 2),
    "a core that there is not": (99, 8, 8, 16, 1),
    "a negative core": (-1, 8, 8, 16, 1),
}


ONLY_CONV = ("more blocks than chunks", "a chunk for more threads than there are")
LAUNCHES = [("ConvArgs", name) for name in WRONG]
LAUNCHES += [(kind, name) for kind in ("StemArgs", "DownArgs") for name in WRONG if name not in ONLY_CONV]


@pytest.mark.parametrize("kind, name", LAUNCHES)
def test_wrong_launches_are_errors(kind, name):
    core, height, width, chunk, split = WRONG[name]
    if core is None:
        usual = {"ConvArgs": (64, 64, 4), "StemArgs": (128, 16), "DownArgs": (96, 64)}[kind]
        core = cores(kind.removesuffix("Args").lower()).index(usual)
        if kind != "ConvArgs":  # odd, as down wants it
            height, width = (n and (13 if n == 9 else n + 1 - n % 2) for n in (height, width))
    native = module()
    given = argument(kind, tiling=native.Tiling(core, height, width, chunk, split))
    native.set_memory([])
    with pytest.raises(RuntimeError, match=kind.removesuffix("Args").lower()) as caught:
        native.run([given], 0, False)
    assert "\n" not in str(caught.value)
    executable = Hosted(plain(6, 10, 1, 1)(), HALF)
    assert executable(torch.ones(1, 6, 2, 2)).isfinite().all()


def test_no_images_are_no_launch():
    native = module()
    native.set_memory([])
    with pytest.raises(RuntimeError, match="grid 0x"):
        native.run([argument("ConvArgs", images=0, tiling=native.Tiling(4, 8, 8, 16, 1))], 0, False)
