"""The CUDA backend beside its numbers: if it can be had, what it refuses and keeps; tiles and launches."""

import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import hosted
import pytest
import torch
from cases import labelled, stem
from engines import FULL, HALF, LOW, Sketch, answers, check, plain, small_network
from hosted import CPU, CUDA, Hosted, Tiles, cores, forced, module
from plans import random_network

from stdc_fast import UserError, _native, backends
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.cuda import tiles as cuda_tiles
from stdc_fast.backends.gpu.graphs import GRAPHS
from stdc_fast.backends.gpu.model import DEVICES, FOLDER, Work
from stdc_fast.plan import build

# Whether it can be had.

BUILT = {"built": True, "compiler": "nvcc 12.4", "targets": ["80", "86", "90a", "90+PTX"]}


@pytest.fixture
def machine(monkeypatch):
    """Sets what this process has: a module with kernels, a driver, capabilities of GPUs, Triton."""

    def set_up(
        built=True, info=BUILT, driver=12040, runtime=12040, capabilities=((9, 0),), hip=None, triton_=True
    ):
        monkeypatch.delenv("STDC_FAST_BACKEND", raising=False)
        kernels = types.SimpleNamespace(driver_version=lambda: driver, runtime_version=lambda: runtime)
        native = types.SimpleNamespace(gpu=kernels) if built is True else types.SimpleNamespace()

        def load():
            if built is None:
                raise UserError("no module")
            return native

        monkeypatch.setattr(_native, "module", load)
        monkeypatch.setattr(
            _native, "available", lambda: (built is not None, "no module" if built is None else "portable")
        )
        monkeypatch.setattr(_native, "cuda_info", lambda: info)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda d: capabilities[getattr(d, "index", d) or 0]
        )
        monkeypatch.setattr(
            triton, "available", lambda: (triton_, "Triton 3.7.1" if triton_ else "no Triton")
        )
        monkeypatch.setattr(triton, "interpreted", lambda: False)
        cuda.unfit_device.cache_clear()

    yield set_up
    cuda.unfit_device.cache_clear()


