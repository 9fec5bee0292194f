"""Which backends can be had, who runs a plan, and why the others do not, on machines that are made up."""

import importlib.metadata
import sys
import types

import pytest
import torch
from plans import random_network
from sketch import Sketch, plain, small_network

from stdc_fast import UserError, _native, backends
from stdc_fast.backends import cpu, cuda, triton
from stdc_fast.plan import build
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT32, FLOAT64

CPU, GPU, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
BUILT = {"built": True, "compiler": "nvcc 12.4", "targets": ["80", "86", "90a", "90+PTX"]}


@pytest.fixture
def machine(monkeypatch):
    """Sets what this process has: GPUs, Triton, its interpreter, a module with kernels, a driver."""

    def set_up(
        capabilities=((9, 0),), torch_cuda="13.0", hip=None, version="3.7.1", kernels=True, interpreted=False,
        built=True, info=BUILT, driver=12040, runtime=12040,
    ):  # fmt: skip
        monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
        patches = [
            (torch.version, "cuda", torch_cuda),
            (torch.version, "hip", hip),
            (torch.cuda, "is_available", lambda: bool(capabilities)),
            (torch.cuda, "device_count", lambda: len(capabilities)),
            (torch.cuda, "get_device_capability", lambda d: capabilities[getattr(d, "index", d) or 0]),
            (triton, "version", lambda: version),
            (triton.importlib.util, "find_spec", lambda name: kernels or None),
            (triton, "_why_not_built", lambda: None),
            (_native, "module", lambda: native),
            (_native, "why_not", lambda: None if built is not None else "no module"),
            (_native, "about", lambda: "portable"),
            (_native, "isa", lambda wanted="": "portable"),
            (_native, "cuda_info", lambda: info),
        ]
        gpu = types.SimpleNamespace(driver_version=lambda: driver, runtime_version=lambda: runtime)
        native = types.SimpleNamespace(gpu=gpu) if built else types.SimpleNamespace()
        for where, name, value in patches:
            monkeypatch.setattr(where, name, value)
        cuda.why_not_device.cache_clear()

    yield set_up
    cuda.why_not_device.cache_clear()


def named(name):
    return next(backend for backend in backends.BACKENDS if backend.name == name)


# Whether they can be had.

UNBUILT = {"built": False, "reason": "nvcc was not found; install it"}
REASONS = {
    "triton": {
        "no Triton": ({"version": None}, "Triton is not installed; pip install triton"),
        "an old one": ({"version": "3.4.0"}, r"Triton 3\.4\.0 is too old; pip install 'triton>=3\.5'"),
        "a very old one": ({"version": "2.10.0+git1"}, r"Triton 2\.10\.0\+git1 is too old"),
        "no kernels": (
            {"kernels": False},
            r"its kernels are not installed; pip install -e \. in the source tree",
        ),
        "no GPU": ({"capabilities": ()}, "no NVIDIA GPU"),
        "a GPU of AMD": ({"torch_cuda": None}, "not built with CUDA"),
        "torch for AMD": (
            {"hip": "6.4"},
            "torch was built for ROCm; the kernels are for NVIDIA GPUs",
        ),
        "an old GPU": ({"capabilities": ((7, 5),)}, "cuda:0 is sm_75; .* below sm_80"),
        "two old GPUs": ({"capabilities": ((7, 5), (6, 1))}, "cuda:0 is sm_75"),
    },
    "cuda": {
        "no module": ({"built": None}, "no module"),
        "no kernels": (
            {"built": False, "info": UNBUILT},
            "not built: nvcc was not found; install it; then install stdc_fast again",
        ),
        "no GPU": ({"capabilities": (), "version": None}, "no NVIDIA GPU"),
        "torch for AMD": ({"hip": "6.4"}, "ROCm"),
        "an old driver": (
            {"driver": 11080},
            r"the driver has CUDA 11\.8, the kernels need 12\.0; update it",
        ),
        "no driver": ({"driver": 0}, r"the driver has CUDA 0\.0"),
        "an old GPU": ({"capabilities": ((7, 5),)}, "sm_75 is too old; the kernels need sm_80"),
        "two old GPUs": ({"capabilities": ((7, 5), (6, 1))}, "sm_75 is too old"),
        "no code for it": (
            {"info": BUILT | {"targets": ["90a"]}, "capabilities": ((8, 6),)},
            "built for 90a, none of which runs on sm_86; set STDC_FAST_CUDA_TARGETS=86 and install again",
        ),
    },
    "cpu": {"no module": ({"built": None}, "no module")},
}


@pytest.mark.parametrize(
    "name, cause", [(name, cause) for name, causes in REASONS.items() for cause in causes]
)
def test_why_it_can_not_be_had(name, cause, machine):
    settings, reason = REASONS[name][cause]
    machine(**settings)
    said = named(name).why_not_here()
    assert said and "\n" not in said
    with pytest.raises(UserError, match=reason) as caught:
        backends.select(None, FLOAT32, CPU, name)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    for device in (CPU, GPU):
        decision = backends.select(None, FLOAT32, device)
        assert decision.name != name and not decision.asked
        if name != "cpu" or decision.name == "eager":
            assert f"{name}: {said}" in decision.reason
    if name == "cuda":
        with pytest.raises(ValueError, match="can not run"):
            cuda.compile(plain(6, 10, 1, 1)(), FLOAT32, "cpu")


