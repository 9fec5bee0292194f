"""sdist -> wheel -> installation outside the clone, with the native module; and builds that fail."""

import json
import os
import re
import shutil
import sys
import tarfile
import types
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from small_tree import ROOT, build_in_place, run, small_tree

from stdc_fast import _native

MODULE = f"_C{EXTENSION_SUFFIXES[0]}"
# Python 3.10.12 and 3.11.4 are the first of theirs that have it.
UNPACK = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
REASON = "from stdc_fast import _native as n; print(n.why_not() is None, n.why_not() or n.about(), sep='\\n')"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """This tree's sdist, unpacked; a wheel built from that; an environment with nothing but the wheel.

    The build starts with the objects of this tree, and compiles those whose sources, headers or flags differ
    or are missing: of the bindings, without CUDA, all.
    """
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "out", "runs", "*.egg-info", "*cache*")
    shutil.copytree(ROOT, source, ignore=ignore)
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    with tarfile.open(folder / run(sys.executable, "-c", code, cwd=source).split()[-1]) as sdist:
        names = [Path(*Path(name).parts[1:]) for name in sdist.getnames()]
        sdist.extractall(folder / "sdist", **UNPACK)
    (tree,) = (folder / "sdist").iterdir()
    if (ROOT / "build/native").is_dir():
        shutil.copytree(
            ROOT / "build/native", tree / "build/native", ignore=shutil.ignore_patterns("cuda", "_C*")
        )
    wheel = (*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree)
    run(*wheel, STDC_FAST_CUDA="0")  # its kernels take minutes
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env" / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    yield types.SimpleNamespace(names=names, tree=tree, wheel=wheel, python=python, site=site)
    shutil.rmtree(folder)


@pytest.fixture
def small(tmp_path):
    return small_tree(tmp_path)


# ---------------------------------------------------------------- from the sdist


def test_the_sdist_holds_what_a_build_needs(built):
    files = [file.relative_to(ROOT) for file in ROOT.glob("csrc/**/*") if file.is_file()]
    sources = [file for file in files if file.suffix != ".pyc"]
    assert {file.suffix for file in sources} >= {".cpp", ".h", ".cu", ".cuh", ".py"}
    assert {str(file.parent) for file in sources} >= {"csrc/cuda", "csrc/emulator"}
    assert set(sources) <= set(built.names)
    unwanted = re.compile(r"\.(so|o|a|pyc)$|_build_info\.json$")
    assert [name for name in built.names if unwanted.search(str(name))] == []


def test_the_wheel_holds_no_sources(built):
    with zipfile.ZipFile(built.wheel) as wheel:
        names = wheel.namelist()
    assert f"stdc_fast/{MODULE}" in names
    foreign = re.compile(r"\.(cpp|h|cu|cuh|ptxas)$|csrc|build_native|setup.py")
    assert [name for name in names if foreign.search(name)] == []


def test_installed_from_an_sdist(built, tmp_path):
    for notice in ("LICENSE", "NOTICE"):
        assert list(built.site.glob(f"stdc_fast-*.dist-info/**/{notice}")), f"{notice} is missing"
    code = (
        "import stdc_fast, pathlib, numpy\n"
        "print(pathlib.Path(stdc_fast.__file__).parent)\n"
        "model = stdc_fast.load(device='cpu')\n"
        "print(model.predict(numpy.zeros((64, 96, 3), numpy.uint8)).labels.shape)\n" + REASON
    )
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=built.site).splitlines()
    assert printed[:3] == [str(built.site / "stdc_fast"), "(64, 96)", "True"]
    info = json.loads((built.site / "stdc_fast" / "_build_info.json").read_text())
    assert info["compiler"] in printed[3]


def test_triton_kernels_and_their_tiles_are_installed(built, tmp_path):
    kernels = {file.name for file in ROOT.glob("kernels/*.py")}
    assert kernels == {file.name for file in built.site.glob("stdc_fast/kernels/*.py")}
    assert {Path("kernels", name) for name in kernels} <= set(built.names)
    tables = {file.name for file in ROOT.glob("stdc_fast/tables/*.json")}
    assert tables and tables == {file.name for file in built.site.glob("stdc_fast/tables/*.json")}
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        "import torch\n"
        "from stdc_fast import kernels, nn\n"
        "print(kernels.__file__)\n"
        "with torch.no_grad(): print(nn.ConvBNReLU(4, 8).eval()(torch.ones(1, 4, 3, 3)).shape)\n"
    )
    environment = {"PYTHONPATH": built.site, "TRITON_INTERPRET": 1, "STDC_FAST_BACKEND": "triton"}
    file, shape = run(sys.executable, "-c", code, cwd=tmp_path, **environment).splitlines()
    assert Path(file).parent == built.site / "stdc_fast" / "kernels" and shape == "torch.Size([1, 8, 3, 3])"


