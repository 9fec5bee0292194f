"""How Triton's kernels cut their work must not matter: tiles of any shape, programs that share one."""

import itertools

import pytest
import torch
from cases import average_and_map, down, prologue, stem, subpixel
from engines import TRITON
from oracle import FULL, HALF, LOW, answers, check
from sketch import pair, plain, sketched

from stdc_fast.backends import triton
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.triton.tiles import TritonModel, TritonTiles, interpreted
from stdc_fast.plan.ops import View
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT32

pytestmark = pytest.mark.skipif(TRITON.why_not() is not None, reason=f"needs Triton: {TRITON.why_not()}")

DTYPES = (FULL, HALF, LOW)
agrees = TRITON.agrees


def forced(**changes):
    """The same tiles for every convolution that can have them."""

    def choose(work):
        t = {"height": 4, "width": 8, "channels": 16, "depth": 16, "stages": 1, **changes}
        if work.kind != "conv":
            t.pop("split", None)
        if work.kind == "stem":
            t["depth"] = 32
        return TritonTiles(**t)

    return choose


SHAPES_OF_TILES = [(1, 16), (16, 1), (2, 32), (16, 16), (4, 4)]


@pytest.mark.parametrize("tile", SHAPES_OF_TILES, ids=str)
def test_shapes_of_tiles(tile):
    height, width = tile
    choose = forced(height=height, width=width)
    agrees(plain(6, 10, 3, 1), FULL, [(2, 5, 18)], choose)
    agrees(plain(6, 10, 3, 2), HALF, [(1, 9, 18)], choose)
    agrees(stem(10, True), LOW, [(2, 9, 34)], choose)
    agrees(down(6, 10, True, include=False), FULL, [(1, 9, 34)], choose)


@pytest.mark.parametrize("channels, depth", [(16, 16), (32, 32), (16, 64), (64, 16), (128, 128)])
def test_blocks_of_channels(channels, depth):
    """Less and more than there are, inputs and outputs."""
    choose = forced(height=8, channels=channels, depth=depth)
    agrees(plain(34, 40, 3, 1), FULL, [(2, 3, 5)], choose)
    agrees(pair(34, 6, 40, 1, 1), LOW, [(1, 3, 5)], choose)
    agrees(down(34, 40, True), HALF, [(1, 3, 5)], choose)
    agrees(prologue(34, 2, scale=True, add="map"), FULL, [(1, 3, 5)], choose)


def split_cases():
    """More steps than programs that share them; fewer; the average, the prologue and logits besides."""
    yield "many steps", plain(34, 19, 3, 1), 16
    yield "one step", plain(6, 10, 1, 2), 16
    yield "a deep step", plain(34, 19, 3, 2), 64
    yield "scale, map", prologue(34, 3, scale=True, add="map"), 16
    yield "logits", plain(70, 19, 1, 1, act="none", store="float32"), 16
    yield "average", average_and_map, 16
    yield "two inputs", pair(34, 22, 19, 3, 1), 16
    yield "sub-pixel", subpixel(34, 19), 16


