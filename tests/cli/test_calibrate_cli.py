"""``stdc-fast calibrate``, and ``--dtype int8`` of the commands that take a dtype."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from levelled import leave_ops_alone
from PIL import Image
from refusals import refused

import stdc_fast
from stdc_fast import checkpoints
from stdc_fast.plan.quantise import candidates


@pytest.fixture(scope="module")
def pictures(photo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("camera") / "train"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(photo(seed=i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def calibrated(tiny_weights, pictures, tmp_path_factory):
    """A file of weights with ranges."""
    path = tmp_path_factory.mktemp("calibrated") / "q.safetensors"
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        leave_ops_alone(patch)
        model.calibrate(pictures, method="max", limit=None)
    model.save_file(path)
    return path


def test_all_that_the_command_writes(run_cli, workplace, tiny_weights, pictures):
    run = run_cli(
        "calibrate", tiny_weights, pictures, "--out", "q.safetensors", "--count", 3, "--keep", "features.1",
        "--method", "max", "--limit", 0, "--sensitivity", "s.json", "--plot", "s.svg",
    )  # fmt: skip
    assert run.code == 0, run.err
    model = stdc_fast.load("q.safetensors", device="cpu", dtype="int8")
    found, names = model.calibration, candidates(model.plan())
    assert (found.frames, found.method) == (2, "max")
    assert found.source.startswith("camera") and found.source.endswith("/train")
    assert found.keep == ("cp.backbone.features.1.conv",)
    written = json.loads((workplace / "s.json").read_text())
    assert written == {"model": "tiny", **found.facts()}
    assert [row["name"] for row in written["about"]["alone"]] == names
    lines = run.out.splitlines()
    assert lines[0] == f"tiny: {found}; 1 more were held out"
    assert any(line.startswith("features.1 ") and line.endswith("floats: asked for") for line in lines)
    assert lines[-1].startswith(f"{len(found.about['ops'])} ops together")
    assert str(workplace) not in (workplace / "s.json").read_text() and str(pictures) not in run.out
    ET.parse(workplace / "s.svg")
    assert sorted(p.name for p in workplace.iterdir()) == ["q.safetensors", "s.json", "s.svg"]


def test_ranges_alone(run_cli, workplace, tiny_weights, pictures):
    run = run_cli(
        "calibrate", tiny_weights, pictures, "-o", "q.ranges.safetensors", "--method", "mse", "--json"
    )
    assert run.code == 0, run.err
    facts = json.loads(run.out)
    assert facts["method"] == "mse" and facts["file"] == "q.ranges.safetensors"
    found = checkpoints.read_ranges("q.ranges.safetensors")
    assert {"model": "tiny", "file": facts["file"], **found.facts()} == facts
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="int8", calibrate="q.ranges.safetensors")
    assert model.calibration.facts() == found.facts()


BAD = {
    "no folder": (["nothing"], [], "nothing: no such file"),
    "an empty folder": (["empty"], [], "empty: the folder holds no image files"),
    "an unreadable picture": (["broken"], [], "broken/1.png: "),
    "one flat colour": (["flat"], [], "flat are of one flat colour"),
    "an unknown method": (["flat"], ["--method", "median"], "method must be"),
    "an unknown op": (["flat"], ["--keep", "features.99"], "no op that can run in 8 bits"),
    "another suffix": (["flat"], ["--out", "q.pth"], "q.pth: files with ranges are safetensors"),
    "half ranges": (["flat"], ["--out", "q.ranges.safetensors", "--half"], "--half is of weights"),
    "a plot of another kind": (["flat"], ["--plot", "s.pdf"], "s.pdf: figures are written as"),
    "two files of one name": (["flat"], ["--sensitivity", "q.safetensors"], "two files are to be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_writes_nothing(name, run_cli, workplace, tiny_weights, photo):
    (sources, options, said) = BAD[name]
    for folder in ("empty", "broken", "flat"):
        (workplace / folder).mkdir()
    for i in range(2):
        Image.new("RGB", (96, 64), (i, i, i)).save(workplace / "flat" / f"{i}.png")
        Image.fromarray(photo(seed=i)).save(workplace / "broken" / f"{i}.png")
    (workplace / "broken" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    before = sorted(workplace.rglob("*"))
    out = [] if "--out" in options else ["--out", "q.safetensors"]
    refused(run_cli("calibrate", tiny_weights, *sources, *out, *options), said)
    assert sorted(workplace.rglob("*")) == before


def test_commands_take_int8(run_cli, workplace, calibrated, pictures):
    run = run_cli(
        "predict", pictures / "0.png", "-m", calibrated, "--dtype", "int8", "--no-overlay", "--out", "a"
    )
    assert run.code == 0, run.err
    (labels,) = workplace.glob("a/*_labels.png")
    model = stdc_fast.load(calibrated, device="cpu", dtype="int8")
    assert np.array_equal(np.array(Image.open(labels)), model.predict(pictures / "0.png").labels)
    run = run_cli("info", "--plan", calibrated, "--dtype", "int8", "--size", "64x96", "--json")
    assert run.code == 0, run.err
    ops = json.loads(run.out)["ops"]
    assert {"quantise", "conv", "down"} <= {op["kind"] for op in ops}
    run = run_cli("info", "--plan", calibrated, "--dtype", "int8", "--size", "64x96", "--draw", "plan.svg")
    assert run.code == 0 and "8 bits" in run.out and "to levels" in run.out
    ET.parse(workplace / "plan.svg")


def test_int8_without_ranges_says_what_to_run(run_cli, workplace, tiny_weights, pictures):
    for command in (["predict", pictures / "0.png", "-m", tiny_weights], ["info", "--plan", tiny_weights]):
        (message,) = refused(run_cli(*command, "--dtype", "int8"), "int8 needs ranges")
        assert f"stdc-fast calibrate {tiny_weights} FOLDER --out FILE.safetensors" in message
    refused(run_cli("info", "--plan", tiny_weights, "--dtype", "int8", "--written"), "leave --written out")


def test_deep_pictures(run_cli, workplace, tiny_weights, photo, monkeypatch):
    """The range that predict asks for and takes, calibrate does as well."""
    leave_ops_alone(monkeypatch)
    for i in range(2):
        Image.fromarray(photo(seed=i)[:, :, 0].astype(np.uint16) * 15).save(f"{i}.png")
    command = "calibrate", tiny_weights, "0.png", "1.png", "-o", "q.safetensors", "--method", "max"
    refused(run_cli(*command), "--range 0,4095")
    assert run_cli(*command, "--range", "0,4095").code == 0
    refused(run_cli(*command, "--range", "0"), "--range must be BLACK,WHITE")


def test_convert_takes_the_ranges_beside_the_weights(run_cli, workplace, embedded):
    run = run_cli("convert", embedded, "a.safetensors")
    assert run.code == 0, run.err
    expected = stdc_fast.load(embedded, device="cpu", dtype="int8").calibration
    assert stdc_fast.load("a.safetensors", device="cpu", dtype="int8").calibration.facts() == expected.facts()
    run = run_cli("convert", embedded, "b.pth", "--to", "official")
    assert f"note: its {expected} are left out" in run.out


def test_convert_keeps_ranges_or_says_so(run_cli, workplace, calibrated):
    assert run_cli("convert", calibrated, "b.safetensors").code == 0
    again = stdc_fast.load("b.safetensors", device="cpu", dtype="int8")
    run = run_cli("convert", "b.safetensors", "c.pth", "--to", "mmseg")
    assert run.code == 0 and f"note: its {again.calibration} are left out" in run.out
    assert stdc_fast.load("c.pth", device="cpu").calibration is None
    assert run_cli("export", calibrated, "--out", "d.safetensors").code == 0
    assert (
        stdc_fast.load("d.safetensors", device="cpu", dtype="int8").calibration.facts()
        == again.calibration.facts()
    )