def test_the_native_module_needs_no_torch(built, tmp_path):
    assert not built.wheel.stem.endswith("-none-any")
    code = (
        "import importlib.util as util\n"
        "assert util.find_spec('torch') is None\n"
        f"spec = util.spec_from_file_location('stdc_fast._C', {str(built.site / 'stdc_fast' / MODULE)!r})\n"
        "module = util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.best_isa(), *module.isas())\n"
    )
    best, *sets = run(built.python, "-I", "-c", code, cwd=tmp_path).split()
    assert best == sets[0]
    assert "portable" in sets


def test_a_source_tree_may_hide_the_installation(built, tmp_path):
    path = os.pathsep.join(map(str, (built.tree, built.site)))
    found, reason = run(sys.executable, "-c", REASON, cwd=tmp_path, PYTHONPATH=path).splitlines()
    assert found == "False"
    assert f"{built.tree} hides the installed {built.site / 'stdc_fast'}" in reason
    assert f"pip install -e {built.tree}" in reason


def test_kernels_are_found_installed_and_in_a_source_tree(built, tmp_path):
    """Triton's kernels, without Triton: the folder kernels/ of the tree is a package of the installation."""
    code = "from importlib.util import find_spec as f; print(f('stdc_fast.kernels').origin)"
    for path, folder in ((built.site, built.site / "stdc_fast"), (built.tree, built.tree)):
        printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=path)
        assert printed.strip() == str(folder / "kernels" / "__init__.py")


def test_kernels_of_an_editable_installation(built, tmp_path):
    tree = shutil.copytree(built.tree, tmp_path / "tree", ignore=shutil.ignore_patterns("build"))
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    code = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    run(sys.executable, "-c", code, cwd=tree, STDC_FAST_NATIVE="0")
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", *tmp_path.glob("*.whl"))
    code = (
        "import importlib.util as util, sys\n"
        f"sys.path.append({str(Path(torch.__file__).parent.parent)!r})\n"
        "print(*[util.find_spec(f'stdc_fast.{name}') is None for name in ('setup', 'stdc_fast', 'tests')])\n"
        "print(util.find_spec('stdc_fast.kernels').origin)\n"
    )
    printed = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert printed == ["True True True", str(tree / "kernels" / "__init__.py")]


def test_instruction_sets_share_no_code(built):
    """The linker keeps one copy of a weak symbol, perhaps one with instructions that are absent here."""
    info = json.loads((built.site / "stdc_fast" / "_build_info.json").read_text())
    assert {"portable", "amx_emulated"} <= set(info["sets"])
    native = built.tree / "build" / "native"
    for name in info["sets"]:
        objects = sorted((native / name).glob("*.o"))
        assert native / name / "conv.o" in objects
        symbols = run("nm", "--demangle", "--defined-only", *objects).splitlines()
        assert [line for line in symbols if re.match(r"[0-9a-f]+ [WwVvu] ", line)] == []
    # The same search finds the weak symbols of the standard library in what is compiled once.
    symbols = run("nm", "--demangle", "--defined-only", native / MODULE).splitlines()
    assert any(re.match(r"[0-9a-f]+ [WwVvu] std::", line) for line in symbols)


def test_the_library_alone(built, tmp_path):
    run(sys.executable, "setup.py", "-q", "library", "--out", tmp_path, cwd=built.tree)
    objects = run("ar", "t", tmp_path / "libstdc_fast.a").split()
    assert {"engine.o", "conv.o"} <= set(objects)
    assert "bindings.o" not in objects


def test_the_core_knows_neither_torch_nor_python():
    for file in {*ROOT.glob("csrc/**/*.*")} - {*ROOT.glob("csrc/**/*.py*")}:
        included = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', file.read_text(), re.M)
        foreign = ["torch/", "ATen/", "c10/"] + ["pybind11/", "Python.h"] * ("bindings" not in file.stem)
        assert [name for name in included if name.startswith(tuple(foreign))] == [], file


# ---------------------------------------------------------------- when something is missing


