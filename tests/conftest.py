"""Fixtures of all tests: a small random model, pictures, the command line run in this process."""

import os

import torch

if not torch.cuda.is_available():
    # Before anything defines kernels: Triton then interprets them, on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import contextlib
import dataclasses
import functools
import shutil
import signal
import struct
import sys
import traceback
import zlib
from pathlib import Path

import interpreter
import numpy as np
import pytest
from PIL import Image

import stdc_fast
from stdc_fast import _native, backends, checkpoints, cli
from stdc_fast.classes import CAMVID
from stdc_fast.reference.networks import STDCSeg

#: Folders, files and tests that ``make check`` leaves out. They need a compiler, the native module or
#: kernels; or they build, install or start processes; or they take more than some seconds. All others pass
#: with ``--check``, where there is neither a compiler nor the module.
SLOW = (
    "calibration/test_embedded.py::test_only_plans",
    "backends/cpu/", "backends/cuda/", "backends/triton/", "backends/test_ops.py", "backends/test_network.py",
    "backends/test_process.py", "backends/gpu/test_choice_of_tiles.py", "backends/gpu/test_graphs.py",
    "backends/gpu/test_on_gpu.py", "backends/gpu/test_placed.py", "backends/gpu/test_replay.py",
    "backends/eager/test_eager_on_gpu.py",
    "benchmark/", "bulk/test_job.py", "bulk/test_kill.py", "bulk/test_ray.py",
    "calibration/test_calibrate.py", "calibration/test_ranges.py", "cli/test_calibrate_cli.py",
    "cli/test_predict_files.py",
    "checkpoints/test_checkpoints.py::test_logits_are_the_familys",
    "checkpoints/test_convert.py::test_any_weight",
    "checkpoints/test_convert.py::test_the_code_base_computes_the_same",
    "checkpoints/test_load.py::test_embedded_weights_label_camvid", "cli/test_cli.py::test_as_a_program",
    "cli/test_cli.py::test_a_reader_that_leaves", "cli/test_cli.py::test_a_full_disk",
    "cli/test_video_cli.py", "installation/",
    "plan/test_arena.py::test_an_overlap_shows", "plan/test_rewrites.py::test_720x960",
    "plan/test_rewrites.py::test_training_heads",
    "plan/test_rewrites.py::test_any_sequence_composes",
    "plan/test_rewrites.py::test_what_others_read_stays_in_any_sequence",
    "backends/eager/test_eager.py::test_rounding_costs_frames_no_more",
    "backends/eager/test_eager.py::test_low_precision_against_its_emulation",
    "exporters/test_triton_server.py", "exporters/test_converters.py", "exporters/test_export.py",
    "fuzz/", "live/test_seen_by_others.py", "media/", "scripts/", "serve/test_faults.py",
    "serve/test_page.py",
    "test_download.py::test_processes_at_once",
    "test_download.py::test_killed_half_way",
    "test_forks.py", "test_library.py", "test_ros_example.py::test_in_ros",
    "test_pretrained.py::test_the_package_is_not",
    "test_train.py", "test_tune.py", "test_video.py",
    "test_video_colours.py", "test_video_sources.py", "viewer/",
)  # fmt: skip
#: Files that take longest, as one process runs all of a file: they are the first ones.
LONGEST = (
    "backends/test_network.py", "backends/test_ops.py", "test_train.py", "benchmark/test_peers.py",
    "installation/test_packaging.py", "backends/triton/", "backends/cuda/test_bugs.py", "test_tune.py",
    "exporters/test_export.py", "calibration/test_calibrate.py", "live/test_accelerate.py",
    "cli/test_video_cli.py", "plan/test_rewrites.py", "benchmark/", "test_segmenter.py",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--check", action="store_true", help="only tests that need no compiler, without one")


def pytest_configure(config):
    if config.getoption("check"):
        reason = "the native module is hidden by pytest --check"
        _native._load = functools.cache(lambda: reason)
        os.environ |= {"CXX": "hidden-by-check", "CUDACXX": "hidden-by-check"}
    # The wide matrix has the checks of integers.
    interpreter.quicken(overflow=config.getoption("markexpr") != "not wide")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The cores are shared; tests that need more ask for them. Processes that they start inherit it.
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config, items):
    folder = Path(__file__).parent
    places = {item: f"{item.path.relative_to(folder).as_posix()}::{item.name}" for item in items}
    for item, place in places.items():
        if place.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    if config.getoption("check"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    items.sort(key=lambda item: [places[item].startswith(one) for one in LONGEST], reverse=True)


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell that starts tests in the background has Ctrl-C ignored, and so have their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def engine(request):
    """One of engines.ENGINES, where it can run."""
    why_not = request.param.why_not()
    if why_not:
        pytest.skip(why_not)
    return request.param


@pytest.fixture
def tmp_path(tmp_path):
    """pytest's own, emptied afterwards: it would keep gigabytes of checkpoints of the last runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def tiny_network():
    """STDC1 of the 11 CamVid classes with seeded random weights.

    The last batch norm is calibrated on noise, so that labels vary from pixel to pixel: with its initial
    statistics one class wins nearly everywhere and wrong labels would go unseen. The others are not,
    for a random network with all of them calibrated enlarges rounding errors tenfold.
    """
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = STDCSeg("stdc1", len(CAMVID)).eval()
        norm = network.conv_out.conv.bn
        norm.momentum = None  # a plain average over the batches below
        norm.train()
        with torch.no_grad():
            for _ in range(3):
                contrast, brightness = 2 * torch.rand(4, 3, 1, 1), torch.randn(4, 3, 1, 1)
                network(torch.randn(4, 3, 64, 96) * contrast + brightness)
    return network.eval()


@pytest.fixture(scope="session")
def tiny_weights(tiny_network, tmp_path_factory):
    """Its weights as one of our safetensors files, with a short side of 64."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    metadata = {
        "variant": "stdc1",
        "classes": CAMVID.names,
        "palette": CAMVID.palette,
        "short_side": 64,
    }
    checkpoints.save(checkpoints.inference_state(tiny_network), path, metadata)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_weights):
    """The loaded model in float32, shared: tests that change it work on a copy."""
    return stdc_fast.load(tiny_weights, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def auto_model(tiny_weights):
    """The same weights in the dtype that the command line takes here."""
    return stdc_fast.load(tiny_weights, device="cpu")


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="session")
def model64(tiny_weights):
    """The same weights in float64."""
    return stdc_fast.load(tiny_weights, device="cpu", dtype="float64")


