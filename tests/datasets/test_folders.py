"""Layouts of data sets: which label is of which image, and what is not certain."""

import json
import re

import folders
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from stdc_fast.classes import CAMVID, CITYSCAPES
from stdc_fast.datasets import histograms, open_folder, open_folders
from stdc_fast.datasets.known import camvid_split
from stdc_fast.errors import UserError

SHARED_CAMVID = ROOT.parent / "shared" / "data" / "camvid"
IMAGE = np.full((32, 48, 3), 90, np.uint8)
LABELS = np.repeat(np.arange(3, dtype=np.uint8), 16 * 32).reshape(32, 48)


def write(root, *names, labels=LABELS):
    """Image files, or labels where the folder or the name says so."""
    for name in names:
        is_label = re.search(r"annot|labels|mask|LabeledApproved|gtFine|ann/", name)
        folders.save(labels if is_label else IMAGE, root / name)
    return root


def described(root, **fields):
    (root / "data.json").write_text(json.dumps({"names": ["a", "b", "c"], **fields}))
    return root


CAMVID_32 = (
    "Animal 64 128 64;Archway 192 0 128;Bicyclist 0 128 192;Bridge 0 128 64;Building 128 0 0;Car 64 0 128;"
    "CartLuggagePram 64 0 192;Child 192 128 64;Column_Pole 192 192 128;Fence 64 64 128;"
    "LaneMkgsDriv 128 0 192;LaneMkgsNonDriv 192 0 64;Misc_Text 128 128 64;MotorcycleScooter 192 0 192;"
    "OtherMoving 128 64 64;ParkingBlock 64 192 128;Pedestrian 64 64 0;Road 128 64 128;"
    "RoadShoulder 128 128 192;Sidewalk 0 0 192;SignSymbol 192 128 128;Sky 128 128 128;"
    "SUVPickupTruck 64 128 192;TrafficCone 0 0 64;TrafficLight 0 64 64;Train 192 64 128;Tree 128 128 0;"
    "Truck_Bus 192 128 192;Tunnel 64 0 64;VegetationMisc 192 192 0;Void 0 0 0;Wall 64 192 0"
)


def pairs(folder):
    root = folder.images[0].parents[-2]
    return [(i.relative_to(root).name, la.name) for i, la in zip(folder.images, folder.labels, strict=True)]


def test_camvid_folder(tmp_path):
    folder = open_folder(folders.camvid(tmp_path), "train")
    assert len(folder) == 4
    assert folder.classes.names == ("Sky", "Wall", "Road")
    image, labels = folder.load(0)
    assert image.shape == (96, 128, 3) and labels.shape == (96, 128)
    assert (labels[:2] == 255).all() and set(np.unique(labels[2:])) == {0, 1, 2}
    assert histograms(folder)[:, :-1].sum() == 4 * 94 * 128


def test_camvid_listing_chooses_and_orders(tmp_path):
    folders.camvid(tmp_path)
    (tmp_path / "train.txt").write_text("f2\nf0.png\n")
    assert [p.stem for p in open_folder(tmp_path, "train").images] == ["f2", "f0"]


def test_names_of_classes_are_not_guessed(tmp_path):
    root = folders.camvid(tmp_path, classes="")
    with pytest.raises(UserError, match=r"no file names the classes; write their names into classes\.txt"):
        open_folder(root, "val")


def test_frames_of_camvid_are_known_by_their_names(tmp_path):
    names = ["0001TP_006690", "0006R0_f00930", "0016E5_00390", "Seq05VD_f00000"]
    write(tmp_path, *(f"train/{n}.png" for n in names), *(f"trainannot/{n}.png" for n in names))
    assert open_folder(tmp_path, "train").classes == CAMVID
    write(tmp_path, "train/mine.png", "trainannot/mine.png")
    with pytest.raises(UserError, match="no file names the classes"):
        open_folder(tmp_path, "train")


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes_folder(tmp_path, train_ids):
    folder = open_folder(folders.cityscapes(tmp_path, train_ids), "train")
    assert folder.classes == CITYSCAPES
    labels = folder.load_labels(0)
    assert (labels[:2] == 255).all() and set(np.unique(labels[2:])) == {0, 1, 2}


