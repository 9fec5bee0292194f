"""A real ``stdc-fast serve``: under load it ends or is killed, and nobody gets labels of another picture."""

import contextlib
import io
import json
import signal
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason='fastapi is not installed: pip install "stdc-fast[serve]"')
httpx = pytest.importorskip("httpx", reason="httpx is not installed: the clients here need it")
from served import LONG, Process, png  # noqa: E402

from stdc_fast import encode  # noqa: E402


@pytest.fixture(scope="module")
def pictures(tiny_model, photo):
    """(file, its labels) of pictures that all differ."""
    files = [png(photo(64 + 32 * (i % 2), 96, seed=i)) for i in range(12)]
    found = [(file, encode.labels(tiny_model.predict(file))) for file in files]
    assert len({labels for _, labels in found}) == len(found)
    return found


def start(weights, *arguments, port=0):
    return Process("-m", weights, "--device", "cpu", "--dtype", "float32", *arguments, port=port)


def ready(server):
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        if httpx.get(f"{server.address}readyz", timeout=LONG).status_code == 200:
            return server
        time.sleep(0.05)
    raise AssertionError("not ready in time")


class Crowd:
    """Clients in threads, each posting one picture after the other until it is told to stop."""

    def __init__(self, address, pictures, count=6):
        self.right, self.statuses, self.closed, self.wrong = 0, [], 0, []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._post, args=(address, pictures, i), daemon=True)
            for i in range(count)
        ]

    def _post(self, address, pictures, i):
        with httpx.Client(timeout=LONG) as client:
            while not self._stop.is_set():
                i += 1
                file, want = pictures[i % len(pictures)]
                try:
                    url, how = f"{address}predict?output=labels", {"Content-Type": "image/png"}
                    answer = client.post(url, content=file, headers=how)
                except httpx.TransportError:
                    with self._lock:
                        self.closed += 1
                    self._stop.wait(0.02)
                    continue
                with self._lock:
                    self.statuses.append(answer.status_code)
                    if answer.status_code == 200 and answer.content == want:
                        self.right += 1
                    elif answer.status_code == 200 or list(answer.json()) != ["error"]:
                        self.wrong.append(answer)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def wait_for(self, right):
        end = time.monotonic() + LONG
        while self.right < right:
            assert time.monotonic() < end, (self.statuses, self.closed)
            time.sleep(0.01)

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(LONG)
            assert not thread.is_alive()


def test_sigterm_under_load(tiny_weights, pictures):
    with start(tiny_weights, "--queue", "4") as server:
        ready(server)
        with Crowd(server.address, pictures) as crowd:
            crowd.wait_for(20)
            code, err = server.finish(signal.SIGTERM)
    assert code == 0 and "Traceback" not in err
    assert crowd.wrong == [] and set(crowd.statuses) <= {200, 429, 503}
    assert crowd.closed  # nobody is answered after the end


def test_kill_and_restart_under_load(tiny_weights, pictures):
    with start(tiny_weights) as first:
        ready(first)
        with Crowd(first.address, pictures) as crowd:
            crowd.wait_for(20)
            first.finish(signal.SIGKILL)
            before = crowd.right
            with start(tiny_weights, port=first.port) as second:
                crowd.wait_for(before + 20)
                assert second.finish(signal.SIGINT)[0] == 0
    assert crowd.wrong == [] and set(crowd.statuses) <= {200, 429, 503} and crowd.closed


def test_what_was_accepted_is_answered(tiny_weights, pictures):
    """Of clients that all were accepted before the signal, each gets its labels."""
    with start(tiny_weights, "--size", "512x768") as server:  # slow enough to be in time
        ready(server)
        answers = [None] * 4

        def post(i):
            url = f"{server.address}predict?output=labels"
            answers[i] = httpx.post(
                url, content=pictures[i][0], headers={"Content-Type": "image/png"}, timeout=LONG
            )

        threads = [threading.Thread(target=post, args=(i,), daemon=True) for i in range(4)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + LONG
        while "stdc_fast_accepted_pictures 4.0" not in httpx.get(f"{server.address}metrics").text:
            if any(answers):
                pytest.skip("this machine is too fast: it answered one picture before all four were accepted")
            assert time.monotonic() < end
        server.signal(signal.SIGTERM)
        while (status := httpx.get(f"{server.address}readyz").status_code) == 200:
            assert time.monotonic() < end
        assert status == 503
        for thread in threads:
            thread.join(LONG)
        assert server.finish()[0] == 0
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 4


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=LONG)