REASONS = {
    "no module": ({"built": None}, "no module"),
    "no kernels": (
        {"built": False, "info": {"built": False, "reason": "nvcc was not found; install it"}},
        "not built: nvcc was not found; install it; then install stdc_fast again",
    ),
    "no GPU": ({"capabilities": (), "triton_": False}, "no NVIDIA GPU"),
    "a GPU of AMD": ({"hip": "6.4"}, "ROCm"),
    "an old driver": ({"driver": 11080}, r"the driver has CUDA 11\.8, the kernels need 12\.0; update it"),
    "no driver": ({"driver": 0}, r"the driver has CUDA 0\.0"),
    "an old GPU": ({"capabilities": ((7, 5),)}, "sm_75 is too old; the kernels need sm_80"),
    "two old GPUs": ({"capabilities": ((7, 5), (6, 1))}, "sm_75 is too old"),
    "no code for it": (
        {"info": BUILT | {"targets": ["90a"]}, "capabilities": ((8, 6),)},
        "built for 90a, none of which runs on sm_86; set STDC_FAST_CUDA_TARGETS and install again",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_it_can_not_be_had(name, machine):
    settings, reason = REASONS[name]
    machine(**settings)
    found, said = cuda.available()
    assert not found and "\n" not in said
    with pytest.raises(UserError, match=reason) as caught:
        backends.choose("cuda")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    for device in (CPU, CUDA):
        choice = backends.best(device, FULL)
        assert choice.name != "cuda" and f"cuda: {said}" in choice.reason
    with pytest.raises(ValueError, match="can not run"):
        cuda.compile(plain(6, 10, 1, 1)(), FULL, "cpu")


@pytest.mark.parametrize("driver, runtime", [(12000, 12090), (13000, 12040), (12040, 12040)])
def test_it_can_be_had_with_one_good_gpu(driver, runtime, machine):
    machine(driver=driver, runtime=runtime, capabilities=((7, 5), (8, 6)))
    assert cuda.available() == (True, "nvcc 12.4, for 80, 86, 90a, 90+PTX")
    assert "sm_75" in cuda.refusal(CUDA, HALF, None)
    assert cuda.refusal(torch.device("cuda", 1), HALF, None) is None
    assert backends.best(torch.device("cuda", 1), HALF).name == "cuda"
    assert backends.choose("auto", torch.device("cuda", 1), LOW).name == "cuda"


def test_who_comes_after_it(machine, monkeypatch):
    """Triton for float32; eager where there is no Triton or no tensor cores; with the reasons."""
    machine()
    assert [status.name for status in backends.statuses()] == ["cuda", "triton", "cpu", "eager"]
    choice = backends.best(CUDA, FULL)
    assert choice.name == "triton"
    assert "cuda: it computes in float16 and bfloat16, not float32" in choice.reason
    assert "cuda: it does not run on cpu" in backends.best(CPU, HALF).reason
    machine(capabilities=((7, 5),))
    choice = backends.best(CUDA, HALF)
    assert choice.name == "eager" and "sm_75 is too old" in choice.reason
    machine(driver=11080, triton_=False)
    choice = backends.best(CUDA, HALF)
    assert choice.name == "eager" and "11.8" in choice.reason and "triton: no Triton" in choice.reason
    machine(driver=11080)
    choice = backends.best(CUDA, HALF)
    assert choice.name == "triton" and "cuda: the driver has CUDA 11.8" in choice.reason
    machine()
    monkeypatch.setenv("STDC_FAST_BACKEND", "triton")
    assert backends.choose("auto", CUDA, HALF).name == "triton"


ALL = ("80", "86", "87", "89", "90a", "90+PTX")
FITS = [
    (ALL, [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)], [(7, 5), (7, 0)]),
    (("80",), [(8, 0), (8, 6), (8, 9)], [(9, 0), (12, 0)]),
    (("86",), [(8, 6), (8, 7), (8, 9)], [(8, 0), (9, 0)]),
    (("90a",), [(9, 0)], [(8, 9), (10, 0)]),
    (("90",), [(9, 0)], [(10, 0), (8, 0)]),
    (("80+PTX",), [(8, 0), (8, 6), (9, 0), (12, 1)], [(7, 5)]),
    (("90+PTX",), [(9, 0), (10, 0)], [(8, 9)]),
    (("100", "120a"), [(10, 0), (10, 3), (12, 0)], [(9, 0), (12, 1)]),
    ((), [], [(8, 0), (9, 0)]),
]


@pytest.mark.parametrize("targets, good, bad", FITS, ids=lambda x: "+".join(map(str, x))[:30])
def test_which_gpus_targets_are_for(targets, good, bad):
    for capability in good:
        assert cuda.unfit_device(capability, targets, True) is None, capability
    for capability in bad:
        said = cuda.unfit_device(capability, targets, True)
        assert said and f"sm_{capability[0]}{capability[1]}" in said and "\n" not in said


def test_an_older_driver_does_not_compile_ptx(machine):
    """It runs machine code of its major version, though."""
    machine(driver=12040, runtime=12090, capabilities=((9, 0), (12, 0)))
    assert cuda.available()[0]
    assert cuda.refusal(CUDA, HALF, None) is None
    said = cuda.refusal(torch.device("cuda", 1), HALF, None)
    assert "sm_120" in said and "driver" in said and "\n" not in said
    machine(driver=12090, runtime=12090, capabilities=((9, 0), (12, 0)))
    assert cuda.refusal(torch.device("cuda", 1), HALF, None) is None


# What it refuses.


def headed():
    return build(random_network("stdc1", training_heads=True))


def vector():
    s = Sketch(6)
    mean = s.vector(10)
    s.conv(s.inputs[0], 10, 1, mean=mean)
    return s.plan(s.gate(mean, (10,), ("relu",)))


REFUSALS = {
    "float32": (CUDA, FULL, small_network, "float16 and bfloat16, not float32"),
    "float64": (CUDA, torch.float64, small_network, "float16 and bfloat16, not float64"),
    "a CPU": (CPU, HALF, small_network, "does not run on cpu"),
    "heads": (CUDA, HALF, headed, "training heads"),
    "an average as output": (CUDA, HALF, vector, "its output is a vector"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line(name, machine):
    machine()
    device, dtype, make, message = REFUSALS[name]
    plan = make()
    assert message in cuda.refusal(device, dtype, plan)
    with pytest.raises(UserError, match=f"backend cuda can not run this: .*{message}") as caught:
        backends.choose("cuda", device, dtype, plan)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"can not run {plan.name}: .*{message}"):
        cuda.compile(plan, dtype, device)
    assert cuda.refusal(CUDA, HALF, small_network()) is None


def test_wrong_inputs_name_their_values():
    executable = Hosted(plain(6, 10, 1, 1)(), HALF)
    good = torch.randn(1, 6, 3, 4)
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


def test_the_sizes_that_were_used_last_are_kept():
    plan = plain(6, 10, 1, 1)()
    executable = Hosted(plan, HALF)
    shapes = [(1, 2, 3 + i) for i in range(GRAPHS + 3)]
    known = list(zip(shapes, answers(plan, HALF, shapes), strict=True))

    def run(i):
        shape, (inputs, expected) = known[i]
        check(executable(*inputs), expected, HALF, shape)

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


@pytest.mark.parametrize("how", ["one size", "several sizes"])
def test_threads_share_an_executable(how):
    plan = plain(34, 10, 3, 1)()
    executable = Hosted(plan, HALF, forced(chunk=16, split=2))
    shapes = [(1, 5, 6)] * 4 if how == "one size" else [(1, 5, 6), (2, 3, 4), (1, 7, 2), (1, 9, 9)]
    known = answers(plan, HALF, shapes) * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: executable(*one[0]), known))
    for got, (_, expected) in zip(found, known, strict=True):
        check(got, expected, HALF)


