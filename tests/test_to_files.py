"""Pictures to files from Python: order, batches, how many are held, keys, pictures too large for a format."""

import dataclasses
import threading

import numpy as np
import pytest
from folders import save
from PIL import Image
from refusals import refusal

from stdc_fast import encode
from stdc_fast.errors import UserError
from stdc_fast.images import read_image
from stdc_fast.pipeline import Workers
from stdc_fast.to_files import Outputs, Task, ToFiles


@pytest.fixture
def folder(tmp_path, photo):
    for i in range(12):
        save(photo(64, 96 + 16 * (i // 5), i), tmp_path / f"{i:02}.png")
    return tmp_path


def tasks(folder, outputs, out="out"):
    for path in sorted(folder.glob("*.png")):
        yield Task(path, path.name, outputs.targets(folder / out / path.stem))


def test_files_are_those_of_one_picture_at_a_time(model, folder):
    outputs = Outputs(format="png")
    with Workers(3) as workers:
        done = list(ToFiles(model, outputs, workers).run(tasks(folder, outputs)))
    assert [task.name for task, _ in done] == [f"{i:02}.png" for i in range(12)]
    for task, row in done:
        alone = model.predict(task.source)
        timeless = {k: v for k, v in alone.to_dict().items() if k not in ("seconds", "name")}
        assert timeless.items() <= row.items() and row["name"] == task.name
        with Image.open(row["overlay"]) as overlay, Image.open(row["labels"]) as labels:
            assert np.array_equal(np.asarray(overlay), np.asarray(alone.overlay(legend=True)))
            assert np.array_equal(np.asarray(labels), alone.labels)
            assert labels.mode == "P"


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_batches_have_one_size_and_change_no_label(batch, model, folder, monkeypatch):
    outputs, sizes = Outputs(overlay=False), []
    segment = model._segment

    def counting(ring, name, image, *how):
        sizes.append(image.shape[:3])
        return segment(ring, name, image, *how)

    (folder / "03.png").write_text("no picture")
    monkeypatch.setattr(model, "_segment", counting)
    with Workers(2) as workers:
        done = list(ToFiles(model, outputs, workers, batch=batch).run(tasks(folder, outputs)))
    assert [isinstance(row, UserError) for _, row in done] == [i == 3 for i in range(12)]
    # 5, 5 and 2 pictures of three widths; the damaged one parts the first of them.
    groups = [(3, 96), (1, 96), (5, 112), (2, 128)]
    expected = [
        (min(batch, count - at), 64, width) for count, width in groups for at in range(0, count, batch)
    ]
    assert sizes == expected
    for task, row in done:
        if not isinstance(row, UserError):
            assert row["name"] == task.name
            assert np.array_equal(np.asarray(Image.open(row["labels"])), model.predict(task.source).labels)


def test_one_of_a_batch_without_memory_fails_alone(model, folder, monkeypatch):
    outputs, segment = Outputs(overlay=False), model._segment

    def short(ring, name, image, *how):
        if len(image) > 1 or name == "01.png":
            raise MemoryError
        return segment(ring, name, image, *how)

    monkeypatch.setattr(model, "_segment", short)
    with Workers(2) as workers:
        done = list(ToFiles(model, outputs, workers, batch=4).run(tasks(folder, outputs)))
    failed = [str(row) for _, row in done if isinstance(row, UserError)]
    assert failed == ["01.png: not enough memory; use a smaller scale or size"]


def test_no_more_pictures_are_held_than_the_workers_allow(model, folder, monkeypatch):
    """Counted: read and not yet written, while writing is slower than all else."""
    lock, held, most, slow = threading.Lock(), set(), [], threading.Event()
    read, write = ToFiles._read, ToFiles._write

    def reading(made, task):
        with lock:
            held.add(task.name)
            most.append(len(held))
        return read(made, task)

    def writing(made, item):
        slow.wait(0.02)
        row = write(made, item)
        with lock:
            held.discard(item[0].name)
        return row

    monkeypatch.setattr(ToFiles, "_read", reading)
    monkeypatch.setattr(ToFiles, "_write", writing)
    outputs = Outputs(overlay=False)
    again = [task for _ in range(5) for task in tasks(folder, outputs)]
    again = [dataclasses.replace(task, name=f"{i}") for i, task in enumerate(again)]
    with Workers(2, ahead=3) as workers:
        assert len(list(ToFiles(model, outputs, workers).run(again))) == 60
    # Three being read or waiting for the network, one in it, three being written.
    assert max(most) <= 7


def test_stopped_ends_with_what_is_labelled(model, folder):
    outputs = Outputs(overlay=False)
    with Workers(2) as workers:
        made = ToFiles(model, outputs, workers)
        done = []
        for task, row in made.run(tasks(folder, outputs)):
            done.append((task, row))
            if len(done) == 3:
                made.stopped = True
    assert 3 <= len(done) < 12
    assert {path.name for path in (folder / "out").iterdir()} == {
        f"{task.source.stem}_labels.png" for task, _ in done
    }


def test_done_knows_picture_network_and_options(model, auto_model, model64, folder, photo):
    outputs = Outputs(format="webp")
    (task, other) = list(tasks(folder, outputs))[:2]
    with Workers(1) as workers:
        made = ToFiles(model, outputs, workers)
        assert not made.done(task)
        list(made.run([task]))
        assert made.done(task) and not made.done(other)
        assert not made.done(dataclasses.replace(other, targets=task.targets))  # of another picture
        assert not made.done(dataclasses.replace(task, targets={}))
        assert not ToFiles(model64, outputs, workers).done(task)
        assert not ToFiles(model, outputs, workers, scale=1.0).done(task)
        assert not ToFiles(model, Outputs(format="webp", alpha=0.5), workers).done(task)
        labels = dataclasses.replace(task, targets={"labels": task.targets["labels"]})
        assert ToFiles(model, Outputs(overlay=False, alpha=0.5), workers).done(labels)
        assert not ToFiles(model, Outputs(overlay=False), workers, size=(64, 128)).done(labels)
        save(photo(64, 96, 40), task.source)  # the same name, another picture
        assert not made.done(task)
        list(made.run([task]))
        assert made.done(task)
        task.targets["labels"].unlink()
        assert not made.done(task)
        save(photo(64, 96), task.targets["labels"])  # the user's own
        assert not made.done(task)


@pytest.mark.parametrize(("kind", "pillow"), encode.FORMATS.items())
def test_every_format_keeps_its_marks_and_decodes(kind, pillow, photo, tmp_path):
    shown = photo()  # smooth, so that lossy formats keep it
    picture = Image.fromarray(shown)
    path = tmp_path / f"a.{kind}"
    for key in (None, "0" * 31 + "f"):
        path.write_bytes(encode.picture(picture, kind, key=key))
        with Image.open(path) as image:
            assert (image.format, image.size) == (pillow, (96, 64))
        assert encode.made_here(path) and encode.key_of(path) == key
        assert np.abs(read_image(path).astype(int) - shown).mean() < (4 if kind != "png" else 1e-9)
    picture.save(path)
    assert not encode.made_here(path) and encode.key_of(path) is None


def test_a_quality_counts(photo):
    picture = Image.fromarray(photo(256, 256))
    for kind in ("jpg", "webp"):
        assert len(encode.picture(picture, kind, 20)) < len(encode.picture(picture, kind))
    assert refusal(encode.picture, picture, "png", 90).startswith("PNG keeps every pixel")


def test_too_large_for_a_format(model, photo, tmp_path):
    save(np.ascontiguousarray(photo(32, 16_384)), tmp_path / "wide.png")
    outputs = Outputs(format="webp", labels=False)
    with Workers(1) as workers:
        task = Task(tmp_path / "wide.png", "wide.png", outputs.targets(tmp_path / "wide"))
        ((_, error),) = ToFiles(model, outputs, workers, scale=1.0).run([task])
    assert isinstance(error, UserError)
    assert str(error).startswith("wide.png: its overlay can not be written: the picture has 16384x")
    assert str(error).endswith("webp at most 16383 a side; use png")
    assert [path.name for path in tmp_path.iterdir()] == ["wide.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "gif"}, "jpg, png, webp, not 'gif'"),
        ({"format": "png", "quality": 80}, "PNG keeps every pixel"),
        ({"quality": 0}, "between 1 and 100, not 0"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1, not 1.5"),
    ],
)
def test_wrong_outputs(options, said):
    assert said in refusal(Outputs, **options)


def test_a_batch_is_a_number_from_one_on(model):
    with Workers(1) as workers:
        assert "from 1 on, not 0" in refusal(ToFiles, model, Outputs(), workers, batch=0)
