"""``stdc-fast predict`` on videos and cameras: the labelled video, options, damage, Ctrl-C."""

import json
import os
import signal
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from videos import alike, av, bad_files, cut, decoded, distance, film

from stdc_fast import UserError, video

# ---------------------------------------------------------------- cameras


@pytest.fixture
def camera(monkeypatch):
    """FFmpeg's test picture in place of a camera: it never ends."""
    real = av.open
    monkeypatch.setattr(video.sources, "_CAMERA_FORMAT", "lavfi")
    monkeypatch.setattr(
        av,
        "open",
        lambda name, *rest, **more: real(
            "testsrc=size=96x64:rate=25" if str(name).startswith("/dev/video") else name, *rest, **more
        ),
    )


def test_no_camera(model, run_cli, tiny_weights, workplace):
    if os.path.exists("/dev/video97"):
        pytest.skip("there is a camera 97")
    for source in (97, "97", "/dev/video97"):
        with pytest.raises(UserError, match=r"camera .*97: .*cameras found: |reads no cameras") as caught:
            model.predict(source, stream=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="camera 97 has no end; use stream=True"):
        model.predict(97)
    run = run_cli("predict", "97", "-m", tiny_weights, "-q")
    assert run.code == 2
    assert len(run.lines) == 1
    assert "camera 97" in run.lines[0]
    assert os.listdir() == []


def test_a_system_whose_cameras_are_not_read(monkeypatch):
    monkeypatch.setattr(video.sources, "_CAMERA_FORMAT", "nothing")
    with pytest.raises(UserError, match=r"camera 0: this PyAV reads no cameras.*OpenCV"):
        video.read(0)


def test_a_camera_gives_its_newest_frame(camera, model):
    stream = model.predict(0, stream=True)
    results = [next(stream) for _ in range(3)]
    stream.close()
    assert results[0].name.startswith("camera 0[")
    assert results[0].labels.shape == (64, 96)
    assert results[0].time < results[1].time < results[2].time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_recording(number, camera, run_cli, tiny_weights, workplace, monkeypatch):
    from stdc_fast import Segmenter

    segment, calls = Segmenter._segment, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)
        return segment(*arguments)

    monkeypatch.setattr(Segmenter, "_segment", interrupted)
    before = signal.getsignal(number)
    run = run_cli("predict", "0", "-m", tiny_weights)
    assert run.code == 0, run.err
    assert signal.getsignal(number) is before
    assert "5 frames labelled" in run.out
    assert os.listdir("out") == ["0_overlay.mp4"]
    assert len(decoded("out/0_overlay.mp4")[0]) == 5


def test_max_frames_of_a_camera(camera, run_cli, tiny_weights, workplace):
    run = run_cli("predict", "/dev/video0", "-m", tiny_weights, "--max-frames", "3", "-q", "--json")
    assert run.code == 0, run.err
    (row,) = json.loads(run.out)["results"]
    assert (row["name"], row["frames"], row["overlay"]) == (
        "camera /dev/video0",
        3,
        "out/video0_overlay.mp4",
    )


# ---------------------------------------------------------------- the command line


def test_label_a_video(run_cli, tiny_weights, auto_model, workplace):
    film("drive.mp4", rate=Fraction(30000, 1001), aspect=Fraction(4, 3))
    run = run_cli("predict", "drive.mp4", "-m", tiny_weights)
    assert run.code == 0, run.err
    assert os.listdir("out") == ["drive_overlay.mp4"]
    assert "drive.mp4: 96x64, network input 96x64, tiny" in run.out
    assert "10 frames labelled in " in run.out
    assert " frames a second" in run.out
    assert "out/drive_overlay.mp4" in run.out
    assert run.err == ""
    frames, times, rate = decoded("out/drive_overlay.mp4")
    assert rate == Fraction(30000, 1001)
    assert np.allclose(times, np.arange(10) * 1001 / 30000, atol=1e-3)
    assert video.read("out/drive_overlay.mp4").aspect == Fraction(4, 3)
    plain = list(video.read("drive.mp4"))
    for frame, source in zip(frames, plain, strict=True):
        expected = auto_model.predict(source).overlay()
        assert alike(frame, expected)
        assert distance(frame, source) > 2 * distance(frame, expected)
    pixels = sum(np.bincount(auto_model.predict(f).labels.ravel(), minlength=11) for f in plain)
    row = json.loads(run_cli("predict", "drive.mp4", "-m", tiny_weights, "--json", "-q").out)["results"][0]
    assert {entry["id"]: entry["pixels"] for entry in row["classes"]} == {
        i: n for i, n in enumerate(pixels.tolist()) if n
    }
    assert row["fps"] == 29.97
    assert row["dropped"] == 0


def test_times_of_a_variable_rate_are_kept(run_cli, tiny_weights, workplace):
    times = [0, 0.04, 0.1, 0.5, 0.52, 1.3]
    film("a.mkv", 6, times=times)
    assert run_cli("predict", "a.mkv", "-m", tiny_weights, "-q").code == 0
    assert np.allclose(decoded("out/a_overlay.mp4")[1], times, atol=2e-3)


