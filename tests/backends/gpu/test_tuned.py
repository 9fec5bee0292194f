"""Tuned tiles on disk: by device and versions, damaged files, and who goes before whom."""

import logging
import types

import pytest
import torch

from stdc_fast import _native, tune
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.cuda.tiles import CudaTiles
from stdc_fast.backends.gpu import tables, tuned
from stdc_fast.backends.gpu.chooser import best
from stdc_fast.backends.gpu.model import Work, device_class
from stdc_fast.backends.triton.tiles import TritonModel, TritonTiles
from stdc_fast.errors import UserError

WORK = Work("conv", 3, 1, (256,), 256, 1, 64, 128, "float16", True)
BEST, OTHER = TritonTiles(4, 8, 32, 64), TritonTiles(8, 8, 64, 64, 2, 8, 4)
ABOUT = {"device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "triton": "3.6.0"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STDC_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def h100(monkeypatch):
    """As far as choosing tiles goes."""
    properties = types.SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return torch.device("cuda", 0)


def test_what_is_saved_is_loaded_and_added_to(cache):
    assert tuned.load(ABOUT, TritonTiles) == {} and not cache.exists()
    file = tuned.save(ABOUT, {WORK.key: BEST, "another": OTHER}, TritonTiles)
    assert file.parent == cache and "h100" in file.name
    tuned.save(ABOUT, {WORK.key: OTHER}, TritonTiles)
    assert tuned.load(ABOUT, TritonTiles) == {WORK.key: OTHER, "another": OTHER}
    assert [path.name for path in cache.iterdir()] == [file.name]


@pytest.mark.parametrize("key", ABOUT)
def test_another_device_driver_or_version_has_a_file_of_its_own(key):
    tuned.save(ABOUT, {WORK.key: BEST}, TritonTiles)
    assert tuned.load(ABOUT | {key: "other"}, TritonTiles) == {}


def test_the_environment_is_that_of_the_device(h100):
    about = triton.BACKEND.environment(h100)
    assert about["device"] == "NVIDIA H100" and about["processors"] == "132"
    assert about["torch"] == torch.__version__ and about["triton"] == str(triton.version())
    assert all(isinstance(value, str) and value for value in about.values())


@pytest.mark.parametrize(
    "set_, expected", [("XDG_CACHE_HOME", "x/stdc_fast"), ("HOME", "x/.cache/stdc_fast")]
)
def test_where_the_files_are(set_, expected, tmp_path, monkeypatch):
    for name in ("STDC_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(set_, str(tmp_path / "x"))
    assert tuned.folder() == tmp_path / expected


def test_without_a_home_there_is_nothing_tuned(monkeypatch):
    for name in ("STDC_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert tuned.load(ABOUT, TritonTiles) == {}
    with pytest.raises(UserError, match="set STDC_FAST_CACHE"):
        tuned.save(ABOUT, {}, TritonTiles)


GOOD = tables.dump({"environment": ABOUT, "tiles": {WORK.key: BEST}})
DAMAGED = {
    "cut": GOOD[: len(GOOD) // 2],
    "empty": "",
    "no object": "[1, 2]",
    "deep": "[" * 100_000,
    "no tiles": '{"environment": {}}',
    "another environment": tables.dump({"environment": {}, "tiles": {WORK.key: BEST}}),
    "tiles in a list": GOOD.replace("{\n", "[", 1),
    **{
        text: GOOD.replace("[4, 8, 32, 64, 1, 4, 3]", text)
        for text in (
            "[4, 8, 32]", "[4, 8, 33, 64, 1, 4, 3]", "[4, -8, 32, 64, 1, 4, 3]", "[4, 8, 32, 64, 0, 4, 3]",
            '[4, 8, "32", 64, 1, 4, 3]', "[4, 8, 32.0, 64, 1, 4, 3]", "[4, 8, 4096, 64, 1, 4, 3]",
            "[1, 1, 32, 64, 1, 4, 3]", "[4, 8, 32, 64, 1, 4, 3, 9]", "[4, 8, 32, 64, 1, 64, 3]", "null",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_left_aside_with_one_warning(name, caplog):
    assert "[4, 8, 32, 64, 1, 4, 3]" in GOOD
    file = tuned.path(ABOUT, TritonTiles)
    file.parent.mkdir(parents=True)
    file.write_text(DAMAGED[name])
    with caplog.at_level(logging.WARNING, "stdc_fast"):
        assert tuned.load(ABOUT, TritonTiles) == {}
    (record,) = caplog.records
    assert str(file) in record.getMessage() and "stdc-fast tune" in record.getMessage()
    tuned.save(ABOUT, {WORK.key: OTHER}, TritonTiles)  # and mended by the next
    assert tuned.load(ABOUT, TritonTiles) == {WORK.key: OTHER}


def test_tuned_goes_before_shipped_before_modelled(h100, monkeypatch):
    device = device_class((9, 0), 132)
    assert triton.BACKEND.chooser(h100)(WORK) == tables.shipped("sm_90", TritonTiles)[WORK.key]
    odd = Work("conv", 3, 1, (33,), 34, 1, 7, 9, "float16")
    assert triton.BACKEND.chooser(h100)(odd) == best(TritonModel(device), odd)
    tuned.save(triton.BACKEND.environment(h100), {WORK.key: BEST}, TritonTiles)
    assert triton.BACKEND.chooser(h100)(WORK) == BEST


def test_tiles_beyond_all_measure_are_passed_over(h100):
    large = TritonTiles(32, 32, 256, 256, 1, 8, 4)
    tuned.save(triton.BACKEND.environment(h100), {WORK.key: large}, TritonTiles)
    assert tuned.load(triton.BACKEND.environment(h100), TritonTiles) == {WORK.key: large}
    assert triton.BACKEND.chooser(h100)(WORK) == tables.shipped("sm_90", TritonTiles)[WORK.key]


# The CUDA backend's: in a file of their own, for other reasons another one.

CUDA_ABOUT = ABOUT | {"backend": "cuda"}
CUDA_BEST = CudaTiles((128, 64), 8, 16, 64, 2)
CUDA_OTHER = CudaTiles((64, 64, 4), 4, 16, 32)
CUDA_CLUSTERED = CudaTiles((128, 64), 8, 16, 64, 1, wgmma=1, cluster=2)


def test_tiles_of_the_cuda_backend_are_apart(cache):
    mine = tuned.save(CUDA_ABOUT, {WORK.key: CUDA_CLUSTERED, "another": CUDA_OTHER}, CudaTiles)
    assert tuned.load(CUDA_ABOUT, CudaTiles) == {WORK.key: CUDA_CLUSTERED, "another": CUDA_OTHER}
    tuned.save(CUDA_ABOUT, {WORK.key: CUDA_BEST}, CudaTiles)
    other = tuned.save(ABOUT, {WORK.key: BEST}, TritonTiles)
    assert mine.name.startswith("cuda_tiles_nvidia_h100") and other.name.startswith("tiles_nvidia_h100")
    tuned.save(CUDA_ABOUT, {"another": CUDA_BEST}, CudaTiles)
    assert tuned.load(CUDA_ABOUT, CudaTiles) == {WORK.key: CUDA_BEST, "another": CUDA_BEST}
    assert tuned.load(ABOUT, TritonTiles) == {WORK.key: BEST}
    assert tables.read(mine, CudaTiles)["tiles"] == tuned.load(
        CUDA_ABOUT, CudaTiles
    )  # as those that are shipped
    assert mine.read_text().count("\n") == len(CUDA_ABOUT) + 8  # a line an entry


def test_the_cuda_backends_environment_is_what_its_kernels_were_built_with(h100, monkeypatch):
    about = cuda.BACKEND.environment(h100)
    assert (about["backend"], about["device"], about["processors"]) == ("cuda", "NVIDIA H100", "132")
    assert about.keys().isdisjoint({"torch", "triton"})
    assert all(isinstance(value, str) and value for value in about.values())
    built = {"built": True, "compiler": "nvcc 99", "targets": ["90a"]}
    monkeypatch.setattr(_native, "cuda_info", lambda: built)
    later = cuda.BACKEND.environment(h100)
    assert (later["compiler"], later["targets"]) == ("nvcc 99", "90a")
    paths = {tuned.path(one, CudaTiles) for one in (about, later)}
    assert len(paths) == 2 and tuned.path(triton.BACKEND.environment(h100), TritonTiles) not in paths


CUDA_NUMBERS = "[128, 64, 1, 8, 16, 64, 2]"
CUDA_DAMAGED = (
    "[128, 64, 1, 8, 16, 64, 0]", "[128, -64, 1, 8, 16, 64, 2]", '["128", 64, 1, 8, 16, 64, 2]',
    "[128, 64, 1, 8.0, 16, 64, 2]", "[128, 64, 1, 8, 16, 8192, 2]", "[128, 64, 1, true, 16, 64, 2]",
    "[128, 64, 0, 8, 16, 64, 2]", "[128, 64, 1, 8, 16, 64, 2, 2]", "[128, 64, 1, 8, 16, 64, 2, true]",
    "[128, 64, 1, 8, 16, 64, 2, 1.0]", "[128, 64, 1, 8, 16, 64, 2, 1, 2, 1]",
    "[128, 64, 1, 8, 16, 64, 2, 1, 3]", "[128, 64, 1, 8, 16, 64, 2, 1, 0]",
    "[128, 64, 1, 8, 16, 64, 2, 1, 8]", "[128, 64, 1, 8, 16, 64, 2, 0, 2]",
    "[128, 64, 1, 8, 16, 64, 2, 1, true]", "[128, 64, 1, 8, 16, 64, 2, 1, 2.0]",
    "[128, 64, 1, 8, 16, 64, 2, 1, [2]]",
    "[128, 64, 8, 16, 64, 2]", "[128, 64]", "[]", "null", '{"a": 1}', "[[128, 64], 1, 8, 16, 64, 2]",
)  # fmt: skip


@pytest.mark.parametrize("numbers", CUDA_DAMAGED)
def test_damaged_tiles_of_the_cuda_backend_are_left_aside(numbers, caplog):
    file = tuned.save(CUDA_ABOUT, {WORK.key: CUDA_BEST}, CudaTiles)
    assert CUDA_NUMBERS in file.read_text()
    file.write_text(file.read_text().replace(CUDA_NUMBERS, numbers))
    with caplog.at_level(logging.WARNING, "stdc_fast"):
        assert tuned.load(CUDA_ABOUT, CudaTiles) == {}
    (record,) = caplog.records
    assert str(file) in record.getMessage() and "stdc-fast tune" in record.getMessage()


def test_a_folder_that_can_not_be_written_is_said(cache, h100, monkeypatch, unprivileged):
    """Before the measuring, which may take minutes."""
    cache.mkdir()
    cache.chmod(0o500)
    with unprivileged(), pytest.raises(UserError, match=r"tiles_nvidia_h100.*set STDC_FAST_CACHE"):
        tune.check_writable(h100, triton.BACKEND)
