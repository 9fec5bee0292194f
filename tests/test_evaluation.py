"""The metric against scikit-learn, and evaluation over a folder."""

import folders
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from stdc_fast.classes import ClassSet
from stdc_fast.data import open_folder
from stdc_fast.errors import UserError
from stdc_fast.evaluation import Confusion, evaluate
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
