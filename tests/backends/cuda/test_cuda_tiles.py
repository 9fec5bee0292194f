"""How the CUDA kernels cut their work must not matter: every compiled core, tiles of any shape, chunks of
channels, blocks that share a tile, and whatever order warps and blocks run in.
"""

import itertools

import pytest
import torch
from cases import (
    CONVS,
    DOWNS,
    GATES,
    PROLOGUES,
    STEMS,
    SUBPIXEL,
    average_and_map,
    down,
    labelled,
    prologue,
    stem,
    subpixel,
)
from engines import EMULATED
from hosted import (
    CORES,
    SCHEDULES,
    Hosted,
    Tiles,
    beside,
    cores,
    counters,
    every_schedule,
    forced,
    scheduled,
    spared,
)
from oracle import HALF, LOW, answers, check, given
from sketch import between, pair, plain, sketched

DTYPES = (HALF, LOW)
agrees = EMULATED.agrees


# Tiles that fill a core of so many pixels, or nearly; of down (outputs) those whose inputs do.
SHAPES = {
    "conv": {
        64: [(8, 8), (7, 9), (1, 64), (3, 21)],
        128: [(8, 16), (9, 14), (128, 1), (5, 25)],
        144: [(12, 12), (11, 13), (6, 24), (1, 144)],
    },
    "stem": {128: [(8, 16), (11, 11), (1, 128)], 256: [(16, 16), (15, 17), (51, 5)]},
    "down": {96: [(4, 4), (3, 6), (1, 15)], 160: [(4, 8), (5, 6), (26, 1)]},
}


def test_all_cores_are_here():
    assert {kind: cores(kind) for kind in CORES} == CORES
    assert all(CORES.values())


def forms(channels):
    """Convolutions to somewhat more channels than a block has, with all that can be before and after."""
    n = channels + 6
    yield "3x3", plain(34, n, 3, 1)
    yield "3x3 / 2", between(20, n, 3, 2)
    yield "two inputs, 1x1", pair(34, 20, n, 1, 1)
    yield "sub-pixel", subpixel(20, n)
    yield "logits", plain(20, n, 1, 1, act="none", store="float32")
    yield "average", average_and_map
    yield "scale and add", prologue(20, 3, scale=True, add="map")


FORMS = [name for name, _ in forms(16)]
SHAPES["wgmma"] = SHAPES["conv"]
# Of each core one form by default, and both dtypes among them; all of them widely.
EACH = [
    pytest.param(
        kind,
        core,
        shape,
        form,
        dtype,
        id=f"{kind}, {core}, {shape}, {form}, {dtype}",
        marks=() if few else mark,
    )
    for mark in [pytest.mark.wide]
    for kind in ("conv", "wgmma")
    for i, core in enumerate(CORES[kind])
    for j, shape in enumerate(SHAPES[kind][core[0]])
    for k, form in enumerate(FORMS)
    for m, dtype in enumerate(DTYPES)
    for few in [(i + 2 * j) % len(FORMS) == k and (i + j) % 2 == m]
]


@pytest.mark.parametrize("kind, core, shape, form, dtype", EACH)
def test_every_core_of_conv(kind, core, shape, form, dtype):
    """Several tiles an image and a rest in both directions, but of the longest tiles."""
    make = dict(forms(core[1]))[form]
    choose = forced(core, *shape, chunk=32, wgmma=int(kind == "wgmma"))
    agrees(make, dtype, [(2, 13, 29), (1, 3, 5)], choose)


@pytest.mark.parametrize(
    "core, shape", [(core, shape) for core in CORES["stem"] for shape in SHAPES["stem"][core[0]]], ids=str
)
def test_every_core_of_stem(core, shape):
    choose = forced(core, *shape, kind="stem")
    for i, make in enumerate((stem(core[1] + 6, True), stem(core[1] + 6, False), STEMS["a view"])):
        agrees(make, DTYPES[i % 2], [(2, 37, 75), (1, 3, 5)], choose)


@pytest.mark.parametrize(
    "core, shape", [(core, shape) for core in CORES["down"] for shape in SHAPES["down"][core[0]]], ids=str
)
def test_every_core_of_down(core, shape):
    choose = forced(core, *shape, chunk=16, kind="down")
    agrees(down(20, core[1] + 6, True), HALF, [(2, 13, 39), (1, 3, 5)], choose)
    agrees(down(20, core[1] + 6, True, include=False), LOW, [(1, 12, 38), (2, 2, 1)], choose)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 16), (16, 1), (5, 3), (7, 7)], ids=str)
