"""load(): names, files, options, and metadata that does not fit."""

import numpy as np
import pytest
import torch
from paths import ROOT

import stdc_fast
from stdc_fast import UserError, _native, checkpoints, zoo
from stdc_fast.classes import CAMVID
from stdc_fast.datasets import open_folder
from stdc_fast.evaluation import evaluate

CAMVID_DATA = ROOT.parent / "shared" / "data" / "camvid"


def test_load_reads_names_colours_and_size(tiny_weights):
    model = stdc_fast.load(str(tiny_weights), device="cpu")
    assert model.classes == CAMVID
    assert model.input_size == stdc_fast.InputSize(short_side=64)
    assert model.name == "tiny"
    assert "193 of 193" in model.report
    assert (
        stdc_fast.load(tiny_weights, device=torch.device("cpu"), dtype=torch.float64).dtype == torch.float64
    )


def test_unknown_names_suggest_the_nearest(tiny_weights, tmp_path, monkeypatch):
    (tmp_path / "stdc1_camvid.safetensors").symlink_to(tiny_weights)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert stdc_fast.list_models(status="embedded") == ["stdc1_camvid"]
    assert stdc_fast.load(device="cpu").name == "stdc1_camvid"
    assert stdc_fast.model_info()["classes"] == list(CAMVID.names)
    with pytest.raises(UserError, match=r"unknown model 'stdc1_camvit'.*did you mean stdc1_camvid"):
        stdc_fast.load("stdc1_camvit")
    with pytest.raises(UserError, match=r"unknown model 'zzz'.*stdc-fast models"):
        stdc_fast.load("zzz")
    for missing in ("nowhere/stdc1.pth", "stdc1.pt", tmp_path / "stdc1.safetensors"):
        with pytest.raises(UserError, match="no such file") as error:
            stdc_fast.load(missing)
        assert str(missing) in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: has no model\.safetensors"):
        stdc_fast.load(tmp_path / "empty")
    with pytest.raises(UserError, match="xxxxx"):
        stdc_fast.load("x" * 300)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "mps"}, "mps is not supported"),
        ({"device": "cuda:99"}, "cuda:99: torch sees"),
        ({"dtype": "half"}, "unknown dtype 'half'.*float16"),
        ({"dtype": torch.int8}, "unknown dtype torch.int8"),
        ({"dtype": np.float32}, "unknown dtype"),
        ({"backend": "eagr"}, "unknown backend 'eagr'; did you mean eager"),
        ({"backend": "zzz"}, "unknown backend 'zzz'; available here: .*eager"),
    ],
    ids=str,
)
def test_wrong_load_options_are_refused(options, reason, tiny_weights):
    with pytest.raises(UserError, match=reason):
        stdc_fast.load(tiny_weights, **options)


def test_an_absent_backend_gives_its_reason(tiny_weights, monkeypatch):
    monkeypatch.setattr(_native, "_load", lambda: "it was not built, no compiler")
    with pytest.raises(UserError, match=r"cpu is not available: it was not built.*eager"):
        stdc_fast.load(tiny_weights, device="cpu", backend="cpu")
    assert stdc_fast.load(tiny_weights, device="cpu").backend == "eager"


def test_the_environment_chooses_the_backend(tiny_weights, monkeypatch):
    monkeypatch.setenv("STDC_FAST_BACKEND", "eager")
    assert stdc_fast.load(tiny_weights, device="cpu").backend == "eager"
    monkeypatch.setenv("STDC_FAST_BACKEND", "bogus")
    with pytest.raises(UserError, match=r"unknown backend 'bogus' \(from STDC_FAST_BACKEND\)"):
        stdc_fast.load(tiny_weights)
    # An argument goes before the variable.
    assert stdc_fast.load(tiny_weights, device="cpu", backend="eager").backend == "eager"


@pytest.mark.parametrize(
    "wrong",
    [
        {"palette": [[1, 2, 3]]},
        {"palette": [[300, 2, 3]] * 11},
        {"classes": 5},
        {"classes": ["a"] * 11},  # counts() and the JSON go by name
        {"short_side": "abc"},
        {"short_side": 0},
    ],
    ids=["few colours", "large colour", "no list", "equal names", "text for a number", "zero"],
)
def test_wrong_metadata_is_refused_on_loading(wrong, tiny_network, tmp_path):
    path = tmp_path / "wrong.safetensors"
    metadata = {"variant": "stdc1", "classes": CAMVID.names, "palette": CAMVID.palette, "short_side": 64}
    checkpoints.save(checkpoints.inference_state(tiny_network), path, metadata | wrong, half=True)
    with pytest.raises(UserError, match=r"wrong.safetensors") as error:
        stdc_fast.load(path, device="cpu")
    assert "\n" not in str(error.value)


