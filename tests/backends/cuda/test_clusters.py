"""Convolutions of wgmma whose blocks share a stream of weights: sizes, schedules, and what is refused."""

import re

import pytest
import torch
from cases import GATES, SUBPIXEL, prologue
from engines import EMULATED_WGMMA
from hosted import (
    CORES,
    Hosted,
    Tiles,
    argument,
    chooser,
    counters,
    every_schedule,
    forced,
    module,
    scheduled,
)
from oracle import HALF, LOW, answers, check, given
from sketch import pair, plain, sketched

from stdc_fast.backends.cuda import fusion
from stdc_fast.backends.cuda.tiles import CLUSTERS, whole_clusters
from stdc_fast.backends.gpu.model import Work

agrees = EMULATED_WGMMA.agrees
SHAPES = [(2, 7, 19), (1, 15, 31), (1, 3, 5)]  # 12, 16 and 1 tiles of 4x8 pixels; with stride 2 4, 4 and 1
LARGER = [n for n in CLUSTERS if n > 1]


@sketched(6)
def head(s, x):
    return s.conv(s.conv(x, 128, 3), 19, 1, act="none", bias=False, store="float32")


@sketched(6)
def gated(s, x):
    """A gate that is the scale of a convolution, and one beside another."""
    mean, other = s.vector(36), s.vector(20)
    x = s.conv(s.conv(x, 36, 1, mean=mean), 20, 1, 2, mean=other)
    scale, later = s.gate(other, (20,), ("sigmoid",)), s.gate(mean, (36,), ("none",))
    return s.scale(s.conv(x, 36, 3, scale=scale), later)


CASES = {
    "3x3": (plain(160, 40, 3, 1), {"chunk": 64}),
    "3x3 / 2, many chunks": (plain(70, 70, 3, 2), {}),
    "1x1, units beyond a chunk": (plain(160, 40, 1, 1), {}),
    "two inputs": (pair(34, 70, 40, 3, 1), {}),
    "split": (plain(70, 40, 3, 1), {"split": 4}),
    "scale and map": (prologue(34, 3, scale=True, add="map"), {}),
    "average": (GATES["parts"], {}),
    "sub-pixel, which has none": (SUBPIXEL["views"], {}),
    "logits": (plain(70, 19, 1, 1, act="none", store="float32"), {}),
    "few steps": (plain(6, 40, 1, 1), {}),
    "head": (head, {}),
    "gated": (gated, {}),
}
#: In the usual run each case once, with one of the sizes of clusters.
EACH = [
    pytest.param(name, n, id=f"{name}, {n}", marks=() if i % 2 == j else pytest.mark.wide)
    for i, name in enumerate(CASES)
    for j, n in enumerate(LARGER)
]


def clusters(executable):
    """(kernel, blocks of a cluster) of each convolution of what ran last."""
    launches = executable.last.launches
    return {(one.work.kernel, one.tiles.cluster) for one in launches if one.work and one.work.kind == "conv"}


@pytest.mark.parametrize("case, cluster", EACH)
def test_clusters_change_nothing(case, cluster):
    make, tiles = CASES[case]
    plan = make()
    fused = fusion.possible if case in ("head", "gated") else False
    for dtype in (HALF, LOW):
        choose = forced(**tiles, wgmma=1, cluster=cluster)
        executable = Hosted(plan, dtype, choose, fused=fused)
        alone = Hosted(plan, dtype, forced(**tiles, wgmma=1), fused=fused)
        with scheduled(block_races=True):
            for inputs, expected in answers(plan, dtype, SHAPES):
                found = executable(*inputs)
                check(found, expected, dtype)
                assert torch.equal(found, alone(*inputs))
                assert not any(x.any() for x in counters(executable))
        executable(*given(plan, dtype, *SHAPES[1]))
        assert all((n == cluster) == (kernel != 2) for kernel, n in clusters(executable))


@pytest.mark.parametrize(
    "core", [c if c[0] == 64 else pytest.param(c, marks=pytest.mark.wide) for c in CORES["wgmma"]], ids=str
)
@pytest.mark.parametrize("cluster", LARGER)
def test_every_core_in_clusters(core, cluster):
    choose = forced(core, 8, core[0] // 8, chunk=32, wgmma=1, cluster=cluster)
    agrees(plain(70, core[1] + 6, 3, 1), HALF, [(1, 16, 30), (2, 9, 17)], choose)


@every_schedule
@pytest.mark.parametrize(
    "cluster", [LARGER[0], *[pytest.param(n, marks=pytest.mark.wide) for n in LARGER[1:]]]
)
def test_every_order_gives_the_same_bits(schedule, cluster):
    for make in (plain(70, 40, 3, 1), plain(160, 40, 1, 1)):
        plan = make()
        inputs = given(plan, LOW, 2, 5, 11)
        expected = Hosted(plan, LOW, forced(wgmma=1))(*inputs)
        executable = Hosted(plan, LOW, forced(wgmma=1, cluster=cluster))
        with scheduled(schedule, block_races=True):
            assert torch.equal(executable(*inputs), expected)
        with scheduled(schedule, races=False, poison=False):
            assert torch.equal(executable(*inputs), expected)


REFUSED = {
    "an odd number of tiles": (
        {"images": 3, "kernel": 3},
        11,
        2,
        "no clusters of 2 for 3 tiles of a kernel of 3",
    ),
    "the sub-pixel form": (
        {"images": 4, "kernel": 2},
        11,
        2,
        "no clusters of 2 for 4 tiles of a kernel of 2",
    ),
    "the other core": ({"images": 2}, 0, 2, "in clusters of 2"),
    "three blocks": ({"images": 3}, 11, 3, "in clusters of 3"),
    "more than there may be": ({"images": 8}, 11, 8, "in clusters of 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_a_cluster_is_refused(name):
    fields, form, cluster, said = REFUSED[name]
    native = module()
    native.set_memory([])
    tiling = native.Tiling(form, 8, 8, 16, 1, cluster)
    with pytest.raises(RuntimeError, match=f"^conv: .*{re.escape(said)}$"):
        native.run([argument("ConvArgs", tiling=tiling, **fields)], 0, False)


def test_tiles_of_clusters():
    t = Tiles((128, 128), 8, 16, 64, 1, 1, 2)
    assert Tiles.of(list(t.numbers)) == t and len(t.numbers) == 9
    assert Tiles.of([128, 128, 1, 8, 16, 64, 1, 1]).cluster == 1  # a row of an older table
    assert "of wgmma in clusters of 2" in str(t)
    for wgmma, cluster in ((0, 2), (1, 3), (1, 8), (1, 0)):
        with pytest.raises(ValueError, match="no kernel"):
            Tiles((128, 128), 8, 16, 64, 1, wgmma, cluster)


def test_the_choice_has_whole_clusters():
    """On a device with wgmma, of maps whose tiles make up none there are none."""
    ranked = chooser(()).model.ranked
    usual = {"kind": "conv", "stride": 1, "inputs": (256,), "outputs": 256, "images": 1, "dtype": "float16"}
    found = ranked(Work(kernel=3, height=64, width=128, **usual))
    assert {t.cluster for t in found} == set(CLUSTERS)
    for kernel, height, width in ((2, 64, 128), (3, 5, 5), (3, 21, 37)):
        work = Work(kernel=kernel, height=height, width=width, **usual)
        assert all(whole_clusters(work, t) for t in ranked(work))
        assert kernel != 2 or {t.cluster for t in ranked(work)} == {1}
