"""Segmentation: counts, JSON, overlays, files; results are fresh."""

import itertools
import json
import re
import time
import warnings

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image, ImageCms

import stdc_fast
from stdc_fast import UserError, checkpoints, images
from stdc_fast.classes import CAMVID, CITYSCAPES
from stdc_fast.reference import STDCSeg


def same(result, labels):
    return np.array_equal(result.labels, labels)


@pytest.fixture(scope="module")
def result(tiny_model, photo):
    return tiny_model.predict(photo(70, 100), confidence=True)


def test_the_examples_of_confidence(model, photo, tmp_path, monkeypatch):
    """As docs/usage.md gives them."""
    text = (ROOT / "docs" / "usage.md").read_text()
    section = text[text.index("## Confidence") : text.index("## Videos")]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo()).save("street.jpg")
    names = {"model": model, "stdc_fast": stdc_fast, "torch": torch, "frames": photo()[None]}
    for block in blocks:
        exec(block, names)
    confidence, unsure = names["result"].confidence, names["unsure"]
    assert (confidence.dtype, confidence.shape) == (np.float32, (64, 96))
    assert np.array_equal(unsure, confidence < 0.5)
    p = names["p"].detach().double().numpy()
    assert np.allclose(names["margin"].detach(), np.diff(np.sort(p, 1)[:, -2:], axis=1)[:, 0], atol=1e-6)
    assert np.allclose(names["entropy"].detach(), -(p * np.log(p)).sum(1), atol=1e-5)
    assert 0 < names["entropy"].max() <= np.log(len(CAMVID))


def test_counts_and_shares(result):
    counts = result.counts()
    assert sum(counts.values()) == 70 * 100
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    for name, pixels in counts.items():
        assert pixels == (result.labels == CAMVID.names.index(name)).sum() > 0
    assert abs(sum(result.shares().values()) - 1) < 1e-9
    assert list(result.shares()) == list(counts)


def test_json(result):
    found = json.loads(result.to_json())
    assert found == result.to_dict() == json.loads(result.to_json(indent=2))
    assert (found["width"], found["height"]) == (100, 70)
    assert (found["input_width"], found["input_height"]) == (91, 64)
    assert found["name"] == "array"
    assert 0 < found["seconds"] < 60
    assert {c["name"]: c["pixels"] for c in found["classes"]} == result.counts()
    for entry in found["classes"]:
        assert CAMVID.names[entry["id"]] == entry["name"]
        assert abs(entry["share"] - entry["pixels"] / 7000) < 1e-6


def test_speed_tells_reading_from_labelling(model, tmp_path, monkeypatch, photo):
    Image.fromarray(photo(40, 50)).save(tmp_path / "a.png")
    read = images.read_image
    monkeypatch.setattr(images, "read_image", lambda *a: time.sleep(0.05) or read(*a))
    result = model.predict(tmp_path / "a.png")
    assert result.speed["read"] >= 50
    assert result.speed["label"] == 1e3 * result.seconds > 0


def test_confidence(model, result, photo):
    assert result.confidence.dtype == np.float32
    assert result.confidence.shape == (70, 100)
    # The winner of eleven has at least an eleventh.
    assert result.confidence.min() >= 1 / 11
    assert result.confidence.max() <= 1
    assert result.confidence.std() > 0.01
    plain = model.predict(photo(70, 100))
    assert plain.confidence is None
    assert same(plain, result.labels)


def test_repr_is_short(result):
    assert "array" in repr(result)
    assert "100x70" in repr(result)
    assert len(repr(result)) < 100


def test_colours_and_overlay(result):
    palette = np.array(CAMVID.shown)
    assert np.array_equal(result.colours(), palette[result.labels])
    assert result.overlay().size == (100, 70)
    both = np.asarray(result.overlay(side_by_side=True))
    assert np.array_equal(both[:, :100], result.image) and np.array_equal(both[:, 100:], result.overlay())
    assert np.array_equal(np.asarray(result.overlay(0)), result.image)
    assert np.array_equal(np.asarray(result.overlay(1)), result.colours())
    mixed = 0.7 * result.image.astype(float) + 0.3 * result.colours()
    assert np.abs(np.asarray(result.overlay(0.3)) - mixed).max() <= 1
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="alpha"):
            result.overlay(alpha)


@pytest.mark.parametrize("width", [33, 100, 700])
def test_legend(width, model, photo):
    result = model.predict(photo(40, width))
    plain, legend = result.overlay(), result.overlay(legend=True)
    assert legend.width == plain.width
    assert legend.height > plain.height
    pixels = np.asarray(legend)
    assert np.array_equal(pixels[:40], np.asarray(plain))
    present = {tuple(c) for c in pixels[40:].reshape(-1, 3).tolist()}
    shares = result.shares()
    for name, colour in zip(CAMVID.names, CAMVID.shown, strict=True):
        assert (colour in present) == (shares.get(name, 0) >= 0.0005)
    # In the order of the classes, from left to right and down.
    first = [np.argwhere((pixels[40:] == c).all(2))[0].tolist() for c in CAMVID.shown if c in present]
    assert first == sorted(first)


