"""``stdc-fast convert`` to other code bases, and ``stdc-fast doctor``."""

import hashlib
import json

import families
import pytest
import torch
from checkpoint_files import DECODER_NORMS, thin, weights, write
from PIL import Image

from stdc_fast import checkpoints, doctor


@pytest.fixture
def street(tmp_path, photo):
    """A small photo."""
    path = tmp_path / "street.png"
    Image.fromarray(photo(96, 128)).save(path)
    return path


def file_of(tmp_path, family, state=None, name="model.pth"):
    state = weights(family) if state is None else state
    return write(tmp_path / name, families.ROWS[family].contents(state))


def careless(found):
    return {one["how"]: one["changed"] for one in found["careless"]}


# ---------------------------------------------------------------- convert


@pytest.mark.parametrize("to", ["official-plain", "mmseg"])
def test_convert(run_cli, tmp_path, to):
    source = file_of(tmp_path, "mmseg")
    run = run_cli("convert", source, tmp_path / "out.pth", "--to", to, "--meta", 'classes=["a"]')
    assert run.code == 2 and "1 classes but its classifier has 19" in run.err
    names = json.dumps([f"c{i}" for i in range(19)])
    run = run_cli("convert", source, tmp_path / "out.pth", "--to", to, "--meta", f"classes={names}")
    assert run.code == 0, run.err
    assert "194 of 194" in run.out and "note: " in run.out and "out.pth: " in run.out
    assert checkpoints.read(tmp_path / "out.pth").family == to.removesuffix("-plain")
    assert ("c18" in str(torch.load(tmp_path / "out.pth", weights_only=True).get("meta"))) == (to == "mmseg")


def test_convert_what_can_not_be_expressed(run_cli, tmp_path):
    source = file_of(tmp_path, "mmseg")
    run = run_cli("convert", source, tmp_path / "out.pth", "--to", "official")
    assert run.code == 2 and "Traceback" not in run.err
    (message,) = run.messages
    assert str(source) in message and "conv_out.conv_out.bias" in message and "official-plain" in message
    assert not (tmp_path / "out.pth").exists()


def test_convert_a_backbone(run_cli, tmp_path):
    state = {k.removeprefix("cp.backbone."): v for k, v in weights("official").items() if ".features." in k}
    source = write(tmp_path / "STDCNet813M_73.91.tar", {"state_dict": state})
    assert run_cli("convert", source, tmp_path / "b.pth", "--to", "mmseg").code == 0
    stored = torch.load(tmp_path / "b.pth", weights_only=True)
    assert torch.equal(stored["stages.0.conv.weight"], state["features.0.conv.weight"])
    assert run_cli("convert", tmp_path / "b.pth", tmp_path / "c.tar", "--to", "official").code == 0
    back = torch.load(tmp_path / "c.tar", weights_only=True)["state_dict"]
    assert back.keys() == state.keys() and all(
        torch.equal(back[k], v) for k, v in state.items() if "num_batches" not in k
    )
    whole = file_of(tmp_path, "super-gradients")
    run = run_cli("convert", whole, tmp_path / "d.safetensors", "--backbone")
    assert run.code == 0 and len(checkpoints.read_backbone(tmp_path / "d.safetensors")) == 29 * 5
    assert run_cli("convert", source, tmp_path / "e.pth", "--to", "mmseg", "--meta", "a=1").code == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("out.pth", (), ".safetensors"),
        ("out.safetensors", ("--to", "mmseg"), ".pth"),
        ("out.pth", ("--to", "keras"), "super-gradients"),
        ("out.pth", ("--to", "mmseg", "--half"), "--half"),
        ("out.pth", ("--to", "mmseg", "--meta", "x"), "KEY=VALUE"),
        ("out.pth", ("--to", "mmseg", "--option", "eps=2"), "eps"),
        ("out.safetensors", ("--meta", "variant=stdc2"), "leave it out"),
        ("out.safetensors", ("--meta", "format=other"), "leave it out"),
        ("out.safetensors", ("--meta", "conv_last=true"), "use --option conv_last=VALUE"),
    ],
)
def test_convert_mistakes(run_cli, tmp_path, name, options, said):
    run = run_cli("convert", file_of(tmp_path, "mmseg", thin("mmseg")), tmp_path / name, *options)
    assert run.code == 2 and said in run.messages[0] and len(run.messages) == 1
    assert not (tmp_path / name).exists()


