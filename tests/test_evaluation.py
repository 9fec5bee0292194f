"""The metric against scikit-learn, and evaluation over a folder: what is scored, recorded, refused."""

import csv
import json
import threading

import folders
import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score

import stdc_fast
from bench import class_table, evaluation_table
from stdc_fast.classes import CITYSCAPES, ClassSet
from stdc_fast.datasets import open_folder
from stdc_fast.errors import UserError
from stdc_fast.evaluation import Confusion, evaluate
from stdc_fast.inference import label
from stdc_fast.protocol import Protocol
from stdc_fast.reference import STDCSeg
from stdc_fast.segmenter import Segmenter


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    confusion = Confusion(11)
    labels = rng.integers(0, 9, (4, 37, 53)).astype(np.uint8)  # classes 9 and 10 never occur
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 10, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    for a, b in zip(labels, predicted, strict=True):
        confusion.update(a, b)
    valid = labels != 255
    expected = jaccard_score(labels[valid], predicted[valid], average=None, labels=range(10))
    np.testing.assert_allclose(confusion.iou()[:10], expected)
    assert np.isnan(confusion.iou()[10])
    # Class 9 is predicted but never true: it counts with 0.
    assert expected[9] == 0
    assert confusion.miou() == pytest.approx(expected.mean())
    assert confusion.pixel_accuracy() == pytest.approx(accuracy_score(labels[valid], predicted[valid]))


def test_nothing_seen_is_nan_not_zero():
    confusion = Confusion(3)
    confusion.update(np.full((2, 2), 255), np.zeros((2, 2), int))
    assert np.isnan(confusion.miou()) and np.isnan(confusion.pixel_accuracy())


def test_rejects_what_does_not_fit():
    confusion = Confusion(3)
    with pytest.raises(ValueError, match=r"labels are \(2, 2\), predictions \(2, 3\)"):
        confusion.update(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="labels from 3 to 3 do not fit 3 classes"):
        confusion.update(np.full((2, 2), 3), np.zeros((2, 2), int))


def model(names: tuple[str, ...]) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(STDCSeg("stdc1", len(names)), ClassSet.from_names(names))


def test_classes_are_matched_by_name(tmp_path):
    folder = open_folder(folders.camvid(tmp_path), "val")
    straight, turned = model(("Sky", "Wall", "Road")), model(("Road", "sky", "Wall"))
    a, b = evaluate(straight, folder).matrix, evaluate(turned, folder).matrix
    # Same network: its class 0 is Sky for one and Road for the other.
    assert np.array_equal(a, b[:, [2, 0, 1]])
    assert a.sum() == 2 * 94 * 128
    assert len(np.flatnonzero(a.sum(0))) > 1


def test_a_whole_split_that_lacks_classes_is_said(tmp_path, caplog):
    root = folders.camvid(tmp_path)
    for path in (root / "valannot").iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 2, 255, 0).astype(np.uint8)).save(path)
    segmenter, folder = model(("Sky", "Wall", "Road")), open_folder(root, "val")
    evaluate(segmenter, folder, indices=range(2))  # as training does, again and again
    assert not caplog.text
    evaluate(segmenter, folder)
    assert "valannot: 2 of 3 classes have no pixel in 2 label files: Wall, Road" in caplog.text
    assert "more than half" not in caplog.text


def test_scale_and_indices_are_used(tmp_path):
    folder = open_folder(folders.camvid(tmp_path), "val")
    segmenter = model(("Sky", "Wall", "Road"))
    assert evaluate(segmenter, folder, indices=[0]).matrix.sum() == 94 * 128
    assert not np.array_equal(evaluate(segmenter, folder, scale=2).matrix, evaluate(segmenter, folder).matrix)


def test_wrong_classes(tmp_path):
    folder = open_folder(folders.camvid(tmp_path), "val")
    with pytest.raises(UserError, match="has 2 classes, the data 3"):
        evaluate(model(("Sky", "Wall")), folder)
    with pytest.raises(UserError, match="class 'river' is none of the data's"):
        evaluate(model(("Sky", "Wall", "River")), folder)