def test_several_splits_are_one(tmp_path):
    root = folders.camvid(tmp_path)
    both = open_folders(root, ("train", "val"))
    parts = [open_folder(root, s) for s in ("train", "val")]
    assert both.images == parts[0].images + parts[1].images
    assert both.labels == parts[0].labels + parts[1].labels
    assert np.array_equal(both.load_labels(4), parts[1].load_labels(0))


def test_splits_of_different_ids_are_not_one(tmp_path):
    root = folders.cityscapes(tmp_path)
    for path in (root / "gtFine" / "val").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(UserError, match="the labels of train and val have different classes or ids"):
        open_folders(root, ("train", "val"))


@pytest.mark.skipif(
    not SHARED_CAMVID.is_dir(),
    reason="needs the photos and labels of CamVid, which this repository does not have",
)
def test_real_camvid():
    assert [len(open_folder(SHARED_CAMVID, s)) for s in ("train", "val")] == [367, 101]
    folder = open_folder(SHARED_CAMVID, "val")
    assert folder.classes == CAMVID
    assert set(np.unique(folder.load_labels(0))) <= {*range(11), 255}


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_folder(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"has neither train/ with trainannot/ .* nor leftImg8bit/"):
        open_folder(tmp_path, "train")
    folders.camvid(tmp_path)
    (tmp_path / "trainannot" / "f1.png").unlink()
    with pytest.raises(UserError, match="trainannot: no file for 'f1', as for 1 of 4 images"):
        open_folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("Sky 0\n")
    (tmp_path / "trainannot" / "f1.png").write_bytes(b"")
    with pytest.raises(UserError, match="of the form '3 Road'"):
        open_folder(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("0 Sky\n11 Void\n")
    folder = open_folder(tmp_path, "train")
    with pytest.raises(UserError, match=r"f1\.png: is empty"):
        folder.load(1)
    Image.new("L", (9, 9)).save(tmp_path / "trainannot" / "f1.png")
    with pytest.raises(UserError, match="is 9x9, its image 128x96"):
        folder.load(1)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{split}", "{split}_labels"),
        ("images/{split}", "labels/{split}"),
        ("imgs/{split}", "masks/{split}"),
        ("{split}/images", "{split}/masks"),
    ],
)
@pytest.mark.parametrize("end", ["", "_mask", "_label", "_L"])
def test_layouts(tmp_path, images, labels, end):
    """Sub-folders, blanks and dots belong to names; the suffix of a file does not."""
    for split, names in (("train", ("a b.v1", "sub/c")), ("val", ("d",))):
        write(tmp_path, *(f"{images.format(split=split)}/{n}.png" for n in names))
        write(tmp_path, *(f"{labels.format(split=split)}/{n}{end}.png" for n in names))
    described(tmp_path)
    train, val = (open_folder(tmp_path, s) for s in ("train", "val"))
    assert [p.stem for p in train.images] == ["a b.v1", "c"]
    assert [p.stem for p in train.labels] == [f"a b.v1{end}", f"c{end}"]
    assert [p.name for p in val.images] == ["d.png"]


def test_folders_without_splits_need_lists(tmp_path):
    names = ["a b.v1", "a", "sub/c", "d"]
    write(tmp_path, *(f"images/{n}.png" for n in names), *(f"labels/{n}.png" for n in names))
    described(tmp_path)
    with pytest.raises(UserError, match=r"says nowhere which images are train; .* into train\.txt"):
        open_folder(tmp_path, "train")
    lines = "\ufeffa b.v1\r\n\r\nelsewhere\\c.png\r\n/data/images/d.png /data/labels/d.png\r\n"
    (tmp_path / "train.txt").write_bytes(lines.encode())
    assert [p.stem for p in open_folder(tmp_path, "train").images] == ["a b.v1", "c", "d"]
    for line, said in (
        ("b", "has 'b', but there is no file"),
        ("a x.png", "has 'a x.png', but there is no file"),
        ("d\nd.png", "has 'd' twice"),
        ("", "holds no images"),
    ):
        (tmp_path / "train.txt").write_text(line)
        with pytest.raises(UserError, match=re.escape(said)):
            open_folder(tmp_path, "train")
    (tmp_path / "train.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.txt: is no UTF-8 text"):
        open_folder(tmp_path, "train")