@pytest.mark.parametrize("kind", ["map", "image", "logits"])
def test_results_are_fresh_and_inputs_stay(kind):
    plan = {"map": plain(6, 10, 3, 1)(), "image": stem(10, False)(), "logits": labelled(6)}[kind]
    executable = Hosted(plan, HALF)
    inputs = [answers(plan, HALF, [(1, 16, 24)] * 2)[i][0][0] for i in range(2)]
    before = [x.clone() for x in inputs]
    for run in [executable, executable.labels] if kind == "logits" else [executable]:
        first = run(inputs[0])
        kept = first.clone()
        second = run(inputs[1])
        assert not torch.equal(first, second)
        assert torch.equal(first, kept)
        first.zero_()
        assert torch.equal(run(inputs[0]), kept)
        memory = {x.untyped_storage().data_ptr() for x in (first, second, *inputs)}
        assert len(memory) == 4 and executable.last.result.untyped_storage().data_ptr() not in memory
    assert all(map(torch.equal, inputs, before))


# Tiles.


def works():
    """Odd ones of every kind: large and tiny, of few and many channels."""
    sizes = ((1, 1, 1), (3, 7, 129), (1, 720, 1283))
    for n, h, w in sizes:
        common = {"images": n, "height": h, "width": w, "dtype": "float16"}
        yield Work("stem", 3, 2, (3,), 7, **common)
        yield Work("stem", 3, 2, (3,), 64, **common)
        for c, out in ((1, 1), (19, 150), (1030, 34)):
            yield Work("down", 1, 2, (c,), out, **common)
            for kernel, stride in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2)):
                yield Work("conv", kernel, stride, (c,), out, prologue=out == 34, **common)
            yield Work("conv", 3, 1, (c, 3), out, **common)