def test_null_in_metadata_is_as_good_as_nothing(tiny_network, tmp_path):
    path = tmp_path / "null.safetensors"
    metadata = {"variant": "stdc1", "classes": None, "palette": None, "short_side": None}
    checkpoints.save(checkpoints.inference_state(tiny_network), path, metadata, half=True)
    model = stdc_fast.load(path, device="cpu")
    assert model.input_size.short_side is None
    # Eleven classes need not be CamVid's.
    assert model.classes.names == tuple(f"class {i}" for i in range(11))


def test_names_come_from_the_file_or_the_caller(tiny_network, tmp_path, caplog):
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.inference_state(tiny_network), path, {"variant": "stdc1"}, half=True)
    assert stdc_fast.load(path, device="cpu").classes.names[3] == "class 3"
    assert "no names of its 11 classes" in caplog.text and "classes=[...]" in caplog.text
    caplog.clear()
    assert stdc_fast.load(path, device="cpu", classes="CamVid").classes == CAMVID
    names, palette = [f"thing {i}" for i in range(11)], [(i, 2, 3) for i in range(11)]
    model = stdc_fast.load(path, device="cpu", classes=names, palette=palette)
    assert model.classes.names == tuple(names) and model.classes.palette == tuple(palette)
    assert not caplog.records
    for wrong, said in (
        ({"classes": ["a"]}, "names 1 classes but its classifier has 11"),
        ({"classes": "coco"}, "one of camvid, cityscapes, voc"),
        ({"classes": names, "palette": palette[:3]}, "palette"),
        ({"colour": 1}, "no option 'colour'"),
    ):
        with pytest.raises(UserError, match=said):
            stdc_fast.load(path, device="cpu", **wrong)


def test_options_of_the_network(tiny_network, tmp_path):
    """mean, std and align_corners reach every way through the model."""
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.inference_state(tiny_network), path, {"variant": "stdc1"})
    how = {"device": "cpu", "dtype": "float32", "classes": "camvid"}
    plain = stdc_fast.load(path, **how)
    other = stdc_fast.load(path, **how, align_corners=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    frame = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    x = torch.from_numpy(frame)[None].permute(0, 3, 1, 2).double() / 127.5 - 1
    with torch.inference_mode():
        reference = other.network.double()
        wanted = torch.nn.functional.interpolate(reference.logits8(x), (96, 128), mode="bilinear").argmax(1)
        reference.float()
        assert torch.equal(other(x.float()).argmax(1), wanted)
    labels = {
        "label": other.label(frame[None])[0].numpy(),
        "predict": other.predict(frame).labels,
        "with confidence": other.predict(frame, confidence=True).labels,
    }
    for name, found in labels.items():
        assert (found == wanted[0].numpy()).mean() > 0.999, name
    assert (plain.predict(frame).labels != wanted[0].numpy()).mean() > 0.01


def test_more_classes_than_a_byte_can_hold_are_refused(tiny_network, tmp_path):
    state = checkpoints.inference_state(tiny_network)
    state["conv_out.conv_out.weight"] = torch.zeros(257, *state["conv_out.conv_out.weight"].shape[1:])
    path = tmp_path / "many.safetensors"
    checkpoints.save(state, path, {}, half=True)
    with pytest.raises(UserError, match="257"):
        stdc_fast.load(path, device="cpu")


def test_embedded_weights(embedded, photo):
    model = stdc_fast.load()
    assert model.name == embedded
    assert model.classes == CAMVID
    result = model.predict(photo(120, 160))
    assert result.labels.shape == (120, 160)
    facts = stdc_fast.model_info(embedded)
    assert facts["variant"] == "stdc1"
    assert facts["miou"] > 0.5


def test_an_empty_variable_is_no_choice(tiny_weights, monkeypatch):
    monkeypatch.setenv("STDC_FAST_BACKEND", "")
    model = stdc_fast.load(tiny_weights, device="cpu")
    assert model.decision == stdc_fast.backends.select(model.plan(), model.precision, "cpu")
    assert not model.decision.asked


def test_embedded_weights_see_the_street(embedded):
    """On the bundled photo: sky above, road below, trees and cars in between."""
    model = stdc_fast.load(embedded, device="cpu")
    result = model.predict(ROOT / "stdc_fast" / "assets" / "street.jpg")
    ids = {name: i for i, name in enumerate(model.classes.names)}
    road, sky = result.labels[600:1000, 800:1300], result.labels[20:200, 850:1000]
    assert (road == ids["Road"]).mean() > 0.9
    assert (sky == ids["Sky"]).mean() > 0.9
    assert set(result.shares()) >= {"Road", "Sky", "Tree", "Car", "Pavement"}


@pytest.mark.skipif(not CAMVID_DATA.is_dir(), reason="CamVid is not at ../shared/data/camvid")
def test_embedded_weights_label_camvid(embedded):
    """A tenth of val, which they were trained on: better than what the metadata says of before."""
    model = stdc_fast.load(embedded, device="cpu")
    folder = open_folder(CAMVID_DATA, "val")
    confusion = evaluate(model, folder, indices=range(0, len(folder), 10))
    assert 0 < confusion.miou() - stdc_fast.model_info(embedded)["miou"] < 0.15