def test_folders_and_splits_by_a_description(tmp_path):
    write(tmp_path, "x/one/a_img.jpg", "x/one/b_img.png", "ann/one/a_ids.png", "ann/one/b_ids.png")
    write(tmp_path, "ann/one/a_colour.png", "ann/one/c_ids.png")
    fields = {"images": "x/{split}", "labels": "ann/{split}", "image_suffix": "_img", "label_suffix": "_ids"}
    described(tmp_path, **fields, splits={"train": "one"})
    assert pairs(open_folder(tmp_path, "train")) == [("a_img.jpg", "a_ids.png"), ("b_img.png", "b_ids.png")]
    fields |= {"images": "x/one", "labels": "ann/one"}
    described(tmp_path, **fields, splits={"train": ["b"], "val": "lists/v.txt"})
    folders.save(IMAGE, tmp_path / "lists" / "x.png")
    (tmp_path / "lists" / "v.txt").write_text("a_img.jpg")
    assert pairs(open_folder(tmp_path, "train")) == [("b_img.png", "b_ids.png")]
    assert pairs(open_folder(tmp_path / "data.json", "val")) == [("a_img.jpg", "a_ids.png")]
    for change, said in (
        ({"labels": None}, "has images or labels alone"),
        ({"images": "none"}, "none: no such folder"),
        ({"images": "x/{name}"}, "only {split} may be in braces"),
        ({"label_suffix": "_gone"}, "no file for 'a_gone', as for 1 of 1"),
        ({"image_suffix": "_gone"}, r"holds no images named \*_gone"),
        ({"image_suffix": 3}, "image_suffix must be text, not 3"),
        ({"splits": ["a"]}, "splits must have"),
    ):
        described(tmp_path, **{**fields, "splits": {"val": "lists/v.txt"}, **change})
        with pytest.raises(UserError, match=said):
            open_folder(tmp_path, "val")


def test_splits_that_name_nothing(tmp_path):
    """A list may be any file; all else must have a place in the layout."""
    names = ["a", "b"]
    write(tmp_path, *(f"images/{n}.png" for n in names), *(f"labels/{n}.png" for n in names))
    (tmp_path / "val.txt").write_text("a\nb")
    for name in ("lists/val", "nosuchfolder"):
        described(tmp_path, splits={"val": name})
        with pytest.raises(
            UserError, match=rf"splits has '{name}' for val, .* images/ is one folder for all"
        ):
            open_folder(tmp_path, "val")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val").write_text("b")
    described(tmp_path, splits={"val": "lists/val"})
    assert pairs(open_folder(tmp_path, "val")) == [("b.png", "b.png")]
    described(tmp_path, splits={"val": "lists/v.txt"})
    with pytest.raises(UserError, match=r"lists/v\.txt: can not be read"):
        open_folder(tmp_path, "val")


def test_labels_in_lists_are_those_that_are_taken(tmp_path):
    names = ["a", "a b", "b", "sub/c"]
    write(tmp_path, *(f"images/{n}.png" for n in names), *(f"labels/{n}_mask.png" for n in names))
    write(tmp_path, "labels2/a_mask.png", "labels2/b.png")
    described(tmp_path, images="images", labels="labels")
    for line, stem in (
        ("images/a.png labels/a_mask.png", "a"),
        ("images/a labels/a_mask", "a"),
        ("a.png, a_mask.png", "a"),
        ("a b.png", "a b"),
        ("C:\\data\\images\\a b.png C:\\data\\labels\\a b_mask.png", "a b"),
        ("/other/images/sub/c.png\t/other/labels/sub/c_mask.png", "c"),
    ):
        (tmp_path / "val.txt").write_text(line)
        assert pairs(open_folder(tmp_path, "val"))[0][1] == f"{stem}_mask.png", line
    for line, label in (
        ("images/a.png labels2/a_mask.png", "labels2/a_mask.png"),
        ("images/a.png labels2/b.png", "labels2/b.png"),
        ("images/a labels2/b", "labels2/b"),
        ("a.png,a.png", "a.png"),
        ("images\\a.png labels\\a_mask.bmp", "labels/a_mask.bmp"),
        ("images/a.png labels/a_mask.png edges/a.png", "labels/a_mask.png edges/a.png"),
    ):
        (tmp_path / "val.txt").write_text(line)
        with pytest.raises(UserError, match=re.escape(f"label would be {label!r}, but 'a' takes labels")):
            open_folder(tmp_path, "val")