def sane(work, t, kernels):
    """What a launch asks of tiles."""
    height, width = cuda_tiles.tile_of_input(work, t)
    chunks = sum(-(-c // t.chunk) for c in work.inputs)
    assert t.core in kernels.cores[work.kind] and 1 <= height * width <= t.core[0]
    assert t.chunk >= 16 and t.chunk % 16 == 0 and 1 <= t.split <= chunks
    assert t.split == 1 or (work.kind == "conv" and work.kernel != 2)
    form = kernels.form(work, t)
    assert form is not None and 0 < form.shared <= kernels.shared


@pytest.mark.parametrize("key", DEVICES)
def test_every_candidate_fits(key):
    device = DEVICES[key]
    kernels = cuda_tiles.Kernels(module(), device.shared)
    choose = cuda.Chooser(module(), device, tables=())
    for work in works():
        found = list(cuda_tiles.candidates(work, kernels))
        assert found, work.key
        for t, form in found[:: 1 + len(found) // 200]:
            sane(work, t, kernels)
            assert kernels.form(work, t) == form
        assert choose(work) in {t for t, _ in found}


TABLES = sorted(FOLDER.glob("cuda_sm_*.json"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_shipped_tables_fit(path):
    """Each entry names a compiled core, and has the shared memory of its class."""
    device = DEVICES[path.stem.removeprefix("cuda_")]
    kernels = cuda_tiles.Kernels(module(), device.shared)
    table, count = cuda_tiles.shipped(device.key), 0
    assert table
    known = {work.key: work for work in shipped_works()}
    for key, t in table.items():
        sane(known.get(key) or parsed(key), t, kernels)
        count += key in known
    assert count > 10 and cuda_tiles.shipped("sm_10") == {}


def parsed(key):
    """The work of a key of a table."""
    form, channels, shape, dtype = key.split()
    kind = form.rstrip("pm0123456789")[:-1].rstrip("0123456789")
    kernel, stride = form.removeprefix(kind).rstrip("pm").split("s")
    inputs, outputs = channels.split(">")
    sizes = map(int, shape.split("x"))
    found = Work(
        kind, int(kernel), int(stride), tuple(map(int, inputs.split("+"))), int(outputs), *sizes, dtype,
        form[-1] in "pm", form.endswith("m"),
    )  # fmt: skip
    assert found.key == key
    return found


def shipped_works():
    """Those of the usual network."""
    from engines import trained_plan

    from stdc_fast.backends.gpu.placed import Request

    executable = Hosted(trained_plan(), HALF)
    placed = executable.lower(Request(1, (512, 1024), (512, 1024), (512, 1024)))
    return [launch.work for launch in placed.launches if launch.work is not None]


def test_a_choice_that_does_not_fit_is_passed_over():
    """For a core that there is not, too much memory, or tiles that no launch takes: the model's."""
    shape = 1, 64, 128, "float16"
    work = Work("conv", 3, 1, (256,), 256, *shape)
    modelled = cuda.Chooser(module(), tables=())(work)
    good = Tiles((64, 64), 8, 8, 32)
    assert good != modelled and cuda.Chooser(module(), tables=({work.key: good},))(work) == good
    for bad in (
        Tiles((96, 64), 8, 8, 32), Tiles((128, 128), 1, 128, 256), Tiles((64, 64), 9, 8, 32),
        Tiles((64, 64), 8, 8, 24), Tiles((64, 64), 8, 8, 8), Tiles((64, 64), 8, 8, 4096),
        Tiles((64, 64), 8, 8, 32, 16),
    ):  # fmt: skip
        assert cuda.Chooser(module(), tables=({work.key: bad}, {work.key: good}))(work) == good, bad
        assert cuda.Chooser(module(), tables=({work.key: bad},))(work) == modelled, bad
    stem_, down_ = Work("stem", 3, 2, (3,), 32, *shape), Work("down", 1, 2, (64,), 64, *shape)
    for work, bad in (
        (stem_, Tiles((128, 16), 40, 40)), (stem_, Tiles((64, 64), 8, 8)),
        (down_, Tiles((96, 64), 5, 5)), (down_, Tiles((96, 64), 4, 4, 16, 2)),
    ):  # fmt: skip
        assert cuda.Chooser(module(), tables=({work.key: bad},))(work) != bad


def test_less_shared_memory_means_smaller_tiles():
    work = Work("conv", 3, 1, (512,), 256, 1, 64, 128, "float16")
    for shared in (227 << 10, 99 << 10, 64 << 10):
        choose = cuda.Chooser(module(), shared=shared, tables=())
        assert choose.kernels.form(work, choose(work)).shared <= shared


def test_tiles_that_do_not_exist_are_one_line():
    plan = plain(6, 10, 3, 1)()
    x = torch.randn(1, 6, 5, 7)
    for bad in (Tiles((96, 64), 8, 8), Tiles((64, 16), 9, 9), Tiles((64, 16), 8, 8, 24)):
        with pytest.raises(ValueError, match="op 0: there is no kernel for tiles of ") as caught:
            Hosted(plan, HALF, lambda work, bad=bad: bad)(x)
        assert "\n" not in str(caught.value) and str(bad) in str(caught.value)


# Launches that no kernel takes: an error with the values, and the next one runs.


def argument(kind, **fields):
    native = module()
    made = getattr(native, kind)()
    sizes = {"images": 1, "height": 8, "width": 8, "out_height": 8, "out_width": 8, "channels": 16,
             "pitch": 16, "outputs": 16, "out_pitch": 16, "kernel": 1, "stride": 1}  # fmt: skip
    for name, value in {**sizes, **fields}.items():
        if hasattr(made, name):
            setattr(made, name, value)
    return made


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
        usual = {"ConvArgs": (64, 64), "StemArgs": (128, 16), "DownArgs": (96, 64)}[kind]
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


# The module of these tests.


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