@pytest.fixture
def embedded():
    """Name of the embedded weights."""
    return "stdc1_camvid"


@pytest.fixture(scope="session")
def photo():
    """Makes a smooth random picture, RGB uint8 [H, W, 3]; noise alone would survive no JPEG."""

    def make(height=64, width=96, seed=0):
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))

    return make


@pytest.fixture(scope="session")
def huge_png():
    """Makes a PNG of a few bytes that claims any size; decoding it can only fail."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(path, width, height):
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
        return path

    return make


@pytest.fixture
def unprivileged():
    """A context in which the permissions of files hold, also where the tests run as root."""

    @contextlib.contextmanager
    def context():
        if os.name != "posix":
            pytest.skip("POSIX permissions")
        root = os.geteuid() == 0
        if root:
            try:
                os.seteuid(65534)
            except OSError as error:
                pytest.skip(f"root that can not give up its rights ({error})")
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return context


@dataclasses.dataclass
class Spy:
    packs: int = 0
    runs: int = 0


@pytest.fixture
def spy(monkeypatch):
    """Counts what the backend packs and runs."""
    counts, compile = Spy(), backends.compile

    def counting(*arguments):
        executable = compile(*arguments)
        counts.packs += 1

        def run(*inputs):
            counts.runs += 1
            return executable(*inputs)

        return run

    monkeypatch.setattr(backends, "compile", counting)
    return counts


@dataclasses.dataclass
class Finished:
    """What a run of the command line left."""

    code: int
    out: str
    err: str

    @property
    def lines(self):
        """Lines of stderr, the states of a progress bar each on its own."""
        return [line for line in self.err.replace("\r", "\n").split("\n") if line]

    @property
    def messages(self):
        return [line for line in self.lines if line.startswith("stdc-fast: ")]


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Runs ``stdc-fast ARGS`` in this process, without the seconds that importing torch takes.

    On the CPU, also where there is a GPU, as its labels are compared bit by bit with the CPU's.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stdc-fast", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception:  # what the interpreter would do with it
            traceback.print_exc()
            code = 1
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run
