"""``stdc-fast val``: figures, files, and one line for every mistake."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from folders import ELEVEN, camvid, save
from PIL import Image
from refusals import refused, refused_quietly
from sklearn.metrics import jaccard_score

from stdc_fast.classes import CAMVID
from stdc_fast.datasets.checks import SAMPLE


def test_val_agrees_with_scikit_learn(run_cli, tiny_weights, auto_model, workplace):
    camvid(workplace / "data", classes=ELEVEN)
    run = run_cli("val", "data", "-m", tiny_weights, "--json")
    assert run.code == 0
    found = json.loads(run.out)
    assert run_cli("predict", "data/val", "-m", tiny_weights, "--no-overlay", "-o", "o").code == 0
    true, guess = [], []
    for i in range(2):
        labels = np.asarray(Image.open(f"data/valannot/f{i}.png"))
        predicted = np.asarray(Image.open(f"o/f{i}_labels.png"))
        assert predicted.shape == labels.shape
        true.append(labels[labels < 11])
        guess.append(predicted[labels < 11])
    true, guess = np.concatenate(true), np.concatenate(guess)
    present = np.union1d(true, guess)
    by_class = dict(
        zip(present.tolist(), jaccard_score(true, guess, labels=present, average=None), strict=True)
    )
    assert found["miou"] == pytest.approx(np.mean(list(by_class.values())), abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx((true == guess).mean(), abs=1e-9)
    assert found["images"] == 2
    assert found["default_short_side"] == 64
    assert found["miou"] > 0
    assert np.sum(found["confusion"]) == len(true)
    for i, name in enumerate(CAMVID.names):
        expected = by_class.get(i)
        assert found["iou"][name] == (None if expected is None else pytest.approx(expected, abs=1e-9))

    run = run_cli("val", "data", "-m", tiny_weights, "--limit", "1")
    assert "tiny on data val, 1 images" in run.out
    assert "mean IoU" in run.out
    assert run.err == ""
    text = run_cli("val", "data", "-m", tiny_weights, "-q")
    assert f"{found['miou']:.2%}" in text.out
    assert text.err == ""
    scaled = json.loads(run_cli("val", "data", "-m", tiny_weights, "--scale", "1.5", "--json").out)
    assert scaled["scale"] == 1.5
    assert scaled["confusion"] != found["confusion"]
    train = json.loads(run_cli("val", "data", "-m", tiny_weights, "--split", "train", "--json").out)
    assert train["images"] == 4


def test_val_refuses_other_classes(run_cli, tiny_weights, workplace):
    camvid(workplace / "three")
    for options in ((), ("-q",), ("--json",)):
        run = run_cli("val", "three", "-m", tiny_weights, *options)
        assert run.out == ""
        (message,) = refused(run, "11 classes, the data 3 (Sky, Wall, Road)")
        assert run.lines[-1] == message
    names = "\n".join(f"{i} {n}" for i, n in enumerate([*CAMVID.names[:-1], "Rider", "Void"]))
    camvid(workplace / "other", classes=names)
    (message,) = refused(run_cli("val", "other", "-m", tiny_weights), "class")
    assert "bicyclist" in message.lower()


def test_val_matches_classes_by_name(run_cli, tiny_weights, workplace):
    """The same classes in another order: the matrix is in the data's order, the score the same."""
    camvid(workplace / "plain", classes=ELEVEN)
    plain = json.loads(run_cli("val", "plain", "-m", tiny_weights, "--json").out)
    order = list(reversed(range(11)))
    names = "\n".join(f"{i} {CAMVID.names[i].upper()}" for i in order)
    camvid(workplace / "turned", classes=f"{names}\n11 Void")
    turned = json.loads(run_cli("val", "turned", "-m", tiny_weights, "--json").out)
    assert turned["miou"] == pytest.approx(plain["miou"])
    assert list(turned["iou"]) == [CAMVID.names[i].upper() for i in order]
    assert np.array_equal(turned["confusion"], np.array(plain["confusion"])[::-1, ::-1])


