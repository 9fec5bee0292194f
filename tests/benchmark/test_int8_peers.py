"""Peers in 8 bits: on the same samples, and in 8 bits indeed."""

import logging
import sys

import numpy as np
import pytest
import torch

from stdc_fast import zoo
from stdc_fast.benchmark import ncnn_int8, parity, runners, workloads
from stdc_fast.benchmark.workloads import SAMPLES, Workload
from stdc_fast.exporters import qdq

SMALL = Workload("stdc1_camvid", zoo.find("stdc1_camvid"), 128, 256)
SPECS = {s.name: s for s in runners.peers("cpu", ["float32"], int8=True) if s.dtype == "int8"}
#: torchao compiles for a minute, and MNN is further off.
QUICK = ["OpenVINO", "ONNX Runtime", "ncnn"]


def made(name, workload):
    absent = SPECS[name].missing("cpu")
    if absent is not None:
        pytest.skip(absent)
    return SPECS[name].make(workload, "cpu", 2)


def checked(name, workload, scope):
    runner = made(name, workload)
    call = runner.prepare(scope)
    first, second = runner.host(call()), runner.host(call())
    assert torch.equal(first, second)
    first = workloads.ends(first).numpy()
    return parity.check({scope: first}, "int8", workloads.expected(workload, [scope]))


def test_who_has_8_bits():
    assert list(SPECS) == ["ONNX Runtime", "OpenVINO", "ncnn", "MNN", "torchao"]
    assert not [s for s in runners.peers("cpu", ["float32"]) if s.dtype == "int8"]
    assert not [s for s in runners.peers("cuda", ["float32"], int8=True) if s.dtype == "int8"]


@pytest.mark.parametrize("name", SPECS)
def test_what_is_absent_is_said(name, monkeypatch):
    monkeypatch.setattr(runners.importlib.util, "find_spec", lambda name: None)
    assert SPECS[name].missing("cpu") == f"{', '.join(SPECS[name].needs)} not installed"


@pytest.mark.parametrize("scope", ["logits", "labels", "frame"])
def test_samples_are_the_input_turned_around_itself(scope):
    samples, x = SMALL.samples(scope), SMALL.input(scope)
    axis = 3 if scope == "logits" else 2
    assert len({sample.numpy().tobytes() for sample in samples}) == SAMPLES
    assert torch.equal(samples[0], x)
    assert torch.equal(samples[2].narrow(axis, x.shape[axis] // 4, 1), x.narrow(axis, 0, 1))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("scope", ["logits", "labels"])
def test_int8_is_quantised(name, scope, caplog, capfd):
    found, _ = checked(name, SMALL, scope)
    assert caplog.handler.level == logging.NOTSET  # so that others still see what is logged
    assert capfd.readouterr().out == ""
    if scope == "logits":
        assert 5e-3 < found["logits"] < 0.1  # neither 32 bits nor nonsense; the gate is for larger images
    else:
        assert 0.96 < found["labels"] < 0.999


@pytest.mark.wide
def test_torchao_is_quantised():
    assert 5e-3 < checked("torchao", SMALL, "logits")[0]["logits"] < 3e-2


@pytest.mark.parametrize("batch", [1, 2])
def test_mnn_is_quantised(batch, capfd):
    workload = Workload("stdc1_camvid", SMALL.weights, 128, 256, batch)
    found, _ = checked("MNN", workload, "logits")
    assert 5e-3 < found["logits"] < 0.3  # neither float32 nor nonsense
    assert capfd.readouterr().out == ""
    assert not [name for name in sys.modules if name.startswith("MNN.tools")]


@pytest.mark.parametrize("name", ["ONNX Runtime", "ncnn"])
def test_odd_sizes_and_batches(name):
    odd = Workload("stdc1_camvid", SMALL.weights, 97, 131, batch=2)
    assert 5e-3 < checked(name, odd, "logits")[0]["logits"] < 3e-2


def test_processors_without_long_sums_have_weights_of_7_bits(monkeypatch):
    for features, short in ([["avx2"], True], [["avx2", "avx512_vnni"], False]):
        machine = {"machine": "x86_64", "features": features}
        monkeypatch.setattr(qdq, "cpu", lambda machine=machine: machine)
        assert qdq.sums_overflow() is short
    monkeypatch.setattr(qdq, "cpu", lambda: {"machine": "aarch64", "features": []})
    assert not qdq.sums_overflow()


# Files of ncnn.

PARAM = """7767517
6 7
Input                    in0                      0 1 in0
Convolution              first                    1 1 in0 1 0=2 1=3 11=3 3=1 13=1 5=1 6=54 9=1
Split                    split                    1 2 1 2 3
Convolution              second                   1 1 2 4 0=1 1=1 11=1 5=0 6=2
DeconvolutionDepthWise   up                       1 1 4 5 0=1 1=2 5=0 6=4 7=1
ConvolutionDepthWise     third                    1 1 3 out0 0=2 1=1 5=1 6=2 7=2
"""


def weights(*counts):
    """As ncnn stores them in float32: a tag, then numbers; here each layer has its own."""
    found = b""
    for i, (stored, biases) in enumerate(counts, 1):
        found += bytes(4) + np.full(stored, i, "<f4").tobytes() + np.zeros(biases, "<f4").tobytes()
    return found


@pytest.fixture
def files(tmp_path):
    param = tmp_path / "network.param"
    param.write_text(PARAM)
    param.with_suffix(".bin").write_bytes(weights((54, 2), (2, 0), (4, 0), (2, 2)))
    return param


def test_scales_that_ncnn_reads(files):
    asked = []

    def ranges(names):
        asked.extend(names)
        return {"in0": 127.0, "2": 12.7, "3": 12.7}

    ncnn_int8.quantise(files, ranges)
    assert asked == ["in0", "2", "3"]
    lines = {line.split()[1]: line.split()[-1] for line in files.read_text().splitlines()[2:]}
    # Only convolutions read what the first writes, so it writes 8 bits.
    assert (lines["first"], lines["second"], lines["third"]) == ("8=102", "8=2", "8=1")
    assert lines["up"] == "7=1"
    want = weights((54, 2)) + np.array([31, 31, 1, 10], "<f4").tobytes()
    want += bytes(4) + np.array([2, 2, 127 / 2, 10], "<f4").tobytes()
    want += bytes(4) + np.array([3] * 4, "<f4").tobytes()
    want += bytes(4) + np.array([4, 4, 0, 0, 127 / 4, 127 / 4, 10], "<f4").tobytes()
    assert files.with_suffix(".bin").read_bytes() == want


def test_layers_that_are_not_understood(files):
    raw = files.with_suffix(".bin").read_bytes()
    more, less = (raw + bytes(8), "8 bytes of weights belong"), (raw[:-4], "weights of third are not")
    for data, words in (more, less):
        files.with_suffix(".bin").write_bytes(data)
        with pytest.raises(RuntimeError, match=words):
            ncnn_int8.quantise(files, lambda names: dict.fromkeys(names, 1.0))
        assert files.read_text() == PARAM
