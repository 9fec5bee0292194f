"""GPUs that people have, by what torch says of them: class, code, tables, backend; none of them is there."""

import dataclasses
import types
from pathlib import Path

import pytest
import torch

from bench import ptxas
from stdc_fast import _native, backends, info
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.cuda.tiles import CudaTiles
from stdc_fast.backends.gpu import tables
from stdc_fast.backends.gpu.chooser import _shipped
from stdc_fast.backends.gpu.model import DEVICES, device_class
from stdc_fast.precision import FLOAT16

#: What this installation's module was built for.
BUILT = _native.cuda_info().get("targets", []) if _native.why_not() is None else []
#: As csrc/build_native.py has them where nobody says otherwise.
USUAL = ("80", "86", "87", "89", "90a", "90+PTX")
#: name: capability, processors, class, code of the usual build, whether tables of the class are used.
CARDS = {
    "NVIDIA A100-SXM4-40GB": ((8, 0), 108, "sm_80", "80", True),
    "NVIDIA A100 80GB PCIe": ((8, 0), 108, "sm_80", "80", True),
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": ((8, 0), 14, "sm_80", "80", False),
    "NVIDIA A10": ((8, 6), 72, "sm_86", "86", True),
    "NVIDIA GeForce RTX 3060": ((8, 6), 28, "sm_86", "86", False),
    "NVIDIA GeForce RTX 3090": ((8, 6), 82, "sm_86", "86", True),
    "Orin": ((8, 7), 16, "sm_87", "87", True),
    "Orin Nano": ((8, 7), 8, "sm_87", "87", False),
    "NVIDIA L4": ((8, 9), 58, "sm_89", "89", False),
    "NVIDIA L40S": ((8, 9), 142, "sm_89", "89", True),
    "NVIDIA GeForce RTX 4060": ((8, 9), 24, "sm_89", "89", False),
    "NVIDIA GeForce RTX 4090": ((8, 9), 128, "sm_89", "89", True),
    "NVIDIA H100 80GB HBM3": ((9, 0), 132, "sm_90", "90a", True),
    "NVIDIA H100 PCIe": ((9, 0), 114, "sm_90", "90a", True),
    "NVIDIA H200": ((9, 0), 132, "sm_90", "90a", True),
    "NVIDIA GH200 480GB": ((9, 0), 132, "sm_90", "90a", True),
    "NVIDIA H20": ((9, 0), 78, "sm_90", "90a", False),
    "NVIDIA B200": ((10, 0), 148, "sm_100", "90+PTX", True),
    "NVIDIA B300": ((10, 3), 148, "sm_100", "90+PTX", True),
    "NVIDIA Thor": ((11, 0), 20, "sm_100", "90+PTX", False),
    "NVIDIA GeForce RTX 5090": ((12, 0), 170, "sm_120", "90+PTX", True),
    "NVIDIA GeForce RTX 5060": ((12, 0), 30, "sm_120", "90+PTX", False),
    "NVIDIA GB10": ((12, 1), 48, "sm_120", "90+PTX", False),
}
every_card = pytest.mark.parametrize("name", CARDS)


@pytest.fixture
def card(monkeypatch):
    """Makes torch see one card, and a module for some targets; returns its device."""

    def set_up(name, targets=USUAL):
        capability, processors = CARDS[name][:2]
        properties = types.SimpleNamespace(
            name=name, major=capability[0], minor=capability[1], multi_processor_count=processors,
            total_memory=80 << 30, shared_memory_per_block_optin=227 << 10,
        )  # fmt: skip
        module = types.SimpleNamespace(driver_version=lambda: 13000, runtime_version=lambda: 13000)
        built = {"built": True, "compiler": "nvcc 13.0", "targets": list(targets)}
        for where, what, value in [
            (torch.version, "hip", None),
            (torch.version, "cuda", "13.0"),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "get_device_capability", lambda device=0: capability),
            (torch.cuda, "get_device_properties", lambda device=0: properties),
            (_native, "module", lambda: types.SimpleNamespace(gpu=module)),
            (_native, "cuda_info", lambda: built),
            (triton, "_why_not_built", lambda: None),
        ]:
            monkeypatch.setattr(where, what, value)
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
        cuda.why_not_device.cache_clear()
        return torch.device("cuda", 0)

    yield set_up
    cuda.why_not_device.cache_clear()


