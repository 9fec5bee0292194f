"""Triton's backend beside its numbers: if it can be had, what it refuses, keeps and shares; its tiles."""

import dataclasses
import importlib.metadata
import itertools
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engines import (
    DEVICE,
    FULL,
    HALF,
    LOW,
    Sketch,
    answers,
    check,
    kernels,
    needs_triton,
    plain,
    small_network,
)
from plans import random_network
from torch.nn import functional as F

from stdc_fast import UserError, backends
from stdc_fast.backends import triton
from stdc_fast.backends.gpu.graphs import GRAPHS
from stdc_fast.backends.gpu.interpolation import interpolation
from stdc_fast.backends.gpu.model import DEVICES, FOLDER, Work, device_class, dump
from stdc_fast.backends.triton import tiles
from stdc_fast.backends.triton.tiles import Tiles
from stdc_fast.plan import build

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


# Whether it can be had.


@pytest.fixture
def machine(monkeypatch):
    """Sets what this process has: a version of Triton, capabilities of GPUs, the interpreter."""

    def set_up(version="3.7.1", capabilities=((9, 0),), interpreted=False, cuda="13.0"):
        monkeypatch.delenv("STDC_FAST_BACKEND", raising=False)
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
        monkeypatch.setattr(triton, "version", lambda: version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device: capabilities[torch.device(device).index or 0]
        )

    return set_up


REASONS = {
    "no Triton": ({"version": None}, "Triton is not installed; pip install triton"),
    "an old one": ({"version": "3.4.0"}, r"Triton 3\.4\.0 is too old; pip install 'triton>=3\.5'"),
    "a very old one": ({"version": "2.10.0+git1"}, r"Triton 2\.10\.0\+git1 is too old"),
    "no GPU": ({"capabilities": ()}, "no NVIDIA GPU"),
    "a GPU of AMD": ({"cuda": None}, "not built with CUDA"),
    "an old GPU": ({"capabilities": ((7, 5),)}, "cuda:0 is sm_75; .* below sm_80"),
    "two old GPUs": ({"capabilities": ((7, 5), (6, 1))}, "cuda:0 is sm_75"),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_it_can_not_be_had(name, machine):
    settings, reason = REASONS[name]
    machine(**settings)
    found, said = triton.available()
    assert not found and "\n" not in said
    with pytest.raises(UserError, match=reason) as caught:
        backends.choose("triton")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    for device in (CPU, CUDA):
        choice = backends.best(device, FULL)
        assert choice.name != "triton" and f"triton: {said}" in choice.reason


@pytest.mark.parametrize("version", ["3.5.0", "3.10.2", "4.0", "3.7.1+git123"])
def test_it_can_be_had_with_one_good_gpu(version, machine, monkeypatch):
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: True)
    machine(version=version, capabilities=((7, 5), (8, 0)))
    assert triton.available() == (True, f"Triton {version}")
    assert "sm_75" in triton.refusal(CUDA, HALF, None)
    assert triton.refusal(torch.device("cuda", 1), HALF, None) is None
    assert backends.best(torch.device("cuda", 1), HALF).name == "triton"
    assert backends.best(CUDA, HALF).name == "eager"


def test_torch_for_other_gpus_is_said(machine, monkeypatch):
    machine()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert triton.available() == (False, "torch was built for ROCm; the kernels are for NVIDIA GPUs")


def test_a_missing_compiler_is_said(machine, monkeypatch):
    """Triton's own launcher is compiled at its first use."""
    machine()
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(triton, "_unbuildable", triton._unbuildable.__wrapped__)
    assert triton.available()[0]
    monkeypatch.setattr(triton.shutil, "which", lambda name: None)
    # Its driver can not be had; nor may Triton be imported here for the first time, as it is not interpreted.
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace())
    found, said = triton.available()
    assert not found and "needs a C compiler" in said and "apt install gcc" in said


def test_missing_kernels_are_said(machine, monkeypatch):
    machine()
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    assert triton.available() == (
        False, "its kernels are not installed; pip install -e . in the source tree",
    )  # fmt: skip


def test_the_version_is_that_of_either_package(monkeypatch):
    def only(*known):
        def version(name):
            if name not in known:
                raise importlib.metadata.PackageNotFoundError(name)
            return f"3.9 of {name}"

        monkeypatch.setattr(importlib.metadata, "version", version)
        triton.version.cache_clear()
        return triton.version()

    try:
        assert only("triton", "pytorch-triton") == "3.9 of triton"
        assert only("pytorch-triton") == "3.9 of pytorch-triton"
        assert only() is None
    finally:
        triton.version.cache_clear()


