"""Folders of a model: what is written, what its weights say, and what is read; without the Hub's package."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import ROOT
from safetensors import safe_open

import stdc_fast
from stdc_fast import ClassSet, InputSize, Segmenter, UserError, card
from stdc_fast.reference import STDCSeg

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")


def front(folder):
    """The YAML of the card, and its text."""
    _, data, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(data), text


def metadata(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {k: v if k == "format" else json.loads(v) for k, v in file.metadata().items()}


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder(model, tmp_path, photo):
    assert model.save_pretrained(tmp_path / "a") is None
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    expected = model.predict(photo())
    for found in (
        stdc_fast.load(tmp_path / "a", device="cpu", dtype="float32"),
        stdc_fast.load(tmp_path / "a" / "model.safetensors", device="cpu", dtype="float32"),
        Segmenter.from_pretrained(str(tmp_path / "a"), device="cpu", dtype="float32"),
    ):
        assert found.classes == model.classes and found.input_size == model.input_size
        assert np.array_equal(found.predict(photo()).labels, expected.labels)
    assert found.name == "a"


def test_what_the_embedded_weights_say(embedded, tmp_path):
    model = stdc_fast.load(embedded, device="cpu")
    model.save_pretrained(tmp_path)
    before = stdc_fast.model_info(embedded)
    after = metadata(tmp_path)
    assert after.pop("calibration") == model.calibration.facts() and after.pop("format") == "stdc_fast 3"
    assert {k: before[k] for k in after} == after
    data, text = front(tmp_path)
    assert data["license"] == "cc-by-nc-4.0" and data["datasets"] == ["camvid"]
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == before["miou"]
    assert f"{100 * before['miou']:.2f} %, on {before['miou_split']}" in text
    assert before["source"] in text and "| 10 | Bicyclist | #0080c0 |" in text
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"]["10"] == "Bicyclist" and config["short_side"] == before["short_side"]


def test_unknown_is_said_so(model, tmp_path):
    model.save_pretrained(tmp_path)
    data, text = front(tmp_path)
    assert data["license"] == "unknown" and "model-index" not in data and "datasets" not in data
    for line in ("mean IoU", "terms of the weights", "trained on", "backbone started from"):
        assert f"| {line} | unknown |" in text


def test_what_is_told(model, tmp_path):
    told = {"miou": 0.25, "miou_split": 'my: "val" | <b>', "terms": "Ask: me # first", "source": "my cameras"}
    model.save_pretrained(tmp_path, metadata=told)
    data, text = front(tmp_path)
    assert data["license"] == "other" and data["license_name"] == "ask-me-first"
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == told["miou_split"]
    assert f"| terms of the weights | {told['terms']} |" in text
    assert r"\| \<b\>" in text and "25.00 %" in text
    for wrong in ({"variant": "stdc2"}, {"align_corners": False}, {"format": 1}):
        assert "would change how the weights are read" in refusal(
            model.save_pretrained, tmp_path, metadata=wrong
        )
    for wrong in ({"x": object()}, {"miou": float("nan")}):
        assert "must be values of JSON" in refusal(model.save_pretrained, tmp_path, metadata=wrong)


def test_what_can_not_be_told_leaves_no_file(model, tmp_path):
    for wrong, words in (
        ({"miou": "high"}, "miou must be a share from 0 to 1, such as 0.71, not 'high'"),
        ({"miou": 72.5}, "miou must be a share from 0 to 1, such as 0.71, not 72.5"),
        ("mine", "metadata must be a dict"),
    ):
        assert words in refusal(model.save_pretrained, tmp_path / "a", metadata=wrong)
    assert not (tmp_path / "a").exists()
    for wrong in (5, None):
        assert f"not {wrong}" in refusal(Segmenter.from_pretrained, wrong)


def test_an_own_card_stays(model, tmp_path):
    (tmp_path / "README.md").write_text("my own words")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_changed_weights_lose_what_was_measured(embedded, tmp_path, caplog):
    model = stdc_fast.load(embedded, device="cpu", dtype="float32")
    copy.deepcopy(model).save_pretrained(tmp_path / "same")
    assert metadata(tmp_path / "same")["miou"] == model.metadata["miou"] and not caplog.messages
    with torch.no_grad():
        model.network.conv_out.conv_out.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    said, of_ranges = caplog.messages
    assert "weights were changed after loading" in said
    assert "are of other weights, and are left out" in of_ranges
    after = metadata(tmp_path / "changed")
    assert not {"miou", "miou_split", "recipe", "iteration", "commit", "calibration"} & after.keys()
    assert after["source"].startswith("changed after loading stdc1_camvid; before: CamVid train and val")
    assert after["terms"] == model.metadata["terms"]
    data, _ = front(tmp_path / "changed")
    assert "model-index" not in data and data["license"] == "cc-by-nc-4.0"
    model.save_pretrained(tmp_path / "told", metadata={"miou": 0.5, "miou_split": "mine"})
    assert metadata(tmp_path / "told")["miou"] == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5), "count_include_pad": False, "fusion_bias": True},
        {"align_corners": False, "classifier_bias": True, "conv_last": True},
        {"module": "add", "training_heads": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_networks_of_all_forms(options, tmp_path):
    torch.manual_seed(1)
    network = STDCSeg("stdc1", 3, **options).eval().requires_grad_(False)
    for name, m in network.named_modules():
        if isinstance(m, torch.nn.BatchNorm2d) and options.get("align_corners") is False:
            m.eps = 1e-3 if name.startswith("cp.backbone.") else 1e-5
    classes = ClassSet.from_names(("a", "b", "c"))
    model = Segmenter(network, classes, InputSize(None, 0.5), backend="eager")
    model.save_pretrained(tmp_path)
    found = Segmenter.from_pretrained(tmp_path, device="cpu", dtype="float32", backend="eager")
    x = torch.randn(1, 3, 50, 70)
    assert torch.equal(found.network(x), network(x))
    assert found.input_size == InputSize(None, 0.5) and found.classes == classes
    assert found.transforms == model.transforms


def test_a_network_that_would_load_as_another(model, tmp_path, caplog):
    def changed(change):
        other = copy.deepcopy(model)
        change(other.network.ffm.convblk)
        return other

    with torch.inference_mode():
        other = changed(lambda m: setattr(m, "forward", lambda x: x[:, :256]))
        assert "ffm.convblk has a forward in the place" in refusal(other.save_pretrained, tmp_path / "none")
        assert not (tmp_path / "none").exists()
        hooked = changed(lambda m: m.register_forward_hook(lambda m, x, y: y * 0))
        hooked.save_pretrained(tmp_path / "hooked")
    assert [r.getMessage() for r in caplog.records if "hook" in r.getMessage()] == [
        "ffm.convblk has a forward hook, which is not in the file"
    ]


def test_a_network_that_no_file_says(model, tmp_path):
    other = copy.deepcopy(model)
    other.network.ffm.convblk.conv.padding_mode = "reflect"
    assert "ffm.convblk.conv is not what its weights would be loaded into" in refusal(
        other.save_pretrained, tmp_path / "a"
    )
    other = copy.deepcopy(model)
    other.network.ffm.convblk.bn.eps, other.network.conv_out.conv.bn.eps = 1e-3, 1e-4
    other.network.cp.arm16.bn_atten.eps = 1e-2
    assert "norms of one part of the network differ in eps" in refusal(other.save_pretrained, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- folders of others


def test_several_candidates(model, tiny_weights, tmp_path):
    content = tiny_weights.read_bytes()
    for name in ("b.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(content)
    for call in (stdc_fast.load, Segmenter.from_pretrained):
        said = refusal(call, tmp_path)
        assert said == f"{tmp_path}: 2 files may be the weights (a.pth, b.safetensors); give {tmp_path}/FILE"
    Segmenter.from_pretrained(tmp_path, filename="b.safetensors", device="cpu")
    (tmp_path / "a.pth").unlink()
    stdc_fast.load(tmp_path, device="cpu")


def test_a_pickle_alone(model, tmp_path):
    torch.save(model.network.state_dict(), tmp_path / "pytorch_model.bin")
    found = Segmenter.from_pretrained(tmp_path, device="cpu", classes="camvid")
    assert torch.equal(found.network.conv_out.conv_out.weight, model.network.conv_out.conv_out.weight)


def test_a_folder_without(tmp_path):
    assert "has no model.safetensors, and no other file of weights" in refusal(stdc_fast.load, tmp_path)


def test_a_config_that_contradicts(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "short_side": 512, "library_version": "9"}))
    said = refusal(Segmenter.from_pretrained, tmp_path, device="cpu")
    assert "config.json: says another short_side than model.safetensors" in said
    path.write_text(json.dumps({**config, "more": 1}))
    Segmenter.from_pretrained(tmp_path, device="cpu")
    path.write_text("{")
    assert "config.json: can not be read" in refusal(Segmenter.from_pretrained, tmp_path, device="cpu")
    path.write_text('{"model_type": "of another library"}')
    Segmenter.from_pretrained(tmp_path, device="cpu")


# ---------------------------------------------------------------- names


def test_names_and_files_too(tiny_weights, embedded):
    assert Segmenter.from_pretrained(embedded, device="cpu").name == embedded
    assert Segmenter.from_pretrained(tiny_weights, device="cpu").name == "tiny"
    for wrong in ("stdc1_camvid", __file__):  # which has no other file of weights in it
        said = refusal(Segmenter.from_pretrained, wrong, filename="b.safetensors")
        assert "is the weights themselves; leave filename b.safetensors out" in said
    assert "not 3" in refusal(Segmenter.from_pretrained, embedded, filename=3)
    assert "leave revision, token and the like out" in refusal(
        Segmenter.from_pretrained, embedded, revision="a"
    )


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://a", "hf://a/", "hf://datasets/a/b", "hf://spaces/a/b", "hf://a/b@", "hf://a/b/../c.pth",
     "hf://a/b@x@y"],
)  # fmt: skip
def test_what_is_no_address(address):
    for call in (stdc_fast.load, Segmenter.from_pretrained):
        assert "expected hf://OWNER/NAME" in refusal(call, address)


def test_without_the_package(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: Segmenter.from_pretrained("me/streets"),
        lambda: stdc_fast.load("hf://me/streets"),
        lambda: model.push_to_hub("me/streets"),
    ):
        assert refusal(call) == (
            'the Hugging Face Hub needs the package huggingface_hub; run: pip install "stdc-fast[hub]"'
        )


def test_the_package_is_not_imported_before():
    code = (
        "import sys, stdc_fast\n"
        "stdc_fast.load(device='cpu').save_pretrained(sys.argv[1])\n"
        "print([n for n in ('huggingface_hub', 'timm', 'torchvision', 'yaml') if n in sys.modules])"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_published_weights_carry_their_terms():
    record = stdc_fast.registry.RECORDS["stdc1_in1k_cityscapes.mmseg"]
    facts = record.provenance()
    assert facts["miou"] == record.miou and "Cityscapes" in facts["terms"] and "Apache-2.0" in facts["terms"]
    network = STDCSeg("stdc1", 19)
    text = card.text({"variant": "stdc1", **record.defaults(), **facts}, network, "me/x")
    assert "license: other" in text and "- cityscapes" in text
