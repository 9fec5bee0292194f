"""What a job writes, read by the packages that it is written for."""

import io
import json
import tarfile

import jobs
import numpy as np
import pytest
from PIL import Image

from stdc_fast import bulk, encode
from stdc_fast.classes import CAMVID
from stdc_fast.errors import UserError


def test_label_pngs_are_those_of_save(model, photos, tmp_path):
    bulk.label(model, photos, tmp_path / "out")
    result = model.predict(photos / "cam0" / "001.jpg")
    result.save(tmp_path / "a.png")
    written = (tmp_path / "out" / "labels" / "cam0" / "001.png").read_bytes()
    assert written == (tmp_path / "a.png").read_bytes() == encode.labels(result)


def test_masks_beside_label_pngs(model, photos, tmp_path):
    mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    bulk.label(model, photos, tmp_path / "out", rle=True)
    about = json.loads((tmp_path / "out" / "labels" / "cam1" / "004.json").read_text())
    labels = np.array(Image.open(tmp_path / "out" / "labels" / "cam1" / "004.png"))
    assert (about["key"], about["height"], about["width"]) == ("cam1/004", 64, 96)
    assert {a["category_id"] for a in about["annotations"]} == set(np.unique(labels))
    for annotation in about["annotations"]:
        assert np.array_equal(mask.decode(annotation["segmentation"]), labels == annotation["category_id"])