def test_the_interpreter_is_for_those_who_ask(machine, monkeypatch):
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: True)
    machine(capabilities=(), interpreted=True)
    found, said = triton.available()
    assert found and "TRITON_INTERPRET=1" in said
    assert triton.refusal(CPU, FULL, None) is None
    for choice in (backends.best(CPU, FULL), backends.choose("auto", CPU, FULL)):
        assert choice.name != "triton" and "for tests; ask for it by name" in choice.reason
    choice = backends.choose("triton", CPU, FULL)
    assert choice.name == "triton" and choice.asked
    monkeypatch.setenv("STDC_FAST_BACKEND", "triton")
    assert backends.choose("auto", CPU, FULL).name == "triton"


# What it refuses.


def headed():
    return build(random_network("stdc1", training_heads=True))


@needs_triton
@pytest.mark.parametrize("name", ["float64", "a device", "heads", "an average as output"])
def test_refusals_are_one_line(name):
    device, dtype, make, message = {
        "float64": (DEVICE, torch.float64, small_network, "float16, bfloat16 and float32, not float64"),
        "a device": ({"cpu": "cuda", "cuda": "cpu"}[DEVICE], FULL, small_network, "does not run on"),
        "heads": (DEVICE, FULL, headed, "training heads"),
        "an average as output": (DEVICE, FULL, vector, "its output is a vector"),
    }[name]
    plan, device = make(), torch.device(device, 0)
    assert message in triton.refusal(device, dtype, plan)
    with pytest.raises(UserError, match=f"backend triton can not run this: .*{message}") as caught:
        backends.choose("triton", device, dtype, plan)
    assert "\n" not in str(caught.value)
    assert triton.refusal(torch.device(DEVICE, 0), FULL, small_network()) is None
    if name != "a device":
        with pytest.raises(ValueError, match=f"can not run {plan.name}: .*{message}"):
            triton.compile(plan, dtype, DEVICE)


def vector():
    s = Sketch(6)
    mean = s.vector(10)
    s.conv(s.inputs[0], 10, 1, mean=mean)
    return s.plan(s.gate(mean, (10,), ("relu",)))


@pytest.mark.parametrize("name", ["tritn", "Triton", "", 3.5])
def test_unknown_names_are_one_line(name):
    with pytest.raises(UserError, match="unknown backend") as caught:
        backends.choose(name)
    assert "\n" not in str(caught.value)
    if name == "tritn":
        assert "did you mean triton?" in str(caught.value)


@needs_triton
def test_wrong_inputs_name_their_values():
    executable = kernels(plain(6, 10, 1, 1)(), FULL)
    good = torch.randn(1, 6, 3, 4).to(DEVICE)
    for bad, message in (
        (good[:, :5], r"\[1, 5, 3, 4\]"),
        (good[0], r"\[6, 3, 4\]"),
        (good.long(), "int64"),
        (good[..., :0], "empty"),
        (good.to("meta"), "on meta"),
        (good.clone().requires_grad_(), "no_grad"),
    ):
        with pytest.raises(ValueError, match=message):
            executable(bad)
    with pytest.raises(ValueError, match="has 1 inputs"):
        executable(good, good)
    with pytest.raises(ValueError, match="gives a map, not labels"):
        executable.labels(good)
    assert executable(good).shape == (1, 10, 3, 4)


# What it keeps and shares.


@needs_triton
def test_the_sizes_that_were_used_last_are_kept():
    plan = plain(6, 10, 1, 1)()
    executable = kernels(plan, FULL)
    shapes = [(1, 2, 3 + i) for i in range(GRAPHS + 3)]
    known = list(zip(shapes, answers(plan, FULL, shapes), strict=True))

    def run(i):
        shape, (inputs, expected) = known[i]
        check(executable(*(x.to(DEVICE) for x in inputs)).cpu(), expected, FULL, shape)

    def kept():
        return [request.given[1] - 3 for request, _ in executable._instances]

    for i in range(GRAPHS):
        run(i)
    assert kept() == list(range(GRAPHS))
    run(0)
    run(GRAPHS)
    assert kept() == [*range(2, GRAPHS), 0, GRAPHS]
    for i in (*range(len(shapes)), 0, 1, 0):
        run(i)
        assert len(executable._instances) <= GRAPHS
    assert executable.memory[0] > 0