def test_tiles_that_do_not_fill_a_core(shape):
    agrees(plain(6, 10, 3, 1), HALF, [(2, 5, 18)], forced((64, 16), *shape))
    agrees(plain(6, 10, 3, 2), LOW, [(1, 9, 18)], forced((128, 32), *shape))
    agrees(subpixel(6, 10), HALF, [(1, 5, 9), (2, 6, 4)], forced((64, 16), *shape))
    agrees(stem(10, True), LOW, [(2, 9, 14)], forced((128, 16), *shape, kind="stem"))
    if shape[0] * shape[1] <= 16:
        agrees(down(6, 10, True, include=False), HALF, [(1, 9, 14)], forced((160, 64), *shape, kind="down"))


# Chunks.


@pytest.mark.parametrize("core, wgmma", [((64, 16), 0), ((64, 16, 4), 0), ((64, 64), 1)], ids=str)
@pytest.mark.parametrize("chunk", [16, 32, 48, 80, 128, 512])
def test_chunks_of_channels(chunk, core, wgmma):
    """Less and more than there are, all of a multiple and not; many more than there are buffers for them.

    A core with slices has longer steps, which most of these chunks do not fill.
    """
    choose = forced(core, 4, 8, chunk, wgmma=wgmma)
    agrees(plain(150, 19, 1, 1), HALF, [(2, 3, 5)], choose)
    agrees(between(70, 40, 3, 1), LOW, [(1, 5, 11)], choose)
    agrees(plain(34, 40, 3, 2), HALF, [(1, 5, 11)], choose)
    agrees(subpixel(70, 19), LOW, [(1, 3, 5)], choose)
    agrees(prologue(70, 3, scale=True, add="vector"), HALF, [(1, 5, 11)], choose)
    if not wgmma:
        agrees(down(70, 34, True), LOW, [(1, 5, 11)], forced((96, 32, 2), 3, 6, chunk, kind="down"))


@pytest.mark.parametrize("wgmma", [0, 1])
def test_many_chunks(wgmma):
    """Sixty-five; with one step each the pixels of four are on their way at once, with wgmma of two."""
    agrees(plain(1030, 19, 1, 1), HALF, [(1, 3, 5)], forced(chunk=16, wgmma=wgmma))
    agrees(plain(1030, 19, 1, 2), LOW, [(1, 3, 5)], forced(chunk=16, split=8, wgmma=wgmma))
    agrees(plain(262, 19, 3, 1), HALF, [(1, 3, 5)], forced(chunk=16, wgmma=wgmma))


UNEVEN = [(64, 6), (6, 70), (16, 150), (34, 34), (2, 1), (150, 17)]


@pytest.mark.parametrize("first, second", UNEVEN)
def test_two_inputs_with_other_numbers_of_chunks(first, second):
    """A block that shares a tile may start or end in either."""
    for chunk, split, wgmma in itertools.product((16, 64), (1, 4), (0, 1)):
        for kernel, stride in ((3, 1), (1, 2)):
            choose = forced(chunk=chunk, split=split, wgmma=wgmma)
            agrees(pair(first, second, 19, kernel, stride, wide=2), HALF, [(2, 3, 5)], choose)


# Blocks that share a tile.


@sketched(6)
def average_of_many(s, x):
    y, mean = s.buffer(36, 1), s.vector(36)
    s.conv(s.conv(x, 70, 1), y, 3, mean=mean)
    return s.scale(y, s.gate(mean, (36,), ("sigmoid+1",)))


