"""Labels in the forms of other libraries, read back by those libraries."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from stdc_fast import exchange
from stdc_fast.classes import ClassSet
from stdc_fast.errors import UserError
from stdc_fast.segmentation import Segmentation

CLASSES = ClassSet(
    ("road", "sky", "car", "tree"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35))
)


def result(confidence=False, shape=(60, 90)):
    """Regions with holes, islands in them, single pixels, and what touches only at corners; no tree."""
    random = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    labels[5:40, 8:70] = 1
    labels[10:30, 20:50] = 0
    labels[15:25, 28:40] = 1
    labels[18, 30] = 2
    labels[45:55] = random.integers(0, 3, (10, shape[1]))
    labels[50, 3], labels[51, 4] = 2, 2
    probabilities = random.uniform(0.3, 1, shape).astype(np.float32) if confidence else None
    image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Segmentation(labels, image, CLASSES, "a.jpg", 0.01, shape, probabilities)


def test_coco_annotations_are_read_back():
    mask = pytest.importorskip("pycocotools.mask")
    given = result(confidence=True)
    entries = json.loads(json.dumps(given.to_coco_rle(7)))
    assert [e["category_id"] for e in entries] == [0, 1, 2] and {e["image_id"] for e in entries} == {7}
    assert json.loads(json.dumps(given.to_coco_rle(np.int64(7)))) == entries
    for e in entries:
        where = given.labels == e["category_id"]
        assert np.array_equal(mask.decode(e["segmentation"]), where)
        assert e["area"] == where.sum() and e["score"] == pytest.approx(given.confidence[where].mean())
        (rows,), (columns,) = np.nonzero(where.any(1)), np.nonzero(where.any(0))
        x, y = columns[0], rows[0]
        assert e["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]
    assert "score" not in result().to_coco_rle()[0] and result().to_coco_rle()[0]["image_id"] == "a.jpg"


def test_coco_annotations_are_opened_by_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    given = result()
    data = coco.COCO()
    data.dataset = {
        "images": [{"id": 1, "height": 60, "width": 90, "file_name": "a.jpg"}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES.names)],
        "annotations": [{"id": i + 1, **e} for i, e in enumerate(given.to_coco_rle(1))],
    }
    data.createIndex()
    for one in data.loadAnns(data.getAnnIds(imgIds=[1])):
        assert np.array_equal(data.annToMask(one), given.labels == one["category_id"])


def test_coco_s_evaluation_counts_every_annotation():
    """Those that say they are crowds are ignored by it, and left out by loaders."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    given = result(confidence=True)
    entries = [{"id": i + 1, **e} for i, e in enumerate(given.to_coco_rle(1))]
    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "height": 60, "width": 90, "file_name": "a.jpg"}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES.names)],
        "annotations": entries,
    }
    truth.createIndex()
    scored = evaluation.COCOeval(truth, truth.loadRes([dict(e) for e in entries]), "segm")
    scored.evaluate()
    scored.accumulate()
    precision = scored.eval["precision"][:, :, :, 0, -1]  # [IoUs, recalls, categories]
    assert (precision[:, :, :3] > 0.999).all() and (precision[:, :, 3] == -1).all()


def test_polygons_are_drawn_back():
    cv2 = pytest.importorskip("cv2")
    given = result()
    found = given.polygons()
    assert [p.area for p in found] == sorted((p.area for p in found), reverse=True)
    drawn = np.full(given.labels.shape, 255, np.uint8)
    for p in found:
        mask = cv2.fillPoly(np.zeros(drawn.shape, np.uint8), [p.outer], 1)
        for hole in p.holes:
            inside = cv2.fillPoly(np.zeros(drawn.shape, np.uint8), [hole], 1)
            mask[(inside == 1) & (cv2.polylines(inside.copy() * 0, [hole], True, 1) == 0)] = 0
        assert mask.sum() == p.area and p.name == CLASSES.names[p.class_id]
        drawn[mask == 1] = p.class_id
    assert np.array_equal(drawn, given.labels)


def test_polygons_that_are_asked_for():
    pytest.importorskip("cv2")
    given = result()
    everything = given.polygons()
    assert {p.name for p in given.polygons(["sky"])} == {"sky"} == {p.name for p in given.polygons([1])}
    assert {p.area for p in given.polygons(least=20)} == {p.area for p in everything if p.area >= 20}
    points = sum(len(p.outer) for p in everything)
    assert sum(len(p.outer) for p in given.polygons(tolerance=2)) < points
    assert given.polygons(["tree"]) == []
    for wrong, text in (
        ({"least": -1}, "least must be a number of pixels, 0 or more, not -1"),
        ({"tolerance": float("nan")}, "tolerance must be a number of pixels, 0 or more, not nan"),
        ({"tolerance": "1"}, "tolerance must be a number of pixels"),
        ({"classes": ["bus"]}, "no class 'bus'"),
        ({"classes": "sky"}, "a list of names or ids, not 'sky'"),
        ({"classes": 1}, "a list of names or ids, not 1"),
    ):
        with pytest.raises(UserError, match=text):
            given.polygons(**wrong)


def test_supervision_takes_it():
    sv = pytest.importorskip("supervision")
    given = result(confidence=True)
    found = given.to_supervision()
    assert len(found) == 3 and list(found.data["class_name"]) == ["road", "sky", "car"]
    assert np.array_equal(found.mask[1], given.labels == 1)
    assert found.area.tolist() == [(given.labels == i).sum() for i in range(3)]
    drawn = sv.MaskAnnotator(opacity=1.0).annotate(given.image.copy(), found)
    assert drawn.shape == given.image.shape and (drawn != given.image).any()
    assert result().to_supervision().confidence is None and len(given.to_supervision(["tree"])) == 0


def test_pandas_table():
    pytest.importorskip("pandas")
    given = result()
    table = given.to_pandas()
    assert table["pixels"].sum() == given.labels.size and list(table["name"]) == list(given.counts())


@pytest.mark.parametrize("confidence", [False, True])
def test_the_output_of_a_pipeline(confidence):
    given = result(confidence)
    entries = given.to_pipeline()
    assert [sorted(e) for e in entries] == [["label", "mask", "score"]] * 3
    for i, e in enumerate(entries):
        assert (
            np.array_equal(np.asarray(e["mask"]) == 255, given.labels == i) and e["label"] == CLASSES.names[i]
        )
        assert (e["score"] is None) != confidence


def test_notebooks_show_the_overlay():
    picture = Image.open(io.BytesIO(result(shape=(100, 2000))._repr_png_()))
    assert picture.format == "PNG" and picture.width == 1280


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.to_coco_rle(),
        lambda r: r.polygons(),
        lambda r: r.to_supervision(),
        lambda r: r.to_pandas(),
    ],
)
def test_without_the_packages_it_says_what_to_install(call, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(exchange.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r'pip install "stdc-fast\[results\]"') as error:
        call(result())
    assert "\n" not in str(error.value)
