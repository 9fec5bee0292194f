"""What is where, and when: another default device of torch's, and what a frame's time counts."""

import copy
import threading

import numpy as np
import pytest
import torch

import stdc_fast
from stdc_fast import checkpoints, segmenter
from stdc_fast.inference import label
from stdc_fast.protocol import Protocol

FRAME = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)


@pytest.fixture
def elsewhere():
    """Tensors are on "meta", without values, where nobody says otherwise. As "cuda", which needs a GPU."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def outcomes(weights, backend):
    model = stdc_fast.load(weights, device="cpu", backend=backend, dtype="float32")
    result = model.predict(FRAME[0], confidence=True)
    x = torch.from_numpy(FRAME).permute(0, 3, 1, 2).float() / 51 - 2.5
    found = [
        model.label(FRAME),
        torch.from_numpy(result.labels),
        torch.from_numpy(result.confidence),
        model(x),
    ]
    found += [next(model.stream(iter(FRAME))).labels, model.predict(x)[0].labels]
    for protocol in (Protocol("mmseg"), Protocol(flip=True), Protocol(window=(64, 64))):
        found.append(label(model, FRAME[0], protocol))
    return [torch.as_tensor(x, device="cpu") for x in found]


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_another_default_device(backend, tiny_weights, elsewhere):
    found = outcomes(tiny_weights, backend)
    torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(found, outcomes(tiny_weights, backend), strict=True))


def test_checkpoints_and_another_default_device(tiny_weights, elsewhere):
    network = checkpoints.read(tiny_weights).network()
    assert all(p.device.type == "cpu" for p in network.state_dict().values())
    assert torch.empty(1).device.type == "meta"  # the caller's own is as it was


def test_another_default_device_of_one_thread(tiny_model):
    thread = threading.Thread(target=torch.set_default_device, args=("meta",))
    thread.start()
    thread.join()
    assert tiny_model.label(FRAME).device.type == "cpu"


def test_packing_is_no_part_of_a_frames_time(tiny_model, monkeypatch):
    model, order = copy.deepcopy(tiny_model), []
    model.repack()
    backend = model.decision.backend
    compile_, clock = type(backend).compile, segmenter.time.perf_counter

    def packed(*args, **kwargs):
        order.append("packed")
        return compile_(*args, **kwargs)

    def told():
        order.append("time")
        return clock()

    monkeypatch.setattr(type(backend), "compile", packed)
    monkeypatch.setattr(segmenter.time, "perf_counter", told)
    model.predict(FRAME[0])
    model.predict(FRAME[0])
    read, labelled = ["time"] * 2, ["time"] * 2
    assert order == [*read, "packed", *labelled, *read, *labelled]
