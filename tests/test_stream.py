"""Segmenter.stream: order, errors, bounded memory, overlap, and that its thread and source always end."""

import gc
import os
import signal
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from stdc_fast import UserError, stream, video

# Enough for any machine; only a failing test waits so long.
PATIENCE = 30


def same(result, labels):
    return np.array_equal(result.labels, labels)


def threads():
    return [t for t in threading.enumerate() if t.name == "stdc_fast stream"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not threads()
    yield
    for thread in threads():
        thread.join(PATIENCE)
    assert not threads()


class Source:
    """Frames 0, 1, ... up to ``count`` of them; tells how many it gave, and that it was closed."""

    def __init__(self, make, count=None, error=None):
        self.make, self.count, self.error = make, count, error
        self.given = 0
        self.closed = threading.Event()
        self.closed_by = None
        self.asked = threading.Condition()

    def __iter__(self):
        return self

    def __next__(self):
        with self.asked:
            if self.given == self.count:
                if self.error:
                    raise self.error
                raise StopIteration
            self.given += 1
            self.asked.notify_all()
            return self.make(seed=self.given - 1)

    def close(self):
        self.closed_by = threading.current_thread()
        self.closed.set()

    def wait_for(self, given):
        with self.asked:
            assert self.asked.wait_for(lambda: self.given >= given, PATIENCE)


# ---------------------------------------------------------------- results


def test_results_are_those_of_predict_in_order(model, photo):
    frames = [photo(64, 96 + 8 * i, seed=i) for i in range(5)]  # sizes may change from frame to frame
    results = list(model.stream(iter(frames), scale=0.9, confidence=True))
    assert [r.name for r in results] == [f"frame {i}" for i in range(5)]
    for result, frame in zip(results, frames, strict=True):
        expected = model.predict(frame, scale=0.9, confidence=True)
        assert same(result, expected.labels)
        assert np.array_equal(result.image, frame)
        assert np.array_equal(result.confidence, expected.confidence)
        assert result.input_size == expected.input_size
        assert result.time is None


def test_every_kind_of_frame(model, photo, tmp_path):
    array = photo()
    Image.fromarray(array).save(tmp_path / "a.png")
    kinds = [
        array,
        Image.fromarray(array),
        torch.from_numpy(array),
        torch.from_numpy(array).permute(2, 0, 1),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ]
    expected = model.predict(array).labels
    assert all(same(r, expected) for r in model.stream(kinds))
    assert len(list(model.stream(np.stack([array, array])))) == 2
    assert same(next(model.stream([array[:, :, ::-1]], bgr=True)), expected)
    x = torch.randn(3, 64, 96)
    assert same(next(model.stream([x])), model.predict(x).labels)
    assert list(model.stream([])) == []


@pytest.mark.parametrize("convert", [lambda a: a, torch.from_numpy], ids=["array", "tensor"])
def test_sources_may_use_one_buffer_for_all_frames(convert, model, photo):
    buffer = np.empty((64, 96, 3), np.uint8)

    def camera():
        for i in range(4):
            buffer[:] = photo(seed=i)
            yield convert(buffer)

    for i, result in enumerate(model.stream(camera())):
        assert np.array_equal(result.image, photo(seed=i))
        assert same(result, model.predict(photo(seed=i)).labels)
    x = torch.empty(3, 64, 96)

    def normalised():
        for i in range(3):
            yield x.fill_(i)

    assert [r.image[0, 0, 0] < 200 for r in model.stream(normalised())] == [True, True, False]


# ---------------------------------------------------------------- the thread


def test_nothing_is_asked_for_before_the_first_result(model, photo):
    source = Source(photo)
    stream = model.stream(source)
    assert iter(stream) is stream
    assert source.given == 0
    assert not threads()
    stream.close()
    assert source.closed.is_set()
    assert list(stream) == []
    assert source.given == 0


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_fetching_and_labelling_overlap_and_memory_is_bounded(ahead, model, photo, monkeypatch):
    """While frame i is being labelled, the source gives exactly ``ahead`` more."""
    source, segment, done = Source(photo), model._segment, []

    def slow(*arguments):
        source.wait_for(len(done) + 1 + ahead)  # hangs, and fails, if nothing is fetched meanwhile
        result = segment(*arguments)
        assert source.given == len(done) + 1 + ahead
        done.append(result)
        return result

    monkeypatch.setattr(model, "_segment", slow)
    with model.stream(source, ahead=ahead) as stream:
        for i, _ in zip(range(8), stream):  # noqa: B905 - the source has no end
            assert source.given <= i + 1 + ahead + 1
    assert len(done) in (8, 9)


def test_frames_are_not_kept(model, photo, monkeypatch):
    """No more of them live than wait, are being labelled, and are the caller's."""
    alive, most, open_frame = weakref.WeakValueDictionary(), [], stream.open_frame

    def watched(frame, name, *how):
        alive[name] = image = open_frame(frame, name, *how)
        most.append(len(alive))
        return image

    monkeypatch.setattr(stream, "open_frame", watched)
    assert len([r.name for r in model.stream(Source(photo, 12))]) == 12
    assert len(most) == 12
    assert max(most) <= 5
    assert not alive


def test_latest_frame_wins(model, photo, monkeypatch):
    source, segment = Source(photo, 20), model._segment

    def slow(*arguments):
        source.wait_for(20)
        return segment(*arguments)

    monkeypatch.setattr(model, "_segment", slow)
    stream = model.stream(source, latest=True)
    names = [r.name for r in stream]
    assert names[-1] == "frame 19"
    assert len(names) <= 3
    assert stream.dropped == 20 - len(names)


def test_latest_keeps_all_that_a_slow_source_gives(model, photo):
    ready = threading.Semaphore(1)

    def frames():
        for i in range(4):
            assert ready.acquire(timeout=PATIENCE)
            yield photo(seed=i)

    stream, names = model.stream(frames(), latest=True), []
    for result in stream:
        names.append(result.name)
        ready.release()
    assert names == [f"frame {i}" for i in range(4)]
    assert stream.dropped == 0


# ---------------------------------------------------------------- the end


def ended(source):
    """The source was closed, in the thread that asked it: a running generator can not be closed elsewhere."""
    assert source.closed.wait(PATIENCE)
    assert source.closed_by is not threading.current_thread()
    return True


def test_the_end_of_the_source(model, photo):
    source = Source(photo, 3)
    stream = model.stream(source)
    assert len(list(stream)) == 3
    assert not threads()
    assert ended(source)
    assert list(stream) == []
    stream.close()


def test_leaving_the_loop_closes_the_source(model, photo):
    source = Source(photo)
    for _ in model.stream(source):
        break
    gc.collect()
    assert ended(source)


def test_generators_run_their_finally(model, photo):
    left = threading.Event()

    def frames():
        try:
            while True:
                yield photo()
        finally:
            left.set()

    with model.stream(frames()) as stream:
        next(stream)
    assert left.is_set()
    with pytest.raises(StopIteration):
        next(stream)


def test_an_exception_of_the_caller(model, photo):
    source = Source(photo)
    with pytest.raises(ZeroDivisionError), model.stream(source) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert ended(source)


def test_forgetting_the_stream_in_a_cycle(model, photo):
    source = Source(photo)
    holder = [model.stream(source)]
    holder.append(holder)
    next(holder[0])
    del holder
    gc.collect()
    assert ended(source)


def test_a_generator_around_it(model, photo):
    source = Source(photo)

    def names():
        for result in model.stream(source):
            yield result.name

    generator = names()
    assert next(generator) == "frame 0"
    generator.close()
    gc.collect()
    assert ended(source)


def test_closing_does_not_wait_for_a_source_that_hangs(model, photo, monkeypatch):
    monkeypatch.setattr("stdc_fast.stream.PATIENCE", 0.05)
    go_on, left = threading.Event(), threading.Event()

    def frames():
        try:
            yield photo()
            assert go_on.wait(PATIENCE)
            yield photo()
        finally:
            left.set()

    stream = model.stream(frames())
    next(stream)
    stream.close()  # returns, or this test hangs
    assert not left.is_set()
    assert list(stream) == []
    go_on.set()
    assert left.wait(PATIENCE)


def test_stop_lets_the_waiting_caller_go(model, photo):
    waiting, go_on = threading.Event(), threading.Event()

    def frames():
        yield photo()
        waiting.set()
        go_on.wait(PATIENCE)

    stream = model.stream(frames())
    next(stream)
    assert waiting.wait(PATIENCE)
    timer = threading.Timer(0.05, stream.stop)
    timer.start()
    go_on_later = threading.Timer(0.5, go_on.set)
    go_on_later.start()
    assert list(stream) == []
    timer.join()
    go_on_later.join()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to itself")
def test_ctrl_c_while_waiting(model, photo):
    go_on = threading.Event()

    def frames():
        yield photo()
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(PATIENCE)

    with pytest.raises(KeyboardInterrupt), model.stream(frames()) as stream:
        try:
            for _ in stream:
                pass
        finally:
            go_on.set()
    assert list(stream) == []


# ---------------------------------------------------------------- errors


def test_errors_of_the_source_come_in_their_place(model, photo):
    error = OSError("camera unplugged")
    source = Source(photo, 2, error)
    stream = model.stream(source)
    assert [next(stream).name, next(stream).name] == ["frame 0", "frame 1"]
    with pytest.raises(OSError, match="unplugged") as caught:
        next(stream)
    assert caught.value is error
    assert ended(source)
    assert list(stream) == []


def test_errors_when_the_source_is_closed(model, photo):
    def frames():
        yield photo()
        raise UserError("no more film")

    with pytest.raises(UserError, match="no more film"):
        list(model.stream(frames()))

    class Broken(Source):
        def close(self):
            raise OSError("can not be closed")

    stream = model.stream(Broken(photo, 1))
    next(stream)
    with pytest.raises(OSError, match="can not be closed"):
        next(stream)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((64, 96, 4), np.uint8), r"frame 1: expected a uint8 array .* got uint8 \[64, 96, 4\]"),
        (np.full((64, 96, 3), -1.0), "frame 1: .*float64"),
        (np.zeros((16, 96, 3), np.uint8), "frame 1: 96x16 is too small"),
        (torch.zeros(2, 3, 64, 96), r"frame 1: expected one image.*\[2, 3, 64, 96\]"),
        (torch.zeros(4, 64, 96), "frame 1: expected a uint8 tensor"),
        (None, "frame 1: .*NoneType"),
        ("missing.png", "frame 1: missing.png: no such file"),
    ],
)
def test_a_bad_frame_is_named(bad, message, model, photo):
    stream = model.stream([photo(), bad, photo()])
    next(stream)
    with pytest.raises(UserError, match=message) as caught:
        next(stream)
    assert "\n" not in str(caught.value)
    assert list(stream) == []


