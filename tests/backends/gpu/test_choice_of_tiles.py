"""The tiles of GPU kernels: which there are, which the model takes, tables of them, and what is refused."""

import dataclasses
import itertools

import pytest
import torch
from engines import EMULATED
from hosted import chooser, cores, module
from oracle import HALF, trained_plan
from sketch import plain

from stdc_fast.backends.cuda import tiles as cuda_tiles
from stdc_fast.backends.cuda.tiles import CudaModel, CudaTiles
from stdc_fast.backends.gpu import tables
from stdc_fast.backends.gpu.chooser import Chooser, best
from stdc_fast.backends.gpu.model import DEVICES, Work, device_class
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.backends.triton import tiles as triton_tiles
from stdc_fast.backends.triton.tiles import TritonModel, TritonTiles

every_device = pytest.mark.parametrize("key", DEVICES)
#: To list all choices takes seconds: by default one with little shared memory, and one with wgmma.
some_devices = pytest.mark.parametrize(
    "key", [pytest.param(key, marks=() if key in ("sm_86", "sm_90") else pytest.mark.wide) for key in DEVICES]
)


def works(*dtypes):
    """Odd ones of every kind: large and tiny, of few and many channels."""
    sizes = ((1, 1, 1), (3, 7, 129), (1, 720, 1283))
    for dtype, (n, h, w) in itertools.product(dtypes, sizes):
        common = {"images": n, "height": h, "width": w, "dtype": dtype}
        yield Work("stem", 3, 2, (3,), 7, **common)
        yield Work("stem", 3, 2, (3,), 64, **common)
        for c, out in ((1, 1), (19, 150), (1030, 34)):
            if c < 512:
                yield Work("down", 1, 2, (c,), out, **common)
            for kernel, stride in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2)):
                yield Work("conv", kernel, stride, (c,), out, prologue=out == 34, **common)
            yield Work("conv", 3, 1, (c, 3), out, **common)


def test_works_have_names_of_their_own():
    found = [work.key for work in works("float16", "float32", "tf32")]
    assert len(set(found)) == len(found)
    work = Work("conv", 3, 1, (6,), 10, 1, 5, 7, "float16")
    changes = {
        "kind": "down", "kernel": 1, "stride": 2, "inputs": (3, 3), "outputs": 11, "images": 2, "height": 6,
        "width": 8, "dtype": "float32", "prologue": True, "mapped": True, "levels": True,
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(Work)}
    for name, value in changes.items():
        assert dataclasses.replace(work, **{name: value}).key != work.key, name


@pytest.mark.parametrize(
    "capability, key",
    [((8, 0), "sm_80"), ((8, 7), "sm_87"), ((8, 8), "sm_87"), ((8, 9), "sm_89"), ((9, 0), "sm_90"),
     ((10, 3), "sm_100"), ((12, 1), "sm_120"), ((7, 5), "sm_80")],
)  # fmt: skip
def test_other_gpus_are_of_the_class_before_them(capability, key):
    device = device_class(capability, 17)
    assert (device.key, device.processors) == (key, 17)
    assert device_class(capability) == DEVICES[key]


# What there is.


@some_devices
def test_every_choice_of_triton_fits(key):
    device, model = DEVICES[key], TritonModel(DEVICES[key])
    for work in works("float16", "float32", "tf32", "int8"):
        found = list(triton_tiles.candidates(work, device))
        assert found, work.key
        for t in found:
            assert triton_tiles.shared_bytes(work, t) <= device.shared, (work.key, t)
            assert work.dtype != "int8" or t.depth >= 32  # what products of bytes are of, at least
            numbers = (t.height, t.width, t.channels, t.depth, t.split, t.warps)
            assert all(n > 0 and n & (n - 1) == 0 for n in numbers) and t.stages > 0
            assert min(t.pixels, t.channels, t.depth) >= 16, t
            # The kernel can not do more.
            assert t.split == 1 or (work.kind == "conv" and len(work.inputs) == 1 and work.kernel != 2)
            assert t.split <= work.steps(t) and model.fits(work, t)
        taken = best(model, work)
        assert taken in found
        seconds = [triton_tiles.predict(work, t, device).seconds for t in (taken, *found)]
        assert seconds[0] <= min(seconds)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "tf32"])