@pytest.fixture
def three():
    return model(("Sky", "Wall", "Road"))


@pytest.fixture
def folder(tmp_path):
    return open_folder(folders.camvid(tmp_path / "data", val=3), "val")


SLIDE = Protocol("mmseg", scales=(1.0, 1.5), flip=True, window=(64, 80), stride=(32, 80))


def test_a_protocol_is_what_labels_are_made_by(three, folder):
    result = stdc_fast.evaluate(three, folder, protocol=SLIDE)
    expected = Confusion(3)
    for i in range(3):
        image, labels = folder.load(i)
        expected.update(labels, label(three, image, SLIDE).numpy())
    assert np.array_equal(result.matrix, expected.matrix)
    assert not np.array_equal(result.matrix, evaluate(three, folder).matrix)
    assert result.miou() == expected.miou()


def test_protocols_by_name(three, folder):
    named = evaluate(three, folder, protocol="mmseg", scale=1.5)
    assert named.protocol == Protocol("mmseg", 1.5)
    assert np.array_equal(named.matrix, evaluate(three, folder, protocol=Protocol("mmseg", 1.5)).matrix)
    assert not np.array_equal(named.matrix, evaluate(three, folder, scale=1.5).matrix)
    with pytest.raises(UserError, match="fields of the protocol"):
        evaluate(three, folder, protocol=Protocol(), scale=1.5)
    with pytest.raises(UserError, match="unknown protocol"):
        evaluate(three, folder, protocol="ours")


def test_cityscapes_by_either_ids(tmp_path):
    network = model(CITYSCAPES.names)
    plain = evaluate(network, open_folder(folders.cityscapes(tmp_path / "a"), "val"))
    by_train_ids = evaluate(network, open_folder(folders.cityscapes(tmp_path / "b", train_ids=True), "val"))
    assert np.array_equal(plain.matrix, by_train_ids.matrix)
    assert plain.matrix.sum() == 94 * 128