@pytest.mark.parametrize("version", ["3.5.0", "3.10.2", "4.0", "3.7.1+git123"])
def test_triton_with_one_good_gpu(version, machine):
    machine(version=version, capabilities=((7, 5), (8, 0)), built=None)
    assert triton.BACKEND.why_not_here() is None and triton.BACKEND.about() == f"Triton {version}"
    assert "sm_75" in triton.BACKEND.why_not(None, FLOAT16, GPU)
    assert triton.BACKEND.why_not(None, FLOAT16, SECOND) is None
    assert backends.select(None, FLOAT16, SECOND).name == "triton"
    assert backends.select(None, FLOAT16, GPU).name == "eager"


@pytest.mark.parametrize("driver, runtime", [(12000, 12090), (13000, 12040), (12040, 12040)])
def test_cuda_with_one_good_gpu(driver, runtime, machine):
    machine(driver=driver, runtime=runtime, capabilities=((7, 5), (8, 6)))
    assert cuda.BACKEND.why_not_here() is None
    assert cuda.BACKEND.about() == "nvcc 12.4, for 80, 86, 90a, 90+PTX"
    assert "sm_75" in cuda.BACKEND.why_not(None, FLOAT16, GPU)
    assert cuda.BACKEND.why_not(None, FLOAT16, SECOND) is None
    for precision in (FLOAT16, BFLOAT16):
        assert backends.select(None, precision, SECOND).name == "cuda"


def test_triton_without_a_compiler(machine, monkeypatch):
    """Triton's own launcher is compiled at its first use."""
    unbuilt = triton._why_not_built.__wrapped__
    machine()
    monkeypatch.setattr(triton, "_why_not_built", unbuilt)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton.shutil, "which", lambda name: None)
    # Its driver can not be had; nor may Triton be imported here for the first time, as it is not interpreted.
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace())
    said = triton.BACKEND.why_not_here()
    assert "needs a C compiler" in said and "apt install gcc" in said
    monkeypatch.setattr(triton.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(triton.Path, "is_file", lambda path: True)
    assert triton.BACKEND.why_not_here() is None


def test_the_version_of_triton_is_that_of_either_package(monkeypatch):
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


ALL = ("80", "86", "87", "90a", "90+PTX")
FITS = [
    (ALL, [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)], [(7, 5), (7, 0)]),
    (("80",), [(8, 0), (8, 6), (8, 9)], [(9, 0), (12, 0)]),
    (("86",), [(8, 6), (8, 9)], [(8, 0), (8, 7), (9, 0)]),
    (("87",), [(8, 7)], [(8, 6), (8, 9)]),
    (("90a",), [(9, 0)], [(8, 9), (10, 0)]),
    (("90",), [(9, 0)], [(10, 0), (8, 0)]),
    (("80+PTX",), [(8, 0), (8, 6), (9, 0), (12, 1)], [(7, 5)]),
    (("90+PTX",), [(9, 0), (10, 0)], [(8, 9)]),
    (("100", "120a"), [(10, 0), (10, 3), (12, 0)], [(9, 0), (12, 1)]),
    ((), [], [(8, 0), (9, 0)]),
]


def test_code_of_orin_is_for_orin_alone():
    assert cuda.code((8, 7), ALL) == "87" and cuda.code((8, 9), ALL) == "86"


@pytest.mark.parametrize("targets, good, bad", FITS, ids=lambda x: "+".join(map(str, x))[:30])
def test_which_gpus_targets_are_for(targets, good, bad):
    for capability in good:
        assert cuda.why_not_device(capability, targets, True) is None, capability
    for capability in bad:
        said = cuda.why_not_device(capability, targets, True)
        assert said and f"sm_{capability[0]}{capability[1]}" in said and "\n" not in said


def test_an_older_driver_does_not_compile_ptx(machine):
    """It runs machine code of its major version, though."""
    machine(driver=12040, runtime=12090, capabilities=((9, 0), (12, 0)))
    assert cuda.BACKEND.why_not_here() is None
    assert cuda.BACKEND.why_not(None, FLOAT16, GPU) is None
    said = cuda.BACKEND.why_not(None, FLOAT16, SECOND)
    assert "sm_120" in said and "driver" in said and "\n" not in said
    machine(driver=12090, runtime=12090, capabilities=((9, 0), (12, 0)))
    assert cuda.BACKEND.why_not(None, FLOAT16, SECOND) is None


# Who runs what.