@every_device
def test_the_last_down_of_the_networks_has_tiles(key, dtype):
    """It reads 512 channels, the most of all."""
    work, device = Work("down", 1, 2, (512,), 512, 1, 32, 64, dtype), DEVICES[key]
    assert best(TritonModel(device), work) in set(triton_tiles.candidates(work, device))
    wide = dataclasses.replace(work, inputs=(1030,))  # more than any network has
    assert best(TritonModel(device), wide).channels


def sane(work, t, forms):
    """What a launch of the CUDA kernels asks of tiles."""
    height, width = cuda_tiles.tile_of_input(work, t)
    chunks = sum(-(-c // t.chunk) for c in work.inputs)
    assert t.block in forms.by_block[t.forms(work)] and 1 <= height * width <= t.block[0]
    assert t.chunk >= 16 and t.chunk % 16 == 0 and 1 <= t.split <= chunks
    assert t.split == 1 or (work.kind == "conv" and work.kernel != 2)
    form = forms.form(work, t)
    assert form is not None and 0 < form.shared <= forms.shared


@some_devices
def test_every_choice_of_cuda_fits(key):
    model = CudaModel(module(), DEVICES[key])
    wide = Work("down", 1, 2, (1030,), 34, 1, 720, 1283, "float16")
    for work in (*works("float16"), wide):
        found = list(cuda_tiles.candidates(work, model.forms))
        assert found, work.key
        for t, form in found[:: 1 + len(found) // 200]:
            sane(work, t, model.forms)
            assert model.forms.form(work, t) == form and model.fits(work, t)
        assert Chooser(model, ())(work) in {t for t, _ in found}


def test_less_shared_memory_means_smaller_tiles():
    work = Work("conv", 3, 1, (512,), 256, 1, 64, 128, "float16")
    for shared in (227 << 10, 99 << 10, 64 << 10):
        choose = chooser((), shared=shared)
        assert choose.model.forms.form(work, choose(work)).shared <= shared


# Tables.


@pytest.mark.parametrize("tiles", [TritonTiles, CudaTiles])
def test_a_table_is_read_as_it_was_written(tiles, tmp_path):
    model = TritonModel(DEVICES["sm_90"]) if tiles is TritonTiles else CudaModel(module())
    found = {work.key: best(model, work) for work in itertools.islice(works("float16"), 20)}
    table = {"device": 'a "name"', "from": "here", "tiles": found}
    path = tmp_path / "table.json"
    path.write_text(tables.dump(table))
    assert tables.read(path, tiles) == table
    assert tables.dump(tables.read(path, tiles)) == path.read_text()
    assert len(path.read_text().splitlines()) >= len(found)


def test_shipped_tables_of_triton_load():
    paths = list(tables.FOLDER.glob("sm_*.json"))
    assert {"sm_80", "sm_90"} <= {path.stem for path in paths} <= set(DEVICES)
    for path in paths:
        table = tables.shipped(path.stem, TritonTiles)
        assert table and all(isinstance(t, TritonTiles) for t in table.values())
    assert tables.shipped("sm_10", TritonTiles) == tables.shipped("sm_10", CudaTiles) == {}


@pytest.mark.parametrize("path", sorted(tables.FOLDER.glob("cuda_sm_*.json")), ids=lambda path: path.stem)
def test_shipped_tables_of_cuda_fit(path):
    """Each entry names a compiled core, and has the shared memory of its class."""
    device = DEVICES[path.stem.removeprefix("cuda_")]
    forms = CudaModel(module(), device).forms
    table, count = tables.shipped(device.key, CudaTiles), 0
    assert table
    known = {work.key: work for work in shipped_works()}
    for key, t in table.items():
        sane(known.get(key) or parsed(key), t, forms)
        count += key in known
    assert count > 10


def parsed(key):
    """The work of a key of a table."""
    form, channels, shape, dtype = key.split()
    kind = form.rstrip("pm0123456789")[:-1].rstrip("0123456789")
    kernel, stride = form.removeprefix(kind).rstrip("pm").split("s")
    inputs, outputs = channels.split(">")
    sizes = map(int, shape.split("x"))
    dtype, _, levels = dtype.partition(">")
    found = Work(
        kind, int(kernel), int(stride), tuple(map(int, inputs.split("+"))), int(outputs), *sizes, dtype,
        form[-1] in "pm", form.endswith("m"), levels == "levels",
    )  # fmt: skip
    assert found.key == key
    return found


def shipped_works():
    """Those of the usual network."""
    executable = EMULATED.compile(trained_plan(), HALF)
    placed = executable.lower(Request(1, (512, 1024), (512, 1024), (512, 1024)))
    return [launch.work for launch in placed.launches if launch.work is not None]


def test_a_choice_that_does_not_fit_is_passed_over():
    """For a core that there is not, too much memory, or tiles that no launch takes: the model's."""
    shape = 1, 64, 128, "float16"
    work = Work("conv", 3, 1, (256,), 256, *shape)
    modelled = chooser(())(work)
    good = CudaTiles((64, 64, 4), 8, 8, 32)
    assert good != modelled and chooser(({work.key: good},))(work) == good
    for bad in (
        CudaTiles((96, 64), 8, 8, 32), CudaTiles((128, 128), 1, 128, 256), CudaTiles((64, 64, 4), 9, 8, 32),
        CudaTiles((64, 64, 4), 8, 8, 24), CudaTiles((64, 64, 4), 8, 8, 8), CudaTiles((64, 64, 4), 8, 8, 4096),
        CudaTiles((64, 64, 4), 8, 8, 32, 16),
    ):  # fmt: skip
        assert chooser(({work.key: bad}, {work.key: good}))(work) == good, bad
        assert chooser(({work.key: bad},))(work) == modelled, bad
    stem, down = Work("stem", 3, 2, (3,), 32, *shape), Work("down", 1, 2, (64,), 64, *shape)
    for work, bad in (
        (stem, CudaTiles((128, 16), 40, 40)), (stem, CudaTiles((64, 64, 4), 8, 8)),
        (down, CudaTiles((96, 64), 5, 5)), (down, CudaTiles((96, 64), 4, 4, 16, 2)),
    ):  # fmt: skip
        assert chooser(({work.key: bad},))(work) != bad


def test_tiles_that_do_not_exist_are_one_line():
    plan, x = plain(6, 10, 3, 1)(), torch.randn(1, 6, 5, 7)
    assert (96, 64) not in cores("conv")
    for bad in (CudaTiles((96, 64), 8, 8), CudaTiles((64, 16), 9, 9), CudaTiles((64, 16), 8, 8, 24)):
        with pytest.raises(ValueError, match="op 0: there is no kernel for tiles of ") as caught:
            EMULATED.compile(plan, HALF, tiles=lambda work, bad=bad: bad)(x)
        assert "\n" not in str(caught.value) and str(bad) in str(caught.value)


def test_a_choice_is_made_once_for_all_executables_of_a_class(monkeypatch):
    work = Work("conv", 3, 1, (64,), 64, 1, 48, 80, "float16")
    ranked, made = CudaModel.ranked, []
    monkeypatch.setattr(CudaModel, "ranked", lambda self, work: made.append(self) or ranked(self, work))
    best.cache_clear()
    found = {best(CudaModel(module(), DEVICES["sm_90"]), work) for _ in range(3)}
    assert len(found) == len(made) == 1
    best(CudaModel(module(), DEVICES["sm_90"], 48 << 10), work)
    best(CudaModel(module(), DEVICES["sm_80"]), work)
    assert len(made) == 3