def test_colours_of_overlays_can_be_told_apart():
    """At half weight over grey, in CIELAB, where 2.3 is a difference that is just seen."""
    labs = [_lab(tuple(64 + v // 2 for v in colour)) for colour in CAMVID.shown]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(labs, 2)) > 15
    labs = [_lab(tuple(64 + v // 2 for v in colour)) for colour in CAMVID.palette]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(labs, 2)) < 15


def _lab(rgb):
    """CIELAB of an sRGB colour, by Pillow."""
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = np.array(ImageCms.applyTransform(Image.new("RGB", (1, 1), rgb), to_lab))[0, 0].astype(np.int16)
    return np.array([lab[0] * 100 / 255, *(v - 256 if v > 127 else v for v in lab[1:])])


def test_saved_labels_come_back(result, tmp_path):
    path = tmp_path / "new" / "labels.png"
    result.save(path)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert saved.mode == "P"
        assert np.array_equal(np.asarray(saved), result.labels)
        assert np.array_equal(np.array(saved.getpalette())[:33].reshape(11, 3), CAMVID.palette)
        assert np.array_equal(np.asarray(saved.convert("RGB")), np.array(CAMVID.palette)[result.labels])
    assert [p.name for p in path.parent.iterdir()] == ["labels.png"]


def test_unwritable_places_are_said(result, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "labels.png", tmp_path / "folder.png"):
        with pytest.raises(UserError, match="can not be written") as error:
            result.save(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.png"}


def test_results_are_fresh(model, photo):
    frames = np.stack([photo(), photo(seed=1)])
    first = model.predict(frames[0], confidence=True)
    kept = first.labels.copy(), first.confidence.copy()
    second = model.predict(frames[1], confidence=True)
    again = model.predict(frames[0], confidence=True)
    assert not np.array_equal(first.labels, second.labels)
    for a, b in ((first, second), (first, again)):
        assert not np.shares_memory(a.labels, b.labels)
        assert not np.shares_memory(a.confidence, b.confidence)
    again.labels[:] = 0  # a result belongs to its holder, who may write
    again.confidence[:] = 0
    assert np.array_equal(first.labels, kept[0])
    assert np.array_equal(first.confidence, kept[1])

    one = model.label(frames)
    kept = one.clone()
    other = model.label(frames[::-1].copy())
    assert one.data_ptr() != other.data_ptr()
    assert torch.equal(one, kept)


@pytest.mark.parametrize("convert", [lambda a: a, torch.from_numpy], ids=["array", "tensor"])
def test_a_result_keeps_its_picture_when_the_buffer_is_used_again(convert, model, photo):
    """Video readers write every frame to the same buffer."""
    buffer = photo()
    result = model.predict(convert(buffer))
    buffer[:] = 0
    assert np.array_equal(result.image, photo())


def test_labels_on_the_device_are_ordinary_tensors(model, photo):
    """Masks out ignored pixels in place, and weights a loss, as callers do."""
    labels = model.label(photo()[None])
    weight = torch.ones(1, 64, 96, requires_grad=True)
    (weight * labels).sum().backward()
    assert torch.equal(weight.grad, labels.float())
    labels[:, :5] = 255
    assert (labels[:, :5] == 255).all()


def test_inputs_are_not_modified(model, photo):
    array = photo(200, 300)  # is reduced and resized
    tensor = torch.from_numpy(array.copy())
    x = torch.randn(3, 64, 96)
    kept = x.clone()
    model.predict(array)
    model.predict(array, bgr=True)
    model.predict(tensor)
    model.label(tensor[None])
    model.predict(x, scale=0.7)
    model(x[None])
    assert np.array_equal(array, photo(200, 300))
    assert np.array_equal(tensor.numpy(), array)
    assert torch.equal(x, kept)


def test_read_only_arrays_make_no_warning(model, photo):
    array = photo()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = model.predict(array)
        model.predict(array, bgr=True)
        model.predict(np.asarray(Image.fromarray(photo())))
        labels = model.label(array[None])
    assert same(result, labels[0].numpy())


def test_labels_are_never_written_with_losses(result, tmp_path):
    with pytest.raises(UserError, match=r"x\.jpg: labels are written as PNG"):
        result.save(tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []


def test_label_ids_of_cityscapes(tmp_path, run_cli, photo, tiny_weights):
    """The benchmark wants labelIds, such as 7 for road, not class ids."""
    torch.manual_seed(0)
    network = STDCSeg("stdc1", 19).eval()
    metadata = {"variant": "stdc1", "classes": CITYSCAPES.names, "short_side": 64}
    checkpoints.save(checkpoints.inference_state(network), tmp_path / "m.safetensors", metadata)
    Image.fromarray(photo()).save(tmp_path / "a.png")
    found = {}
    for options in ((), ("--label-ids",)):
        out = tmp_path / f"out{len(options)}"
        run = run_cli("predict", tmp_path / "a.png", "-m", tmp_path / "m.safetensors", "-o", out, *options)
        assert run.code == 0, run.err
        with Image.open(out / "a_labels.png") as image:
            found[options] = image.mode, np.array(image)
    assert found[()][0] == "P" and found["--label-ids",][0] == "L"
    table = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    assert len(np.unique(found[()][1])) > 1
    assert np.array_equal(found["--label-ids",][1], table[found[()][1]])
    predict = "predict", tmp_path / "a.png", "-m"
    run = run_cli(*predict, tiny_weights, "--label-ids", "-o", tmp_path / "no")
    assert run.code == 2 and "is no class of Cityscapes" in run.messages[0] and not (tmp_path / "no").exists()
    run = run_cli(*predict, tmp_path / "m.safetensors", "--label-ids", "--no-labels")
    assert run.code == 2 and "--no-labels" in run.messages[0]
