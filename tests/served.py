"""A service for tests: in this process, with a network that waits when told to; and as a real process."""

import asyncio
import contextlib
import copy
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from paths import ROOT
from PIL import Image

from stdc_fast.serve import Settings, create_app

#: Seconds after which a wait has failed.
LONG = 60


def png(array):
    """A picture's file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


class Gated:
    """A model's copy whose ``label`` notes its frames, and waits while the gate is shut."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)
        self.gate, self.seen, self.inside = threading.Event(), [], threading.Event()
        self.gate.set()
        label = self.model.label

        def gated(frames, **how):
            self.inside.set()
            assert self.gate.wait(LONG)
            self.seen.append(np.array(frames))
            return label(frames, **how)

        self.model.label = gated

    @property
    def batches(self):
        """Their sizes, without those of the pictures that warm up."""
        return [len(frames) for frames in self.seen[2:]]


class Client:
    """ASGI by hand: a body in pieces, at any pace, from a client that may leave."""

    def __init__(self, app, path="/predict", headers=(), query=b"", kind=b"image/png"):
        self.app, self.taken, self.answer = app, 0, None
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query,
            "headers": [(b"content-type", kind), *headers], "client": ("127.0.0.1", 9),
            "server": ("here", 80),
        }  # fmt: skip
        self.left = asyncio.Event()

    async def post(self, pieces, pause=0.0):
        """(status, headers, body), or None where there is no answer."""
        pieces = iter(pieces)
        parts = []

        async def receive():
            await asyncio.sleep(pause)
            piece = next(pieces, None)
            if piece is None:
                await self.left.wait()
                return {"type": "http.disconnect"}
            self.taken += 1
            return {"type": "http.request", "body": piece, "more_body": piece != b""}

        async def send(message):
            parts.append(message)

        await asyncio.wait_for(self.app(self.scope, receive, send), LONG)
        if not parts:
            return None
        headers = {k.decode(): v.decode() for k, v in parts[0]["headers"]}
        return parts[0]["status"], headers, b"".join(p.get("body", b"") for p in parts[1:])


@contextlib.asynccontextmanager
async def running(model, **settings):
    """The application, with its model loaded."""
    app = create_app(model, Settings(**settings))
    service = app.state.service
    service.start()
    try:
        await until(lambda: service.segmenter is not None or service.failure is not None)
        yield app
    finally:
        await asyncio.to_thread(service.close)


async def until(condition):
    """Wait for it, but not for ever."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)


class Process:
    """``stdc-fast serve`` as users run it, on a free port."""

    def __init__(self, *arguments, port=0):
        command = [sys.executable, "-m", "stdc_fast", "serve", "--port", str(port), *map(str, arguments)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.address, self.err = None, ""

    def __enter__(self):
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        reader.join(LONG)
        assert self.address, self.finish()
        return self

    def _read(self):
        found = re.match(r"http://\S+:(\d+)/", self.process.stdout.readline())
        if found:
            self.address, self.port = found[0], int(found[1])

    def signal(self, number):
        self.process.send_signal(number)

    def finish(self, number=None):
        """(exit code, stderr), after a signal."""
        if number is not None:
            self.signal(number)
        _, self.err = self.process.communicate(timeout=LONG)
        return self.process.returncode, self.err

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.finish(signal.SIGKILL)
