"""What an export refuses before it starts: in one line, with the remedy, and nothing is written."""

import json
import os

import numpy as np
import pytest
import torch

import stdc_fast
from stdc_fast import UserError, exporters
from stdc_fast.exporters import Settings, formats


@pytest.fixture
def installed(monkeypatch):
    """As if every package were there."""
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: object())


def refusal(model, path, **how):
    with pytest.raises(UserError) as caught:
        stdc_fast.export(model, path, **how)
    text = str(caught.value)
    assert "\n" not in text
    assert not path.exists() and (not path.parent.exists() or os.listdir(path.parent) == [])
    return text


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("a.trt", {}, "the suffix .trt is of no format; use one of .onnx (onnx), .xml (openvino)"),
        ("a", {}, "the suffix (none) is of no format"),
        ("a.onnx", {"format": "plan"}, ".onnx is the suffix of format onnx, not of plan; name it .plan"),
        ("a.onnx", {"format": "tflite"}, "format must be one of onnx, openvino"),
        ("a.xml", {"dtype": "int8"}, "has no int8, only onnx and plans have"),
        ("a.onnx", {"dtype": "int8"}, "int8 in onnx serves one size and one batch; give both"),
        ("a.onnx", {"dtype": "int8", "size": (32, 64), "batch": None}, "serves one size and one batch"),
        ("a.onnx", {"dtype": "int8", "size": (32, 64)}, "its ranges from pictures; give --calibrate FOLDER"),
        ("a.onnx", {"calibrate": "photos"}, "calibrate is for onnx in int8, not for onnx in float32"),
        ("a.onnx", {"dtype": "int8", "size": (32, 64), "calibrate": []}, "no frames to calibrate on"),
        ("a.onnx", {"dtype": "bfloat16"}, "format onnx has dtype float32 or float16 or int8, not 'bfloat16'"),
        ("a.pt2", {"dtype": "float16"}, "format torch has dtype float32, not 'float16'"),
        ("a.plan", {"dtype": "float16"}, "format plan has dtype float32 or bfloat16"),
        ("a.onnx", {"size": (31, 64)}, "both sides must be at least 32"),
        ("a.onnx", {"size": (64, 70000)}, "at most 65536"),
        ("a.onnx", {"size": 64}, "size 64: (height, width)"),
        ("a.onnx", {"size": (64.0, 64)}, "size (64.0, 64): (height, width)"),
        ("a.onnx", {"batch": 0}, "batch must be a number from 1 to 1024, or None for any, not 0"),
        ("a.onnx", {"batch": True}, "batch must be a number"),
        ("a.onnx", {"format": ["onnx"]}, "format must be one of onnx, openvino"),
        ("a.onnx", {"output": ["labels"]}, "output must be one of logits, logits8, labels, not ['labels']"),
        ("a.onnx", {"input": "bgr"}, "input must be one of normalised, nhwc, nchw, not 'bgr'"),
        ("a.onnx", {"output": "mask"}, "output must be one of logits, logits8, labels, not 'mask'"),
        ("a.onnx", {"opset": 17}, "opset must be 18 to 23, not 17"),
        ("a.xml", {"opset": 19}, "opset 19 is for format onnx; leave it out"),
        ("a.onnx", {"compiled": True}, "only format torch is compiled, not onnx; leave compiled out"),
        ("a.plan", {"compiled": True}, "only format torch is compiled, not plan; leave compiled out"),
        ("a.onnx", {"frame": (64, 96)}, "frame needs size"),
        ("a.onnx", {"size": (64, 96), "frame": (64, 200)}, "more than twice a size of 64x96"),
        ("a.onnx", {"size": (64, 96), "frame": (80, 96), "output": "logits8"}, "use logits"),
        ("a.param", {}, "a file of format ncnn serves one size; give it"),
        ("a.mnn", {"size": (64, 96), "batch": None}, "a file of format mnn serves one batch"),
        ("a.param", {"size": (64, 96), "batch": 2}, "ncnn has no batches; batch 2 must be 1"),
        ("a.param", {"size": (64, 96), "input": "nhwc"}, "ncnn has no layers for raw frames and argmax"),
        ("a.param", {"size": (64, 96), "output": "labels"}, "ncnn has no layers for raw frames and argmax"),
        ("a.plan", {"size": (64, 96)}, "format plan has the network for every size"),
        ("a.safetensors", {"output": "labels"}, "format safetensors has the network for every size"),
    ],
)
def test_what_no_file_can_be(name, how, said, tmp_path, tiny_weights, installed):
    assert said in refusal(tiny_weights, tmp_path / "o" / name, **how)


