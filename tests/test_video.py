"""Videos and cameras: what is read, written and predicted, on tiny videos that the tests make."""

import os
import signal
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from videos import CODECS, alike, av, bad_files, cut, decoded, distance, film

from stdc_fast import BatchError, UserError, video


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- read


@pytest.mark.parametrize("suffix", CODECS)
def test_read(suffix, workplace):
    pictures = film(f"a{suffix}")
    with video.read(f"a{suffix}") as reader:
        assert (reader.width, reader.height, reader.fps, reader.aspect) == (96, 64, 25, 1)
        assert reader.frames == 10
        assert not reader.camera
        times = []
        frames = []
        for frame in reader:
            frames.append(frame)
            times.append(reader.time)
    assert np.allclose(times, np.arange(10) / 25, atol=1e-3)
    assert len(frames) == 10
    for i, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        assert frame.dtype == np.uint8
        assert alike(frame, picture)
        assert distance(frame, picture) == min(distance(frame, p) for p in pictures), i
    assert list(reader) == []  # closed


def test_frames_own_their_memory(workplace):
    film("a.mp4")
    reader = video.read("a.mp4")
    first = next(reader)
    kept = first.copy()
    list(reader)
    assert np.array_equal(first, kept)
    first[:] = 0


def test_odd_sizes_and_variable_rates(workplace):
    times = [0, 0.04, 0.1, 0.5, 0.52, 1.3]
    pictures = film("a.mkv", 6, (65, 97), times=times)
    reader, found = video.read("a.mkv"), []
    for frame, picture in zip(reader, pictures, strict=True):
        assert alike(frame, picture)
        found.append(reader.time)
    assert np.allclose(found, times, atol=2e-3)