@needs_triton
@pytest.mark.parametrize("how", ["one size", "several sizes"])
def test_threads_share_an_executable(how):
    plan = plain(6, 10, 3, 1)()
    executable = kernels(plan, FULL)
    shapes = [(1, 5, 6)] * 4 if how == "one size" else [(1, 5, 6), (2, 3, 4), (1, 7, 2), (1, 9, 9)]
    known = answers(plan, FULL, shapes) * 4
    given = [[x.to(DEVICE) for x in inputs] for inputs, _ in known]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda inputs: executable(*inputs).cpu(), given))
    for got, (_, expected) in zip(found, known, strict=True):
        check(got, expected, FULL)


@needs_triton
def test_tiles_that_the_device_refuses_are_replaced(monkeypatch):
    """As a chooser of a GPU does, which this one stands for; then no choice is left."""
    from triton.runtime.errors import OutOfResources

    from stdc_fast.backends.triton import launches as lowering

    plan, taken = plain(6, 10, 3, 1)(), []
    ((inputs, expected),) = answers(plan, FULL, [(1, 5, 6)])
    chooser = object.__new__(triton.Chooser)
    chooser._tiles, chooser.kind, chooser.tables, chooser.refused = tiles, DEVICES["sm_90"], [], {}
    executable, launch = kernels(plan, FULL, chooser), lowering.Launch.__call__

    def refusing(self):
        taken.append(self.tiles)
        if len(taken) <= most:
            raise OutOfResources(1 << 20, 1 << 17, "shared memory")
        launch(self)

    monkeypatch.setattr(lowering.Launch, "__call__", refusing)
    most = 2
    check(executable(*(x.to(DEVICE) for x in inputs)).cpu(), expected, FULL)
    assert len(set(taken)) == len(taken) == 3
    most, executable = 1000, kernels(plan, FULL)
    executable._tiles = triton.interpreted_tiles
    with pytest.raises(Exception, match="shared memory"):
        executable(*(x.to(DEVICE) for x in inputs))


@needs_triton
def test_what_float32_is_multiplied_in_is_asked_for():
    before = torch.get_float32_matmul_precision()
    executable = kernels(plain(6, 10, 1, 1)(), FULL)
    x = torch.randn(1, 6, 3, 4).to(DEVICE)
    try:
        for precision, expected in (("highest", "float32"), ("high", "tf32")):
            torch.set_float32_matmul_precision(precision)
            executable(x)
            launch = list(executable._instances.values())[-1].lowered.launches[-1]
            assert launch.work.dtype == triton.products(FULL) == expected
            assert launch.arguments["PRECISION"] == ("ieee" if expected == "float32" else "tf32")
    finally:
        torch.set_float32_matmul_precision(before)
    assert (triton.products(HALF), triton.products(LOW)) == ("float16", "bfloat16")


# Tiles.


def works():
    """Odd ones of every kind: large and tiny, of few and many channels."""
    sizes = ((1, 1, 1), (3, 7, 129), (1, 720, 1283))
    for dtype, (n, h, w) in itertools.product(("float16", "float32", "tf32"), sizes):
        common = {"images": n, "height": h, "width": w, "dtype": dtype}
        yield Work("stem", 3, 2, (3,), 7, **common)
        yield Work("stem", 3, 2, (3,), 64, **common)
        for c, out in ((1, 1), (19, 150), (1030, 34)):
            if c < 512:
                yield Work("down", 1, 2, (c,), out, **common)
            for kernel, stride in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2)):
                yield Work("conv", kernel, stride, (c,), out, prologue=out == 34, **common)
            yield Work("conv", 3, 1, (c, 3), out, **common)


