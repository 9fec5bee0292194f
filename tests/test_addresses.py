"""Pictures and videos by http, from a server on loopback that does what servers do and fail to do."""

import base64
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image
from web import Remote, serve

from stdc_fast import BatchError, UserError, images, web


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def moving(photo):
    frames = [Image.fromarray(photo(seed=i)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def remote(photo):
    with serve(Remote(encoded(photo()), kind="image/png")) as running:
        yield running


def refusal(address):
    """The message, one line that starts with the address."""
    with pytest.raises(UserError) as caught:
        images.opened(address)
    message = str(caught.value)
    assert message.startswith(f"{web.shown(address)}: ") and "\n" not in message
    return message


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "text/plain", "video/mp4", ""])
@pytest.mark.parametrize("path", ["/a.png", "/photo?id=3", "/", "/film.mp4"])
def test_the_answer_says_what_it_is(remote, model, photo, kind, path):
    remote.kind = kind
    result = model.predict(remote.address + path)
    assert np.array_equal(result.labels, model.predict(photo()).labels)
    assert result.name == remote.address + path
    assert len(remote.asked) == 1


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_kinds_of_pictures(remote, photo, kind):
    remote.content, remote.kind = encoded(photo(), kind), "application/octet-stream"
    expected = np.asarray(Image.open(io.BytesIO(remote.content)).convert("RGB"))
    assert np.array_equal(images.read_image(f"{remote.address}/x"), expected)


def test_addresses_among_others(remote, model, photo):
    with serve(Remote(status=404)) as empty, pytest.raises(BatchError) as caught:
        model.predict([photo(), f"{empty.address}/a.png", f"{remote.address}/b.png"])
    assert [r.name for r in caught.value.results] == ["item 0", f"{remote.address}/b.png"]
    ((name, message),) = caught.value.failures
    assert name == f"{empty.address}/a.png" and "answers 404 (Not Found)" in message
    (frame,) = model.stream([f"{remote.address}/c.png"])
    assert np.array_equal(frame.image, photo())


def test_users_and_characters(remote, photo):
    seen = []
    remote.look = lambda handler: seen.append((handler.path, handler.headers.get("Authorization")))
    host = remote.address.removeprefix("http://")
    name = f"http://me:se%40cret@{host}/Straße 1.png?x=ä b#part"
    assert images.opened(name).name == f"http://me:***@{host}/Straße 1.png?x=ä b#part"
    login = f"Basic {base64.b64encode(b'me:se@cret').decode()}"
    assert seen == [("/Stra%C3%9Fe%201.png?x=%C3%A4%20b", login)]
    remote.status = 401
    assert "se%40cret" not in refusal(name)


def test_the_password_stays_with_its_host(remote, photo):
    seen = []
    remote.look = lambda handler: seen.append(handler.headers.get("Authorization"))
    with serve(Remote(moved=f"{remote.address}/a.png")) as first:
        host = first.address.removeprefix("http://")
        assert np.array_equal(images.read_image(f"http://me:secret@{host}/a.png"), photo())
    assert seen == [None]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_errors(remote, status):
    remote.status = status
    assert f"answers {status} (" in refusal(f"{remote.address}/a.png")


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"<!DOCTYPE html><html>log in", "text/html; charset=utf-8", "a web page"),
        (b"\n <HTML><body>log in", "application/octet-stream", "a web page"),
        (b'{"error": "no such photo"}', "application/json", "text (application/json)"),
        (b"not here", "text/plain", "text (text/plain)"),
        (b"", "image/png", "0 bytes"),
    ],
)
def test_answers_that_are_no_file(remote, content, kind, said):
    remote.content, remote.kind = content, kind
    assert said in refusal(f"{remote.address}/a.png")


def test_an_image_by_its_type_only(remote):
    remote.content, remote.kind = b"\x00" * 600, "image/jpeg"
    with pytest.raises(UserError, match=r"/a\.jpg: is not an image that Pillow can read"):
        images.read_image(f"{remote.address}/a.jpg")


def test_a_picture_that_is_cut(remote):
    remote.stop_after = 600
    assert f"ended after 600 of {len(remote.content)} bytes" in refusal(f"{remote.address}/a.png")


@pytest.mark.parametrize("length", [True, False], ids=["content-length", "no length"])
def test_a_picture_that_is_too_large(remote, monkeypatch, length):
    monkeypatch.setattr(images, "_MAX_BYTES", 1 << 20)
    remote.content += bytes(64 << 20)
    remote.length = length
    said = refusal(f"{remote.address}/a.png")
    assert "more than the limit of 1 MiB" in said and ("67 MB" in said) is length
    assert remote.sent < 32 << 20


def test_an_encoding_that_nobody_asked_for(remote):
    remote.more = {"Content-Encoding": "gzip"}
    assert "an encoding that was not asked for (gzip)" in refusal(f"{remote.address}/a.png")


