"""A job's life: begun, stopped, gone on with, refused, retried; one result a frame whatever happens."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import jobs
import numpy as np
import pytest
from PIL import Image

from stdc_fast import bulk, images
from stdc_fast.bulk import outputs, readers
from stdc_fast.bulk.job import Job
from stdc_fast.errors import UserError

TO = ("png", "webdataset", "parquet")


@pytest.fixture(params=TO)
def to(request):
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return request.param


class Stop(Exception):
    pass


def stop_after(count):
    """For ``on_frame``: raises after so many frames."""
    left = iter(range(count))

    def on_frame():
        if next(left, None) is None:
            raise Stop

    return on_frame


def test_labels_are_those_of_predict(model, photos, tmp_path):
    summary = bulk.label(model, photos, tmp_path / "out", shard=4)
    assert (summary.labelled, summary.failed, summary.signal) == (10, 0, None)
    assert jobs.results(tmp_path / "out") == sorted(f"cam{i // 4}/{i:03d}" for i in range(10))
    for i in range(10):
        name = f"cam{i // 4}/{i:03d}"
        labels = np.array(Image.open(tmp_path / "out" / "labels" / f"{name}.png"))
        assert np.array_equal(labels, model.predict(photos / f"{name}.jpg").labels), name


def test_a_finished_job_labels_nothing_again(model, photos, tmp_path, to):
    bulk.label(model, photos, tmp_path / "out", to=to, shard=4)
    before = jobs.tree(tmp_path / "out")
    assert bulk.label(model, photos, tmp_path / "out", to=to, shard=4).labelled == 0
    assert jobs.tree(tmp_path / "out") == before


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_a_job_that_broke_off_goes_on_to_the_same_bytes(model, photos, tmp_path, to, frames):
    bulk.label(model, photos, tmp_path / "whole", to=to, shard=4)
    with pytest.raises(Stop):
        bulk.label(model, photos, tmp_path / "out", to=to, shard=4, on_frame=stop_after(frames))
    state = bulk.status(tmp_path / "out")
    assert state["shards"] == ["done"] * (frames // 4) + ["pending"] * (3 - frames // 4)
    assert not list((tmp_path / "out").rglob(".*")), "something half written"
    summary = bulk.label(model, photos, tmp_path / "out", to=to, shard=4)
    assert summary.labelled <= 10 - frames // 4 * 4
    assert jobs.tree(tmp_path / "out") == jobs.tree(tmp_path / "whole")


def test_results_that_were_lost_are_made_again(model, photos, tmp_path, to, caplog):
    out = tmp_path / "out"
    bulk.label(model, photos, out, to=to, shard=4)
    whole = jobs.tree(out)
    lost = out / next(name for name in whole if name.endswith(("007.png", "000001.tar", "000001.parquet")))
    lost.unlink()
    summary = bulk.label(model, photos, out, to=to, shard=4)
    assert summary.labelled == (1 if to == "png" else 4)
    assert "made again" in caplog.text
    assert jobs.tree(out) == whole


def test_the_state_of_a_job_on_a_disk_that_is_only_read(model, photos, small_disk, run_cli):
    bulk.label(model, photos, small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = run_cli("label", "--status", small_disk / "out")
    assert done.code == 0 and "10 of 10 frames labelled" in done.out and "running" not in done.out
    assert bulk.status(small_disk / "out")["running"] is None


def test_status_says_where_a_job_stands(model, photos, tmp_path, run_cli):
    (photos / "cam0" / "bad.jpg").write_bytes(b"not a picture")
    with pytest.raises(Stop):
        bulk.label(model, photos, tmp_path / "out", shard=5, on_frame=stop_after(6))
    done = run_cli("label", "--status", tmp_path / "out")
    assert done.code == 0
    assert done.out == f"{photos} by tiny to png: 1 of 3 shards done, 4 of 11 frames labelled, 1 failed\n"
    state = json.loads(run_cli("label", "--status", tmp_path / "out", "--json").out)
    assert state["shards"] == ["done", "pending", "pending"] and not state["running"]
    done = run_cli("label", "--status", tmp_path)
    assert done.code == 2 and "holds no job" in done.err


def test_a_file_is_no_folder_for_results(photos, tmp_path, run_cli):
    (tmp_path / "out").write_text("notes")
    done = run_cli("label", photos, "--out", tmp_path / "out")
    assert done.code == 2 and "out: is a file; choose a folder" in done.err
    assert (tmp_path / "out").read_text() == "notes"


@pytest.mark.parametrize("more", [("--ray-actors", 4), ("--ray-cpus", 1), ("--ray-gpus", 1)])
def test_options_of_actors_need_ray(photos, tmp_path, run_cli, more):
    done = run_cli("label", photos, "--out", tmp_path / "out", *more)
    assert done.code == 2 and "are about actors of --ray" in done.err
    assert not (tmp_path / "out").exists()


# Failures.


def test_frames_that_fail_are_listed_and_tried_again(model, photos, tmp_path, to):
    bad = photos / "cam1" / "005.jpg"
    good = bad.read_bytes()
    bulk.label(model, photos, tmp_path / "whole", to=to, shard=4)
    bad.write_bytes(good[: len(good) // 2])
    (photos / "cam2" / "009.jpg").write_bytes(b"")
    out = tmp_path / "out"
    summary = bulk.label(model, photos, out, to=to, shard=4)
    assert (summary.labelled, summary.failed) == (8, 2)
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(f["key"], f["path"]) for f in failures] == [
        ("cam1/005", str(bad)), ("cam2/009", str(photos / "cam2" / "009.jpg"))
    ]  # fmt: skip
    assert "truncated" in failures[0]["reason"] and "is empty" in failures[1]["reason"]

    bad.write_bytes(good)
    with pytest.raises(
        UserError, match=r"sources changed since this job began: .*005.jpg has \d+ bytes, not"
    ):
        bulk.label(model, photos, out, to=to, shard=4)
    summary = bulk.label(model, photos, out, to=to, shard=4, retry_failures=True)
    assert (summary.labelled, summary.failed) == (1, 1)
    assert len((out / "failures.jsonl").read_text().splitlines()) == 1
    (photos / "cam2" / "009.jpg").write_bytes((photos / "cam2" / "008.jpg").read_bytes())
    assert bulk.label(model, photos, out, to=to, shard=4, retry_failures=True).labelled == 1
    assert (out / "failures.jsonl").read_text() == ""
    ours, whole = jobs.tree(out), jobs.tree(tmp_path / "whole")
    same = [
        name
        for name in ours
        if name.startswith("labels") and not name.endswith(("009.png", "02.tar", "02.parquet"))
    ]
    assert len(same) == (9 if to == "png" else 2)
    assert all(ours[name] == whole[name] for name in same)
    assert bulk.label(model, photos, out, to=to, shard=4).labelled == 0


def test_a_retry_that_broke_off_keeps_what_there_was(model, photos, tmp_path, to):
    bad = photos / "cam0" / "002.jpg"
    good = bad.read_bytes()
    bad.write_bytes(b"no picture")
    out = tmp_path / "out"
    bulk.label(model, photos, out, to=to, shard=4)
    bad.write_bytes(good)
    with pytest.raises(Stop):
        bulk.label(model, photos, out, to=to, shard=4, retry_failures=True, on_frame=stop_after(1))
    assert bulk.status(out)["labelled"] == 9
    bulk.label(model, photos, out, to=to, shard=4, retry_failures=True)
    bulk.label(model, photos, tmp_path / "whole", to=to, shard=4)
    whole = {k: v for k, v in jobs.tree(tmp_path / "whole").items() if k.startswith("labels")}
    assert {k: v for k, v in jobs.tree(out).items() if k.startswith("labels")} == whole


def test_a_picture_that_changes_while_the_job_runs_is_a_failure(model, photos, tmp_path):
    last = photos / "cam2" / "009.jpg"
    changed = iter([lambda: last.write_bytes((photos / "cam0" / "000.jpg").read_bytes())])
    with Job(tmp_path / "out", photos, bulk.about(model), {"shard": 4}) as job:
        bulk.run(job, model, workers=1, ahead=1, on_frame=lambda: next(changed, lambda: None)())
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert "changed since the job began" in json.loads(line)["reason"]


def test_a_picture_that_changes_while_it_is_read_is_a_failure(model, photos, tmp_path, monkeypatch):
    read = images.read_image

    def and_then_changed(source, *arguments):
        found = read(source, *arguments)
        if str(source).endswith("009.jpg"):
            Path(source).write_bytes((photos / "cam0" / "000.jpg").read_bytes() + b" ")
        return found

    monkeypatch.setattr(images, "read_image", and_then_changed)
    summary = bulk.label(model, photos, tmp_path / "out")
    assert (summary.labelled, summary.failed) == (9, 1)
    assert "cam2/009" not in jobs.results(tmp_path / "out")


def test_sources_that_vanish_end_the_job(model, photos, tmp_path):
    moved = iter([lambda: photos.rename(tmp_path / "away")])
    out = tmp_path / "out"
    with (
        Job(out, photos, bulk.about(model), {"shard": 2}) as job,
        pytest.raises(UserError, match="is gone since"),
    ):
        bulk.run(job, model, workers=1, ahead=1, on_frame=lambda: next(moved, lambda: None)())
    assert (out / "failures.jsonl").read_text() == ""
    (tmp_path / "away").rename(photos)
    bulk.label(model, photos, out, shard=2)
    assert len(jobs.results(out)) == 10


# Refusals.


def test_another_job_in_the_folder_is_refused(model, photos, tmp_path, run_cli, tiny_weights):
    out = tmp_path / "out"
    bulk.label(model, photos, out, shard=4)
    cases = [
        ({"shard": 5}, "--shard 4, not 5"),
        ({"to": "webdataset"}, "--to png, not webdataset"),
        ({"size": (64, 96)}, r"--size None, not \[64, 96\]"),
        ({"rle": True}, "--rle False, not True"),
    ]
    for options, said in cases:
        with pytest.raises(UserError, match=f"the job began with {said}; give the same options"):
            bulk.label(model, photos, out, **{"shard": 4} | options)
    done = run_cli("label", photos, "--out", out, "-m", tiny_weights, "--shard", 4, "--dtype", "float64")
    assert done.code == 2
    assert len(done.messages) == 1 and "began with a model of" in done.err and "--dtype" in done.err


def test_other_weights_are_refused(model, photos, tmp_path):
    about = bulk.about(model)
    with Job(tmp_path / "out", photos, about, {}):
        pass
    with pytest.raises(UserError, match=r"a model of weights [0-9a-f]{12}, not 123 \(tiny, now tiny\)"):
        Job(tmp_path / "out", photos, about | {"weights": "123"}, {})
    with pytest.raises(UserError, match="a model of backend"):
        Job(tmp_path / "out", photos, about | {"backend": "other"}, {})


def test_another_version_is_refused(model, photos, tmp_path):
    with Job(tmp_path / "out", photos, bulk.about(model), {}):
        pass
    manifest = tmp_path / "out" / "job.json"
    manifest.write_text(manifest.read_text().replace('"version": "', '"version": "0.0.'))
    with pytest.raises(UserError, match=r"the job began with stdc_fast 0\.0\."):
        Job(tmp_path / "out", photos, bulk.about(model), {})
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(UserError, match="is no job of this version"):
        Job(tmp_path / "out", photos, bulk.about(model), {})


@pytest.mark.parametrize("change", ["new", "gone", "touched", "grown"])
def test_changed_sources_are_refused(model, photos, tmp_path, change):
    bulk.label(model, photos, tmp_path / "out", shard=4)
    one = photos / "cam1" / "005.jpg"
    if change == "new":
        one.with_name("0051.jpg").write_bytes(one.read_bytes())
    elif change == "gone":
        one.unlink()
    elif change == "touched":
        os.utime(one, (1, 1))
    else:
        one.write_bytes(one.read_bytes() + b"0")
    said = {
        "new": "0051.jpg is new",
        "gone": "005.jpg is gone",
        "touched": "another time",
        "grown": "bytes, not",
    }
    with pytest.raises(
        UserError, match=f"sources changed since this job began: .*{said[change]}.*; restore them"
    ):
        bulk.label(model, photos, tmp_path / "out", shard=4)


def test_a_folder_with_other_files_is_refused(model, photos, tmp_path):
    with pytest.raises(UserError, match="holds other files and no job; choose an empty folder"):
        bulk.label(model, photos, photos)
    with pytest.raises(UserError, match="no job to retry failures of"):
        bulk.label(model, photos, tmp_path / "out", retry_failures=True)
    with pytest.raises(UserError, match="--shard is a number of frames from 1 on, not 0"):
        bulk.label(model, photos, tmp_path / "out", shard=0)
    for options, said in (
        ({"matrix": "bt600"}, "--matrix must be one of bt601"),
        ({"scale": 0.5, "size": (64, 96)}, "not both"),
        ({"range": (5, 1)}, "black below white"),
        ({"label_ids": True}, "Cityscapes"),
        ({"colour": 1}, "unknown option 'colour' of a job"),
    ):
        with pytest.raises(UserError, match=said):
            bulk.label(model, photos, tmp_path / "out", **options)
    with pytest.raises(UserError, match="--to must be one of png, webdataset, parquet, not 'tiff'"):
        bulk.label(model, photos, tmp_path / "out", to="tiff")


def test_two_at_once_are_refused_and_the_state_can_be_asked_for(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("stdc_fast.bulk.job.PATIENCE", 0.05)
    out = tmp_path / "out"
    with Job(out, photos, bulk.about(model), {"shard": 4}) as job:
        with pytest.raises(UserError, match="another process works on this job"):
            bulk.label(model, photos, out, shard=4)
        assert bulk.status(out)["running"]
        bulk.run(job, model)
    assert not bulk.status(out)["running"]
    assert bulk.label(model, photos, out, shard=4).labelled == 0


# Interruptions.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_same_command_goes_on(
    run_cli, photo, tmp_path, tiny_weights, monkeypatch, number
):
    out, photos = tmp_path / "out", jobs.folder_of(photo, tmp_path / "photos", 60)
    command = ("label", photos, "--out", out, "-m", tiny_weights, "--shard", 4)
    finish, count = Job.finish, iter(range(2))

    def interrupted(job, shard, failures):
        finish(job, shard, failures)
        if next(count, None) == 0:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Job, "finish", interrupted)
    done = run_cli(*command)
    assert done.code == 128 + number
    (message,) = done.messages
    assert message.endswith("of 15 shards are done, and the same command goes on")
    state = bulk.status(out)
    assert 1 <= state["shards"].count("done") < 15 and not state["running"]
    assert not list(out.rglob(".*"))
    done = run_cli(*command)
    assert done.code == 0, done.err
    assert len(jobs.results(out)) == 60


def test_what_can_not_be_written_is_one_line_and_what_is_done_stays(run_cli, photos, tmp_path, tiny_weights):
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    command = (
        "label",
        photos,
        "--out",
        tmp_path / "out",
        "-m",
        tiny_weights,
        "--shard",
        4,
        "--to",
        "webdataset",
    )
    assert run_cli(*command[:3], tmp_path / "whole", *command[4:]).code == 0
    sizes = [(tmp_path / "whole" / f"labels-{i:06d}.tar").stat().st_size for i in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) // 2, hard))
        done = run_cli(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert done.code == 2
    (message,) = done.messages
    assert (
        "labels-000000.tar: can not be written (File too large); 0 of 3 shards are done and stay" in message
    )
    assert not list((tmp_path / "out").glob("labels*")) and not list((tmp_path / "out" / "job").glob("tmp/*"))
    assert run_cli(*command).code == 0
    assert jobs.tree(tmp_path / "out") == jobs.tree(tmp_path / "whole")


@pytest.mark.parametrize("to", TO[:2])
def test_a_disk_that_fills_up_half_way(run_cli, photos, tmp_path, tiny_weights, monkeypatch, to):
    command = ("label", photos, "--out", tmp_path / "out", "-m", tiny_weights, "--shard", 4, "--to", to)
    fsync = os.fsync

    def full(number):
        if (tmp_path / "out" / "job" / "shards" / "000000.json").exists():
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    done = run_cli(*command)
    assert done.code == 1
    assert (
        len(done.messages) == 1 and "(No space left on device); 1 of 3 shards are done and stay" in done.err
    )
    monkeypatch.setattr(os, "fsync", fsync)
    assert run_cli(*command).code == 0
    assert bulk.status(tmp_path / "out")["labelled"] == 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system can not be mounted here ({error})")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("to", TO[:2])
def test_a_full_disk(model, run_cli, photo, tmp_path, tiny_weights, small_disk, to):
    photos = jobs.folder_of(photo, tmp_path / "photos", 80, per_folder=20)
    bulk.label(model, photos, tmp_path / "whole", to=to, shard=8)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(200_000))
    command = ("label", photos, "--out", small_disk / "out", "-m", tiny_weights, "--shard", 8, "--to", to)
    command += ("--dtype", "float32")
    done = run_cli(*command)
    assert done.code == 1 and len(done.messages) == 1
    assert (
        "can not be written (No space left on device)" in done.err and "shards are done and stay" in done.err
    )
    assert 0 < bulk.status(small_disk / "out")["shards"].count("done") < 10
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert run_cli(*command).code == 0
    assert jobs.tree(small_disk / "out") == jobs.tree(tmp_path / "whole")


def test_a_disk_that_is_full_before_the_job_begins(photos, tmp_path, run_cli, tiny_weights, monkeypatch):
    def put(path, *_):
        with outputs.output_errors(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("stdc_fast.bulk.job.put", put)
    done = run_cli("label", photos, "--out", tmp_path / "out", "-m", tiny_weights)
    assert done.code == 2
    (message,) = done.messages
    assert "job.json: can not be written (No space left on device)" in message


# Memory.


def test_pictures_in_memory_do_not_grow_with_their_number(model, photo, tmp_path, monkeypatch):
    """Counted: decoded, and not yet written."""
    folder = jobs.folder_of(photo, tmp_path / "photos", 60)
    lock, held, most = threading.Lock(), [0], [0]
    read, result = readers.images.read_image, outputs.Png.result

    def reading(*arguments):
        image = read(*arguments)
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        return image

    def writing(*arguments):
        done = result(*arguments)
        with lock:
            held[0] -= 1
        return done

    monkeypatch.setattr(readers.images, "read_image", reading)
    monkeypatch.setattr(outputs.Png, "result", writing)
    with Job(tmp_path / "out", folder, bulk.about(model), {"shard": 25}) as job:
        summary = bulk.run(job, model, workers=2, ahead=3)
    assert summary.labelled == 60 and held == [0]
    assert 1 < most[0] <= 2 * 3 + 2
