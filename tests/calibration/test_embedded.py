"""The embedded weights in 8 bits: their ranges, the goals on a photo, and what the documents say."""

import json
import re

import pytest
import torch
from oracle import street, trained, truth
from paths import ROOT

import stdc_fast
from stdc_fast import _native, checkpoints, zoo
from stdc_fast.backends import cpu
from stdc_fast.calibration.record import beside
from stdc_fast.errors import UserError
from stdc_fast.numerics import label_agreement, relative_error
from stdc_fast.plan.quantise import candidates, wanted

#: Goals: error of logits, labels that agree. The first is of the network with bfloat16 maps. Where all
#: convolutions are in 8 bits the error was 1.04e-2 when the ranges were taken.
ERROR, AGREEMENT = {"int8": 1.0e-2, "int8+float32": 1.1e-2}, 0.994


def test_ranges_of_the_embedded_weights():
    assert stdc_fast.list_models(status="embedded") == ["stdc1_camvid"]  # ranges are no model
    path = beside(zoo.find("stdc1_camvid"))
    found = checkpoints.read_ranges(path)
    assert path.stat().st_size < 100_000
    assert found.fingerprint == checkpoints.fingerprint(checkpoints.read(zoo.find("stdc1_camvid")).network())
    assert found.source == "camvid/train" and found.frames + found.about["held_out"] == 64
    model = stdc_fast.load(device="cpu", dtype="float32")
    plan = model.plan()
    assert {key: len(one.low) for key, one in found.ranges.items()} == wanted(plan, candidates(plan))
    assert model.calibration.facts() == found.facts()


@pytest.mark.parametrize("dtype", ["int8", "int8+float32"])
@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_goals_on_a_photo(backend, dtype):
    if backend == "cpu" and cpu.BACKEND.why_not_here() is not None:
        pytest.skip(cpu.BACKEND.why_not_here())
    frames = street((256, 256))
    logits, labels = truth(trained(), frames)
    model = stdc_fast.load(device="cpu", dtype=dtype, backend=backend)
    assert relative_error(model._runs(frames).logits(frames), logits) <= ERROR[dtype]
    assert label_agreement(model.label(frames, size="native"), labels) >= AGREEMENT


def test_a_model_that_was_saved_keeps_the_ranges(tmp_path):
    model = stdc_fast.load(device="cpu", dtype="float32", backend="eager")
    model.save_pretrained(tmp_path)
    again = stdc_fast.load(tmp_path, device="cpu", dtype="int8", backend="eager")
    assert again.calibration.facts() == model.calibration.facts()
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert again.label(frames).shape == (1, 64, 64)


def test_a_saved_plan_in_8_bits_labels_as_the_model_does(tmp_path):
    if cpu.BACKEND.why_not_here() is not None:
        pytest.skip(cpu.BACKEND.why_not_here())
    model = stdc_fast.load(device="cpu", dtype="int8", backend="cpu")
    for source, name in (("stdc1_camvid", "a.plan"), (model, "b.plan")):
        report = stdc_fast.export(source, tmp_path / name, dtype="int8")
        assert report.agreement > 0.98
    saved = (tmp_path / "a.plan").read_bytes()
    version = 3 if model.ops_in_levels() else 2  # where nothing is faster in 8 bits
    assert saved == (tmp_path / "b.plan").read_bytes() and saved.startswith(f"stdc-plan {version}\n".encode())
    frames, labels = street((160, 256)), torch.empty(1, 160, 256, 1, dtype=torch.uint8)
    engine = _native.module().Engine(saved)
    engine.run([cpu._spec(frames)], cpu._spec(labels), 160, 256, 1, True)
    assert torch.equal(labels[..., 0], model.label(frames, size="native"))


def test_a_plan_of_a_small_model_labels_as_that_does(tmp_path):
    if cpu.BACKEND.why_not_here() is not None:
        pytest.skip(cpu.BACKEND.why_not_here())
    model = stdc_fast.load(device="cpu", dtype="int8", backend="cpu", memory="small")
    stdc_fast.export(model, tmp_path / "a.plan", dtype="int8")
    frames, labels = street((160, 256)), torch.empty(1, 160, 256, 1, dtype=torch.uint8)
    engine = _native.module().Engine((tmp_path / "a.plan").read_bytes(), "", True)
    engine.run([cpu._spec(frames)], cpu._spec(labels), 160, 256, 1, True)
    assert torch.equal(labels[..., 0], model.label(frames, size="native"))


def test_int8_without_an_op_in_8_bits_is_said(tmp_path, monkeypatch, caplog):
    """On a processor that multiplies none faster: by whichever way int8 is asked for."""
    if cpu.BACKEND.why_not_here() is not None:
        pytest.skip(cpu.BACKEND.why_not_here())
    monkeypatch.setenv("STDC_FAST_CPU_ISA", "portable")
    model = stdc_fast.load(device="cpu", dtype="float32", backend="cpu")
    calls = (
        lambda: stdc_fast.load(device="cpu", dtype="int8", backend="cpu"),
        lambda: setattr(model, "dtype", "int8"),
        lambda: stdc_fast.export("stdc1_camvid", tmp_path / "a.plan", dtype="int8", check=False),
    )
    for call in calls:
        caplog.clear()
        call()
        (said,) = caplog.messages
        assert said == (
            "stdc1_camvid: nothing is faster in 8 bits here, or all was left out: int8 is torch.float32"
        )


def test_only_plans_and_onnx_hold_8_bits(tmp_path):
    for name in ("a.xml", "a.pt2", "a.safetensors"):
        with pytest.raises(UserError, match="has no int8, only onnx and plans have"):
            stdc_fast.export("stdc1_camvid", tmp_path / name, dtype="int8", size=(64, 64))
    checkpoints.save(
        checkpoints.inference_state(stdc_fast.load(device="cpu").network), tmp_path / "w.safetensors", {}
    )
    with pytest.raises(UserError, match="int8 needs ranges"):
        stdc_fast.export(tmp_path / "w.safetensors", tmp_path / "a.plan", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_the_document_says_what_the_file_says():
    found = json.loads((ROOT / "docs/results/sensitivity_camvid.json").read_text())
    text = (ROOT / "docs/quantisation.md").read_text()
    rows = re.findall(r"^\| (\S+?)(, taken)? \| ([\d.e-]+) \| ([\d.]+)% \|$", text, re.M)
    assert [(name, bool(taken), error, share) for name, taken, error, share in rows] == [
        (
            row["method"],
            row["method"] == found["method"],
            f"{row['error']:.1e}",
            f"{100 * row['agreement']:.3f}",
        )
        for row in found["about"]["compared"]
    ]
    shipped = checkpoints.read_ranges(beside(zoo.find("stdc1_camvid")))
    assert shipped.facts() == {key: value for key, value in found.items() if key != "model"}
    assert (
        f"{found['frames']} pictures of CamVid train, and held out {found['about']['held_out']} more" in text
    )
    assert not found["keep"] and "None is above the limit." in text