#: What there is, the channels of a chunk, and whether there are several chunks.
SHARED = {
    "many chunks": (plain(130, 19, 3, 1), 16, True),
    "one chunk": (plain(6, 10, 1, 2), 16, False),
    "a deep chunk": (plain(34, 19, 3, 2), 64, False),
    "fewer chunks than blocks": (plain(34, 19, 3, 2), 16, True),
    "scale, map": (prologue(34, 3, scale=True, add="map"), 16, True),
    "logits": (plain(70, 19, 1, 1, act="none", store="float32"), 16, True),
    "average": (average_of_many, 16, True),
    "two inputs": (pair(34, 22, 19, 3, 1), 16, True),
    "sub-pixel": (subpixel(34, 19), 16, True),
    "sub-pixel with an average": (SUBPIXEL["views"], 16, True),
}
SPLIT = [
    pytest.param(
        name,
        split,
        wgmma,
        DTYPES[i % 2],
        id=f"{name}, {split}, {wgmma}",
        marks=() if few else pytest.mark.wide,
    )
    for i, (name, split) in enumerate(itertools.product(SHARED, (2, 4, 8)))
    for wgmma in (0, 1)
    for few in [split == (2, 4, 8)[(i // 3 + wgmma) % 3] or name == "many chunks"]
]


@pytest.mark.parametrize("case, split, wgmma, dtype", SPLIT)
def test_blocks_that_share_a_tile(case, split, wgmma, dtype):
    """Their counters are zero again after each run, so that the next is right too."""
    make, chunk, several = SHARED[case]
    plan = make()
    executable = Hosted(plan, dtype, forced(chunk=chunk, split=split, wgmma=wgmma))
    with scheduled(block_races=True):
        for inputs, expected in answers(plan, dtype, [(2, 5, 6), (2, 5, 6), (1, 3, 5)]):
            check(executable(*inputs), expected, dtype)
            shared = counters(executable)
            assert bool(shared) == several and not any(x.any() for x in shared)
    assert [i.lowered.runs for i in executable._instances.values()] == [2, 1]


@pytest.mark.parametrize(
    "case", ["many chunks", "average", "logits", "two inputs", "sub-pixel with an average"]
)
def test_sums_of_blocks_have_one_order(case):
    """The same bits whichever block comes last, in every run."""
    make, chunk, _ = SHARED[case]
    plan = make()
    inputs = given(plan, HALF, 2, 5, 6)
    executable = Hosted(plan, HALF, forced(chunk=chunk, split=4))
    expected = executable(*inputs)
    for schedule in SCHEDULES:
        with scheduled(schedule, block_races=True):
            for _ in range(2):
                assert torch.equal(executable(*inputs), expected), schedule
                assert counters(executable) and not any(x.any() for x in counters(executable))


# Orders of warps and blocks.

ORDERS = {
    "3x3, many chunks": (plain(70, 40, 3, 1), {}),
    "two inputs": (pair(34, 22, 40, 1, 2), {}),
    "prologue": (PROLOGUES["scale and add a map"], None),
    "sub-pixel": (SUBPIXEL["views"], None),
    "wgmma, many chunks": (plain(70, 40, 3, 1), {"wgmma": 1}),
    "wgmma, two inputs": (pair(34, 22, 70, 1, 2), {"wgmma": 1}),
    "wgmma, prologue": (PROLOGUES["scale and add a map"], {"wgmma": 1}),
    "wgmma, sub-pixel": (SUBPIXEL["views"], {"wgmma": 1}),
    "wgmma of two groups": (plain(150, 70, 3, 2), {"core": (128, 128), "wgmma": 1}),
    "stem": (STEMS["a view"], None),
    "down": (down(34, 40, True, include=False), None),
    "gate": (GATES["two layers, relu and sigmoid"], None),
    "logits": (plain(34, 19, 1, 1, act="none", store="float32"), None),
}


@every_schedule
def test_every_order_gives_the_same_bits(schedule):
    """With races of threads and of blocks watched for; and without, in memory that starts as zeros."""
    for name, (make, tiles) in ORDERS.items():
        plan = make()
        inputs = given(plan, LOW, 2, 5, 11)
        usual = {"core": (64, 64) if (tiles or {}).get("wgmma") else (64, 64, 4), "height": 4, "width": 8}
        executable = Hosted(plan, LOW, None if tiles is None else forced(**usual | tiles))
        expected = executable(*inputs)
        with scheduled(schedule, block_races=True):
            assert torch.equal(executable(*inputs), expected), name
        with scheduled(schedule, races=False, poison=False):
            assert torch.equal(executable(*inputs), expected), name


@every_schedule
def test_every_order_gives_the_same_labels(schedule):
    executable = Hosted(labelled(11), HALF)
    frames = given(executable.plan, HALF, 2, 17, 40)[0]
    expected = executable.labels(frames), executable.labels(frames, (15, 43))
    with scheduled(schedule, block_races=True):
        assert torch.equal(executable.labels(frames), expected[0])
        assert torch.equal(executable.labels(frames, (15, 43)), expected[1])


def test_other_tiles_fill_one_average():
    """Convolutions with one, several and many tiles an image, one of them shared, for one gate."""

    def choose(work):
        shape = {6: (8, 8), 38: (2, 8), 34: (4, 4)}.get(work.inputs[0], (1, 3))
        return Tiles((64, 32, 4), *shape, 16, 2 if work.inputs[0] == 38 else 1)

    for dtype in DTYPES:
        agrees(GATES["parts"], dtype, [(2, 5, 6), (1, 9, 6), (2, 5, 6)], choose)


# Memory beside what is written.

BESIDE = [
    CONVS["10 of 20 to 19, 3x3 / 1"], CONVS["from and to channels whose neighbours nobody writes"],
    SUBPIXEL["views"], STEMS["a view"], DOWNS["to two buffers"], GATES["parts"],
]  # fmt: skip


@pytest.mark.parametrize("make", BESIDE)
def test_what_lies_beside_a_view_stays(make):
    """And one number that changes there is seen."""
    executable = agrees(make, HALF, [(2, 5, 7)])
    assert spared(executable) > 0
    for _, x, channels in beside(executable):
        before = x[..., channels[0]].clone()
        x[..., channels[0]] = 1
        with pytest.raises(AssertionError, match="no op writes"):
            spared(executable)
        x[..., channels[0]] = before
