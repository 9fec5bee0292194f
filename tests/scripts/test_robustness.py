"""The scripts that compare and average weights: shifts that are fixed, norms that are measured."""

import json
import sys

import folders
import numpy as np
import pytest
import torch
from PIL import Image

import stdc_fast
from bench import average, robustness
from stdc_fast import checkpoints
from stdc_fast.datasets import open_folder
from stdc_fast.errors import UserError
from stdc_fast.evaluation import evaluate
from stdc_fast.recipe import TrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return open_folder(folders.camvid(tmp_path_factory.mktemp("camvid"), classes=folders.ELEVEN), "val")


@pytest.mark.parametrize("name", robustness.SHIFTS)
def test_shifts_are_fixed_and_leave_labels(folder, name):
    shifted = robustness.Shifted(folder, robustness.SHIFTS[name])
    image, labels = shifted.load(0)
    again, _ = shifted.load(0)
    plain, expected = folder.load(0)
    assert np.array_equal(image, again) and np.array_equal(labels, expected)
    assert image.shape == plain.shape and not np.array_equal(image, plain)


def run(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()


def test_report(folder, tiny_weights, tmp_path, monkeypatch):
    for name in ("imgs", "masks"):
        (tmp_path / name).mkdir()
    image, _ = folder.load(0)
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    guess = model.label(image[None])[0].numpy()
    # A mask that says what the model says, and own car where it would be wrong.
    colours = {value: colour for colour, value in robustness.COMMA10K.items()}
    kinds = np.array([robustness.MERGED.get(name, 1) for name in model.classes.names])[guess]
    mask = np.array([colours[i] for i in range(3)], np.uint8)[kinds]
    mask[:5] = colours[255]
    Image.fromarray(image).save(tmp_path / "imgs" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    out = tmp_path / "report.json"
    data = folder.images[0].parent.parent
    run(robustness, monkeypatch, tiny_weights, "--data", data, "--comma10k", tmp_path,
        "--device", "cpu", "--dtype", "float32", "--out", out)  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"].values()
    assert row["comma10k"]["miou"] == 1.0
    assert row["clean"] == pytest.approx(evaluate(model, folder).miou(), abs=1e-4)
    assert set(row["by_shift"]) == {*robustness.SHIFTS, *robustness.SIZES}
    assert row["shifted"] == pytest.approx(np.mean(list(row["by_shift"].values())), abs=1e-4)


def test_average_of_weights_and_measured_norms(tmp_path, tiny_network, monkeypatch):
    config = TrainConfig(batch=2, crop=(64, 96), amp="off", iterations=2, warmup=0)
    old = checkpoints.inference_state(tiny_network)
    new = {k: v + 0.5 for k, v in old.items()}
    metadata = {"variant": "stdc1", "recipe": vars(config), "miou": 0.5, "short_side": 96}
    for name, state in (("old", old), ("new", new)):
        checkpoints.save(state, tmp_path / f"{name}.safetensors", metadata)
    data = folders.camvid(tmp_path / "data", classes=folders.ELEVEN)
    common = (tmp_path / "old.safetensors", tmp_path / "new.safetensors", "--share", 0.25, "--data", data)
    run(average, monkeypatch, *common, "--batches", 0, "--out", tmp_path / "plain.safetensors")
    plain = checkpoints.read(tmp_path / "plain.safetensors")
    for key, value in plain.state.items():
        torch.testing.assert_close(value, old[key] + 0.125)
    assert "miou" not in plain.metadata and plain.metadata["average"] == {"old": 0.75, "this run": 0.25}

    run(average, monkeypatch, *common, "--batches", 2, "--out", tmp_path / "measured.safetensors")
    measured = checkpoints.read(tmp_path / "measured.safetensors").state
    seen = []
    network = plain.network()
    first = network.cp.backbone.features[0]
    first.conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    average.measure_norms(network, config, data, 2)
    key = "cp.backbone.features.0.bn.running_mean"
    expected = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(measured[key], expected)
    assert all(torch.equal(v, plain.state[k]) for k, v in measured.items() if "running" not in k)


def test_only_one_kind_of_network_is_averaged():
    with pytest.raises(UserError, match="different networks"):
        average.interpolate({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, 0.5)
