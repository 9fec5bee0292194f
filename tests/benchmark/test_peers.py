"""The workloads of the benchmark: every peer computes the network, and the gate sees who does not."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import stdc_fast
from stdc_fast import zoo
from stdc_fast.benchmark import parity, runners, torch_peers, workloads
from stdc_fast.benchmark.workloads import Workload
from stdc_fast.errors import UserError
from stdc_fast.reference.networks import STDCSeg

SMALL = Workload("stdc1_camvid", zoo.find("stdc1_camvid"), 128, 256)
OURS = runners.ours("cpu", ["float32"])[0]


@pytest.fixture(scope="module")
def want():
    return workloads.expected(SMALL, ["logits", "labels", "frame"])


def peers():
    """Inductor compiles for half a minute: by default torch.compile runs its graph with torch's kernels."""
    for spec in runners.peers("cpu", ["float32"]):
        if spec.name == "torch.compile":
            yield pytest.param(spec, "aot_eager", id=f"{spec.name} without Inductor")
            yield pytest.param(spec, "inductor", id=spec.name, marks=pytest.mark.wide)
        else:
            yield pytest.param(spec, None, id=spec.name)


@pytest.mark.parametrize("spec, compiler", list(peers()))
@pytest.mark.parametrize("scope", ["logits", "labels"])
def test_peers_compute_the_network(spec, compiler, scope, want, monkeypatch):
    absent = spec.missing("cpu")
    if absent is not None:
        pytest.skip(absent)
    if compiler is not None:
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    runner = spec.make(SMALL, "cpu", torch.get_num_threads())
    call = runner.prepare(scope)
    call()
    _, broken = parity.check({scope: runner.host(call()).numpy()}, "float32", want)
    assert not broken


@pytest.mark.parametrize("name", ["eager", "OpenVINO", "ncnn", "MNN"])
def test_end_to_end_is_the_official_protocol(name, want):
    spec = next(spec for spec in runners.peers("cpu", ["float32"]) if spec.name == name)
    if spec.missing("cpu"):
        pytest.skip(spec.missing("cpu"))
    for each in (spec, OURS):
        runner = each.make(SMALL, "cpu", 2)
        labels = runner.host(runner.prepare("frame")()).numpy()
        assert labels.shape == (1, 1024, 2048)
        assert parity.check({"frame": labels}, "float32", want)[1] == []


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A network that reads and interpolates as PaddleSeg's may, not as the paper's code does."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    model = stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32")
    model.network.mean = model.network.std = (0.5, 0.5, 0.5)
    model.network.align_corners = False
    model.calibration = None
    model.save_file(path)
    workload = dataclasses.replace(SMALL, weights=path)
    return workload, workloads.expected(workload, ["labels", "frame"])


@pytest.mark.parametrize("name", ["ours", "eager", "ONNX Runtime", "ncnn", "MNN"])
@pytest.mark.parametrize("scope", ["labels", "frame"])
def test_normalisation_and_corners_are_the_networks(name, scope, other):
    spec = next((spec for spec in runners.peers("cpu", ["float32"]) if spec.name == name), OURS)
    if spec.missing("cpu"):
        pytest.skip(spec.missing("cpu"))
    workload, want = other
    runner = spec.make(workload, "cpu", 2)
    labels = runner.host(runner.prepare(scope)()).numpy()
    assert parity.check({scope: labels}, "float32", want)[1] == []
    logits = {"logits": workload.network(torch.float64).logits8(workload.image().double()).numpy()}
    assert parity.check(logits, "float32", want)[1] == []


@pytest.mark.parametrize(("variant", "gmac"), [("stdc1", 23.08), ("stdc2", 29.67)])
def test_published_heads_cost_what_the_published_code_does(variant, gmac):
    with torch.device("meta"):
        network = torch_peers.PublishedHeads(STDCSeg(variant)).eval()
        x = torch.empty(1, 3, 512, 1024)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.logits8(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.01)


def test_work_of_a_workload():
    flop, moved = dataclasses.replace(SMALL, height=512, width=1024).work()
    assert flop == pytest.approx(32.01e9, rel=1e-3)  # 32.05 with 19 classes
    assert moved == pytest.approx(512 * 1024 * 4 + 1.107 * 2 * 8.27e6, rel=0.01)
    assert dataclasses.replace(SMALL, batch=3).work()[0] == 3 * SMALL.work()[0]


def test_frames_of_a_batch_differ():
    frames = dataclasses.replace(SMALL, batch=4).frames("logits")
    assert frames.shape == (4, 128, 256, 3)
    assert len({frame.numpy().tobytes() for frame in frames}) == 4
    assert SMALL.frames("frame").shape == (1, 1024, 2048, 3)


def test_random_weights_keep_the_limits(tmp_path):
    weights = workloads.resolve("stdc2", tmp_path)
    assert workloads.resolve("stdc2", tmp_path) == weights
    workload = Workload("stdc2", weights, 64, 128)
    runner = OURS.make(workload, "cpu", 2)
    logits = runner.host(runner.prepare("logits")()).numpy()
    want = workloads.expected(workload, ["logits"])
    assert parity.check({"logits": logits}, "float32", want)[1] == []
    with pytest.raises(UserError, match="did you mean stdc1_camvid"):
        workloads.resolve("stdc1_camvit", tmp_path)


# The gate.


def test_gate(want):
    good = want.logits.float().numpy()
    labels = want.labels["labels"].numpy()
    assert parity.check({"logits": good, "labels": labels}, "float32", want)[1] == []
    assert parity.check({"logits": good}, "float32", want)[0]["labels"] >= 0.9999
    (line,) = parity.check({"logits": good * (1 + 2e-5), "labels": labels}, "float32", want)[1]
    assert line == "logits differ by 2.0e-05; float32 allows 1e-05"
    assert parity.check({"logits": good * (1 + 2e-5), "labels": labels}, "float16", want)[1] == []
    found, broken = parity.check({"logits": good * np.nan, "labels": labels}, "float32", want)
    assert found["logits"] is None
    assert "logits differ by nan" in broken[0]
    assert "shape" in parity.check({"logits": good[:, :, 1:]}, "float32", want)[1][0]
    assert "[1, 128, 255]" in parity.check({"labels": labels[:, :, 1:]}, "float32", want)[1][0]
    wrong = labels.copy()
    wrong[0, :4] = 255  # 1024 of 32768 pixels
    (line,) = parity.check({"labels": wrong}, "bfloat16", want)[1]
    assert line == "labels of scope labels agree on 96.875%; bfloat16 needs 99.00%"