def test_tars_are_read_by_webdataset(model, photos, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    (photos / "cam0" / "with.dots.jpg").write_bytes((photos / "cam0" / "001.jpg").read_bytes())
    bulk.label(model, photos, tmp_path / "out", to="webdataset", shard=4)
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(tars) == 3
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    names = sorted([f"cam{i // 4}/{i:03d}" for i in range(10)] + ["cam0/with_dots"])
    assert [s["__key__"] for s in samples] == names
    for sample in samples:
        source = sample["json"]["source"]
        assert np.array_equal(np.array(model.predict(source).labels), raw(tars, sample["__key__"]))
        assert sample["json"]["key"] == sample["__key__"] and sample["json"]["width"] == 96
        assert sum(c["pixels"] for c in sample["json"]["classes"]) == 64 * 96


def raw(tars, key):
    for path in tars:
        with tarfile.open(path) as tar:
            if f"{key}.png" in tar.getnames():
                return np.array(Image.open(io.BytesIO(tar.extractfile(f"{key}.png").read())))
    raise AssertionError(key)


def test_tars_have_no_times_and_no_owner(model, photos, tmp_path):
    bulk.label(model, photos, tmp_path / "out", to="webdataset", shard=4)
    with tarfile.open(tmp_path / "out" / "labels-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


@pytest.mark.parametrize("rle", [False, True])
def test_parquet_is_read_by_pyarrow(model, photos, tmp_path, rle):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    if rle:
        mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    bulk.label(model, photos, tmp_path / "out", to="parquet", shard=4, rle=rle)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [parquet.read_metadata(file).num_rows for file in files] == [4, 4, 2]
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert [row["name"] for row in rows] == [f"cam{i // 4}/{i:03d}" for i in range(10)]
    for row in rows:
        labels = np.array(Image.open(io.BytesIO(row["png"])))
        assert np.array_equal(labels, model.predict(photos / f"{row['name']}.jpg").labels)
        assert (row["height"], row["width"]) == labels.shape
        if not rle:
            assert set(row) == {"name", "height", "width", "png"}
            continue
        for one in row["coco"]:
            assert np.array_equal(mask.decode(one["segmentation"]), labels == one["category_id"])


def test_results_that_were_cut_are_made_again(model, photos, tmp_path, caplog):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    out = tmp_path / "out"
    bulk.label(model, photos, out, rle=True, shard=4)
    whole = jobs.tree(out)
    (out / "labels/cam0/001.png").write_bytes(whole["labels/cam0/001.png"][:30])
    (out / "labels/cam0/002.json").unlink()
    (out / "labels/cam1/005.json").write_bytes(whole["labels/cam1/005.json"][:-9])
    assert bulk.label(model, photos, out, rle=True, shard=4).labelled == 3
    assert "made again" in caplog.text
    assert jobs.tree(out) == whole


@pytest.mark.parametrize("fault", ["gone", "cut"])
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_retry_makes_lost_results_again(model, photos, tmp_path, kind, fault):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (photos / "cam0" / "bad.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    bulk.label(model, photos, out, to=kind, shard=6)
    whole = jobs.tree(out)
    lost = next(out.glob("labels-000000.*"))
    lost.unlink() if fault == "gone" else lost.write_bytes(lost.read_bytes()[:700])
    summary = bulk.label(model, photos, out, to=kind, shard=6, retry_failures=True)
    assert (summary.labelled, summary.failed) == (5, 1)
    assert jobs.tree(out) == whole


def test_label_ids_of_other_classes_are_refused_at_once(photos, tmp_path, run_cli, tiny_weights):
    done = run_cli("label", photos, "--out", tmp_path / "out", "-m", tiny_weights, "--label-ids")
    assert done.code == 2 and not (tmp_path / "out").exists()
    assert len(done.messages) == 1


def test_without_pycocotools_the_extra_is_named(model, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r'pip install "stdc-fast\[results\]"'):
        bulk.label(model, photos, tmp_path / "out", rle=True)


def test_the_command_says_how_fast_it_was_and_fails_by_code(photos, tmp_path, run_cli, tiny_weights):
    command = ("label", photos, "--out", tmp_path / "out", "-m", tiny_weights)
    done = run_cli(*command)
    assert done.code == 0 and done.err == ""
    assert (
        done.out.startswith(f"{tmp_path / 'out'}: 10 frames labelled in ") and "frames a second" in done.out
    )
    state = json.loads(run_cli(*command, "--json").out)
    assert state["labelled"] == 10 and state["run"]["labelled"] == 0
    for file in photos.rglob("*.jpg"):
        file.write_bytes(b"no picture")
    done = run_cli(*command[:3], tmp_path / "other", *command[4:])
    assert done.code == 2 and "10 of 10 frames failed" in done.err
    done = run_cli("label", photos, "-m", tiny_weights)
    assert done.code == 2 and "stdc-fast label SRC... --out DST" in done.err
    done = run_cli("label", photos, "--status", tmp_path / "out")
    assert done.code == 2
    assert len(CAMVID) == 11


@pytest.mark.parametrize("to", ["png", "webdataset"])
def test_batches_of_equal_sizes_give_the_same_bytes(model, photos, photo, tmp_path, monkeypatch, to):
    """Pictures of three sizes in turns, and some that fail: results are in the order of the listing."""
    for i, path in enumerate(sorted(photos.rglob("*.jpg"))):
        path.write_bytes(jobs.jpeg(photo, i, *[(64, 96), (96, 64), (64, 128)][i % 3]))
    (photos / "cam0" / "003.jpg").write_bytes(b"no picture")
    (photos / "cam1" / "005.jpg").write_bytes(jobs.jpeg(photo, 5, 16, 16))  # too small
    bulk.label(model, photos, tmp_path / "one", to=to, shard=8)
    label, batches = model.label, []

    def counting(frames, **how):
        batches.append(len(frames))
        return label(frames, **how)

    monkeypatch.setattr(type(model), "label", lambda self, frames, **how: counting(frames, **how))
    summary = bulk.label(model, photos, tmp_path / "many", to=to, shard=8, batch=3)
    assert (summary.labelled, summary.failed) == (8, 2)
    assert max(batches) == 3 and sum(batches) == 8
    assert jobs.tree(tmp_path / "many") == jobs.tree(tmp_path / "one")
    with pytest.raises(UserError, match="--batch is a number of frames from 1 on, not 0"):
        bulk.label(model, photos, tmp_path / "none", to=to, shard=8, batch=0)


def test_a_batch_that_fails_is_tried_one_by_one(model, photos, tmp_path, monkeypatch):
    bulk.label(model, photos, tmp_path / "one")
    label = type(model).label

    def scarce(self, frames, **how):
        if len(frames) > 1:
            raise RuntimeError("not enough memory")
        return label(self, frames, **how)

    monkeypatch.setattr(type(model), "label", scarce)
    summary = bulk.label(model, photos, tmp_path / "many", batch=3)
    assert summary.failed == 0 and jobs.tree(tmp_path / "many") == jobs.tree(tmp_path / "one")