def test_each_image_has_its_figures(three, folder, tmp_path):
    result = evaluate(three, folder, protocol=SLIDE, indices=[2, 0])
    assert [image.name for image in result.images] == ["f2.png", "f0.png"]
    for i, image in zip((2, 0), result.images, strict=True):
        alone = evaluate(three, folder, protocol=SLIDE, indices=[i])
        assert image.miou == alone.miou()
        assert image.pixel_accuracy == alone.pixel_accuracy()
        np.testing.assert_array_equal(image.iou, alone.iou())
        assert image.size == (96, 128)
        assert image.seen == ((96, 128), (96, 128), (144, 192), (144, 192))
    result.save_images(tmp_path / "images.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["f2.png", "f0.png"]
    assert rows[0]["iou"] == dict(zip(("Sky", "Wall", "Road"), result.images[0].iou, strict=True))
    assert {row["how"] for row in rows} == {result.how()}


def test_an_image_without_labelled_pixels_has_none(three, folder, tmp_path):
    Image.fromarray(np.full((96, 128), 11, np.uint8)).save(folder.labels[1])
    result = evaluate(three, folder)
    assert np.isnan(result.images[1].miou)
    assert result.matrix.sum() == 2 * 94 * 128
    result.save_images(tmp_path / "images.jsonl")
    row = json.loads((tmp_path / "images.jsonl").read_text().splitlines()[1])
    assert row["miou"] is None and row["iou"] == {"Sky": None, "Wall": None, "Road": None}


def test_all_that_counts_is_recorded(three, folder, tmp_path):
    result = evaluate(three, folder, protocol=SLIDE)
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["protocol"]["window"] == [64, 80]
    assert found["protocol"]["merge"]["views"] == "mean of softmax"
    assert found["images"] == 3
    (sizes,) = found["sizes"]
    assert sizes == {"images": 3, "size": [96, 128], "seen": [[96, 128], [96, 128], [144, 192], [144, 192]]}
    assert (found["backend"], found["dtype"], found["device"]) == (three.backend, "float32", "cpu")
    assert found["confusion"] == result.matrix.tolist()
    for part in (
        "3 images",
        "96x128 seen at 96x128, 144x192",
        str(SLIDE),
        "align_corners=True",
        "float32",
        three.backend,
    ):
        assert part in result.how()
    result.save_confusion(tmp_path / "matrix.csv")
    head, *rows = csv.reader((tmp_path / "matrix.csv").read_text().splitlines())
    assert head[1:] == ["Sky", "Wall", "Road"] and result.how() in head[0]
    assert [row[0] for row in rows] == head[1:]
    assert [[int(n) for n in row[1:]] for row in rows] == result.matrix.tolist()


def test_workers_change_nothing_but_who_reads(three, folder, monkeypatch):
    expected = evaluate(three, folder)
    readers = set()
    load = type(folder).load
    monkeypatch.setattr(
        type(folder), "load", lambda self, i: readers.add(threading.current_thread()) or load(self, i)
    )
    for workers in (1, 3):
        readers.clear()
        result = evaluate(three, folder, workers=workers)
        assert threading.current_thread() not in readers
        assert np.array_equal(result.matrix, expected.matrix)
        assert [i.name for i in result.images] == [i.name for i in expected.images]
    with pytest.raises(UserError, match="workers must be 0 or more, not -1"):
        evaluate(three, folder, workers=-1)


@pytest.mark.parametrize("workers", [0, 1])
def test_readers_wait(three, folder, monkeypatch, workers):
    """No more than two images a thread, and the one that is scored, are in memory."""
    done, ahead = [], []
    load = type(folder).load
    monkeypatch.setattr(type(folder), "load", lambda self, i: ahead.append(i) or load(self, i))

    def progress(pairs):
        for pair in pairs:
            yield pair
            done.append(pair)
            assert len(ahead) - len(done) <= 2 * workers + 1

    evaluate(three, folder, indices=[0, 1, 2] * 3, workers=workers, progress=progress)
    assert len(done) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named(three, folder, workers):
    def refused(said):
        with pytest.raises(UserError, match=said) as error:
            evaluate(three, folder, workers=workers)
        assert str(folder.labels[1]) in str(error.value) and "\n" not in str(error.value)

    whole = folder.labels[1].read_bytes()
    stored = np.array(Image.open(folder.labels[1]))
    stored[50, 60:63] = 40
    Image.fromarray(stored).save(folder.labels[1])
    refused(r"3 pixels have the value 40, .*\(0-2, 11, 255 are\)")
    Image.fromarray(stored[:90]).save(folder.labels[1])
    refused("value 40")
    folder.labels[1].write_bytes(whole)
    Image.fromarray(np.array(Image.open(folder.labels[1]))[:90]).save(folder.labels[1])
    refused("is 128x90, its image 128x96")
    folder.labels[1].write_bytes(whole[:100])
    refused("can not be decoded")
    folder.labels[1].unlink()
    refused("no such file")


def test_a_view_too_small_is_of_a_file(three, folder):
    with pytest.raises(UserError, match=r"f0.png: the network would see 32x24"):
        evaluate(three, folder, scale=0.25)


def test_unknown_ids_of_cityscapes(tmp_path):
    for train_ids, known in ((False, "0-33, 255"), (True, "0-18, 255")):
        folder = open_folder(folders.cityscapes(tmp_path / known, train_ids), "val")
        stored = np.array(Image.open(folder.labels[0]))
        stored[3, 3] = 34
        Image.fromarray(stored).save(folder.labels[0])
        with pytest.raises(UserError, match=rf"1 pixels have the value 34, .*\({known} are\)"):
            folder.load_labels(0)


def test_the_documents_table_is_that_of_the_files():
    for command in (evaluation_table, class_table):
        text = command.DOCUMENT.read_text()
        assert command.written(text) == text
    record = json.loads((ROOT / "docs/results/cross_check_mmseg.json").read_text())
    assert record["least_labels_equal"] == min(row["labels_equal"] for row in record["rows"])
    assert record["least_labels_equal"] > 0.9999
    assert all(row["bytes_of_resized_images_that_differ"] == 0 for row in record["rows"])