SPLITS = {name: (make, depth) for name, make, depth in split_cases()}
SPLIT = [
    pytest.param(name, split, DTYPES[i % 3], id=f"{name}, {split}", marks=() if few else pytest.mark.wide)
    for i, (name, split) in enumerate(itertools.product(SPLITS, (2, 4, 8)))
    for few in [split == (8 if i // 3 % 2 else 4)]
]


@pytest.mark.parametrize("case, split, dtype", [*SPLIT, pytest.param("many steps", 2, FULL, id="in two")])
def test_programs_that_share_a_tile(case, split, dtype):
    """Twice with the same size: what they count their arrivals with must be as it was."""
    make, depth = SPLITS[case]
    plan = make()
    choose = forced(split=split, depth=depth)
    executable = TRITON.compile(plan, dtype, tiles=choose)
    for inputs, expected in answers(plan, dtype, [(2, 5, 6), (2, 5, 6), (1, 3, 5)]):
        check(executable(*map(TRITON.put, inputs)).cpu(), expected, dtype)


@pytest.mark.parametrize(
    "dtype", [LOW, *(pytest.param(d, marks=pytest.mark.wide) for d in (FULL, HALF))], ids=str
)
def test_convolutions_with_other_tiles_fill_one_average(dtype):
    """Three of them, with one, several and many tiles an image, for one gate, whose sums are as many rows."""

    @sketched(6)
    def make(s, x):
        y, mean = s.buffer(40, 1), s.vector(44)
        s.conv(x, View(y.buffer, 0, 10), 3, mean=View(mean.buffer, 0, 10))
        s.conv(View(y.buffer, 0, 10), View(y.buffer, 10, 20), 1, mean=View(mean.buffer, 10, 20))
        s.conv(View(y.buffer, 10, 20), View(y.buffer, 30, 10), 3, mean=View(mean.buffer, 30, 10))
        return s.scale(y, s.gate(View(mean.buffer, 0, 40), (6, 40), ("relu", "sigmoid")))

    def choose(work):
        shape = {6: (16, 16), 10: (4, 4), 20: (2, 8)}[work.inputs[0]]
        return TritonTiles(*shape, 16, 16, 2 if work.inputs[0] == 10 else 1, stages=1)

    agrees(make, dtype, [(2, 5, 6), (1, 9, 6), (2, 5, 6)], choose)


def test_subpixel_in_several_tiles():
    """Of sixteen pixels: some of the sets for the last row or column have nothing to do."""
    agrees(subpixel(6, 10), FULL, [(1, 17, 11), (2, 9, 10)], lambda work: TritonTiles(4, 4, 16, 16, stages=1))


# Tiles that the compiler does not take, and what float32 is multiplied in.


def test_tiles_that_the_device_refuses_are_replaced(monkeypatch):
    """As a chooser of a GPU does, which this one stands for; then no choice is left."""
    from triton.runtime.errors import OutOfResources

    from stdc_fast.backends.triton import launches

    plan, taken = plain(6, 10, 3, 1)(), []
    ((inputs, expected),) = answers(plan, FULL, [(1, 5, 6)])
    chooser = Chooser(TritonModel(DEVICES["sm_90"]), ())
    executable, launch = TRITON.compile(plan, FULL, tiles=chooser), launches.TritonLaunch.__call__

    def refusing(self):
        taken.append(self.tiles)
        if len(taken) <= most:
            raise OutOfResources(1 << 20, 1 << 17, "shared memory")
        launch(self)

    monkeypatch.setattr(launches.TritonLaunch, "__call__", refusing)
    most = 2
    check(executable(*map(TRITON.put, inputs)).cpu(), expected, FULL)
    assert len(set(taken)) == len(taken) == 3
    most, executable = 1000, TRITON.compile(plan, FULL, tiles=interpreted)
    with pytest.raises(Exception, match="shared memory"):
        executable(*map(TRITON.put, inputs))


def test_what_float32_is_multiplied_in_is_asked_for():
    before = torch.get_float32_matmul_precision()
    executable = TRITON.compile(plain(6, 10, 1, 1)(), FULL)
    x = TRITON.put(torch.randn(1, 6, 3, 4))
    try:
        for precision, expected in (("highest", "float32"), ("high", "tf32")):
            torch.set_float32_matmul_precision(precision)
            executable(x)
            launch = list(executable._instances.values())[-1].lowered.launches[-1]
            assert launch.work.dtype == triton.products(FLOAT32) == expected
            assert launch.arguments["PRECISION"] == ("ieee" if expected == "float32" else "tf32")
    finally:
        torch.set_float32_matmul_precision(before)
    assert (triton.products(FLOAT16), triton.products(BFLOAT16)) == ("float16", "bfloat16")
