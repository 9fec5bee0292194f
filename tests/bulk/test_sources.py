"""What a job takes: files, folders, globs, videos, tars and Parquet files; how their frames are called."""

import io
import json
import os
import tarfile

import jobs
import numpy as np
import pytest
from PIL import Image

from stdc_fast import bulk, images, listing
from stdc_fast.bulk import frames
from stdc_fast.bulk.sources import Sources
from stdc_fast.errors import UserError


def keys(sources, out, dotless=False):
    return [one.key for one in Sources(sources, out, dotless).inputs()]


def failures(out):
    return [json.loads(line)["reason"] for line in (out / "failures.jsonl").read_text().splitlines()]


def labels(out, key):
    return np.array(Image.open(out / "labels" / f"{key}.png"))


def empty(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


# Files, folders and globs.


def test_keys_are_paths_below_what_the_sources_have_in_common(tmp_path):
    data = empty(tmp_path / "data", "a/1.jpg", "a/deep/2.PNG", "b/1.jpg", "b/1.png", "c.jpg", "b/v.mp4")
    out = tmp_path / "out"
    assert keys([data], out) == ["c", "a/1", "a/deep/2", "b/1", "b/1_png", "b/v.mp4"]
    assert keys([data / "a"], out) == ["1", "deep/2"]
    assert keys([data / "b", data / "a"], out) == ["a/1", "a/deep/2", "b/1", "b/1_png", "b/v.mp4"]
    assert keys([data / "b" / "1.jpg"], out) == ["1"]
    assert keys([str(data / "*" / "1.jpg"), data / "c.jpg"], out) == ["c", "a/1", "b/1"]
    assert keys([str(data / "**" / "*.jpg")], out) == ["c", "a/1", "b/1"]
    assert keys([str(data / "[ab]")], out) == keys([data / "b", data / "a"], out)


def test_the_order_does_not_come_from_the_file_system(tmp_path, monkeypatch):
    data = empty(tmp_path / "data", *(f"{d}/{i}.jpg" for d in "cab" for i in (2, 10, 1)))
    walk = os.walk

    def backwards(*arguments, **more):
        for folder, folders, files in walk(*arguments, **more):
            folders.sort(reverse=True)
            yield folder, folders, sorted(files, reverse=True)

    before = keys([data], tmp_path / "out")
    monkeypatch.setattr(os, "walk", backwards)
    assert keys([data], tmp_path / "out") == before == [f"{d}/{i}" for d in "abc" for i in (1, 10, 2)]


def test_names_that_are_taken_and_dots_in_names(tmp_path):
    data = empty(tmp_path / "data", "a.b.jpg", "a_b.jpg", "a.b.png")
    assert keys([data], tmp_path / "out") == ["a.b", "a.b_png", "a_b"]
    assert keys([data], tmp_path / "out", dotless=True) == ["a_b", "a_b_png", "a_b_jpg"]


def test_results_and_hidden_files_are_no_sources(model, photo, tmp_path, caplog):
    data = jobs.folder_of(photo, tmp_path / "data", 2)
    empty(data, ".hidden.jpg", ".cache/a.jpg", "notes.txt", "a.tar.gz")
    bulk.label(model, data, data / "out")
    assert jobs.results(data / "out") == ["cam0/000", "cam0/001"]
    assert bulk.label(model, data, data / "out").labelled == 0  # its own results are not new
    assert "files of it are not taken: a.tar.gz, notes.txt" in caplog.text


def test_results_of_another_job_are_no_sources(model, photo, tmp_path, caplog):
    data = jobs.folder_of(photo, tmp_path / "data", 2)
    assert bulk.label(model, data, data / "one").labelled == 2
    assert bulk.label(model, data, data / "two", to="webdataset").labelled == 2
    assert "one/: holds the results of a job and is left out" in caplog.text
    assert bulk.label(model, data, data / "one").labelled == 0  # its sources are the same as before
    assert len(listing.expand(data, recursive=True)[0]) == 2
    assert bulk.label(model, data / "one" / "labels", tmp_path / "named").labelled == 2


def test_links_to_folders_are_said(tmp_path, caplog):
    data = empty(tmp_path / "data", "a/1.jpg")
    os.symlink(data, data / "a" / "up")
    assert keys([data], tmp_path / "out") == ["a/1"]
    assert "links to folders are not followed, as up" in caplog.text


def test_globs_take_a_folder_once_wherever_links_lead(tmp_path):
    """Python's own go round and round: with two such links they do not end."""
    data = empty(tmp_path / "data", "a/1.jpg", "z.jpg", "a/[b]/2.jpg", ".hidden/3.jpg")
    os.symlink(data, data / "a" / "up")
    pattern = str(data / "**" / "*.jpg")
    assert keys([pattern], tmp_path / "out") == ["z", "a/1", "a/[b]/2"]
    assert listing.expand(pattern)[0] == [data / name for name in ("a/1.jpg", "a/[b]/2.jpg", "z.jpg")]
    assert keys([str(data / "**")], tmp_path / "out") == ["z", "a/1", "a/[b]/2"]
    assert keys([str(tmp_path / "d*" / "**" / "a" / "**" / "1.*")], tmp_path / "out") == ["1"]
    assert keys([str(data / "*" / "up" / "z.jpg")], tmp_path / "out") == ["z"]  # named as it is


def test_a_link_to_nowhere_is_one_failure(model, photo, tmp_path):
    data = jobs.folder_of(photo, tmp_path / "data", 1)
    (data / "gone.jpg").symlink_to("nowhere")
    (data / "loop.tar").symlink_to("loop.tar")
    summary = bulk.label(model, data, tmp_path / "out")
    assert (summary.labelled, summary.failed) == (1, 2)
    assert "gone.jpg: no such file" in failures(tmp_path / "out")[0]
    (data / "nowhere").write_bytes(jobs.jpeg(photo, 1))
    assert bulk.label(model, data, tmp_path / "out", retry_failures=True).labelled == 1


def test_names_as_long_as_file_systems_take(model, photo, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / f"{'n' * 251}.jpg").write_bytes(jobs.jpeg(photo, 0))
    assert bulk.label(model, data, tmp_path / "out").labelled == 1
    assert jobs.results(tmp_path / "out") == ["n" * 251]


@pytest.mark.parametrize("rle", [False, True])
def test_a_result_whose_name_is_too_long_costs_one_frame(model, photo, tmp_path, rle):
    if rle:
        pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    data = tmp_path / "data"
    data.mkdir()
    names = (f"{'n' * 251}.jpg", "ok.jpg") if rle else (f"{'n' * 251}.jpg", f"{'n' * 251}.png", "ok.jpg")
    for i, name in enumerate(names):
        (data / name).write_bytes(jobs.jpeg(photo, i))
    for labelled in (len(names) - 1, 0):
        summary = bulk.label(model, data, tmp_path / "out", rle=rle)
        assert (summary.labelled, summary.failed) == (labelled, int(labelled > 0))
        (reason,) = failures(tmp_path / "out")
        assert "the name is too long for a file; rename its source" in reason


def test_sources_that_are_refused(tmp_path, photo):
    data = empty(tmp_path / "data", "a/1.jpg", "b.tgz", "notes.txt")
    (tmp_path / "nothing").mkdir()
    cases = {
        "": "the source is an empty name",
        str(data / "gone.jpg"): "gone.jpg: no such file",
        str(data / "*.png"): "no file matches",
        "0": "stdc-fast predict takes cameras and stdin",
        "-": "stdc-fast predict takes cameras and stdin",
        "http://localhost/a.jpg": "jobs take files only; download it first",
        str(data / "b.tgz"): "is compressed, so that frames in it can not be reached; unpack it",
        str(tmp_path / "nothing"): "holds no pictures, videos, tars or Parquet files",
    }
    for source, said in cases.items():
        with pytest.raises(UserError) as raised:
            keys([source], tmp_path / "out")
        assert said in str(raised.value), source
    with pytest.raises(UserError, match="which is a source as well; name one of them"):
        keys([data, data / "a"], tmp_path / "out")
    with pytest.raises(UserError, match="which is a source as well"):
        keys([data, data / "a" / "1.jpg"], tmp_path / "out")
    with pytest.raises(UserError, match="there are no sources"):
        keys([], tmp_path / "out")
    with pytest.raises(UserError, match="the folder of the results; choose another --out"):
        keys([data / "a" / "1.jpg"], data)


# Shards.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_shards_have_all_frames_once(tmp_path, size, photo):
    """Whatever lies across their bounds: pictures, a tar, and one that is no tar."""
    data = empty(tmp_path / "data", "a/1.jpg", "a/2.jpg", "b/3.jpg")
    jobs.tar_of(photo, data / "a" / "x.tar", [f"{i}.jpg" for i in range(6)])
    (data / "b" / "y.tar").write_bytes(b"no tar" * 200)
    entries = [frames.count(one, False, False) for one in Sources([data], tmp_path / "out").inputs()]
    listing, _ = frames.write(tmp_path / "listing", entries, size)
    want = ["a/1", "a/2", *(f"a/x.tar/{i}" for i in range(6)), "b/3", "b/y.tar/rest"]
    assert listing.frames == len(want) and len(listing.shards) == -(-len(want) // size)
    shards = [[f.key for f in listing.frames_of(i)] for i in range(len(listing.shards))]
    assert [key for shard in shards for key in shard] == want
    assert [len(shard) for shard in shards] == [listing.length(i) for i in range(len(shards))]
    assert {len(shard) for shard in shards[:-1]} <= {size}


# Videos.


def test_frames_of_videos_by_number(model, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    import videos

    from stdc_fast import video

    (tmp_path / "data").mkdir()
    videos.film(tmp_path / "data" / "a.mp4", 7)
    videos.film(tmp_path / "data" / "b.avi", 4)
    out = tmp_path / "out"
    summary = bulk.label(model, tmp_path / "data", out, shard=3)
    assert (summary.labelled, summary.failed) == (11, 0)
    want = [*(f"a.mp4/{i:08d}" for i in range(7)), *(f"b.avi/{i:08d}" for i in range(4))]
    assert jobs.results(out) == want
    for name in ("a.mp4", "b.avi"):
        for i, picture in enumerate(video.read(tmp_path / "data" / name)):
            assert np.array_equal(labels(out, f"{name}/{i:08d}"), model.predict(picture).labels), (name, i)


def test_a_video_goes_on_at_any_frame(model, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    import videos

    videos.film(tmp_path / "a.mp4", 12)
    bulk.label(model, tmp_path / "a.mp4", tmp_path / "whole", shard=4)
    bulk.label(model, tmp_path / "a.mp4", tmp_path / "out", shard=4)
    for i in (2, 3, 9):
        (tmp_path / "out" / "labels" / "a.mp4" / f"{i:08d}.png").unlink()
    assert bulk.label(model, tmp_path / "a.mp4", tmp_path / "out", shard=4).labelled == 3
    assert jobs.tree(tmp_path / "out") == jobs.tree(tmp_path / "whole")


def test_a_damaged_video_has_the_frames_that_can_be_had(model, tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV is not installed")
    import videos

    monkeypatch.chdir(tmp_path)
    videos.cut("a.mkv")
    (tmp_path / "b.mp4").write_text("no video")
    summary = bulk.label(model, ["a.mkv", "b.mp4"], "out")
    assert summary.failed == 2 and 5 < summary.labelled < 40
    first, second = failures(tmp_path / "out")
    assert (
        f"only {summary.labelled} frames could be decoded" in first and "b.mp4: can not be decoded" in second
    )


# Tars in WebDataset's layout.


def test_pictures_of_tars(model, photo, tmp_path):
    for k in range(2):
        more = ((".json", b"{}"), (".cls", b"3"))
        jobs.tar_of(photo, tmp_path / f"train-{k}.tar", [f"seq/{k}{i}.jpg" for i in range(3)], more)
    summary = bulk.label(model, str(tmp_path / "train-*.tar"), tmp_path / "out", shard=4)
    assert (summary.labelled, summary.failed) == (6, 0)
    assert jobs.results(tmp_path / "out") == [f"train-{k}.tar/seq/{k}{i}" for k in range(2) for i in range(3)]
    picture = images.read_image(jobs.jpeg(photo, 2))
    assert np.array_equal(labels(tmp_path / "out", "train-1.tar/seq/12"), model.predict(picture).labels)


def test_members_that_differ_in_slashes_have_results_of_their_own(model, photo, tmp_path):
    names = ["x/a.jpg", "/x/a.jpg", "//x/a.jpg", "./x/a.jpg"]
    tar = jobs.tar_of(photo, tmp_path / "a.tar", names)
    assert bulk.label(model, tar, tmp_path / "out").labelled == 4
    expected = ["a.tar/x/a", "a.tar/x/a_jpg", "a.tar/x/a_2", "a.tar/x/a_3"]
    assert jobs.results(tmp_path / "out") == sorted(expected)
    for i, key in enumerate(expected):
        picture = images.read_image(jobs.jpeg(photo, i))
        assert np.array_equal(labels(tmp_path / "out", key), model.predict(picture).labels)


def test_a_tar_behind_the_end_of_another_is_said(model, photo, tmp_path):
    first, second = (jobs.tar_of(photo, tmp_path / f"{n}.tar", [f"{n}.jpg"]) for n in "ab")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    summary = bulk.label(model, first, tmp_path / "out")
    assert (summary.labelled, summary.failed) == (1, 1)
    assert "a.tar: has more behind its end" in failures(tmp_path / "out")[0]


def test_a_picture_called_as_the_rest_of_a_damaged_tar(model, photo, tmp_path):
    tar = jobs.tar_of(photo, tmp_path / "a.tar", ["rest.jpg", "z.jpg"])
    with tarfile.open(tar) as file:
        last = file.getmembers()[1]
    tar.write_bytes(tar.read_bytes()[: last.offset])
    for _ in range(2):  # it does not take the picture's labels for those of the rest
        bulk.label(model, tar, tmp_path / "out", retry_failures=(tmp_path / "out").exists())
        found = bulk.status(tmp_path / "out")
        assert (found["labelled"], found["failed"]) == (1, 1)
    assert jobs.results(tmp_path / "out") == ["a.tar/rest_jpg"]


def test_tars_as_the_webdataset_package_writes_them(model, photo, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"s{i}", "jpg": jobs.jpeg(photo, i), "cls": i})
    assert bulk.label(model, tmp_path / "a.tar", tmp_path / "out").labelled == 3
    assert jobs.results(tmp_path / "out") == [f"a.tar/s{i}" for i in range(3)]


def test_links_in_tars_and_tars_without_pictures_are_said(model, photo, tmp_path, caplog):
    photos = jobs.folder_of(photo, tmp_path / "photos", 1) / "cam0"
    (photos / "hard.jpg").hardlink_to(photos / "000.jpg")
    (photos / "soft.jpg").symlink_to("000.jpg")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        for name in ("000.jpg", "hard.jpg", "soft.jpg"):
            tar.add(photos / name, name)
    with tarfile.open(tmp_path / "arrays.tar", "w") as tar:
        tar.add(photos / "000.jpg", "000.npy")
    assert bulk.label(model, str(tmp_path / "*.tar"), tmp_path / "out").labelled == 1
    assert "links.tar: links in it are not followed, as hard.jpg" in caplog.text
    assert "arrays.tar: holds no pictures" in caplog.text


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_a_compressed_tar_under_another_name(model, photo, tmp_path, form):
    jobs.tar_of(photo, tmp_path / "plain.tar", ["0.jpg"])
    with tarfile.open(tmp_path / "a.tar", f"w:{form}") as tar:
        tar.add(tmp_path / "plain.tar", "0.jpg")
    assert bulk.label(model, tmp_path / "a.tar", tmp_path / "out").failed == 1
    assert failures(tmp_path / "out")[0].endswith("; unpack it")


def test_damaged_tars(model, photo, tmp_path):
    whole = jobs.tar_of(photo, tmp_path / "a.tar", [f"{i}.jpg" for i in range(4)])
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        third = tar.getmembers()[2]
    (tmp_path / "cut.tar").write_bytes(content[: third.offset_data + 100])
    (tmp_path / "endless.tar").write_bytes(content[: third.offset])
    (tmp_path / "text.tar").write_text("no tar")
    out_of_it = io.BytesIO(jobs.jpeg(photo, 0))
    with tarfile.open(tmp_path / "up.tar", "w") as tar:
        info = tarfile.TarInfo("../../up.jpg")
        info.size = len(out_of_it.getvalue())
        tar.addfile(info, out_of_it)
    whole.unlink()
    summary = bulk.label(model, tmp_path, tmp_path / "out")
    assert jobs.results(tmp_path / "out") == [f"{n}.tar/{i}" for n in ("cut", "endless") for i in range(2)]
    assert summary.failed == 4
    said = failures(tmp_path / "out")
    for reason, words in zip(
        said, ("ends behind the end", "its end is missing", "read as a tar", "is refused"), strict=True
    ):
        assert words in reason


# Parquet.


@pytest.fixture
def parquet():
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(path, /, **columns):
        parquet.write_table(arrow.table(columns), path, row_group_size=2)
        return path

    return write


@pytest.mark.parametrize("kind", ["bytes", "image", "struct"])
def test_pictures_in_parquet(model, photo, tmp_path, parquet, kind):
    pictures = [jobs.jpeg(photo, i) for i in range(5)]
    cells = [{"bytes": p, "path": "x.jpg"} for p in pictures] if kind == "struct" else pictures
    name = "bytes" if kind == "bytes" else "image"
    parquet(tmp_path / "a.parquet", **{name: [*cells[:4], None, *cells[4:]]})
    summary = bulk.label(model, tmp_path / "a.parquet", tmp_path / "out", shard=4)
    assert (summary.labelled, summary.failed) == (5, 1)
    assert jobs.results(tmp_path / "out") == [f"a.parquet/{i:08d}" for i in (0, 1, 2, 3, 5)]
    assert "a.parquet[4]: the cell is empty" in failures(tmp_path / "out")[0]
    want = model.predict(images.read_image(pictures[4])).labels
    assert np.array_equal(labels(tmp_path / "out", "a.parquet/00000005"), want)


def test_paths_in_parquet(model, photo, tmp_path, parquet):
    folder = jobs.folder_of(photo, tmp_path / "photos", 3)
    table = parquet(
        tmp_path / "a.parquet", path=["photos/cam0/001.jpg", str(folder / "cam0/000.jpg"), "gone.jpg", None]
    )
    summary = bulk.label(model, table, tmp_path / "out")
    assert (summary.labelled, summary.failed) == (2, 2)
    gone, none = failures(tmp_path / "out")
    assert "gone.jpg: no such file" in gone and "the cell of its path is empty" in none
    want = model.predict(folder / "cam0" / "001.jpg").labels
    assert np.array_equal(labels(tmp_path / "out", "a.parquet/00000000"), want)
    (tmp_path / "gone.jpg").write_bytes(jobs.jpeg(photo, 7))
    assert bulk.label(model, table, tmp_path / "out", retry_failures=True).labelled == 1


@pytest.mark.parametrize("kind", ["dictionary", "large", "view"])
@pytest.mark.parametrize("name", ["path", "image"])
def test_columns_as_other_writers_have_them(model, photo, tmp_path, parquet, name, kind):
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "0.jpg").write_bytes(jobs.jpeg(photo, 0))
    cells, base = (["0.jpg"] * 2, "string") if name == "path" else ([jobs.jpeg(photo, 0)] * 2, "binary")
    types = {"large": getattr(arrow, f"large_{base}"), "view": getattr(arrow, f"{base}_view")}
    column = (
        arrow.array(cells).dictionary_encode() if kind == "dictionary" else arrow.array(cells, types[kind]())
    )
    parquet(tmp_path / "a.parquet", **{name: column})
    assert bulk.label(model, tmp_path / "a.parquet", tmp_path / "out").labelled == 2
    want = model.predict(tmp_path / "0.jpg").labels
    assert np.array_equal(labels(tmp_path / "out", "a.parquet/00000001"), want)


def test_columns_that_share_a_name(model, photo, tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    pictures = arrow.array([jobs.jpeg(photo, 0)])
    parquet.write_table(arrow.Table.from_arrays([pictures] * 2, ["image"] * 2), tmp_path / "a.parquet")
    assert bulk.label(model, tmp_path / "a.parquet", tmp_path / "out").failed == 1
    assert "has several columns called image; leave one" in failures(tmp_path / "out")[0]


@pytest.mark.parametrize("fault", ["damaged", "no text"])
def test_paths_that_can_not_all_be_read_are_a_failure(model, photo, tmp_path, parquet, fault):
    """Those before the fault are labelled; the others must not be left out in silence."""
    tables = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "0.jpg").write_bytes(jobs.jpeg(photo, 0))
    rows = parquet(tmp_path / "a.parquet", path=["0.jpg", "0.jpg", "~~~~.jpg"])
    group = tables.read_metadata(rows).row_group(1).column(0)
    start = group.dictionary_page_offset
    end = start + group.total_compressed_size
    content, spoilt = rows.read_bytes(), b"\xff" * (end - start)
    if fault == "no text":
        spoilt = content[start:end].replace(b"~~~~", b"\xff" * 4)
    rows.write_bytes(content[:start] + spoilt + content[end:])
    summary = bulk.label(model, rows, tmp_path / "out")
    assert (summary.labelled, summary.failed) == (2, 1)
    assert "a.parquet: can not be read as Parquet" in failures(tmp_path / "out")[0]


def test_tables_without_rows_are_said(model, tmp_path, parquet, caplog):
    arrow = pytest.importorskip("pyarrow")
    parquet(tmp_path / "a.parquet", path=arrow.array([], arrow.string()))
    assert bulk.label(model, tmp_path / "a.parquet", tmp_path / "out").labelled == 0
    assert "a.parquet: holds no rows" in caplog.text


def test_a_path_in_parquet_that_no_file_can_have(model, photo, tmp_path, parquet):
    (tmp_path / "a.jpg").write_bytes(jobs.jpeg(photo, 0))
    rows = parquet(tmp_path / "rows.parquet", path=["a.jpg", "a\0.jpg"])
    summary = bulk.label(model, rows, tmp_path / "out")
    assert (summary.labelled, summary.failed) == (1, 1)


def test_parquet_without_frames(model, tmp_path, parquet):
    parquet(tmp_path / "a.parquet", label=[1, 2])
    (tmp_path / "b.parquet").write_text("no table")
    bulk.label(model, tmp_path, tmp_path / "out")
    first, second = failures(tmp_path / "out")
    assert "has columns label; frames must be in a column path" in first
    assert "b.parquet: can not be read as Parquet" in second


def test_without_pyarrow_the_extra_is_named(tmp_path, photo, monkeypatch, model):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "stdc-fast\[bulk\]"'):
        bulk.label(model, tmp_path / "a.parquet", tmp_path / "out")
    (tmp_path / "a.parquet").unlink()
    jobs.folder_of(photo, tmp_path / "photos", 1)
    with pytest.raises(UserError, match=r'pip install "stdc-fast\[bulk\]"'):
        bulk.label(model, tmp_path / "photos", tmp_path / "out2", to="parquet")
