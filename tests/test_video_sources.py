"""Where videos come from, and what is odd about some: several streams, fields, late starts, addresses."""

import functools
import http.server
import logging
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import alike, av, film

from stdc_fast import UserError, video
from stdc_fast.video import sources


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names():
    for name in ("rtsp://h/x", "http://h/a.mp4", "udp://127.0.0.1:99", "HTTPS://h/x"):
        assert video.is_video(name)
        assert video.is_url(name)
    for name in ("a.y4m", "a.h264", "a.264", "a.hevc", "a.265", "a.mxf", "a.dv", "a.vob", "a.ivf", "a.m2v",
                 "a.asf", "a.f4v", "frame_%04d.png"):  # fmt: skip
        assert video.is_video(name)
        assert not video.is_url(name)
    for name in ("a.png", "frame_%04d", "100%d.txt", "C:/a.png", "file.txt", "x:y"):
        assert not video.is_video(name)
    # A path loses a slash.
    assert sources.url(Path("rtsp://host/a")) == sources.url("rtsp://host/a") == "rtsp://host/a"
    assert sources.title("rtsp://me:secret@host/a") == "rtsp://me:***@host/a"
    live = {"rtsp://h/a": True, "http://h/a.mp4": False, "a.mp4": False, 0: True}
    assert {name: sources.is_live(name) for name in live} == live
    stems = {"http://h/x/a.mp4?b=1": "a", "http://h/%2e%2e%2f%2Fetc%2Fa.jpg": "_etc_a", "http://h/..": "h",
             "http://h/a%00b.jpg": "a_b", f"http://h/{'x' * 300}.jpg": "x" * 96,
             "rtsp://h:8554/cam": "cam", "udp://1.2.3.4:5": "1_2_3_4_5",
             "frame_%04d.png": "frame", "%d.jpg": "frames", "a.mp4": "a"}  # fmt: skip
    assert {name: video.stem(name).stem for name in stems} == stems


def test_numbered_pictures(workplace, photo, caplog):
    pictures = [photo(seed=i) for i in range(4)]
    for number, picture in zip((8, 9, 10, 12), pictures, strict=True):
        Image.fromarray(picture).save(f"frame_{number:04d}.png")
    with caplog.at_level(logging.WARNING):
        frames = list(video.read("frame_%04d.png"))
    assert len(frames) == 3
    for frame, picture in zip(frames, pictures, strict=False):
        assert np.array_equal(frame, picture)
    assert "number 11 is missing, and the 1 after it are left out" in caplog.text
    with pytest.raises(UserError, match="no picture has such a name"):
        video.read("none_%d.png")
    with pytest.raises(UserError, match=r"no picture has such a name; write frame_%04d\.png"):
        video.read("frame_%d.png")


def test_the_largest_video_and_no_cover(workplace, caplog):
    with av.open("two.mkv", "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, (width, height) in zip(streams, ((64, 48), (96, 64)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for stream in streams:
            for _ in range(3):
                image = np.zeros((stream.height, stream.width, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    with caplog.at_level(logging.WARNING), video.read("two.mkv") as reader:
        assert (reader.width, reader.height) == (96, 64)
    assert "two.mkv: holds 2 videos; the largest is read, 96x64" in caplog.text


def test_a_title_in_another_encoding(workplace):
    """AVI says nowhere how its texts are encoded, and Windows programs write their code page."""
    with av.open("a.avi", "w") as container:
        container.metadata["title"] = "Strasse"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = Path("a.avi").read_bytes()
    assert content.count(b"Strasse") == 1
    Path("a.avi").write_bytes(content.replace(b"Strasse", b"Stra\xdfe "))
    assert len(list(video.read("a.avi"))) == 1


def test_interlaced_pictures_are_made_whole(workplace):
    """Of an object that moves between the two fields no comb is left."""
    pytest.importorskip("av")
    with av.open("a.mkv", "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 64, "yuv420p", 4_000_000
        flags = av.codec.context.Flags
        stream.codec_context.flags |= flags.interlaced_dct | flags.interlaced_me
        stream.codec_context.options = {"top": "1"}
        for i in range(8):
            image = np.zeros((64, 96, 3), np.uint8)
            image[0::2, 8 * i : 8 * i + 24] = 255
            image[1::2, 8 * i + 4 : 8 * i + 28] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open("a.mkv") as container:
        raw = list(container.decode(video=0))
    assert any(f.interlaced_frame for f in raw)

    def combs(image):
        rows = image[..., 1].astype(int)
        return np.abs(2 * rows[1:-1] - rows[:-2] - rows[2:]).mean()

    with video.read("a.mkv") as reader:
        frames, times = [], []
        for frame in reader:
            frames.append(frame)
            times.append(reader.time)
    assert len(frames) == len(raw) == 8
    assert np.allclose(times, np.arange(8) / 25, atol=2e-3)
    assert combs(frames[4]) < 0.3 * combs(raw[4].to_ndarray(format="rgb24"))


def test_a_recording_that_starts_between_key_frames(workplace, caplog):
    film("a.ts", 40, codec="libx264")
    content = (workplace / "a.ts").read_bytes()
    packets = len(content) // 188
    with av.open("a.ts", "r") as container:
        total = sum(1 for _ in container.decode(video=0))
    (workplace / "b.ts").write_bytes(content[packets // 3 * 188 :])
    frames = list(video.read("b.ts"))  # is not called damaged
    assert 10 < len(frames) < total


# ---------------------------------------------------------------- addresses


@pytest.fixture
def server(workplace):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(workplace))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_http(server, workplace):
    pictures = film("a.mkv", 5)
    with video.read(f"{server}/a.mkv") as reader:
        assert reader.name == f"{server}/a.mkv"
        assert not reader.live
        for frame, picture in zip(reader, pictures, strict=True):
            assert alike(frame, picture)
    with pytest.raises(UserError, match=r"http://127.*/none\.mp4: can not be opened"):
        video.read(f"{server}/none.mp4")
    Image.fromarray(pictures[0]).save("a.png")
    Image.fromarray(pictures[0]).save("a.jpg")
    for name in ("a.png", "a.jpg"):
        with pytest.raises(UserError, match=rf"{name}: is a picture; label it with predict"):
            video.read(f"{server}/{name}")


def test_udp(workplace):
    """A sender that stops: what came is given, and the rest is not waited for."""
    film("a.ts", 30, codec="libx264")
    content = (workplace / "a.ts").read_bytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = threading.Event()

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not ended.is_set():
                for i in range(0, len(content), 7 * 188):
                    sender.sendto(content[i : i + 7 * 188], ("127.0.0.1", port))
                    time.sleep(0.001)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        with video.read(f"udp://127.0.0.1:{port}") as reader:
            assert reader.live
            assert (reader.width, reader.height, reader.frames) == (96, 64, None)
            assert next(reader).shape == next(reader).shape == (64, 96, 3)
    finally:
        ended.set()
        thread.join()


def test_nothing_is_waited_for_without_end(monkeypatch):
    """A server that accepts and never answers."""
    monkeypatch.setattr(sources, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for kind in ("http", "rtsp"):
            with pytest.raises(UserError, match=f"{kind}://127.0.0.1:{port}/a: can not be opened"):
                video.read(f"{kind}://127.0.0.1:{port}/a")
