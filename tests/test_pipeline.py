"""Threads beside the caller: order, bounds, errors, and where the caller stops early."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

import stdc_fast
from stdc_fast import images, pipeline
from stdc_fast.errors import UserError
from stdc_fast.pipeline import Clock, Workers


def test_results_come_in_the_order_of_the_items():
    first = threading.Event()

    def work(i):
        if i == 0:
            assert first.wait(10)
        if i == 3:
            first.set()
        return i * i

    with Workers(4, ahead=4) as workers:
        assert list(workers.map(work, range(20))) == [(i, i * i) for i in range(20)]


def test_no_more_are_held_than_asked_for():
    pulled, held = [], []

    def items():
        for i in range(50):
            pulled.append(i)
            yield i

    with Workers(2, ahead=3) as workers:
        for i, _ in workers.map(lambda i: i, items()):
            held.append(len(pulled) - i)
    assert max(held) <= 3


def test_a_result_that_is_there_is_given_before_the_source_is_asked():
    done = threading.Event()

    def items():
        yield 0
        assert done.wait(10)
        time.sleep(0.05)  # so that the future, too, knows
        yield 1
        raise AssertionError("asked too early")

    def work(i):
        done.set()
        return i

    with Workers(1, ahead=8) as workers:
        results = workers.map(work, items())
        assert next(results) == (0, 0)
        results.close()


def test_a_user_error_is_its_items_result_and_another_is_raised_in_place():
    def work(i):
        if i == 1:
            raise UserError("bad")
        if i == 3:
            raise ZeroDivisionError
        return i

    with Workers(2) as workers:
        results = workers.map(work, range(5))
        assert next(results) == (0, 0)
        item, error = next(results)
        assert item == 1 and isinstance(error, UserError)
        assert next(results) == (2, 2)
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_the_source_s_own_error_comes_through():
    def items():
        yield 0
        raise KeyError("source")

    with Workers(1) as workers, pytest.raises(KeyError):
        list(workers.map(lambda i: i, items()))


def test_what_has_not_begun_is_cancelled():
    begun, release = [], threading.Event()

    def work(i):
        begun.append(i)
        if i:
            release.wait(10)
        return i

    with Workers(1, ahead=6) as workers:
        results = workers.map(work, range(100))
        assert next(results)[0] == 0
        results.close()
        release.set()
    assert len(begun) <= 2


def test_stages_share_their_threads():
    with Workers(2, ahead=2) as workers:
        read = workers.map(lambda i: i + 1, range(30))
        labelled = ((item, value * 2) for item, value in read)
        written = workers.map(lambda pair: pair[1] + 1, labelled)
        assert [value for _, value in written] == [(i + 1) * 2 + 1 for i in range(30)]


def test_a_clock_adds_up_what_threads_take():
    clock = Clock()
    with Workers(2) as workers:
        list(workers.map(lambda _: time.sleep(0.02), range(4), clock))
    assert clock.seconds >= 0.08


def test_workers_are_a_number_from_one_on():
    with pytest.raises(UserError, match="from 1 on, not 0"):
        Workers(0)


@pytest.mark.parametrize("kind", ["folder", "list of paths"])
def test_files_of_a_folder_are_read_beside_the_network(kind, model, photo, tmp_path, monkeypatch):
    """The first one is not read before the second one is begun, which one thread could not do."""
    names = [str(tmp_path / f"{name}.png") for name in "abcd"]
    for i, name in enumerate(names):
        Image.fromarray(photo(40 + i, 64)).save(name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    others, read = threading.Event(), images.read_image

    def slow(source, *rest):
        if str(source).endswith("a.png"):
            assert others.wait(30)
            time.sleep(0.05)
        else:
            others.set()
        return read(source, *rest)

    monkeypatch.setattr(images, "read_image", slow)
    monkeypatch.setattr(pipeline, "default_workers", lambda: 2)
    found = model.predict(tmp_path if kind == "folder" else names, stream=True)
    seen = []
    with pytest.raises(stdc_fast.BatchError, match=r"1 of 4 images failed: .*b\.png"):
        seen.extend(found)
    assert [(result.name, result.labels.shape[0]) for result in seen] == [
        (names[0], 40), (names[2], 42), (names[3], 43),
    ]  # fmt: skip
    assert seen[0].speed["read"] >= 50
    monkeypatch.undo()
    for result in seen:
        assert np.array_equal(result.labels, model.predict(result.name).labels)


def test_frames_of_a_generator_are_not_asked_for_early(model, photo, tmp_path):
    """It may write the next picture into the memory, or the file, of the last one."""
    buffer, done = np.empty((40, 64, 3), np.uint8), []
    pictures = [photo(40, 64, seed=i) for i in range(3)]

    def frames():
        for i, picture in enumerate(pictures):
            assert len(done) == i
            buffer[:] = picture
            Image.fromarray(picture).save(tmp_path / "a.png")
            yield buffer if i else tmp_path / "a.png"

    for result in model.predict(frames(), stream=True):
        assert np.array_equal(result.image, pictures[len(done)])
        done.append(result)
    assert len(done) == 3