@every_card
def test_class_code_and_tables(name, card):
    capability, processors, key, code, shipped = CARDS[name]
    device = card(name)
    model = triton.BACKEND.model(device)
    of = model.device
    assert (of.key, of.processors) == (key, processors)
    assert cuda.code(capability, USUAL) == code and cuda.why_not_device(capability) is None
    assert (_shipped(model) == tables.shipped(key, model.tiles)) is shipped
    assert bool(_shipped(model)) is shipped
    # A processor of it is one of its class.
    whole = DEVICES[key]
    for rate in ("products", "fma", "cache"):
        assert getattr(of, rate) / processors == pytest.approx(getattr(whole, rate) / whole.processors)
    assert (of.port, of.shared) == (whole.port, whole.shared)


@every_card
def test_warp_groups_are_for_hopper_alone(name):
    """Code of sm_90a runs on nothing else, later GPUs included."""
    capability, processors = CARDS[name][:2]
    assert device_class(capability, processors).wgmma == (capability == (9, 0))


@every_card
def test_what_info_says(name, card):
    _, processors, key, code, shipped = CARDS[name]
    card(name)
    (found,) = info._gpus()
    assert (found["name"], found["processors"]) == (name, processors)
    assert found["class"].startswith(f"{key}, as {DEVICES[key].name}; ")
    assert ("its tables" in found["class"]) is shipped
    assert found["cuda"] == f"code for {code}"


@every_card
def test_a_module_for_another_gpu_is_told_and_triton_runs(name, card):
    """What bench.gpu_prebuilt makes for Hopper; elsewhere one line says what to build."""
    capability = CARDS[name][0]
    device = card(name, ("90a",))
    decision = backends.select(None, FLOAT16, device)
    if capability == (9, 0):
        assert cuda.BACKEND.why_not_here() is None
        return
    number = f"{capability[0]}{capability[1]}"
    said = f"built for 90a, none of which runs on sm_{number}; "
    said += f"set STDC_FAST_CUDA_TARGETS={number} and install again"
    assert cuda.BACKEND.why_not_here() == said
    assert decision.name == "triton" and f"cuda: {said}" in decision.reason
    (found,) = info._gpus()
    assert found["cuda"] == said


def test_code_for_one_major_version_does_not_run_on_another():
    """Machine code of sm_80 is for 8.x; later ones need PTX."""
    for capability, *_ in CARDS.values():
        fits = capability[0] == 8 and capability not in cuda.TEGRA
        assert (cuda.code(capability, ("80",)) is not None) == fits


@pytest.mark.skipif(not BUILT, reason="the native module has no CUDA kernels")
@pytest.mark.skipif(ptxas.find_cuobjdump() is None, reason="there is no cuobjdump; pip install triton")
def test_the_module_has_the_code_that_it_says():
    """Of every kernel for every target; of warp groups for sm_90a alone, in each of the two types."""
    found = ptxas.images(ptxas.find_cuobjdump(), Path(_native.module().__file__))
    assert set(found) == set(BUILT)
    number = {target: n - 2 * (target == "90a") for target, n in found.items()}
    assert len(set(number.values())) == 1 and min(number.values()) > 6


def test_tables_are_for_what_they_name():
    for key in DEVICES:
        assert tables.shipped(key, CudaTiles), key


def test_a_class_as_it_is_stays_as_it_is():
    whole = DEVICES["sm_90"]
    assert device_class((9, 0), 132) == device_class((9, 0)) == whole
    half = device_class((9, 0), 66)
    assert half == dataclasses.replace(
        whole, processors=66, products=whole.products / 2, fma=whole.fma / 2, cache=whole.cache / 2
    )
