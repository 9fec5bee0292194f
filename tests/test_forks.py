"""Children of a process that has loaded a model: multiprocessing, and a server that loads before it forks."""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from paths import ROOT

import stdc_fast
from stdc_fast import _native

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")

FRAME = np.random.default_rng(0).integers(0, 256, (1, 120, 160, 3), dtype=np.uint8)

# A parent with several threads, as most people have it; here it labels a frame first, or not.
PARENT = """
import os, signal, sys
import numpy as np, torch
torch.set_num_threads(3)
import stdc_fast
backend, labelled, asked, weights = sys.argv[1], sys.argv[2] == "labelled", int(sys.argv[3]), sys.argv[4]
model = stdc_fast.load(weights, dtype="float32", device="cpu", backend=backend)
frame = np.random.default_rng(0).integers(0, 256, (1, 120, 160, 3), dtype=np.uint8)
if labelled:
    model.label(frame)
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends it, whatever it waits for
    if asked:
        torch.set_num_threads(asked)
    labels = [model.label(frame) for _ in range(2)]
    result = model.predict(frame[0], confidence=True)
    assert (labels[0] == labels[1]).all() and result.confidence.min() > 0
    from stdc_fast import forks
    print(forks.threads(), torch.get_num_threads(), flush=True)
    os._exit(0)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("asked", [0, 2])
@pytest.mark.parametrize("labelled", ["loaded", "labelled"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_child_labels(backend, labelled, asked, tiny_weights):
    if backend == "cpu" and (why_not := _native.why_not()):
        pytest.skip(why_not)
    command = [sys.executable, "-c", PARENT, backend, labelled, str(asked), str(tiny_weights)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(asked or 1), "1"]
    said = "this process was forked from one with 3 threads and has 1"
    assert done.stderr.count("\n") == (0 if asked else 1)
    assert (said in done.stderr) == (not asked)


def label_in_child(weights):
    model = stdc_fast.load(weights, dtype="float32", device="cpu")
    return model.label(FRAME).numpy()


def test_a_pool_of_processes(tiny_model, tiny_weights):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(label_in_child, [tiny_weights] * 3).get(timeout=120)
    expected = tiny_model.label(FRAME).numpy()
    assert all(np.array_equal(labels, expected) for labels in found)


SERVER = """
import numpy as np, torch
torch.set_num_threads(2)
import stdc_fast
model = stdc_fast.load({weights!r}, dtype="float32", device="cpu")

def app(environ, start):
    frame = np.frombuffer(environ["wsgi.input"].read(), np.uint8).reshape(1, 120, 160, 3)
    start("200 OK", [("Content-Type", "application/octet-stream")])
    return [model.label(frame).numpy().tobytes()]
"""


def test_a_server_that_loads_before_it_forks(tiny_model, tiny_weights, tmp_path):
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    (tmp_path / "served.py").write_text(SERVER.format(weights=str(tiny_weights)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--timeout", "60"]
    command += ["--bind", f"127.0.0.1:{port}", "--chdir", str(tmp_path), "served:app"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}  # it puts a socket there
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        expected = tiny_model.label(FRAME).numpy().tobytes()
        end = time.monotonic() + 60
        while True:
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/"
        for _ in range(6):
            with urllib.request.urlopen(urllib.request.Request(url, FRAME.tobytes()), timeout=60) as answer:
                assert answer.read() == expected
    finally:
        server.terminate()
        server.wait(30)