def test_options_of_a_video(run_cli, tiny_weights, auto_model, workplace):
    film("a.mp4", 6, (65, 97) if "libx264" in av.codecs_available else (64, 96))
    args = ("predict", "a.mp4", "-m", tiny_weights, "-q")
    run = run_cli(*args, "--alpha", "1", "--size", "48x80", "--max-frames", "4", "-o", "x/y")
    assert run.code == 0, run.err
    assert run.err == ""
    assert "network input 80x48" in run.out
    frames, _, _ = decoded("x/y/a_overlay.mp4")
    source = next(video.read("a.mp4"))
    height, width = source.shape[:2]
    assert [f.shape for f in frames] == [(height + height % 2, width + width % 2, 3)] * 4
    assert alike(frames[0][:height, :width], auto_model.predict(source, size=(48, 80)).colours())
    assert run_cli(*args, "--legend", "-o", "legend").code == 0
    frames, _, _ = decoded("legend/a_overlay.mp4")
    assert len({f.shape for f in frames}) == 1  # though classes come and go
    assert frames[0].shape[0] > height + 20
    assert alike(frames[0][:height, :width], auto_model.predict(source).overlay())
    run = run_cli(*args, "--no-overlay", "--no-labels", "-o", "none")
    assert run.code == 0
    assert "6 frames" in run.out
    assert not os.path.exists("none")


def refused(run, message):
    assert run.code == 2
    assert len(run.lines) == 1
    assert message in run.lines[0]


def test_options_that_are_refused(photo, run_cli, tiny_weights, workplace):
    film("a.mp4", 2)
    Image.fromarray(photo()).save("b.png")
    args = ("-m", tiny_weights, "-q")
    refused(
        run_cli("predict", "a.mp4", "b.png", *args, "--labels"), "a.mp4: labels of videos are not written"
    )
    refused(run_cli("predict", "b.png", *args, "--max-frames", "2"), "--max-frames is about videos")
    for option in (("--range", "0,9"), ("--quality", "50"), ("--format", "png"), ("--label-ids",)):
        refused(
            run_cli("predict", "a.mp4", *args, *option), f"{option[0]} is about pictures, and there is none"
        )
    refused(run_cli("predict", "a.mp4", *args, "--scale", "0.1"), "a.mp4[0]: the network would see")
    os.mkdir("in")
    os.rename("a.mp4", "in/a_overlay.mp4")
    film("in/a.mp4", 2)
    run = run_cli("predict", "in/a.mp4", "in/a_overlay.mp4", *args, "-o", "in")
    assert run.code == 1
    assert "would overwrite in/a_overlay.mp4, an input" in run.err
    assert sorted(os.listdir("in")) == ["a.mp4", "a_overlay.mp4", "a_overlay_overlay.mp4"]


def test_videos_among_images(photo, run_cli, tiny_weights, workplace):
    os.mkdir("in")
    film("in/a.mp4", 3)
    film("in/a.avi", 2)
    (workplace / "text.mp4").write_text("no video")
    Image.fromarray(photo()).save("in/a.png")
    run = run_cli("predict", "in/*", "text.mp4", "missing.mp4", "-m", tiny_weights)
    assert run.code == 1
    assert run.messages[-1] == "stdc-fast: 2 of 5 failed"
    assert "3 files labelled in out" in run.out
    assert sorted(os.listdir("out")) == [
        "a_mp4_overlay.mp4",
        "a_overlay.mp4",
        "a_png_labels.png",
        "a_png_overlay.jpg",
    ]
    run = run_cli("predict", "in", "-m", tiny_weights, "-o", "folder")  # folders give their images
    assert sorted(os.listdir("folder")) == ["a_labels.png", "a_overlay.jpg"]


def test_a_damaged_video_is_kept_as_far_as_it_goes(run_cli, tiny_weights, workplace):
    cut("a.mkv")
    count = 0
    with pytest.raises(UserError):
        for _ in video.read("a.mkv"):
            count += 1
    run = run_cli("predict", "a.mkv", "-m", tiny_weights)
    assert run.code == 1
    (message,) = run.messages
    assert f"a.mkv: only {count} frames could be decoded" in message
    assert len(decoded("out/a_overlay.mp4")[0]) == count
    (row,) = json.loads(run_cli("predict", "a.mkv", "-m", tiny_weights, "--json", "-q").out)["results"]
    assert row["frames"] == count
    assert row["error"] in message
    for name in bad_files(workplace):
        if name != "folder":
            run = run_cli("predict", name, "-m", tiny_weights, "-q", "-o", "bad")
            refused(run, name)
            assert not os.path.exists("bad")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_on_a_file_what_is_labelled_is_kept(
    number, code, run_cli, tiny_weights, workplace, monkeypatch
):
    from stdc_fast import Segmenter

    film("a.mp4")
    film("b.mp4")
    segment, calls = Segmenter._segment, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return segment(*arguments)

    monkeypatch.setattr(Segmenter, "_segment", interrupted)
    run = run_cli("predict", "a.mp4", "b.mp4", "-m", tiny_weights, "-q")
    assert run.code == code, run.err
    assert run.lines == [
        "stdc-fast: a.mp4: interrupted; its first 4 frames are labelled and kept",
        "stdc-fast: 1 not begun, from b.mp4 on",
    ]
    assert os.listdir("out") == ["a_overlay.mp4"]
    assert len(decoded("out/a_overlay.mp4")[0]) == 4


def test_ended_while_a_file_is_written(run_cli, tiny_weights, workplace, monkeypatch):
    """SIGTERM at any other time: what is being written is finished, nothing half is left, hidden or not."""
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save("a.png")
    real = Image.Image.save

    def save(image, path, *rest, **more):
        real(image, path, *rest, **more)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Image.Image, "save", save)
    run = run_cli("predict", "a.png", "-m", tiny_weights, "-q")
    assert run.code == 143
    assert sorted(os.listdir("out")) == ["a_labels.png", "a_overlay.jpg"]
    assert Image.open("out/a_labels.png").size == (96, 64)


def test_the_output_can_not_be_written(run_cli, tiny_weights, workplace):
    film("a.mp4", 2)
    (workplace / "out").write_text("keep")
    refused(run_cli("predict", "a.mp4", "-m", tiny_weights, "-q"), "out/a_overlay.mp4: can not be written")