def test_an_installation_without_a_compiler(built, tmp_path):
    """It succeeds, although the tree still has the module of an earlier build."""
    assert list(built.tree.glob(f"build/lib*/stdc_fast/{MODULE}"))
    install = (*PIP, "install", "-v", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site")
    printed = run(*install, built.tree, CXX="/nonexistent/g++")
    assert "native module not built: /nonexistent/g++ does not run" in printed
    assert not (tmp_path / "site" / "stdc_fast" / MODULE).exists()
    found, reason = run(sys.executable, "-c", REASON, cwd=tmp_path, PYTHONPATH=tmp_path / "site").splitlines()
    assert found == "False"
    assert "/nonexistent/g++ does not run: No such file or directory; install" in reason
    assert "pip install --force-reinstall" in reason


def test_a_build_that_fails_leaves_no_module(small):
    printed, info = build_in_place(small)
    assert "native module not built" not in printed
    assert info["built"]
    assert (small / "stdc_fast" / MODULE).is_file()
    (small / "csrc" / "cpu" / "down.cpp").write_text("int down() { return x_y; }\n")
    printed, info = build_in_place(small)
    message = printed.splitlines()[-1]
    assert re.fullmatch(r"stdc_fast: native module not built: \S*cpu/down.cpp:1:\S* error: .*x_y.*", message)
    assert not info["built"]
    assert message.endswith(info["reason"])
    assert "x_y" in info["log"]
    assert not (small / "stdc_fast" / MODULE).exists()


def test_an_instruction_set_that_the_compiler_lacks(small):
    """It is left out, of the core's defines as well. (A module that exists is proof of the rest.)"""
    wrapper = small / "old-g++"
    wrapper.write_text(
        '#!/bin/sh\ncase "$*" in *-mavx2*) echo "g++: error: unknown -mavx2" >&2; exit 1; esac\n'
        'case "$*" in *-mavx512*) exit 1; esac\nexec g++ "$@"\n'
    )
    wrapper.chmod(0o755)
    core = "#if defined(STDC_HAVE_avx2) || !STDC_HAVE_portable || !STDC_HAVE_amx_emulated\n#error\n#endif\n"
    (small / "csrc" / "core" / "core.cpp").write_text(core)
    _, info = build_in_place(small, CXX=wrapper)
    assert info["built"], info
    assert info["sets"] == ["portable", "amx_emulated"]
    assert info["skipped"]["avx2"] == "g++: error: unknown -mavx2"
    assert "-mavx512f" in info["skipped"]["avx512"]


def test_instruction_sets_can_be_chosen(small):
    _, info = build_in_place(small, STDC_FAST_SETS="avx2, amx_emulated")
    assert info["sets"] == ["portable", "amx_emulated", "avx2"]
    assert info["skipped"]["avx512"] == "STDC_FAST_SETS was set without it"
    assert build_in_place(small, STDC_FAST_SETS="portable")[1]["sets"] == ["portable"]
    _, info = build_in_place(small, STDC_FAST_SETS="avx2;sse9")
    known = "portable, amx_emulated, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16, amx_bf16"
    assert info["reason"] == f"STDC_FAST_SETS has 'sse9'; there are {known}"


def test_the_module_can_be_left_out(small):
    build_in_place(small)
    printed, info = build_in_place(small, STDC_FAST_NATIVE="0")
    assert "STDC_FAST_NATIVE=0" in printed
    assert "STDC_FAST_NATIVE=0" in info["reason"]
    assert not (small / "stdc_fast" / MODULE).exists()


def test_sanitized_objects_have_their_own_folder(small):
    build_in_place(small)
    _, info = build_in_place(small, STDC_FAST_SANITIZE="thread")
    assert info["sanitize"] == "thread"
    for folder, expected in (("native", False), ("native-thread", True)):
        assert ("__tsan" in run("nm", small / "build" / folder / "core" / "core.o")) == expected


def test_diagnosis_of_what_was_never_built_or_does_not_load(tmp_path):
    package = tmp_path / "stdc_fast"
    package.mkdir()
    reason = _native._diagnosis(package)
    assert f"never built in {package}" in reason
    (package / "_build_info.json").write_text('{"built": true, "module": "_C.cpython-27.so"}')
    assert "_C.cpython-27.so, not for this Python" in _native._diagnosis(package)
    (package / MODULE).write_text("not an ELF file")
    reason = _native._diagnosis(package, ImportError("invalid ELF header"))
    assert f"{package / MODULE} does not load (invalid ELF header)" in reason
    assert "\n" not in reason