# ---------------------------------------------------------------- doctor


def test_doctor_on_an_official_file(tmp_path, street):
    path = file_of(tmp_path, "official")
    found = doctor.examine(path, street)
    assert found["refused"] is None
    assert found["file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (
        found["weights"] | {"family": "official", "variant": "stdc1", "num_classes": 19} == found["weights"]
    )
    tensors = found["tensors"]
    # 29 tensors of the backbone's norms and convolutions have a second name each, and conv_last is not used.
    assert (tensors["in_file"], tensors["mapped"]) == (445, 193)
    counted = ("mapped", "training_only", "second_names", "batch_counters")
    assert sum(tensors[k] for k in counted) == 445
    assert tensors["dtypes"] == {"float32": 445 - tensors["batch_counters"]}
    assert found["batch_norm"]["decoder"].startswith("in-place")
    changed = careless(found)
    assert changed["as plain batch norm"] > 0.1  # a quarter of the weights are negative
    assert changed["with its conv_last applied"] > 0
    assert {"with align_corners=False", "given BGR instead of RGB"} < changed.keys()
    assert not any("bias" in how or "eps" in how for how in changed)
    json.dumps(found)


def test_doctor_measures_what_careless_loading_changes(tmp_path, street):
    """With the same numbers under both rules of the norm the share is the difference of two networks."""
    path = file_of(tmp_path, "official-plain")
    found = doctor.examine(path, street)
    assert found["batch_norm"]["decoder"] == "plain"
    state = dict(weights("official-plain"))
    for name in DECODER_NORMS:
        state[f"{name}.weight"] = (state[f"{name}.weight"].double().abs() + 1e-5).float()
    image = doctor._resized(doctor.images.read_image(street), (96, 128))
    uses = [
        doctor._Use(checkpoints.from_state(s).network(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], True)
        for s in (weights("official-plain"), state)
    ]
    right, other = (use.labels(image) for use in uses)
    share = (right != other).double().mean().item()
    assert share > 0.05
    assert careless(found)["as in-place batch norm"] == pytest.approx(share, abs=1e-3)


def test_doctor_on_mmseg_options(tmp_path, street):
    state = thin("mmseg")
    config = (
        "model = dict(backbone=dict(backbone_cfg=dict(norm_cfg=dict(eps=0.01)), norm_cfg=dict(eps=0.01), "
        "ffm_cfg=dict(norm_cfg=dict(eps=0.01))), "
        "decode_head=dict(in_index=3, align_corners=False, norm_cfg=dict(eps=0.01)), "
        "data_preprocessor=dict(mean=[127.5] * 3, std=[127.5, 127.5, 127.5], bgr_to_rgb=True))\n"
    ).replace("[127.5] * 3", "[127.5, 127.5, 127.5]")
    names = [f"c{i}" for i in range(19)]
    content = {"meta": {"cfg": config, "dataset_meta": {"classes": names}}, "state_dict": state}
    found = doctor.examine(write(tmp_path / "a-01234567.pth", content), street)
    assert found["refused"] is None
    assert found["file"]["name_has_its_hash"] is False
    options = found["options"]
    assert options["align_corners"] == {"value": False, "from": "its configuration"}
    assert options["eps"]["from"] == "its configuration" and options["eps"]["value"]["head"] == 0.01
    assert options["conv_last"]["from"] == "default"
    assert options["mean"] == {"value": [0.5, 0.5, 0.5], "from": "its configuration"}
    assert found["classes"] == {"value": names, "from": "file"} and found["palette"]["value"] is None
    hows = careless(found).keys()
    assert {"with align_corners=True", "with eps=1e-05", "without conv_out.conv_out.bias"} < hows
    assert "normalised with ImageNet's mean and deviation" in hows
    assert not any("batch norm" in how for how in hows)


