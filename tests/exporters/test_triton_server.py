"""A real Triton Inference Server runs an exported folder: that of PyTriton's wheel, by make test-triton."""

import concurrent.futures
import io
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from stdc_fast.exporters.triton import repository

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed: make test-triton")
#: Seconds after which a wait has failed.
LONG = 120


@pytest.fixture(scope="module")
def installed():
    """The folder into which ``make test-triton`` installed PyTriton, and NumPy 1 for its server."""
    if not (folder := os.environ.get("TRITON_SERVER")):
        pytest.skip("TRITON_SERVER names no folder with PyTriton's wheel: make test-triton")
    return Path(folder).resolve()


class Server:
    """A real server with one exported folder, whose Python has NumPy of its own, or this one's."""

    def __init__(self, place, installed, weights, old_numpy):
        server = installed / "pytriton" / "tritonserver"
        repository(weights, place / "models", dtype="float32", max_batch=4)
        shutil.copytree(server / "backends" / "python", place / "backends" / "python")
        version = "{}.{}".format(*sys.version_info)
        stub = shutil.copy(
            server / "python_backend_stubs" / version / "triton_python_backend_stub",
            place / "backends/python",
        )
        binary = shutil.copy(server / "bin" / "tritonserver", place)
        for program in (stub, binary):
            os.chmod(program, 0o755)
        # Its Python is that of PATH, and ignores PYTHONPATH.
        venv.create(place / "env", symlinks=True)
        packages = place / "env" / "lib" / f"python{version}" / "site-packages"
        for name in ("numpy", "numpy.libs") if old_numpy else ():
            (packages / name).symlink_to(installed / name)
        (packages / "others.pth").write_text("\n".join([str(ROOT), *filter(os.path.isabs, sys.path)]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            binary, "--model-repository", place / "models", "--backend-directory", place / "backends",
            "--allow-http=0", "--allow-metrics=0", "--grpc-address", "127.0.0.1", "--grpc-port", self.port,
        ]  # fmt: skip
        libraries = [installed / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        environment = {
            **os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)), "CUDA_VISIBLE_DEVICES": "",
            "PATH": os.pathsep.join([str(place / "env" / "bin"), os.environ["PATH"]]),
        }  # fmt: skip
        self._log = (place / "log").open("w+")
        self.process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    @property
    def log(self):
        self._log.seek(0)
        return self._log.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(LONG)
        self._log.close()


@pytest.fixture(scope="module")
def client(tiny_weights, installed, tmp_path_factory):
    place = tmp_path_factory.mktemp("triton")
    with (
        Server(place, installed, tiny_weights, True) as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as found,
    ):
        end = time.monotonic() + LONG
        while not ready(found):
            assert server.process.poll() is None and time.monotonic() < end, server.log
            time.sleep(0.2)
        yield found


def ready(client):
    try:
        return client.is_model_ready("tiny")
    except grpc.InferenceServerException:  # nobody listens yet
        return False


def test_a_server_that_misreads_arrays_is_refused(tiny_weights, installed, tmp_path):
    """This one was built for NumPy 1. With NumPy 2 all bytes of an input would be its first one."""
    if np.__version__ < "2":
        pytest.skip("this NumPy is one that the server reads")
    with Server(tmp_path, installed, tiny_weights, False) as server:
        end = time.monotonic() + LONG
        while "install numpy<2" not in server.log:
            assert time.monotonic() < end, server.log
            time.sleep(0.2)


def frames(*arrays):
    batch = np.stack(arrays)
    given = grpc.InferInput("IMAGE", batch.shape, "UINT8")
    given.set_data_from_numpy(batch)
    return [given]


def encoded(*arrays):
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        files.append([file.getvalue()])
    given = grpc.InferInput("ENCODED", [len(files), 1], "BYTES")
    given.set_data_from_numpy(np.array(files, dtype=np.object_))
    return [given]


def test_every_client_gets_its_own_labels(client, model, photo):
    """Many at once, of three sizes, as frames and as files; the server batches them as it likes."""
    sizes = [(64, 96), (96, 64), (70, 70)]
    pictures = [photo(*sizes[i % 3], seed=i) for i in range(24)]

    def ask(i):
        given = (encoded if i % 2 else frames)(pictures[i])
        return client.infer("tiny", given, client_timeout=LONG).as_numpy("LABELS")

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        for i, labels in enumerate(clients.map(ask, range(len(pictures)))):
            assert labels.dtype == np.uint8
            assert np.array_equal(labels, model.predict(pictures[i]).labels[None])
    both = client.infer("tiny", frames(pictures[0], pictures[3]), client_timeout=LONG).as_numpy("LABELS")
    assert np.array_equal(both, np.stack([model.predict(pictures[i]).labels for i in (0, 3)]))


def test_errors_reach_the_client(client, model, photo):
    bad = grpc.InferInput("ENCODED", [1, 1], "BYTES")
    bad.set_data_from_numpy(np.array([[b"no picture"]], dtype=np.object_))
    for given, words in (
        ([bad], "not an image"),
        ([*frames(photo()), *encoded(photo())], "not both"),
        (frames(photo(20, 20)), "too small"),
        (frames(*[photo()] * 5), "batch-size"),
    ):
        with pytest.raises(grpc.InferenceServerException, match=words):
            client.infer("tiny", given, client_timeout=LONG)
    labels = client.infer("tiny", frames(photo()), client_timeout=LONG).as_numpy("LABELS")
    assert np.array_equal(labels[0], model.predict(photo()).labels)
