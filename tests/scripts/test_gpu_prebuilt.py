"""bench/gpu_prebuilt.py: what it says of folders, without building; and that the module needs no torch."""

import json
import subprocess
import sys

import pytest
from paths import ROOT

from bench import gpu_constants, gpu_prebuilt
from stdc_fast import _native

WRONG = {
    "sources": ({"sources": "abc"}, "it is of other sources of csrc, abc and not "),
    "python": ({"python": ".cpython-399-x.so"}, "it is for another Python, .cpython-399-x.so and not "),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made.json").write_text(json.dumps(gpu_prebuilt.made("90a")))
    return tmp_path


def check(folder):
    command = [sys.executable, "-m", "bench.gpu_prebuilt", "--check", "--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_what_fits(folder):
    assert gpu_prebuilt.why_not(folder) is None
    done = check(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_is_told_in_one_line(case, folder):
    changed, said = WRONG[case]
    (folder / "made.json").write_text(json.dumps(gpu_prebuilt.made("90a") | changed))
    done = check(folder)
    assert done.returncode == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert "python -m bench.gpu_prebuilt builds it again" in done.stderr


@pytest.mark.parametrize("text", [None, "{"])
def test_a_folder_that_was_not_finished_does_not_fit(text, tmp_path):
    if text:
        (tmp_path / "made.json").write_text(text)
    assert "is not there or broken" in gpu_prebuilt.why_not(tmp_path)


def test_a_change_of_the_sources_is_seen(tmp_path, monkeypatch):
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    source = tmp_path / "csrc" / "cuda" / "conv.cu"
    monkeypatch.setattr(gpu_prebuilt, "ROOT", tmp_path)
    found = set()
    for text in ("a", "b"):
        source.write_text(text)
        found.add(gpu_prebuilt.sources())
    (tmp_path / "csrc" / "notes.txt").write_text("c")
    assert len(found | {gpu_prebuilt.sources()}) == 2


def test_tools_are_looked_for_where_they_are_put(tmp_path, monkeypatch):
    monkeypatch.setenv("PREBUILT", str(tmp_path))
    assert gpu_constants.prebuilt(gpu_constants.SOURCE) is None
    for name in gpu_prebuilt.TOOLS:
        (tmp_path / name.removesuffix(".cu")).write_bytes(b"")
        assert gpu_constants.prebuilt(ROOT / "bench" / name) == tmp_path / name.removesuffix(".cu")


@pytest.mark.skipif(_native.why_not() is not None, reason="there is no native module")
def test_the_module_loads_without_torch():
    file = _native.module().__file__
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('_C', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "assert 'torch' not in sys.modules; print(module.best_isa())"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == _native.isa()