def test_doctor_on_super_gradients_and_ours(run_cli, tmp_path, tiny_weights, street):
    found = doctor.examine(file_of(tmp_path, "super-gradients"), street)
    assert (found["weights"]["family"], found["weights"]["container"]) == ("super-gradients", "ema_net")
    assert any("ema_net preferred to net" in note for note in found["weights"]["notes"])
    run = run_cli("doctor", tiny_weights, "--photo", street)
    assert run.code == 0, run.err
    assert all(len(line) > 13 and line[12] == " " for line in run.out.splitlines())
    assert "stdc_fast: stdc1, 11 classes" in run.out and "Bicyclist" in run.out
    run = run_cli("doctor", tiny_weights, "--photo", street, "--json")
    found = json.loads(run.out)
    assert found["options"]["short_side"]["from"] == "metadata"
    assert found["fp16"] is None and found["refused"] is None


def test_doctor_on_suspicious_values(tmp_path, street):
    state = {k: v.clone() for k, v in weights("super-gradients").items()}
    state["ffm.pw_conv.seq.bn.running_var"][:2] = 0
    state["ffm.pw_conv.seq.bn.weight"][5] = 0
    state["cp.arm16.conv_first.seq.conv.weight"][3] = 0
    state["segmentation_head.0.seg_head.0.seq.bn.running_var"][0] = 1e9
    state["cp.upsample32.1.seq.conv.weight"][0, 0, 0, 0] = 1e30
    content = {"net": state}
    found = doctor.examine(write(tmp_path / "model.pth", content), street)
    assert {(one["tensor"], one["channels"]) for one in found["suspicious"]} == {
        ("ffm.convblk.bn.running_var", 2),
        ("ffm.convblk.bn.weight", 1),
        ("cp.arm16.conv.conv.weight", 1),
        ("conv_out.conv.bn.running_var", 1),
        ("cp.conv_head32.conv.weight", 1),
    }
    assert "e+30" in found["fp16"] or "reach" in found["fp16"]


def refused(run_cli, path, *said):
    """Exit code 1 and the reason, as text and as JSON."""
    run = run_cli("doctor", path)
    assert run.code == 1 and "Traceback" not in run.err
    assert all(word in run.out for word in said), run.out
    found = json.loads(run_cli("doctor", path, "--json").out)
    assert found["refused"] is not None
    return found


def test_doctor_on_files_that_are_refused(run_cli, tmp_path, street):
    missing = dict(thin("official"))
    del missing["ffm.conv1.weight"]
    found = refused(run_cli, file_of(tmp_path, "official", missing), "1 missing (ffm.conv1.weight)")
    assert found["weights"] == {"kind": "segmentation", "family": "official", "container": "state dict"}
    assert found["tensors"]["in_file"] == 444
    whole = file_of(tmp_path, "mmseg").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "tensors" not in refused(run_cli, tmp_path / "cut.pth", "damaged", "MB")
    refused(run_cli, street, "picture")
    other = write(tmp_path / "other.pth", {"conv1.weight": torch.ones(1)})
    found = refused(run_cli, other, "conv1.weight", "of no known family")
    assert found["weights"]["kind"] == "unknown"
    assert run_cli("doctor", tmp_path / "nowhere.pth").code == 2


def test_doctor_on_a_backbone(run_cli, tmp_path):
    state = {k.removeprefix("cp.backbone."): v for k, v in thin("official").items() if ".features." in k}
    run = run_cli("doctor", write(tmp_path / "b.tar", {"state_dict": state}))
    assert run.code == 0 and "official: a classification backbone" in run.out


def test_doctor_is_told_what_a_file_does_not_say(tmp_path, street):
    state = {k: v for k, v in weights("official-plain").items() if "num_batches" not in k}
    path = write(tmp_path / "model.pth", {k: v.clone() for k, v in state.items()})
    assert "batch_norm" in doctor.examine(path, street)["refused"]
    found = doctor.examine(path, street, batch_norm="plain")
    assert found["refused"] is None and found["batch_norm"] == {"decoder": "plain", "from": "argument"}
