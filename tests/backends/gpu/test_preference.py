"""The table that says which GPU backend "auto" asks first: it is what the models say, and what decides."""

import json

import hosted
import pytest
import torch

from bench import gpu_backends
from stdc_fast import backends
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.gpu import preference
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT32, Precision

SM_90 = (9, 0)


@pytest.fixture
def times(monkeypatch):
    """Sets the table: microseconds of sm_90 in float16, as the models and as measurements have them."""
    shipped = preference.table()

    def put(predicted, measured=None):
        on = {"sm_90": {"device": "NVIDIA H100", "commit": "abc", "time": "now"}} if measured else {}
        table = shipped | {
            "predicted_us": {"sm_90": {"float16": predicted}},
            "measured_us": {"sm_90": {"float16": measured}} if measured else {},
            "measured_on": on,
        }
        monkeypatch.setattr(preference, "table", lambda: table)

    return put


@pytest.mark.parametrize("key", DEVICES)
def test_the_table_is_what_the_models_say(key):
    """Else run `python -m bench.gpu_backends` again."""
    native, shipped = hosted.module(), preference.table()["predicted_us"]
    assert list(shipped) == list(DEVICES)
    for precision in cuda.PRECISIONS:
        assert shipped[key][precision.name] == gpu_backends.predicted(DEVICES[key], precision, native)


def test_the_table_is_of_what_it_says():
    table = preference.table()
    assert (table["network"], table["images"]) == (gpu_backends.NETWORK, 1)
    assert tuple(table["size"]) == gpu_backends.SIZE
    assert set(table["measured_us"]) == set(table["measured_on"]) <= set(DEVICES)


def test_the_faster_one_by_the_models_where_nothing_was_measured(times):
    times({"cuda": 199.2, "triton": 228.6})
    said = "not measured on sm_90; the models: cuda 199 us, triton 229 us for stdc1 at 512x1024"
    assert preference.fastest_first(SM_90, FLOAT16) == (["cuda", "triton"], said)
    times({"cuda": 230.0, "triton": 228.6})
    assert preference.fastest_first(SM_90, FLOAT16)[0] == ["triton", "cuda"]


def test_a_measurement_of_both_goes_before_the_models(times):
    times({"cuda": 199.2, "triton": 228.6}, {"cuda": 310.0, "triton": 250.4})
    said = "measured on NVIDIA H100, sm_90: triton 250 us, cuda 310 us for stdc1 at 512x1024"
    assert preference.fastest_first(SM_90, FLOAT16) == (["triton", "cuda"], said)
    times({"cuda": 199.2, "triton": 228.6}, {"triton": 100.0})
    assert preference.fastest_first(SM_90, FLOAT16)[0] == ["cuda", "triton"]


@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT32], ids=str)
def test_nothing_is_said_where_nothing_is_known(precision: Precision, times):
    times({"cuda": 199.2, "triton": 228.6})
    assert preference.fastest_first(SM_90, precision) == ([], "")


def test_auto_asks_the_faster_one_first(times, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: SM_90)
    for backend in (cuda.BACKEND, triton.BACKEND):
        for question in ("why_not_here", "why_not_by_default", "why_not"):
            monkeypatch.setattr(type(backend), question, lambda *_: None)
        monkeypatch.setattr(type(backend), "about", lambda self: f"{self.name} as a stub")
    gpu = torch.device("cuda", 0)
    times({"cuda": 300.0, "triton": 200.0})
    found = backends.select(None, FLOAT16, gpu)
    assert found.name == "triton" and found.reason == f"triton as a stub; {found.choice}"
    assert found.choice.startswith("not measured on sm_90; the models: triton 200 us, cuda 300 us")
    # Who asks for one gets it; and the other one runs where the faster one does not.
    monkeypatch.setenv(backends.ENVIRONMENT, "cuda")
    assert backends.select(None, FLOAT16, gpu).name == "cuda"
    monkeypatch.delenv(backends.ENVIRONMENT)
    monkeypatch.setattr(type(triton.BACKEND), "why_not_here", lambda _: "not installed")
    found = backends.select(None, FLOAT16, gpu)
    assert (found.name, found.choice) == ("cuda", "")
    assert found.reason == "cuda as a stub (triton: not installed)"


def record(backend, microseconds, **changed):
    head = {"device_name": "NVIDIA H100", "commit": "abc"}
    usual = {
        "kind": "kernels", "model": "stdc1", "batch": 1, "height": 512, "width": 1024, "dtype": "float16",
        "device_class": "sm_90", "backend": backend, "together_us": microseconds, "options": [],
        "header": head, "time": "then",
    }  # fmt: skip
    return usual | changed


def test_what_is_taken_from_measurements():
    other = [{"options": ["carveout"]}, {"model": "stdc2"}, {"kind": "x"}, {"height": 768}, {"batch": 16}]
    records = [record("cuda", 250.0), record("triton", 201.26), record("cuda", 190.04)]
    times, where = gpu_backends.measurements(records + [record("cuda", 1.0, **each) for each in other])
    assert times == {"sm_90": {"float16": {"cuda": 190.0, "triton": 201.3}}}
    assert where == {"sm_90": {"device": "NVIDIA H100", "commit": "abc", "time": "then"}}


def test_the_command_keeps_what_was_measured(tmp_path, monkeypatch):
    file, results = tmp_path / "table.json", tmp_path / "gpu.jsonl"
    monkeypatch.setattr(gpu_backends, "FILE", file)
    monkeypatch.setattr(gpu_backends, "predictions", lambda native: {"sm_90": {"float16": {}}})
    monkeypatch.setattr(gpu_backends._native, "module", lambda: type("Module", (), {"gpu": None}))
    results.write_text("\n".join(json.dumps(record(name, 200.0)) for name in ("cuda", "triton")))
    gpu_backends.main([str(results)])
    gpu_backends.main([])
    found = json.loads(file.read_text())
    assert found["measured_us"] == {"sm_90": {"float16": {"cuda": 200.0, "triton": 200.0}}}
    assert set(found) == set(preference.table())