def test_servers_that_are_slow(remote, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE", 0.5)
    remote.content, remote.block, remote.pause = remote.content + bytes(9000), 40, 0.02
    assert "took more than 0.5 s" in refusal(f"{remote.address}/a.png")
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    remote.pause = 1
    assert "sent nothing for 0.2 s" in refusal(f"{remote.address}/a.png")


def test_headers_without_end(monkeypatch):
    """A server that sends a header of single bytes: no time limit of a socket ends that."""
    monkeypatch.setattr(web, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not stop.wait(0.02):
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert "took more than 0.5 s" in refusal(f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
        finally:
            stop.set()
            thread.join()


def test_redirections(remote, photo):
    with serve(Remote(moved=f"{remote.address}/a.png")) as old:
        assert np.array_equal(images.read_image(f"{old.address}/x"), photo())
        old.moved = f"{old.address}/x"
        assert "redirects more than 5 times, or to itself" in refusal(f"{old.address}/x")
        for target in ("ftp://127.0.0.1/a.png", "file:///etc/passwd"):
            old.moved = target
            assert f"leads to another kind of address ({target})" in refusal(f"{old.address}/x")


def test_nobody_there(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert "can not be reached (Connection refused)" in refusal(f"http://127.0.0.1:{port}/a.png")
    for wrong in ("http://127.0.0.1:port/a.png", "http://[::1/a.png", "https://no-such-host.invalid/a.png"):
        assert "can not be reached" in refusal(wrong)


def test_what_is_no_address(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for text in ("ftp://h/a.png", "http:", "http://", "a.png", 3, None):
        assert web.address(text) is None
    with pytest.raises(UserError, match="no such file"):
        images.read_image("ftp:/h/a.png")


# ---------------------------------------------------------------- videos


def test_a_gif_of_several_frames_is_a_video(remote, model, photo):
    pytest.importorskip("av", reason="PyAV is not installed")
    remote.content, remote.kind = moving(photo), "image/gif"
    results = model.predict(f"{remote.address}/a.gif")
    assert [r.labels.shape for r in results] == [(64, 96)] * 3
    with pytest.raises(UserError, match="does not answer with a picture"):
        images.read_image(f"{remote.address}/a.gif")


def test_a_video_by_any_name(remote, model, photo, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    from stdc_fast import video

    with video.Writer(tmp_path / "a.mp4", 25) as writer:
        for i in range(3):
            writer.write(photo(seed=i))
    remote.content = (tmp_path / "a.mp4").read_bytes()
    for kind, path in (("video/mp4", "/a.jpg"), ("application/octet-stream", "/x"), ("text/plain", "/a.mp4")):
        remote.kind = kind
        assert len(model.predict(remote.address + path)) == 3
    remote.content, remote.kind = b"\x00\x01" * 500, "application/octet-stream"
    with pytest.raises(UserError, match="can not be opened"):
        model.predict(f"{remote.address}/x")


# ---------------------------------------------------------------- the command line


def test_on_the_command_line(remote, run_cli, tiny_weights, tmp_path, photo):
    out = tmp_path / "out"
    with serve(Remote(status=404)) as empty:
        done = run_cli(
            "predict", f"{remote.address}/%2e%2e%2f%2e%2e%2fa.png", f"{empty.address}/b.png",
            "-m", tiny_weights, "--out", out, "--json",
        )  # fmt: skip
    assert done.code == 1
    printed = json.loads(done.out)
    assert [row["name"] for row in printed["results"]] == [f"{remote.address}/%2e%2e%2f%2e%2e%2fa.png"]
    assert [row["name"] for row in printed["failures"]] == [f"{empty.address}/b.png"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in written) == ["_.._a_labels.png", "_.._a_overlay.jpg"]
    assert all(path.parent == out for path in written)


def test_options_wait_for_the_answer(remote, run_cli, tiny_weights, tmp_path, photo):
    out = tmp_path / "out"
    done = run_cli("predict", f"{remote.address}/film", "-m", tiny_weights, "--out", out, "--labels")
    assert done.code == 0, done.err
    assert sorted(path.name for path in out.iterdir()) == ["film_labels.png", "film_overlay.jpg"]
    remote.content, remote.kind = moving(photo), "image/gif"
    done = run_cli(
        "predict", f"{remote.address}/film", "-m", tiny_weights, "--out", tmp_path / "b", "--labels"
    )
    assert done.code == 2 and "labels of videos are not written" in done.messages[0]
    assert not (tmp_path / "b").exists()


def test_nothing_is_written_of_what_fails(remote, run_cli, tiny_weights, tmp_path):
    remote.kind, remote.content = "text/html", b"<html>log in</html>"
    start = time.monotonic()
    done = run_cli("predict", f"{remote.address}/a.png", "-m", tiny_weights, "--out", tmp_path / "out")
    assert done.code == 2 and len(done.messages) == 1 and time.monotonic() > start
    assert not (tmp_path / "out").exists()
