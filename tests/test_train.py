"""The training loop: it learns, resumes exactly, survives a kill, and runs as two processes."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import folders
import numpy as np
import pytest
import torch
from PIL import Image

import stdc_fast
from stdc_fast import checkpoints
from stdc_fast.datasets import open_folder
from stdc_fast.errors import UserError
from stdc_fast.evaluation import evaluate
from stdc_fast.reference import STDCClassifier
from stdc_fast.train import Average, TrainConfig, train

SMALL = TrainConfig(
    iterations=6,
    batch=2,
    crop=(64, 96),
    scales=(0.8, 1.25),
    lr=0.01,
    warmup=2,
    val_every=3,
    save_every=2,
    amp="off",
    balance=0.5,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folders.camvid(tmp_path_factory.mktemp("camvid"))


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    best = train(SMALL, data, out, device="cpu", quiet=True)
    return out, best


def test_run_leaves_its_results(whole_run, data):
    out, best = whole_run
    assert {p.name for p in out.iterdir()} == {
        "last.pt",
        "best.safetensors",
        "train.csv",
        "val.csv",
        "config.json",
    }
    assert [int(r["iteration"]) for r in rows(out / "val.csv")] == [3, 6]
    assert max(float(r["miou"]) for r in rows(out / "val.csv")) == pytest.approx(best, abs=1e-4)
    checkpoint = checkpoints.read(out / "best.safetensors")
    assert checkpoint.metadata["classes"] == ["Sky", "Wall", "Road"]
    assert checkpoint.metadata["miou"] == pytest.approx(best, abs=1e-6)
    assert checkpoint.metadata["short_side"] == 96
    assert checkpoint.metadata["recipe"]["iterations"] == 6


def test_resumed_run_equals_the_whole_one(whole_run, data, tmp_path, monkeypatch):
    """Stop after four of six iterations, go on: the same weights, bit for bit, and the same log."""
    from stdc_fast import train as module

    step = module.Run._step

    def interrupted(self, *args):
        if self.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module.Run, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, data, tmp_path, device="cpu", quiet=True)
    assert torch.load(tmp_path / "last.pt")["iteration"] == 4
    best = train(SMALL, data, tmp_path, resume=True, device="cpu", quiet=True)
    out, expected = whole_run
    assert best == expected
    a, b = torch.load(out / "last.pt"), torch.load(tmp_path / "last.pt")
    assert b["iteration"] == 6
    for part in ("network", "average"):
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), (part, key)
    assert rows(out / "val.csv") == rows(tmp_path / "val.csv")
    # A finished run that is resumed has nothing to do, and changes nothing.
    assert train(SMALL, data, tmp_path, resume=True, device="cpu", quiet=True) == expected


def test_killed_run_goes_on(data, tmp_path):
    """SIGKILL at a random place: what is on disk is whole, and --resume reaches the end."""
    config = dataclasses.replace(SMALL, iterations=400, val_every=400, save_every=2)
    arguments = [f"--{k}={v}" for k, v in
                 {"iterations": 400, "batch": 2, "crop": "64x96", "scales": "0.8,1.25", "warmup": 2,
                  "val-every": 400, "save-every": 2, "amp": "off", "balance": 0.5}.items()]  # fmt: skip
    command = [sys.executable, "-m", "stdc_fast", "train", str(data), f"--out={tmp_path}", "--device=cpu"]
    process = subprocess.Popen([*command, *arguments, "--quiet"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "last.pt").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    process.stderr.close()
    done = torch.load(tmp_path / "last.pt")["iteration"]
    assert 0 < done < 400
    # The same schedule goes on: shorten what is left by moving the stored position to its end.
    state = torch.load(tmp_path / "last.pt")
    state["iteration"] = 398
    torch.save(state, tmp_path / "last.pt")
    train(config, data, tmp_path, resume=True, device="cpu", quiet=True)
    last = rows(tmp_path / "train.csv")[-1]
    assert int(last["iteration"]) == 400
    assert float(last["lr"]) == pytest.approx(config.lr_at(399), rel=1e-3)


def test_two_processes(data, tmp_path):
    """Two gloo processes under torchrun agree and finish."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "stdc_fast", "train", str(data), f"--out={tmp_path}", "--device=cpu",
               "--iterations=2", "--batch=2", "--crop=64x96", "--val-every=2", "--amp=off",
               "--warmup=0"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation mIoU") == 1
    state = torch.load(tmp_path / "last.pt")
    assert state["world"] == 2 and state["iteration"] == 2
    checkpoint = checkpoints.read(tmp_path / "best.safetensors")
    assert checkpoint.metadata["recipe"]["processes"] == 2
    # What was scored is what was saved: one network, though each process has its own norm statistics.
    model = stdc_fast.load(tmp_path / "best.safetensors", device="cpu", dtype="float32")
    miou = evaluate(model, open_folder(data, "val"), scale=1.0).miou()
    assert checkpoint.metadata["miou"] == pytest.approx(miou, abs=1e-6)
    # One process would take other steps: each has its own crops and batch norm statistics.
    with pytest.raises(UserError, match="world was 2, is 1"):
        train(TrainConfig(**state["config"]), data, tmp_path, resume=True, device="cpu", quiet=True)