def test_not_certain_which_is_meant(tmp_path):
    described(write(tmp_path, "train/a.png", "train/a.jpg", "trainannot/a.png"))
    with pytest.raises(UserError, match=r"a\.png: a\.jpg is there, too"):
        open_folder(tmp_path, "train")
    (tmp_path / "train/a.jpg").unlink()
    write(tmp_path, "trainannot/a.bmp")
    with pytest.raises(UserError, match=r"trainannot/a\.png: a\.bmp is there, too"):
        open_folder(tmp_path, "train")
    (tmp_path / "trainannot/a.bmp").unlink()
    write(tmp_path, "trainannot/a_mask.png")
    with pytest.raises(UserError, match="end in '' as well as in '_mask'"):
        open_folder(tmp_path, "train")
    (tmp_path / "trainannot/a_mask.png").unlink()
    write(tmp_path, "train_labels/a.png")
    with pytest.raises(UserError, match=r"found train/ with trainannot/ and train/ with train_labels/"):
        open_folder(tmp_path, "train")


def test_labels_without_images_are_counted(tmp_path, caplog):
    described(write(tmp_path, "train/a.png", "trainannot/a.png", "trainannot/b.png", "trainannot/c.png"))
    write(tmp_path, "train/.ipynb_checkpoints/a.png", "train/._a.png")
    assert len(open_folder(tmp_path, "train")) == 1
    assert "2 label files have no image in" in caplog.text and "first b.png" in caplog.text
    caplog.clear()
    (tmp_path / "train.txt").write_text("a")
    write(tmp_path, "train/b.png", "train/c.png")
    open_folder(tmp_path, "train")
    assert not caplog.text


def test_camvid_as_released_and_as_on_kaggle(tmp_path, caplog):
    """Colours of 32 classes become 11; splits of the release are SegNet's."""
    colours = np.zeros((32, 48, 3), np.uint8)
    colours[:, :16], colours[:, 16:32], colours[:, 32:40] = (128, 0, 192), (192, 192, 0), (64, 192, 128)
    of = {"train": "0016E5_07980", "val": "0016E5_07961", "test": "0001TP_008550"}
    assert {split: camvid_split(name) for split, name in of.items()} == {s: s for s in of}
    expected = np.repeat([[3] * 16 + [5] * 16 + [4] * 8 + [255] * 8], 32, 0)
    release = tmp_path / "release"
    for split, name in of.items():
        write(release, f"701_StillsRaw_full/{name}.png")
        write(release, f"LabeledApproved_full/{name}_L.png", labels=colours)
        write(tmp_path / "kaggle", f"{split}/{name}.png")
        write(tmp_path / "kaggle", f"{split}_labels/{name}_L.png", labels=colours)
    rows = [row.split() for row in CAMVID_32.split(";")]
    lines = ["name,r,g,b", *(",".join(row) for row in rows)]
    (tmp_path / "kaggle/class_dict.csv").write_text("\n".join(lines))
    for root in (release, tmp_path / "kaggle"):
        for split, name in of.items():
            folder = open_folder(root, split)
            assert [p.stem for p in folder.images] == [name]
            assert folder.classes == CAMVID
            assert np.array_equal(folder.load(0)[1], expected)
    assert "class_dict.csv: CamVid's 32 colours are taken as its usual 11 classes" in caplog.text
    (release / "label_colors.txt").write_text("\n".join("\t".join([" ".join(r[1:]), r[0]]) for r in rows))
    assert np.array_equal(open_folder(release, "val").load(0)[1], expected)
    # Names of one's own keep the 32 apart.
    described(release, names=[row[0] for row in rows], palette=[[int(v) for v in row[1:]] for row in rows])
    folder = open_folder(release, "val")
    assert len(folder.classes) == 31
    assert set(np.unique(folder.load(0)[1])) == {10, 29, 15, 255}


def test_cityscapes_obeys_files_beside_it(tmp_path):
    root = folders.cityscapes(tmp_path)
    (root / "classes.txt").write_text("4 static\n7 street\n8 path\n11 house\n")
    folder = open_folder(root, "train")
    assert folder.classes.names == ("static", "street", "path", "house")
    assert (folder.load_labels(0)[:2] == 0).all()
    (root / "classes.txt").unlink()
    (root / "data.json").write_text(json.dumps({"mapping": {"4": "wall", "8": "ignore"}}))
    folder = open_folder(root, "train")
    assert folder.classes == CITYSCAPES
    labels = folder.load_labels(0)
    assert (labels[:2] == 3).all() and set(np.unique(labels[2:])) == {0, 2, 255}