@pytest.mark.parametrize("form", [f for f in formats.FORMATS.values() if f.needs], ids=lambda f: f.name)
def test_packages_that_are_missing(form, tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    size = None if form.any_size else (64, 96)
    text = refusal(tiny_weights, tmp_path / "o" / f"a{form.suffix}", size=size)
    assert text == (
        f"format {form.name} needs {', '.join(form.needs)}, which is not installed; "
        f'run: pip install "stdc-fast[{form.extra}]"'
    )


def test_every_extra_is_one_of_the_package():
    text = (stdc_fast.source_tree._ROOT / "pyproject.toml").read_text()
    for form in formats.FORMATS.values():
        assert not form.extra or f"\n{form.extra} = [" in text


def test_a_folder_that_can_not_be_written(tmp_path, tiny_weights, unprivileged, installed):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    with unprivileged(), pytest.raises(UserError, match=r"a\.safetensors: can not be written"):
        stdc_fast.export("stdc1_camvid", folder / "a.safetensors")
    assert os.listdir(folder) == []


def test_weights_that_are_not_finite(tmp_path, tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    with torch.no_grad():
        model.network.conv_out.conv_out.weight[3, 0] = float("nan")
    text = refusal(model, tmp_path / "o" / "a.safetensors")
    assert "conv_out.conv_out.weight holds NaN or infinite values; load other weights" in text


def test_other_models(tmp_path, tiny_model):
    assert "not Conv2d" in refusal(torch.nn.Conv2d(3, 3, 1), tmp_path / "o" / "a.safetensors")
    assert "did you mean stdc1_camvid" in refusal("stdc1_camvidd", tmp_path / "o" / "a.safetensors")
    assert "are for a file" in refusal(tiny_model, tmp_path / "o" / "a.safetensors", eps=1e-3)


def test_files_of_something_else_stay(tmp_path, tiny_weights, installed):
    """OpenVINO and ncnn have their weights beside, both in a .bin."""
    weights, param = tmp_path / "s1.bin", tmp_path / "s1.param"
    weights.write_bytes(b"somebody's checkpoint")

    def said(name, model=tiny_weights, **how):
        with pytest.raises(UserError) as caught:
            stdc_fast.export(model, tmp_path / name, size=(64, 96), **how)
        assert weights.read_bytes() == b"somebody's checkpoint"
        return str(caught.value)

    assert "s1.xml: its weights would replace s1.bin of something else" in said("s1.xml")
    param.write_text("a network")
    assert "would replace s1.bin of s1.param" in said("s1.xml")
    (tmp_path / "s1.xml").write_text("a network that was there before")
    assert "would replace s1.bin of s1.param" in said("s1.xml")
    assert "would replace s1.bin of s1.xml" in said("s1.param")
    param.unlink()
    assert "would replace s1.bin of the model" in said("s1.xml", weights)
    for report in ("s1.xml", "s1.bin"):
        assert "the export itself is written there" in said("s1.xml", report=tmp_path / report)
    assert sorted(os.listdir(tmp_path)) == ["s1.bin", "s1.xml"]


def test_the_command_line(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        ((), "give --out FILE, or --format, one of onnx, openvino"),
        (("--format", "trt"), "give --out FILE, or --format"),
        (("-o", "s1.engine"), "s1.engine: the suffix .engine is of no format"),
        (("-o", "s1.onnx", "--format", "openvino"), "name it .xml, or leave the format out"),
        (("-o", "s1.safetensors", "--batch", "two"), "--batch must be a number or \"any\", not 'two'"),
        (("-o", "s1.safetensors", "--size", "64"), "--size must be HEIGHTxWIDTH"),
        (("-o", "s1.safetensors", "--frame", "native"), "--frame must be HEIGHTxWIDTH"),
    ):
        done = run_cli("export", "stdc1_camvid", *arguments)
        assert done.code == 2 and len(done.messages) == 1, done.err
        assert said in done.messages[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [[64, 96], torch.Size((64, 96)), np.array([64, 96])], ids=repr)
def test_kinds_of_sizes_and_dtypes(size, tiny_model, tmp_path):
    """Those that load and predict take, too."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    done = stdc_fast.export(tiny_model, path, size=size, dtype=torch.float16, check=False)
    assert done.settings == Settings("float16", (64, 96))
    assert json.loads(json.dumps(done.to_dict()))["settings"]["size"] == [64, 96]


def test_formats_are_told_by_suffix():
    from pathlib import Path

    for form in exporters.FORMATS.values():
        assert exporters.format_of(Path(f"a{form.suffix.upper()}"), None) is form
        assert exporters.format_of(Path(f"a{form.suffix}"), form.name) is form