@pytest.mark.parametrize("key", DEVICES)
def test_every_candidate_fits(key):
    device = DEVICES[key]
    for work in works():
        found = list(tiles.candidates(work, device))
        assert found, work.key
        for t in found:
            assert tiles.shared_bytes(work, t) <= device.shared, (work.key, t)
            numbers = (t.height, t.width, t.channels, t.depth, t.split, t.warps)
            assert all(n > 0 and n & (n - 1) == 0 for n in numbers) and t.stages > 0
            assert min(t.pixels, t.channels, t.depth) >= 16, t
            # What the kernel can not do.
            assert t.split == 1 or (work.kind == "conv" and len(work.inputs) == 1 and work.kernel != 2)
            assert t.split <= work.steps(t)
        best = tiles.modelled(work, device)
        assert best in found
        assert tiles.predict(work, best, device).seconds <= min(
            tiles.predict(work, t, device).seconds for t in found
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "tf32"])
@pytest.mark.parametrize("key", DEVICES)
def test_the_last_down_of_the_networks_has_tiles(key, dtype):
    """It reads 512 channels, the most of all."""
    work, device = Work("down", 1, 2, (512,), 512, 1, 32, 64, dtype), DEVICES[key]
    assert tiles.modelled(work, device) in set(tiles.candidates(work, device))
    wide = dataclasses.replace(work, inputs=(1030,))  # more than any network has
    assert tiles.modelled(wide, device).channels


def test_a_table_is_read_as_it_was_written(tmp_path):
    device = DEVICES["sm_90"]
    table = {"device": 'a "name"', "from": "here", "tiles": {}}
    for work in itertools.islice(works(), 20):
        table["tiles"][work.key] = tiles.modelled(work, device)
    path = tmp_path / "table.json"
    path.write_text(dump(table))
    assert tiles.read(path) == table
    assert dump(tiles.read(path)) == path.read_text()
    assert len(path.read_text().splitlines()) >= len(table["tiles"])


def test_works_have_names_of_their_own():
    found = [work.key for work in works()]
    assert len(set(found)) == len(found)
    work = Work("conv", 3, 1, (6,), 10, 1, 5, 7, "float16")
    changes = {
        "kind": "down", "kernel": 1, "stride": 2, "inputs": (3, 3), "outputs": 11, "images": 2, "height": 6,
        "width": 8, "dtype": "float32", "prologue": True, "mapped": True,
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(Work)}
    for name, value in changes.items():
        assert dataclasses.replace(work, **{name: value}).key != work.key, name


def test_shipped_tables_load():
    paths = list(FOLDER.glob("sm_*.json"))
    assert {"sm_80", "sm_90"} <= {path.stem for path in paths} <= set(DEVICES)
    for path in paths:
        table = tiles.shipped(path.stem)
        assert table and all(isinstance(t, Tiles) for t in table.values())
    assert tiles.shipped("sm_10") == {}


@pytest.mark.parametrize(
    "capability, key",
    [((8, 0), "sm_80"), ((8, 7), "sm_86"), ((8, 9), "sm_89"), ((9, 0), "sm_90"), ((10, 3), "sm_100"),
     ((12, 1), "sm_120"), ((7, 5), "sm_80")],
)  # fmt: skip
def test_other_gpus_are_of_the_class_before_them(capability, key):
    device = device_class(capability, 17)
    assert (device.key, device.processors) == (key, 17)
    assert device_class(capability) == DEVICES[key]


# Interpolation as tables.

LENGTHS = [(1, 1), (1, 9), (2, 1), (2, 17), (5, 5), (6, 41), (9, 70), (23, 180), (40, 7)]


@pytest.mark.parametrize("source, target", LENGTHS, ids=str)
def test_interpolation_is_torchs(source, target):
    x = torch.randn(source)
    base, weights = interpolation(source, target)
    assert (base.dtype, weights.dtype) == (torch.int32, FULL)
    close(applied(x, base, weights, 2), line(x, target))


@pytest.mark.parametrize("source", [1, 2, 5, 23])
def test_interpolation_in_two_steps_is_torchs(source):
    """To what eight times as many numbers were, less up to seven; from there to more and to fewer."""
    x = torch.randn(source)
    for between, target in itertools.product(
        (8 * source, 8 * source - 3, 8 * source - 7), (1, 2, 9, 100, 999)
    ):
        base, weights = interpolation(source, target, between)
        close(applied(x, base, weights, 3), line(line(x, between), target))


def line(x, target):
    return F.interpolate(x.view(1, 1, 1, -1), (1, target), mode="bilinear", align_corners=True).view(-1)


def applied(x, base, weights, taps):
    assert weights.shape == (len(base), taps)
    assert base.min() >= 0 and (base.diff() >= 0).all() and base.max() < len(x)
    places = base.long()[:, None] + torch.arange(taps)
    assert not weights[places > len(x)].any()  # of what is beyond the last there is nothing
    return (x[places.clamp(max=len(x) - 1)] * weights).sum(1)


def close(got, expected):
    assert (got - expected).abs().max() <= 1e-5