def head(length, query="output=labels"):
    lines = (
        f"POST /predict?{query} HTTP/1.1", "Host: x", "Content-Type: image/png",
        f"Content-Length: {length}", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()


def answer_of(connection):
    """(status, body) as the bytes on the wire have them."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
        top, _, body = data.partition(b"\r\n\r\n")
        for line in top.lower().split(b"\r\n"):
            if line.startswith(b"content-length:") and len(body) == int(line.split(b":")[1]):
                return int(top.split()[1]), body
    return None


def test_bad_clients(tiny_weights, pictures):
    """Slow ones, ones that leave half-way, ones that send too much: the next client is served as before."""
    file, want = pictures[0]
    with start(tiny_weights, "--read-timeout", "0.7", "--max-bytes", "100000") as server:
        ready(server)
        with connect(server) as slow:
            slow.sendall(head(len(file)) + file[:100])
            status, body = answer_of(slow)
            assert status == 408 and "0.7 seconds" in json.loads(body)["error"]
            assert slow.recv(1) == b""  # it is closed
        for _ in range(20):
            with connect(server) as leaver:
                leaver.sendall(head(len(file)) + file[: len(file) // 2])
        with connect(server) as large:
            large.sendall(head(10**9) + bytes(50_000))
            assert answer_of(large)[0] == 413
        with connect(server) as large:
            large.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            for _ in range(11):
                large.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
            assert answer_of(large)[0] == 413
        with connect(server) as mad:
            mad.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
            assert mad.recv(65536).startswith(b"HTTP/1.1 400")
        with connect(server) as patient:
            patient.sendall(head(len(file)) + file[:-1])
            time.sleep(0.1)
            patient.sendall(file[-1:])
            assert answer_of(patient) == (200, want)
            patient.sendall(head(len(file)) + file)  # on the same connection
            assert answer_of(patient) == (200, want)
        code, err = server.finish(signal.SIGTERM)
    assert code == 0 and "Traceback" not in err


def metric(server, line):
    text = httpx.get(f"{server.address}metrics", timeout=LONG).text
    return next((float(one.split()[-1]) for one in text.splitlines() if one.startswith(line)), 0.0)


def test_clients_that_never_read(tiny_weights):
    """Their places are free again, though their answers are larger than what a system keeps for them."""
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=50)
    file = file.getvalue()
    with contextlib.ExitStack() as stack:
        server = ready(stack.enter_context(start(tiny_weights, "--read-timeout", "1.5", "--queue", "2")))
        for _ in range(2):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(head(len(file), "format=png&side_by_side=true").replace(b"png\r", b"jpeg\r") + file)
        end = time.monotonic() + LONG
        while metric(server, 'stdc_fast_requests_total{path="/predict",status="499"}') < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert metric(server, "stdc_fast_accepted_pictures") == 0
        answer = httpx.post(f"{server.address}predict", files={"file": ("a.jpg", file)}, timeout=LONG)
        assert answer.status_code == 200


def test_large_pictures_do_not_stay(tiny_weights):
    """Memory after many pictures of 24 million pixels is that after some."""
    file = io.BytesIO()
    Image.new("RGB", (6000, 4000), (90, 120, 60)).save(file, "JPEG")

    with start(tiny_weights, "--queue", "2", "--workers", "1") as server:
        ready(server)
        seen = []
        for _ in range(3):
            for _ in range(4):
                url = f"{server.address}predict?output=labels"
                answer = httpx.post(url, files={"file": ("a.jpg", file.getvalue())}, timeout=LONG)
                assert answer.status_code == 200
            seen.append(metric(server, "process_resident_memory_bytes"))
    assert seen[2] < seen[0] + 150e6  # one such picture is 72 MB, with its labels 96


def test_it_says_where_it_listens(tiny_weights):
    with start(tiny_weights, "--host", "0.0.0.0") as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        ready(server)
        code, err = server.finish(signal.SIGTERM)
    assert code == 0
    warning, status = err.splitlines()
    assert "no authentication" in warning and "tiny is ready: " in status