def test_learns(data, tmp_path):
    """Three flat regions are learnt from four images in a few steps, with bf16 and AdamW."""
    config = dataclasses.replace(
        SMALL, iterations=30, batch=4, optimizer="adamw", lr=2e-3, val_every=40, amp="bf16", ema=0.8,
        class_weights=1.1, loss_stride=2, crop_start=(64, 64),
    )  # fmt: skip
    assert train(config, data, tmp_path, device="cpu", quiet=True) > 0.5


def test_refusals(whole_run, data, tmp_path):
    out, _ = whole_run
    with pytest.raises(UserError, match="holds a run already; add --resume"):
        train(SMALL, data, out, device="cpu", quiet=True)
    with pytest.raises(UserError, match=r"another recipe: lr was 0\.01, is 0\.5"):
        train(dataclasses.replace(SMALL, lr=0.5), data, out, resume=True, device="cpu", quiet=True)
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match=r"last\.pt: not a readable training state"):
        train(SMALL, data, tmp_path, resume=True, device="cpu", quiet=True)
    with pytest.raises(UserError, match="no such folder"):
        train(SMALL, tmp_path / "none", tmp_path / "new", device="cpu", quiet=True)


def test_other_classes_are_not_resumed(data, whole_run, tmp_path):
    out, _ = whole_run
    other = folders.camvid(tmp_path / "other", classes="0 Sky\n1 Wall\n2 River\n11 Void\n")
    with pytest.raises(UserError, match=r"classes was .*'Road'\], is .*'River'\]"):
        train(SMALL, other, out, resume=True, device="cpu", quiet=True)