def test_a_size_that_the_network_can_not_see(model, photo):
    stream = model.stream([photo(), photo(40, 50)], scale=0.7)
    next(stream)
    with pytest.raises(UserError, match=r"frame 1: the network would see 35x28"):
        next(stream)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([], {"scale": 0}, "scale must be"),
        ([], {"size": (64, 64), "scale": 1}, "not both"),
        ([], {"ahead": 0}, "ahead is a number"),
        ([], {"ahead": 1.5}, "ahead is a number"),
        (3.5, {}, "expected an iterable of frames.* got float"),
        (np.zeros((64, 96, 3), np.uint8), {}, r"one of shape \[64, 96, 3\]"),
        (torch.zeros(3, 64, 96), {}, r"one of shape \[3, 64, 96\]"),
        (Image.new("RGB", (96, 64)), {}, "got Image"),
        ("street.jpg", {}, "'street.jpg' is neither a video nor a camera"),
    ],
)
def test_wrong_calls_fail_at_once(frames, options, message, model):
    with pytest.raises(UserError, match=message):
        model.stream(frames, **options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_stream_carried_into_a_fork_says_so(model, photo):
    go_on = threading.Event()

    def frames():
        yield photo()
        go_on.wait(PATIENCE)

    with model.stream(frames()) as stream:
        next(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                next(stream)
            except RuntimeError as error:
                code = 0 if "fork" in str(error) else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()


def test_names_of_videos_and_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("a.mp4", "b.MKV", tmp_path / "c.webm", "x[1].avi", "d.mov"):
        assert video.is_video(source) == (source != "x[1].avi")
        assert not video.is_camera(source)
    (tmp_path / "x[1].avi").write_bytes(b"1")
    assert video.is_video("x[1].avi")
    for source in (0, "0", "12", "/dev/video3"):
        assert video.is_video(source)
        assert video.is_camera(source)
    for source in (True, None, "a.png", "*.mp4", "", tmp_path, 1.0, "/dev/videos", [0], "a.gif"):
        assert not video.is_video(source)
    (tmp_path / "7").write_bytes(b"1")
    assert not video.is_camera("7")
    pages = [Image.new("L", (64, 64), i) for i in range(3)]
    pages[0].save("a.gif", save_all=True, append_images=pages[1:])
    pages[0].save("b.gif")
    assert video.is_video("a.gif")
    assert not video.is_video("b.gif")