def test_val_names_what_is_wrong(run_cli, tiny_weights, workplace):
    val = ("val", "data", "-m", tiny_weights, "-q")
    refused_quietly(run_cli(*val), "data")
    camvid(workplace / "data", classes=ELEVEN)
    refused_quietly(run_cli(*val, "--split", "test"), "test")
    refused_quietly(run_cli(*val, "--size", "8"), "--size")
    whole = (workplace / "data/val/f1.png").read_bytes()
    (workplace / "data/val/f1.png").write_bytes(whole[: len(whole) // 2])
    refused_quietly(run_cli(*val), "data/val/f1.png")
    (workplace / "data/val/f1.png").write_bytes(b"")
    refused_quietly(run_cli(*val), "data/val/f1.png")
    (workplace / "data/val/f1.png").unlink()
    (workplace / "data/valannot/f0.png").unlink()
    refused_quietly(run_cli(*val), "f0")


@pytest.mark.parametrize("part", ["val", "valannot"])
def test_val_refuses_huge_images(part, run_cli, tiny_weights, huge_png, workplace):
    camvid(workplace / "data", classes=ELEVEN)
    huge_png(workplace / "data" / part / "f1.png", 60000, 60000)
    refused_quietly(run_cli("val", "data", "-m", tiny_weights, "-q"), f"data/{part}/f1.png")


def test_val_names_an_image_that_is_too_small(run_cli, tiny_weights, photo, workplace):
    camvid(workplace / "data", classes=ELEVEN)
    save(photo(20, 20), workplace / "data/val/f1.png")
    save(np.zeros((20, 20), np.uint8), workplace / "data/valannot/f1.png")
    refused_quietly(run_cli("val", "data", "-m", tiny_weights, "-q"), "f1.png")


@pytest.fixture
def val(run_cli, tiny_weights, workplace):
    """Runs ``val`` on a folder of three images."""
    camvid(workplace / "data", val=3, classes=ELEVEN)
    return lambda *options: run_cli("val", "data", "-m", tiny_weights, "-q", *options)


def test_val_by_a_protocol(val):
    windows = "--slide", "64x64", "--stride", "64x48"
    found = json.loads(val("--protocol", "mmseg", "--tta", *windows, "--json").out)
    how = found["protocol"]
    assert how["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert (how["flip"], how["window"], how["stride"]) == (True, [64, 64], [64, 48])
    assert found["sizes"][0]["seen"][-1] == [168, 224]
    scales = "--scales", "0.5,.75,1,1.25,1.5,1.75"
    by_hand = val("--protocol", "mmseg", *scales, "--flip", *windows, "--json")
    assert json.loads(by_hand.out) == found
    text = val("--flip", "--scales", "1.5", "--size", "native").out
    for part in ("official protocol", "96x128 seen at 144x192", "scale 1.5 and mirrored", "mean of softmax"):
        assert part in text


def test_val_draws_images(val):
    drawn = {}
    for seed in range(8):
        options = "--limit", "2", "--seed", seed
        val(*options, "--per-image", "a.jsonl")
        names = [json.loads(line)["name"] for line in Path("a.jsonl").read_text().splitlines()]
        assert names == sorted(set(names)) and len(names) == 2
        drawn[tuple(names)] = options
    assert len(drawn) > 1
    first = val("--limit", "2", "--per-image", "a.jsonl")
    assert "2 images of 3 (first)" in first.out
    names = [json.loads(line)["name"] for line in Path("a.jsonl").read_text().splitlines()]
    assert names == ["f0.png", "f1.png"]
    options = next(iter(drawn.values()))
    found = json.loads(val(*options, "--json").out)
    assert found["drawn"] == f"seed {options[-1]}"
    assert (found["images"], found["images_of_split"]) == (2, 3)
    assert found["confusion"] == json.loads(val(*options, "--json").out)["confusion"]


def test_val_writes_files(val, workplace):
    pytest.importorskip("matplotlib")
    found = json.loads(
        val("--json", "--confusion", "out/m.csv", "--plot", "out/m.png", "--per-image", "out/i.jsonl").out
    )
    assert {path.name for path in (workplace / "out").iterdir()} == {"m.csv", "m.png", "i.jsonl"}
    rows = list(csv.reader(Path("out/m.csv").read_text().splitlines()))
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == found["confusion"]
    with Image.open("out/m.png") as image:
        assert min(image.size) > 500
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 20


def test_val_writes_nothing_where_it_stops(val, workplace, monkeypatch):
    files = "--confusion", "m.csv", "--per-image", "i.jsonl"
    before = set(workplace.iterdir())
    refused_quietly(val(*files, "--scale", "0.2"), "f0.png")
    assert set(workplace.iterdir()) == before
    Path("m.csv").write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stdc_fast.evaluation.Confusion.update", interrupt)
    assert val(*files).code == 130
    assert set(workplace.iterdir()) == before | {workplace / "m.csv"}
    assert Path("m.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tta", "--flip"), "--tta is --scales and --flip"),
        (("--seed", "1"), "--seed draws the images of --limit"),
        (("--scales", "1,a"), "--scales must be numbers separated by commas, not '1,a'"),
        (("--slide", "512"), "--slide must be HEIGHTxWIDTH"),
        (("--stride", "64x64"), "stride 64x64 is of a sliding window"),
        (("--protocol", "paper"), "unknown protocol 'paper'"),
        (("--plot", "m.gif"), "figures are written as .svg or .png"),
        (("--confusion", "m", "--per-image", "m"), "two files are to be written there"),
        (("--confusion", "data"), "data: can not be written"),
    ],
)
def test_val_refuses_options(val, options, said):
    refused_quietly(val(*options), said)