def test_who_comes_after_cuda(machine, monkeypatch):
    """Triton for float32; eager where there is no Triton or no tensor cores; with the reasons."""
    machine()
    assert [backend.name for backend in backends.BACKENDS] == ["cuda", "triton", "cpu", "eager"]
    decision = backends.select(None, FLOAT32, GPU)
    assert decision.name == "triton"
    assert "cuda: it computes in float16, bfloat16 and int8, not float32" in decision.reason
    assert "cuda: it does not run on cpu" in backends.select(None, BFLOAT16, CPU).reason
    machine(capabilities=((7, 5),))
    decision = backends.select(None, FLOAT16, GPU)
    assert decision.name == "eager" and "sm_75 is too old" in decision.reason
    machine(driver=11080, version=None)
    decision = backends.select(None, FLOAT16, GPU)
    assert decision.name == "eager" and "11.8" in decision.reason
    assert "triton: Triton is not installed" in decision.reason
    machine(driver=11080)
    decision = backends.select(None, FLOAT16, GPU)
    assert decision.name == "triton" and "cuda: the driver has CUDA 11.8" in decision.reason
    machine()
    monkeypatch.setenv(backends.ENVIRONMENT, "triton")
    decision = backends.select(None, FLOAT16, GPU)
    assert decision.name == "triton" and decision.asked


def test_the_interpreter_is_for_those_who_ask(machine, monkeypatch):
    machine(capabilities=(), interpreted=True)
    assert triton.BACKEND.why_not_here() is None and "TRITON_INTERPRET=1" in triton.BACKEND.about()
    assert triton.BACKEND.why_not(None, FLOAT32, CPU) is None
    decision = backends.select(None, FLOAT32, CPU)
    assert decision.name != "triton" and "for tests; ask for it by name" in decision.reason
    decision = backends.select(None, FLOAT32, CPU, "triton")
    assert decision.name == "triton" and decision.asked
    monkeypatch.setenv(backends.ENVIRONMENT, "triton")
    assert backends.select(None, FLOAT32, CPU).name == "triton"


def test_an_old_interpreter_and_a_new_numpy_are_told_apart(machine, monkeypatch):
    for version, numpy, refused in (
        ("3.6.0", "2.4.0", True),
        ("3.6.0", "2.3.5", False),
        ("3.7.1", "2.5.2", False),
    ):
        machine(capabilities=(), interpreted=True, version=version)
        monkeypatch.setattr(triton.importlib.metadata, "version", lambda name, found=numpy: found)
        said = triton.BACKEND.why_not_here()
        assert (said is not None) == refused
    machine(capabilities=(), interpreted=True, version="3.6.0")
    monkeypatch.setattr(triton.importlib.metadata, "version", lambda name: "2.5.2")
    with pytest.raises(
        ValueError, match=r"Triton 3\.6\.0 does not interpret kernels with NumPy 2\.5\.2; pip"
    ):
        triton.compile(plain(6, 10, 1, 1)(), FLOAT32, "cpu")


def headed():
    return build(random_network("stdc1", training_heads=True))


def vector():
    s = Sketch(6)
    mean = s.vector(10)
    s.conv(s.inputs[0], 10, 1, mean=mean)
    return s.plan(s.gate(mean, (10,), ("relu",)))


#: Precisions of each backend, its device and one that it does not run on.
HOMES = {
    "cuda": ([FLOAT16, BFLOAT16], GPU, CPU),
    "triton": ([FLOAT16, BFLOAT16, FLOAT32], GPU, CPU),
    "cpu": ([FLOAT32, BFLOAT16], CPU, GPU),
}
REFUSALS = {
    "float64": (small_network, "it computes in .*, not float64"),
    "a device": (small_network, "does not run on"),
    "heads": (headed, "training heads"),
    "an average as output": (vector, "its output is a vector"),
}


@pytest.mark.parametrize("cause", REFUSALS)
@pytest.mark.parametrize("name", HOMES)
def test_refusals_are_one_line(name, cause, machine):
    machine()
    backend, (precisions, home, other), (make, message) = named(name), HOMES[name], REFUSALS[cause]
    plan, device = make(), other if cause == "a device" else home
    precision = FLOAT64 if cause == "float64" else precisions[0]
    with pytest.raises(UserError, match=f"backend {name} can not run this: .*{message}") as caught:
        backends.select(plan, precision, device, name)
    assert "\n" not in str(caught.value)
    decision = backends.select(plan, precision, device)
    assert decision.name != name
    with pytest.raises(ValueError, match=message):
        backend.compile(plan, precision, device)
    for precision in (FLOAT16, BFLOAT16, FLOAT32):
        said = backend.why_not(small_network(), precision, home)
        assert (said is None) == (precision in precisions)
        assert said is None or f"not {precision}" in said


def test_odd_channels_are_left_to_others_in_bfloat16(machine):
    machine(capabilities=())
    plan = plain(5, 7, 3, 1)()
    assert backends.select(plan, FLOAT32, CPU).name == "cpu"
    decision = backends.select(plan, BFLOAT16, CPU)
    assert decision.name == "eager" and "odd numbers of channels" in decision.reason
    with pytest.raises(ValueError, match="odd numbers of channels"):
        cpu.compile(plan, BFLOAT16)


@pytest.mark.parametrize("name", ["tritn", "Triton", "", 3.5])
def test_unknown_names_are_one_line(name):
    with pytest.raises(UserError, match="unknown backend") as caught:
        backends.select(None, FLOAT32, CPU, name)
    assert "\n" not in str(caught.value)
    if name == "tritn":
        assert "did you mean triton?" in str(caught.value)