def test_unwritable_folder(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/config\.json: can not be written"):
        train(SMALL, data, tmp_path / "file", device="cpu", quiet=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_named(tmp_path, workers):
    broken = folders.camvid(tmp_path / "data")
    for path in (broken / "train").iterdir():
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"^\S+train/f\d\.png: can not be decoded"):
        train(SMALL, broken, tmp_path / "run", device="cpu", quiet=True, workers=workers)


def painted(root, remap, classes):
    """A folder whose stored values are others."""
    folders.camvid(root, classes=classes)
    for path in root.glob("*annot/*.png"):
        stored = np.array(Image.open(path))
        Image.fromarray(np.array(remap, np.uint8)[stored]).save(path)
    return root


@pytest.mark.parametrize(
    ("remap", "classes", "said"),
    [
        (
            [0, 255, 255, *[255] * 9],
            "background\nperson\n",
            "of 2 classes only background has pixels in 4 files",
        ),
        ([38, 119, 119, *[119] * 9], "Road\nCar\n", r"as 4 of 4 label files: .* pixels have the value 119"),
        ([255] * 12, "Road\nCar\n", "of 2 classes none has a pixel in 4 files"),
    ],
)
def test_labels_without_classes_are_not_trained_on(tmp_path, remap, classes, said):
    """Before anything is written."""
    data = painted(tmp_path / "data", remap, classes)
    with pytest.raises(UserError, match=said):
        train(SMALL, data, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_validation_set_without_classes_is_refused_at_once(tmp_path):
    data = folders.camvid(tmp_path / "data")
    for path in (data / "valannot").iterdir():
        Image.new("L", (128, 96), 11).save(path)
    with pytest.raises(UserError, match="valannot: no pixel is of a class; check the labels"):
        train(SMALL, data, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_scale_that_no_validation_image_can_have_is_refused_at_once(data, tmp_path):
    config = dataclasses.replace(SMALL, eval_scale=1 / 16)
    with pytest.raises(UserError, match=r"val/f0\.png: the network would see 8x6"):
        train(config, data, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_a_model_and_a_start(whole_run, data, tmp_path):
    out, _ = whole_run
    best, last = stdc_fast.load(out, dtype="float32"), stdc_fast.load(out / "last.pt", dtype="float32")
    assert best.classes == last.classes and best.classes.names == ("Sky", "Wall", "Road")
    assert last.input_size == best.input_size
    average = torch.load(out / "last.pt")["average"]
    state = checkpoints.read(out / "last.pt").state
    assert all(torch.equal(average[k], v) for k, v in state.items())
    assert "averaged weights of the last save" in last.report
    state = torch.load(out / "last.pt")
    del state["metadata"]  # as older versions wrote it
    torch.save(state, tmp_path / "old.pt")
    assert stdc_fast.load(tmp_path / "old.pt").classes == best.classes
    run = started(SMALL, data, tmp_path / "new", out)
    assert "all weights taken" in run.notes[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no model\.safetensors, and no other file of weights"):
        stdc_fast.load(tmp_path / "empty")


def test_names_are_starts(data, tmp_path):
    from stdc_fast import train as module

    with module.processes("cpu") as process:
        run = module.Run(SMALL, data, tmp_path / "run", False, process, 0, "stdc1_camvid")
        run.close()
    expected = checkpoints.read_backbone(stdc_fast.zoo.find("stdc1_camvid"))
    mine = run.network.cp.backbone.state_dict()
    assert all(torch.equal(mine[k], v.float()) for k, v in expected.items())
    run = started(SMALL, data, tmp_path / "whole", "stdc1_camvid")
    assert "has other classes (Sky, Building, Pole, ... 11 in all), so the last layer" in run.notes[0]
    with pytest.raises(UserError, match="stdc1_in1k"):
        started(SMALL, data, tmp_path / "no", "stdc1_in1k.mmseg")


def test_diverging_run_stops_with_a_remedy(data, tmp_path):
    config = dataclasses.replace(SMALL, lr=1e30, warmup=0)
    with pytest.raises(UserError, match=r"not finite at iteration .* with a lower learning rate"):
        train(config, data, tmp_path, device="cpu", quiet=True)


def test_starts_from_a_backbone(data, tmp_path):
    from stdc_fast import train as module

    torch.manual_seed(1)
    classifier = STDCClassifier("stdc1")
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "STDCNet813M.tar")
    with module.processes("cpu") as process:
        run = module.Run(SMALL, data, tmp_path / "run", False, process, 0, tmp_path / "STDCNet813M.tar")
        run.close()
    for key, value in run.network.cp.backbone.features.state_dict().items():
        assert torch.equal(value, classifier.features.state_dict()[key]), key
    wrong = dataclasses.replace(SMALL, variant="stdc2")
    with pytest.raises(UserError, match="backbone is not stdc2's"), module.processes("cpu") as process:
        module.Run(wrong, data, tmp_path / "run2", False, process, 0, tmp_path / "STDCNet813M.tar")


def started(config, data, out, init):
    from stdc_fast import train as module

    with module.processes("cpu") as process:
        run = module.Run(config, data, out, False, process, 0, init=init)
        run.close()
    return run


def test_starts_from_whole_weights(whole_run, data, tmp_path):
    """All weights where the classes are the same, in any case; without the last layer where they are not."""
    init = whole_run[0] / "best.safetensors"
    state = checkpoints.read(init).state
    run = started(SMALL, data, tmp_path / "same", init)
    assert run.notes == [f"{init}: all weights taken; the training heads start anew"]
    for network in (run.network, run.average.network):
        mine = checkpoints.inference_state(network)
        assert all(torch.equal(mine[k], v) for k, v in state.items())

    other = folders.camvid(tmp_path / "other", classes="0 Sky\n1 River\n2 Road\n11 Void\n")
    run = started(SMALL, other, tmp_path / "run", init)
    assert "has other classes (Sky, Wall, Road, ... 3 in all), so the last layer starts anew" in run.notes[0]
    mine = checkpoints.inference_state(run.network)
    new = {k for k, v in state.items() if not torch.equal(mine[k], v)}
    assert new == {"conv_out.conv_out.weight"}
    # Two classes are another shape of the last layer; the rest fits.
    fewer = folders.camvid(tmp_path / "fewer", classes="0 Sky\n1 Wall\n2 Void\n11 Unlabelled\n")
    run = started(SMALL, fewer, tmp_path / "fewer_run", init)
    assert len(checkpoints.inference_state(run.network)["conv_out.conv_out.weight"]) == 2


def test_unnamed_classes_start_the_last_layer_anew(whole_run, data, tmp_path):
    state = checkpoints.read(whole_run[0] / "best.safetensors").state
    checkpoints.save(state, tmp_path / "unnamed.safetensors", {"variant": "stdc1"})
    run = started(SMALL, data, tmp_path / "run", tmp_path / "unnamed.safetensors")
    assert "names no classes, so the last layer starts anew" in run.notes[0]


def test_other_networks_are_no_start(whole_run, data, tmp_path):
    init = whole_run[0] / "best.safetensors"
    with pytest.raises(
        UserError,
        match=r"a stdc1 that differs from the stdc2 to be trained, first at .*; choose --variant stdc1$",
    ):
        train(dataclasses.replace(SMALL, variant="stdc2"), data, tmp_path / "a", init=init, device="cpu")
    with pytest.raises(UserError, match="give either init or backbone"):
        train(SMALL, data, tmp_path / "b", init=init, backbone=init, device="cpu")
    checkpoint = checkpoints.read(init)
    metadata = checkpoint.metadata | {"count_include_pad": False}
    checkpoints.save(checkpoint.state, tmp_path / "pad.safetensors", metadata)
    with pytest.raises(UserError, match="first at count_include_pad; take its backbone only, with --backb"):
        train(SMALL, data, tmp_path / "c", init=tmp_path / "pad.safetensors", device="cpu")


def test_training_on_val_validates_nothing(data, tmp_path, capsys):
    config = dataclasses.replace(SMALL, splits=("train", "val"), iterations=3)
    assert train(config, data, tmp_path, device="cpu") is None
    assert "trains on val, so nothing is validated" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {
        "last.pt", "averaged.safetensors", "train.csv", "config.json",
    }  # fmt: skip
    checkpoint = checkpoints.read(tmp_path / "averaged.safetensors")
    assert checkpoint.metadata["splits"] == ["train", "val"]
    assert checkpoint.metadata["iteration"] == 3 and "miou" not in checkpoint.metadata
    assert checkpoint.metadata["short_side"] == 96
    average = torch.load(tmp_path / "last.pt")["average"]
    assert all(torch.equal(average[k], v) for k, v in checkpoint.state.items())
    with pytest.raises(UserError, match=r"splits was \('train', 'val'\), is \('train',\)"):
        train(dataclasses.replace(config, splits=("train",)), data, tmp_path, resume=True, device="cpu")


def test_a_run_from_before_an_option_goes_on(whole_run, data, tmp_path):
    """Its recipe lacks the option, which is what off means."""
    state = torch.load(whole_run[0] / "last.pt")
    del state["config"]["hue"], state["config"]["splits"]
    torch.save(state, tmp_path / "last.pt")
    assert train(SMALL, data, tmp_path, resume=True, device="cpu", quiet=True) == whole_run[1]
    with pytest.raises(UserError, match=r"hue was 0\.0, is 0\.1"):
        train(dataclasses.replace(SMALL, hue=0.1), data, tmp_path, resume=True, device="cpu", quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 1}, "batch must be at least 2"),
        ({"iterations": 0}, "iterations must be positive, not 0"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"amp": "half"}, "unknown amp 'half'"),
        ({"scales": (2.0, 1.0)}, "two growing factors"),
        ({"scales": (float("inf"), float("inf"))}, "two growing factors"),
        ({"scales": (0.001, 0.001)}, "two growing factors"),
        ({"eval_scale": 0.01}, "eval_scale must lie between 1/16 and 16"),
        ({"seed": -1}, "seed must lie between 0 and"),
        ({"lr": float("nan")}, "lr must be positive, not nan"),
        ({"lr": float("inf")}, "lr must lie between 0 and 1e.30, not inf"),
        ({"weight_decay": float("nan")}, "weight_decay must lie"),
        ({"class_weights": float("nan")}, "class_weights must be"),
        ({"aux_weight": float("nan")}, "aux_weight must lie"),
        ({"jaccard_weight": -1}, "jaccard_weight must lie"),
        ({"crop": (100, 128)}, "multiple of 32"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"variant": "stdc9"}, "unknown network 'stdc9'"),
        ({"crop_start": (128, 128)}, "crop_start"),
        ({"class_weights": 0.5}, "class_weights"),
        ({"warmup": 6}, "warmup 6 must be shorter than the 6 iterations"),
        ({"balance": 1.5}, "balance must lie between 0 and 1"),
        ({"hue": 0.6}, r"hue must lie between 0 and 0\.5, not 0\.6"),
        ({"noise": -0.1}, "noise must lie between 0 and 1"),
        ({"splits": ()}, "at least one"),
        ({"splits": ("train", "train")}, "different names"),
    ],
)
def test_bad_recipes(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_schedules():
    config = dataclasses.replace(
        SMALL, iterations=100, warmup=10, lr=1.0, crop=(128, 192), crop_start=(64, 128)
    )
    rates = [config.lr_at(i) for i in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5**0.9)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] > 0
    crops = [config.crop_at(i) for i in range(100)]
    assert crops[0] == (64, 128) and crops[-1] == (128, 192)
    assert crops == sorted(crops) and len(set(crops)) == 3
    assert dataclasses.replace(config, crop_start=None).crop_at(0) == (128, 192)


def test_average_has_no_bias_towards_its_start():
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    average = Average(network, 0.5)
    network.weight.data.fill_(1.0)
    average.update(network, 0)
    # The first step's decay is 1/10, not 0.5.
    assert average.network.weight.item() == pytest.approx(0.9)
    average.update(network, 1000)
    assert average.network.weight.item() == pytest.approx(0.95)
