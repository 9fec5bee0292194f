"""The CUDA part of the build: found, compiled, or left out with a reason; and the tests' emulator module."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from paths import ROOT
from small_tree import build_in_place, run, small_tree, write

from bench import ptxas
from csrc import build_native
from stdc_fast import _native

NVCC = """#!/bin/sh
# As much of nvcc as the build asks for: g++ compiles.
case "$*" in
  *--version*) echo 'Cuda compilation tools, release 12.4, V12.4.131'; exit ;;
  *--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_86\\nsm_87\\nsm_89\\nsm_90\\n'; exit ;;
  *--dryrun*) echo '#$ LIBRARIES=  "-LFOLDER/stubs" "-LFOLDER"' >&2; exit ;;
esac
echo "$*" >> FOLDER/calls
echo "ptxas info    : Used 10 registers" >&2
echo "k.cu(1): warning #177-D: look at this" >&2
while [ $# -gt 0 ]; do
  case "$1" in
    -D*) define="$define $1" ;;
    -MF) depfile=$2; shift ;;
    -c) source=$2; shift ;;
    -o) out=$2; shift ;;
  esac
  shift
done
exec g++ -fPIC $define -MD -MF "$depfile" -x c++ -c "$source" -o "$out"
"""
CUDA = {
    "csrc/cuda/gate.cu": '#include "one.cuh"\nint gate() { return kOne; }\n',
    "csrc/cuda/conv.cu": "struct half_t {};\nstruct bf16_t {};\nint conv(STDC_TYPE) { return 6; }\n",
    "csrc/cuda/one.cuh": "enum { kOne = 1 };\n",
    "csrc/bindings.cpp": "#if STDC_HAVE_CUDA\nint with_cuda() { return 7; }\n#endif\n",
    "csrc/bindings_gpu.cpp": "int bindings_gpu() { return 5; }\n",
}


@pytest.fixture
def small(tmp_path):
    """A small tree with CUDA sources, beside an nvcc and its library."""
    tree = small_tree(tmp_path / "tree")
    write(tree, CUDA)
    nvcc(tree)
    (tmp_path / "libcudart_static.a").write_bytes(b"!<arch>\n")
    return tree


def nvcc(tree, old="", new=""):
    file = tree.parent / "nvcc"
    file.write_text(NVCC.replace("FOLDER", str(tree.parent)).replace(old, new))
    file.chmod(0o755)


def build(tree, **environment):
    """(What a build of the module prints, "cuda" of _build_info.json)."""
    usual = {"CUDACXX": tree.parent / "nvcc", "NVCC_CCBIN": ""}
    printed, info = build_in_place(tree, **(usual | environment))
    assert info["built"], info
    return printed, info["cuda"]


def calls(tree):
    """The command lines of nvcc since the last time."""
    file = tree.parent / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def symbols(tree):
    (module,) = (tree / "stdc_fast").glob("_C*")
    return run("nm", "--demangle", module)


# ---------------------------------------------------------------- what is compiled


def test_sources_are_compiled_once_for_each_type(small):
    printed, cuda = build(small)
    targets = ["80", "86", "87", "90a", "90+PTX"]
    assert cuda == {"built": True, "compiler": "nvcc 12.4", "targets": targets, "options": []}
    assert "CUDA kernels not built" not in printed
    for name in ("gate()", "conv(half_t)", "conv(bf16_t)", "bindings_gpu()", "with_cuda()"):
        assert f" {name}\n" in symbols(small)
    assert len(lines := calls(small)) == 3
    for group in ("80,code=[sm_80,sm_86,sm_87]", "90,code=[sm_90a,compute_90]"):
        assert all(f" -gencode arch=compute_{group} " in line for line in lines)
    # ptxas' report goes to a file; warnings are shown as well.
    assert "Used 10 registers" in (small / "build/native/cuda/conv-f16.o.ptxas").read_text()
    assert "Used 10 registers" not in printed and "look at this" in printed


def test_only_what_changed_is_compiled_again(small):
    build(small)
    assert len(calls(small)) == 3
    build(small)
    assert calls(small) == []
    (small / "csrc/cuda/one.cuh").write_text("enum { kOne = 2 };\n")
    build(small)
    assert len(calls(small)) == 1
    _, cuda = build(small, STDC_FAST_CUDA_TARGETS="90")
    assert cuda["targets"] == ["90"]
    assert len(lines := calls(small)) == 3 and "arch=compute_90,code=[sm_90] " in lines[0]
    (small / "build/native/cuda/gate.o.ptxas").unlink()
    build(small, STDC_FAST_CUDA_TARGETS="90")
    assert len(calls(small)) == 1


def test_options_are_macros_that_the_build_remembers(small):
    _, cuda = build(small, STDC_FAST_CUDA_OPTIONS="load_cg; carveout,load_cg")
    assert cuda["options"] == ["carveout", "load_cg"]
    assert all(" -DSTDC_CARVEOUT=100 -DSTDC_LOAD_CG=1 " in line for line in calls(small))
    assert build(small)[1]["options"] == []
    assert len(lines := calls(small)) == 3 and not any("-DSTDC_LOAD_CG" in line for line in lines)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("ca", "has 'ca'; there are load_cg, dependents_late, dependents_never, carveout"),
        ("dependents_never;dependents_late", "has dependents_late and dependents_never; choose one"),
    ],
)
def test_options_that_are_wrong(wanted, reason, monkeypatch):
    monkeypatch.setenv("STDC_FAST_CUDA_OPTIONS", wanted)
    with pytest.raises(build_native.Missing, match=f"^STDC_FAST_CUDA_OPTIONS {reason}$"):
        build_native.cuda_options()


@pytest.mark.parametrize("option", build_native.CUDA_OPTIONS)
def test_each_option_is_a_macro_that_the_kernels_read(option):
    name, value = build_native.CUDA_OPTIONS[option].removeprefix("-D").split("=")
    sources = [*(ROOT / "csrc/cuda").glob("*.cu*")]
    texts = [source.read_text() for source in sources]
    usual = [line for text in texts for line in text.splitlines() if line.startswith(f"#define {name} ")]
    assert len(usual) == 1 and usual[0].split()[2] != value
    assert sum(text.count(name) for text in texts) > 2


def test_compilers_are_chosen_by_the_environment(small):
    build(small, CXX="g++")
    assert all(" -ccbin g++ " in line for line in calls(small))
    build(small, CXX="g++ -g", NVCC_CCBIN="g++-old")
    assert all(" -ccbin g++-old " in line for line in calls(small))
    home = small.parent / "home" / "bin"
    home.mkdir(parents=True)
    shutil.copy(small.parent / "nvcc", home)
    assert build(small, CUDACXX="", CUDA_HOME=home.parent)[1]["built"]
    assert calls(small)


def test_where_nvcc_is_looked_for(monkeypatch):
    there = set()
    monkeypatch.setattr(build_native.os, "access", lambda path, mode: str(path) in there)
    monkeypatch.setattr(build_native.shutil, "which", lambda name: f"/on/path/{name}")
    monkeypatch.setenv("CUDA_HOME", "/home")
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(build_native.Missing, match="nvcc was not found; install the CUDA toolkit"):
        build_native.find_nvcc()
    for place in ("/usr/local/cuda/bin/nvcc", "/on/path/nvcc", "/home/bin/nvcc"):
        there.add(place)
        assert build_native.find_nvcc() == [place]
    monkeypatch.setenv("CUDACXX", "ccache /own/nvcc")
    assert build_native.find_nvcc() == ["ccache", "/own/nvcc"]


KNOWN = [f"sm_{number}" for number in (80, 86, 87, 89, 90, 100, 120, 121)]


@pytest.mark.parametrize(
    ("wanted", "flags"),
    [
        ("80", ["80,code=[sm_80]"]),
        ("86 89,86", ["86,code=[sm_86,sm_89]"]),
        ("89;80;90+PTX;90;", ["80,code=[sm_89,sm_80]", "90,code=[compute_90,sm_90]"]),
        ("90a, 90+PTX", ["90,code=[sm_90a,compute_90]"]),
        ("90a", ["90,code=[sm_90a]"]),
        ("80+PTX;86", ["80,code=[compute_80]", "86,code=[sm_86]"]),
        ("120;121;100", ["120,code=[sm_120,sm_121]", "100,code=[sm_100]"]),
    ],
)
def test_targets(wanted, flags):
    assert build_native.gencode(wanted, KNOWN)[1][1::2] == [f"arch=compute_{flag}" for flag in flags]


def test_what_only_one_architecture_has_is_compiled_for_that_alone(small):
    write(small, {"csrc/cuda/conv_wgmma.cu": "int wgmma() { return 8; }\n"})
    build(small)
    *_, line = sorted(calls(small), key=lambda line: "conv_wgmma" in line)
    assert re.findall(r"arch=\S+", line) == ["arch=compute_90a,code=[sm_90a]"]
    build(small, STDC_FAST_CUDA_TARGETS="80;90")
    assert not any("conv_wgmma" in line for line in calls(small))


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("80;sm_86", "has 'sm_86'; targets are like 86, 90a or 90+PTX"),
        ("8.6", "has '8.6'; targets are like"),
        (";", "has ''; targets are like"),
        ("75", "has '75'; the kernels need 80 or later"),
        ("103", "has '103'; this nvcc knows 80, 86, 87, 89, 90, 100, 120, 121"),
    ],
)
def test_targets_that_are_wrong(wanted, reason):
    with pytest.raises(build_native.Missing, match=f"^STDC_FAST_CUDA_TARGETS {re.escape(reason)}[^\n]*$"):
        build_native.gencode(wanted, KNOWN)


# ---------------------------------------------------------------- what is left out, and why


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"STDC_FAST_CUDA": "0"}, "STDC_FAST_CUDA=0 was set; unset it"),
        ({"STDC_FAST_SANITIZE": "thread"}, "STDC_FAST_SANITIZE was set, "),
        ({"CUDACXX": "/nonexistent/nvcc"}, "/nonexistent/nvcc does not run: No such file"),
        ({"CUDACXX": "g++"}, "g++ is something else, not nvcc 12.0 or later; install a later CUDA"),
        ({"STDC_FAST_CUDA_TARGETS": "70"}, "STDC_FAST_CUDA_TARGETS has '70'; "),
    ],
)
def test_the_module_is_built_without_cuda(small, environment, reason):
    printed, cuda = build(small, **environment)
    assert not cuda["built"] and cuda["reason"].startswith(reason)
    assert printed.splitlines()[-1] == f"stdc_fast: CUDA kernels not built: {cuda['reason']}"
    assert "with_cuda()" not in symbols(small)


def test_a_toolkit_that_is_old_or_not_complete(small):
    nvcc(small, "12.4", "11.8")
    assert " is 11.8, not nvcc 12.0 or later" in build(small)[1]["reason"]
    nvcc(small)
    (small.parent / "libcudart_static.a").unlink()
    reason = f"libcudart_static.a is not in {small.parent}/stubs, {small.parent}; install"
    assert build(small)[1]["reason"].startswith(reason)


def test_sources_that_are_missing(small):
    shutil.rmtree(small / "csrc/cuda")
    assert build(small)[1]["reason"].startswith("no CUDA sources: ")


def test_kernels_that_do_not_compile(small):
    """The module is built all the same; and with them as soon as they do."""
    write(small, {"csrc/cuda/gate.cu": "int gate() { return x_y; }\n"})
    printed, cuda = build(small)
    assert re.fullmatch(r"\S*cuda/gate.cu:1:\S* error: .*x_y.*", cuda["reason"])
    assert printed.splitlines()[-1] == f"stdc_fast: CUDA kernels not built: {cuda['reason']}"
    assert "x_y" in cuda["log"]
    assert "with_cuda()" not in symbols(small)
    write(small, CUDA)
    assert build(small)[1]["built"]
    assert "with_cuda()" in symbols(small)
    write(small, {"csrc/cuda/twice.cu": "int gate() { return 1; }\n"})
    assert "multiple definition of `gate()'" in build(small)[1]["reason"]
    (small / "csrc/cuda/twice.cu").unlink()
    nvcc(small, "exec g++", 'echo "ptxas error   : too much shared data"; exit 255 #')
    assert build(small, STDC_FAST_CUDA_TARGETS="86")[1]["reason"] == "ptxas error   : too much shared data"


def test_cuda_is_not_blamed_for_other_sources(small):
    write(small, {"csrc/cpu/down.cpp": "int down() { return x_y; }\n"})
    printed, info = build_in_place(small, CUDACXX=small.parent / "nvcc")
    assert not info["built"] and "CUDA kernels not built" not in printed
    assert "native module not built: " in printed.splitlines()[-1]


def test_what_is_said_of_cuda(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "PACKAGE", tmp_path)
    assert _native.cuda_info() == {"built": False, "reason": "the native module was never built here"}
    file = tmp_path / "_build_info.json"
    file.write_text('{"built": false, "reason": "no compiler"}')
    assert _native.cuda_info() == {"built": False, "reason": "no compiler"}
    file.write_text('{"built": true}')
    assert not _native.cuda_info()["built"]
    file.write_text(json.dumps({"built": True, "cuda": {"built": True, "targets": ["80"]}}))
    assert _native.cuda_info()["targets"] == ["80"]


# ---------------------------------------------------------------- the emulator module


EMULATOR = {
    "csrc/emulator/simt.cpp": "int simt() { return 8; }\n",
    "csrc/bindings_gpu.cpp": "#if STDC_EMULATOR\nint bindings_emulator() { return 9; }\n#endif\n",
}


def make_emulator(tree, **environment):
    command = (sys.executable, "setup.py", "-q", "emulator", "--out", tree / "made")
    run(*command, cwd=tree, CUDACXX="/nonexistent/nvcc", **environment)
    return tree / "made" / f"stdc_fast_emulator{EXTENSION_SUFFIXES[0]}"


def test_the_emulator_module(small):
    write(small, EMULATOR)
    names = run("nm", "--demangle", make_emulator(small))
    for name in ("gate()", "conv(half_t)", "conv(bf16_t)", "simt()", "bindings_emulator()"):
        assert f" {name}\n" in names
    assert "__asan" in run("nm", make_emulator(small, STDC_FAST_SANITIZE="address,undefined"))
    assert {f.name for f in (small / "build").glob("emulator*")} == {"emulator", "emulator-address-undefined"}


def test_an_emulator_module_that_does_not_compile(small):
    write(small, EMULATOR | {"csrc/cuda/gate.cu": "int gate() { return x_y; }\n"})
    command = [sys.executable, "setup.py", "-q", "emulator", "--out", str(small)]
    done = subprocess.run(command, cwd=small, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert re.search(r"^error: \S*cuda/gate.cu:1:\S* error: .*x_y", done.stderr, re.M)
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- a real nvcc


def test_a_kernel_by_the_nvcc_of_this_machine(small):
    try:
        build_native.find_nvcc()
    except build_native.Missing as error:
        pytest.skip(str(error))
    kernel = """__global__ void __launch_bounds__(64) gate_kernel(float* y) { y[threadIdx.x] = 1; }
    __attribute__((visibility("default"))) int launch(float* y) {
      gate_kernel<<<1, 64>>>(y);
      return cudaGetLastError();
    }
    """
    (small / "csrc/cuda/conv.cu").unlink()
    write(small, {"csrc/cuda/gate.cu": kernel})
    printed, info = build_in_place(small, STDC_FAST_CUDA_TARGETS="80;86;90+PTX")
    if not info["cuda"]["built"]:
        pytest.skip(info["cuda"]["reason"])
    assert "ptxas info" not in printed
    (module,) = (small / "stdc_fast").glob("_C*")
    assert "cuda" not in run("ldd", module)
    assert hasattr(ctypes.CDLL(str(module)), "_Z6launchPf")  # it loads, without a driver
    assert not re.search(" [TDBR] cuda", run("nm", "--dynamic", module))  # the runtime is hidden
    rows = ptxas.parse_ptxas(Path(small / "build/native/cuda/gate.o.ptxas").read_text())
    assert {row["arch"] for row in rows} == {"sm_80", "sm_86"}
    assert {ptxas.base(row["symbol"]) for row in rows} == {"gate"}
