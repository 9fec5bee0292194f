"""Names of weights: lists, facts, and loading published ones from where they were put."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from checkpoint_files import thin, write
from web import Remote, serve

import stdc_fast
from stdc_fast import UserError, _native, checkpoints, download, registry, zoo
from stdc_fast.classes import CITYSCAPES

MANUAL = "stdc1_seg50_cityscapes.official"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("STDC_FAST_MIRROR", "STDC_FAST_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STDC_FAST_HOME", str(tmp_path))
    return tmp_path


def put(name, content):
    """A checkpoint where the file of a name belongs."""
    path = download.place(registry.RECORDS[name])
    path.parent.mkdir(parents=True)
    return write(path, content)


def test_list_models(embedded):
    names = stdc_fast.list_models()
    assert names[0] == embedded and names[1:] == sorted(names[1:])
    assert set(names) == {embedded} | {r.name for r in registry.RECORDS.values() if r.task == "segmentation"}
    everything = stdc_fast.list_models(backbones=True)
    assert set(everything) == set(registry.RECORDS) | {embedded}
    assert stdc_fast.list_models("*CamVid*") == [embedded]
    assert stdc_fast.list_models("stdc2_*city*.mmseg") == [
        "stdc2_cityscapes.mmseg", "stdc2_in1k_cityscapes.mmseg",
    ]  # fmt: skip
    assert stdc_fast.list_models("nothing*") == []


def test_each_name_has_one_status(embedded):
    put(MANUAL, {})
    by_status = {s: stdc_fast.list_models(backbones=True, status=s) for s in zoo.STATUSES}
    assert by_status["embedded"] == [embedded] and by_status["cached"] == [MANUAL]
    assert all(n.endswith(".sg") for n in by_status["uncertain"]) and len(by_status["uncertain"]) == 6
    assert all(n.endswith(".official") for n in by_status["manual"]) and len(by_status["manual"]) == 5
    assert all(n.endswith((".mmseg", ".paddle")) for n in by_status["download"])
    assert sum(map(len, by_status.values())) == len(stdc_fast.list_models(backbones=True))
    with pytest.raises(UserError, match=r"status must be one of embedded, .*not 'here'"):
        stdc_fast.list_models(status="here")


def test_model_info(embedded, home):
    facts = stdc_fast.model_info("stdc1_in1k_cityscapes.mmseg")
    assert (facts["status"], facts["miou"], facts["miou_ms_flip"]) == ("download", 0.7494, 0.7697)
    assert facts["classes"] == list(CITYSCAPES.names) and facts["sha256"] == "3d4c2981"
    assert facts["path"].startswith(str(home)) and facts["path"].endswith(facts["file"])
    assert stdc_fast.model_info("stdc2_in1k.official")["top1"] == 0.7647
    own = stdc_fast.model_info(embedded)
    assert (own["name"], own["status"]) == (embedded, "embedded")
    assert own["path"] == str(zoo.find(embedded)) and own["terms"]
    with pytest.raises(UserError, match=r"unknown model.*did you mean stdc2_seg75_cityscapes\.official"):
        stdc_fast.model_info("stdc2_seg75_citiscapes.oficial")


def test_facts_of_a_file(tiny_weights):
    facts = stdc_fast.model_info(tiny_weights)
    assert facts["name"] == "tiny" and facts["path"] == str(tiny_weights) and facts["short_side"] == 64


def test_nothing_is_downloaded_unasked(home, monkeypatch):
    with serve(Remote(b"content")) as mirror:
        monkeypatch.setenv("STDC_FAST_MIRROR", mirror.address)
        for call in (stdc_fast.load, zoo.find):
            with pytest.raises(
                UserError, match=f"stdc-fast download {MANUAL}.*download=True.*by hand: "
            ) as e:
                call(MANUAL)
            assert str(home) in str(e.value) and "\n" not in str(e.value)
        stdc_fast.model_info(MANUAL)
        assert mirror.asked == [] and list(home.iterdir()) == []


def test_load_takes_classes_colours_scale_and_name_of_the_record(caplog):
    path = put(MANUAL, thin("official"))
    model = stdc_fast.load(MANUAL, device="cpu", dtype="float32")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in caplog.text
    assert model.classes == CITYSCAPES and model.name == MANUAL
    assert model.input_size == stdc_fast.InputSize(scale=0.5)
    assert model.predict(np.zeros((128, 192, 3), np.uint8)).input_size == (64, 96)
    for given in ({"scale": 1}, {"size": "native"}, {"size": (1024, 2048)}):
        assert model.input_size.resolve(1024, 2048, **given) == (1024, 2048)
    assert model.input_size.resolve(1024, 2048) == (512, 1024)
    assert stdc_fast.InputSize(short_side=64, scale=0.5).resolve(128, 192) == (64, 96)


def test_load_downloads_when_asked(monkeypatch, tmp_path, caplog):
    content = write(tmp_path / "file", thin("mmseg")).read_bytes()
    name = "stdc1_cityscapes.mmseg"
    known = registry.RECORDS[name]
    right = dataclasses.replace(known, sha256=hashlib.sha256(content).hexdigest()[:8], urls=())
    monkeypatch.setitem(registry.RECORDS, name, right)
    with serve(Remote(content)) as mirror:
        monkeypatch.setenv("STDC_FAST_MIRROR", mirror.address)
        model = stdc_fast.load(name, device="cpu", dtype="float32", download=True)
        assert (model.name, model.input_size.scale) == (name, 1)
        assert stdc_fast.load(name, device="cpu", dtype="float32").classes == CITYSCAPES
        assert len(mirror.asked) == 1 and caplog.messages == []
        download.place(right).write_bytes(content[:-1])
        with pytest.raises(UserError, match=f"starts with {right.sha256}"):
            stdc_fast.load(name, device="cpu", download=True)


def test_a_backbone_is_no_network():
    with pytest.raises(UserError, match=r"is a backbone.*stdc-fast download stdc1_in1k\.mmseg"):
        stdc_fast.load("stdc1_in1k.mmseg", download=True)


def test_a_file_of_another_kind_by_that_name_is_refused():
    put(MANUAL, {"not": "a checkpoint"})
    with pytest.raises(UserError, match=r"model_maxmIOU50\.pth: holds no state dict"):
        stdc_fast.load(MANUAL, device="cpu")


def test_scale_in_metadata(tiny_network, tmp_path):
    state, path = checkpoints.inference_state(tiny_network), tmp_path / "scaled.safetensors"
    for wrong in (0, -1, "half", 1e9, [0.5]):
        with pytest.raises(UserError, match="'scale' is not a number"):
            checkpoints.check_metadata({"scale": wrong}, state)
    checkpoints.save(state, path, {"variant": "stdc1", "scale": 0.5})
    assert stdc_fast.load(path, device="cpu").input_size == stdc_fast.InputSize(scale=0.5)


# ---------------------------------------------------------------- the command line


def test_models_command(run_cli, embedded):
    run = run_cli("models")
    assert run.code == 0
    lines = {line.split()[0]: line for line in run.out.splitlines()}
    assert set(lines) == {"name", *stdc_fast.list_models()}
    assert "embedded" in lines[embedded] and "72.48%" in lines[embedded]
    assert all(
        w in lines["stdc1_cityscapes.mmseg"] for w in ("download", "71.82%", "73.89%", "Cityscapes val")
    )
    found = json.loads(run_cli("models", "*IN1K.*", "--backbones", "--json").out)
    assert [f["name"] for f in found] == stdc_fast.list_models("*in1k.*", backbones=True)
    assert found[0] == stdc_fast.model_info("stdc1_in1k.mmseg")
    run = run_cli("models", "stdc1_citiscapes")
    assert run.code == 2 and "did you mean stdc1_cityscapes" in run.messages[0]


def test_download_command(run_cli, monkeypatch, embedded):
    content = b"content"
    with serve(Remote(content)) as mirror:
        run = run_cli("download", MANUAL)
        assert run.code == 2 and "drive.google.com" in run.messages[0] and run.out == ""
        monkeypatch.setenv("STDC_FAST_MIRROR", mirror.address)
        run = run_cli("download", MANUAL)
        path = download.place(registry.RECORDS[MANUAL])
        digest = hashlib.sha256(content).hexdigest()
        assert run.code == 0 and run.out == f"{path}: 0.0 MB, sha256 {digest}\n"
        assert run_cli("download", MANUAL).out == run.out and len(mirror.asked) == 1
    run = run_cli("download", embedded)
    assert run.code == 0 and str(zoo.find(embedded)) in run.out
    run = run_cli("download", "stdc1_cityscapes.mmsec")
    assert run.code == 2 and "did you mean stdc1_cityscapes.mmseg" in run.messages[0]


def test_a_plan_of_published_weights_is_titled_by_their_name(run_cli):
    put(MANUAL, thin("official"))
    run = run_cli("info", "--plan", MANUAL, "--json")
    assert run.code == 0 and json.loads(run.out)["model"] == MANUAL


def test_a_missing_native_module_is_said_once(tiny_weights, monkeypatch, caplog):
    monkeypatch.setattr(_native, "_load", lambda: "the native module was not built: no compiler; install g++")
    zoo._say_what_is_missing.cache_clear()
    for backend in ("eager", "auto", "auto"):
        stdc_fast.load(tiny_weights, device="cpu", backend=backend)
        said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        wanted = "CPUs are slower without the native module: the native module was not built: no compiler"
        assert len(said) == (backend == "auto") and all(text.startswith(wanted) for text in said)
    zoo._say_what_is_missing.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pretrained": None}, "a name or a file of weights, not None"),
        ({"pretrained": b"x"}, "a name or a file"),
        ({"classes": 5}, "a list of names, not 5"),
        ({"palette": [[0.5, 0.2, 0.9]] * 11}, r"0\.\.255 for each class, not \[\[0\.5"),
        ({"palette": "x"}, "0..255 for each class, not 'x'"),
        ({"palette": [1, 2, 3]}, "for each class, not .1, 2, 3."),
    ],
    ids=str,
)
def test_wrong_arguments(tiny_weights, arguments, said):
    with pytest.raises(UserError, match=said):
        stdc_fast.load(**{"pretrained": tiny_weights, "device": "cpu", **arguments})