def test_val_of_nothing_that_counts(val):
    for i in range(3):
        save(np.full((96, 128), 11, np.uint8), Path(f"data/valannot/f{i}.png"))
    refused_quietly(val("--json"), "valannot: none of 3 label images has a pixel of a class")
    Path("data/val.txt").write_text("\n")
    refused_quietly(val(), "data/val.txt: holds no images")


def test_val_says_how_to_name_classes(run_cli, tiny_weights, workplace):
    others = [f"kind {name}" for name in CAMVID.names]
    camvid(workplace / "data", classes="\n".join(f"{i} {n}" for i, n in enumerate([*others, "Void"])))
    val = "val", "data", "-m", tiny_weights, "-q"
    assert "give the data's names, in the model's order, as" in refused_quietly(run_cli(*val), "class 'sky'")
    run = run_cli(*val, "--json", "--classes", ", ".join(others))
    assert run.code == 0 and list(json.loads(run.out)["iou"]) == others
    camvid(workplace / "plain", classes=ELEVEN)
    run = run_cli("val", "plain", *val[2:], "--classes", "camvid", "--check")
    assert run.code == 0 and "mean IoU" in run.out
    refused_quietly(run_cli(*val, "--classes", "a,b"), "2")


def test_val_warns_once_of_what_all_labels_lack(run_cli, tiny_weights, workplace, caplog):
    """More labels than the check before reads, of masks whose class 1 is stored as 255."""
    camvid(workplace / "data", val=SAMPLE + 1, classes=ELEVEN)
    for path in Path("data/valannot").iterdir():
        mask = np.zeros((96, 128), np.uint8)
        mask[30:] = 255
        save(mask, path)
    val = "val", "data", "-m", tiny_weights, "-q"
    for options in ((), ("--check",)):
        caplog.clear()
        assert run_cli(*val, *options).code == 0
        classes, shares = caplog.messages
        assert "10 of 11 classes have no pixel in 33 label files: Building," in classes
        assert "in 33 of 33 label files more than half of the pixels" in shares
    caplog.clear()
    assert run_cli(*val, "--limit", "3").code == 0
    (shares,) = caplog.messages
    assert "in 32 of 32 label files more than half of the pixels" in shares