def turn(path, degrees):
    """Set the orientation in the track header of an MP4."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = [a, b, 0, -b, a, 0, 0, 0, 16384]
    values = b"".join((v * (1 if v == 16384 else 65536)).to_bytes(4, "big", signed=True) for v in matrix[:8])
    content[start : start + 36] = values + (1 << 30).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2), (270, 1)])  # clockwise; numpy's are not
def test_videos_of_phones_are_turned_upright(degrees, turns, workplace):
    pictures = film("a.mp4", 4, aspect=Fraction(4, 3))
    turn(workplace / "a.mp4", degrees)
    reader = video.read("a.mp4")
    size = (96, 64) if degrees == 180 else (64, 96)
    assert (reader.width, reader.height) == size
    assert reader.aspect == (Fraction(4, 3) if degrees == 180 else Fraction(3, 4))
    for frame, picture in zip(reader, pictures, strict=True):
        assert alike(frame, np.rot90(picture, turns))


def test_gifs(workplace, photo):
    pages = [Image.fromarray(photo(seed=i)) for i in range(3)]
    pages[0].save("a.gif", save_all=True, append_images=pages[1:], duration=100)
    reader = video.read("a.gif")
    assert reader.fps == 10
    assert [alike(f, p) for f, p in zip(reader, pages, strict=True)] == [True] * 3


def test_names_that_mean_something_to_ffmpeg(workplace):
    film("a.mp4", 2)
    for name in ("x:y.mp4", "%03d.mp4", "é ü.mp4", "a[0].mp4", "pipe:0.mp4"):
        os.rename("a.mp4", name)
        assert len(list(video.read(name))) == 2
        os.rename(name, "a.mp4")


def test_bad_files(model, workplace):
    for name, message in bad_files(workplace).items():
        with pytest.raises(UserError, match=message) as caught:
            video.read(name)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)
        if name != "folder":
            with pytest.raises(UserError, match=message):
                model.predict(name, stream=True)


@pytest.mark.parametrize("path", ["a.mp4", "a.mkv", "a.avi", "a.webm"])
def test_a_video_that_is_cut_off(path, model, workplace):
    cut(path)
    frames = []
    with pytest.raises(UserError, match=rf"{path}: only \d+ frames could be decoded .*; copy it again"):
        frames.extend(video.read(path))
    assert 5 < len(frames) < 40
    with pytest.raises(BatchError, match=path) as caught:
        model.predict(path)
    assert len(caught.value.results) == len(frames)
    names = []
    with pytest.raises(UserError, match="only"):
        names.extend(r.name for r in model.stream(path))
    assert names == [f"{path}[{i}]" for i in range(len(frames))]


def test_a_video_with_a_damaged_middle(workplace):
    """What follows it is read, too."""
    pictures = film("a.avi", 40)
    content = bytearray((workplace / "a.avi").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(60)
    (workplace / "a.avi").write_bytes(content)
    reader, frames = video.read("a.avi"), []
    try:
        for frame in reader:
            frames.append(frame)
    except UserError as error:
        assert "copy it again" in str(error)
    assert len(frames) > 30
    assert alike(frames[-1], pictures[-1])


def test_without_pyav(model, photo, workplace, monkeypatch, run_cli, tiny_weights):
    monkeypatch.setitem(sys.modules, "av", None)
    video.pyav.av.cache_clear()
    (workplace / "a.mp4").write_bytes(b"1234")
    for call in (
        lambda: video.read("a.mp4"),
        lambda: video.Writer("b.mp4"),
        lambda: model.predict("a.mp4"),
        lambda: model.stream("a.mp4"),
        lambda: model.predict(0, stream=True),
    ):
        with pytest.raises(UserError, match=r"run pip install av"):
            call()
    run = run_cli("predict", "a.mp4", "-m", tiny_weights, "-q")
    assert run.code == 2
    assert len(run.lines) == 1
    assert "run pip install av" in run.lines[0]
    model.predict(photo())
    assert len(list(model.stream([photo()]))) == 1  # needs none
    monkeypatch.undo()
    video.pyav.av.cache_clear()


# ---------------------------------------------------------------- Writer


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("path", ["a.mp4", "x/a.mkv", "a.MOV"])
@pytest.mark.parametrize("rate", [25, 29.97, Fraction(24000, 1001), 10])
def test_write(rate, path, codec, photo, workplace, monkeypatch):
    if codec == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    elif codec not in av.codecs_available:
        pytest.skip("this PyAV has no libx264")
    pictures = [photo(seed=i) for i in range(8)]
    with video.Writer(path, rate) as writer:
        for i, picture in enumerate(pictures):
            writer.write(Image.fromarray(picture) if i % 2 else picture)
        assert not os.path.exists(path)
    assert writer.frames == 8
    assert writer.codec == codec
    frames, times, found = decoded(path)
    exact = Fraction(30000, 1001) if rate == 29.97 else Fraction(rate)
    assert found == exact
    assert np.allclose(times, np.arange(8) / float(exact), atol=1e-3)
    for frame, picture in zip(frames, pictures, strict=True):
        assert alike(frame, picture)
    assert os.listdir(os.path.dirname(path) or ".") == [os.path.basename(path)]


def test_colours_are_those_of_the_frames(workplace):
    """A wrong matrix (BT.601 for BT.709) would shift this green by some 20 levels."""
    picture = np.full((64, 96, 3), (40, 200, 60), np.uint8)
    with video.Writer("a.mp4") as writer:
        for _ in range(3):
            writer.write(picture)
    for frame in video.read("a.mp4"):
        assert np.abs(frame.astype(int) - picture).max() <= 4


def test_odd_sizes_are_padded_and_other_sizes_resized(photo, workplace):
    with video.Writer("a.mp4") as writer:
        for size in ((65, 97), (65, 97), (128, 192)):
            writer.write(photo(*size))
    frames, _, _ = decoded("a.mp4")
    assert [f.shape for f in frames] == [(66, 98, 3)] * 3
    assert alike(frames[1][:65, :97], photo(65, 97))
    assert alike(frames[1][65:, :97], photo(65, 97)[64:])  # the border is repeated
    assert distance(frames[2][:65, :97], frames[1][:65, :97]) < 12


def test_times(photo, workplace):
    times = [0, 0.04, 0.5, 0.5, 0.3, 2]  # those that do not grow are put right
    with video.Writer("a.mp4", 25) as writer:
        for i, time in enumerate(times):
            writer.write(photo(seed=i), time)
    found = decoded("a.mp4")[1]
    assert np.allclose(found, [0, 0.04, 0.5, 0.5, 0.5, 2], atol=1e-3)
    assert (np.diff(found) > 0).all()


def test_aspect(photo, workplace):
    with video.Writer("a.mp4", aspect=Fraction(4, 3)) as writer:
        writer.write(photo())
    assert video.read("a.mp4").aspect == Fraction(4, 3)


def test_whole_or_not_at_all(photo, workplace):
    (workplace / "a.mp4").write_text("old")
    with pytest.raises(ZeroDivisionError), video.Writer("a.mp4") as writer:
        writer.write(photo())
        raise ZeroDivisionError
    assert (workplace / "a.mp4").read_text() == "old"
    assert os.listdir() == ["a.mp4"]
    with pytest.raises(UserError, match="is finished"):
        writer.write(photo())
    with video.Writer("b.mp4"):
        pass
    assert os.listdir() == ["a.mp4"]
    with video.Writer("a.mp4") as writer:
        writer.write(photo())
    writer.close()
    with pytest.raises(UserError, match="is finished"):
        writer.write(photo())
    assert len(decoded("a.mp4")[0]) == 1
    abandoned = video.Writer("c.mp4")
    abandoned.write(photo())
    del abandoned
    assert os.listdir() == ["a.mp4"]


def test_wrong_calls_of_the_writer(photo, workplace):
    for path in ("a.png", "a", "a.avi"):
        with pytest.raises(UserError, match="unknown kind of video"):
            video.Writer(path)
    for fps in (0, -1, 1e9, float("nan")):
        with pytest.raises(UserError, match="fps must be"):
            video.Writer("a.mp4", fps)
    writer = video.Writer("a.mp4")
    for bad in (np.zeros((64, 96), np.uint8), np.zeros((64, 96, 3))):
        with pytest.raises(UserError, match=r"expected a uint8 frame \[H, W, 3\]"):
            writer.write(bad)
    (workplace / "file").write_text("keep")
    writer = video.Writer("file/a.mp4")
    with pytest.raises(UserError, match=r"file/a\.mp4: can not be written"):
        writer.write(photo())


def test_a_full_disk(photo, workplace):
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0)
    writer = video.Writer("a.mp4")
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
        with pytest.raises(UserError, match=r"a\.mp4: can not be written"):
            for _ in range(200):
                writer.write(noise.integers(0, 256, (128, 192, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    assert os.listdir() == []


# ---------------------------------------------------------------- predict


def test_predict_a_video(model, workplace):
    film("a.mp4", 5)
    frames = list(video.read("a.mp4"))
    results = model.predict("a.mp4", scale=0.8)
    assert [r.name for r in results] == [f"a.mp4[{i}]" for i in range(5)]
    assert np.allclose([r.time for r in results], np.arange(5) / 25)
    for result, frame in zip(results, frames, strict=True):
        assert np.array_equal(result.labels, model.predict(frame, scale=0.8).labels)
    stream = model.predict(workplace / "a.mp4", stream=True, size="native", confidence=True)
    assert next(stream).input_size == (64, 96)
    assert next(stream).confidence.shape == (64, 96)
    stream.close()
    with video.read("a.mp4") as reader:
        assert len(list(model.stream(reader, bgr=True))) == 5  # a video is RGB in any case
    with pytest.raises(BatchError, match=r"a\.mp4: is a video; label it by itself"):
        model.predict(["a.mp4"])


def test_frames_that_are_left_out(tmp_path):
    film(tmp_path / "a.mp4", 9)
    every = list(video.read(tmp_path / "a.mp4"))
    with video.read(tmp_path / "a.mp4") as reader:
        assert reader.skip(1) == 1  # the one that opening has decoded
        assert np.array_equal(next(reader), every[1])
        assert reader.skip(4) == 4
        assert np.array_equal(next(reader), every[6])
        assert reader.skip() == 2
        assert reader.skip(3) == 0 and next(reader, None) is None


def test_a_damaged_video_says_so_when_frames_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut("a.mkv")
    with video.read("a.mkv") as reader, pytest.raises(UserError, match="could be decoded"):
        reader.skip()
