"""A web server on loopback that serves one file, in all the ways in which servers do and fail to."""

import contextlib
import dataclasses
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class Remote:
    """What is served; a test changes it while the server runs.

    ``ranges`` off ignores Range, ``always`` starts at this byte whatever is asked, ``stop_after`` ends each
    answer after so many bytes, ``pause`` is slept before each block, ``length`` off sends no Content-Length.
    ``more`` are further headers, and ``look`` is called with the handler of each request. ``asked`` has the
    path and Range of every request, ``sent`` the bytes of bodies.
    """

    content: bytes = b""
    etag: str | None = '"1"'
    modified: str | None = None
    status: int | None = None
    kind: str = "application/octet-stream"
    ranges: bool = True
    always: int | None = None
    length: bool = True
    stop_after: int | None = None
    pause: float = 0
    block: int = 1 << 14
    moved: str | None = None
    address: str = ""
    more: dict = dataclasses.field(default_factory=dict)
    look: object = None
    asked: list = dataclasses.field(default_factory=list)
    sent: int = 0


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        remote = self.server.remote
        asked = self.headers.get("Range")
        remote.asked.append((self.path, asked))
        if remote.look:
            remote.look(self)
        if remote.moved:
            self.send_response(302)
            self.send_header("Location", remote.moved)
            self.end_headers()
            return
        if remote.status:
            self.send_error(remote.status)
            return
        start, size = 0, len(remote.content)
        if asked and remote.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= size:
                self.send_error(416)
                return
        start = start if remote.always is None else remote.always
        self.send_response(206 if start else 200)
        for name, value in {"Content-Type": remote.kind, **remote.more}.items():
            if value:
                self.send_header(name, value)
        if remote.length:
            self.send_header("Content-Length", str(size - start))
        for name, value in (("ETag", remote.etag), ("Last-Modified", remote.modified)):
            if value is not None:
                self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        end = size if remote.stop_after is None else min(size, start + remote.stop_after)
        with contextlib.suppress(OSError):  # the client may leave
            for at in range(start, end, remote.block):
                time.sleep(remote.pause)
                block = remote.content[at : min(end, at + remote.block)]
                self.wfile.write(block)
                self.wfile.flush()
                remote.sent += len(block)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextlib.contextmanager
def serve(remote):
    """A Remote with its ``address`` set, for as long as the context lasts."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.remote = remote
        remote.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield remote
        finally:
            server.shutdown()
            thread.join()
