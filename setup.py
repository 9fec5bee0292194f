"""Packaging: what pyproject.toml can not say, and the build of the native module ``stdc_fast._C`` by ninja.

``python setup.py core --out DIR`` makes only libstdc_fast.a, for C++ programs. The environment: CXX, CXXFLAGS
and LDFLAGS; STDC_FAST_NATIVE=0 leaves the module out; STDC_FAST_SANITIZE=address,undefined (or thread).
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
SANITIZE = [kind for kind in os.environ.get("STDC_FAST_SANITIZE", "").split(",") if kind]
BUILD = ROOT / "build" / "-".join(["native", *SANITIZE])
MODULE = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math "
FLAGS += "-Wall -Wextra -pthread -I../../csrc/include"
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512"
SETS = {  # flags, the files of csrc/cpu, an instruction that the assembler must know
    "portable": ("", "*.cpp", ""),
    "amx_emulated": ("-DSTDC_AMX_EMULATED", "conv.cpp", ""),
    "avx2": ("-mavx2 -mfma", "*.cpp", "vfmadd231ps %ymm0, %ymm0, %ymm0"),
    "avx512": (AVX512, "*.cpp", "vpaddw %zmm0, %zmm0, %zmm0"),
    "avx512_bf16": (f"{AVX512} -mavx512bf16", "*.cpp", "vdpbf16ps %zmm0, %zmm0, %zmm0"),
    "amx_bf16": (f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16", "conv.cpp", "tdpbf16ps %tmm0, %tmm1, %tmm2"),
}


class Missing(BaseError):
    """Why something was not built, in one line; more lines are the end of what a tool wrote."""


def output(command: list[str], remedy: str = "install g++ or clang, or set CXX", show: bool = False) -> str:
    lines, pipe = [], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        with subprocess.Popen(command, text=True, errors="replace", **pipe) as process:
            for line in process.stdout:
                lines.append(line)
                print(line if show else "", end="", file=sys.stderr, flush=True)
    except OSError as error:
        raise Missing(f"{command[0]} does not run: {error.strerror}; {remedy}") from None
    if process.returncode:
        first = next((line.strip() for line in lines if "rror: " in line), f"{shlex.join(command)} failed")
        raise Missing(f"{first}\n{''.join(lines[-40:])}")
    return "".join(lines)


def build(module: bool) -> dict[str, object]:
    """Writes build.ninja and makes the module or libstdc_fast.a; returns what it was made with."""
    lines, objects, have, skipped = [], [], {}, {}
    cxx = shlex.split(os.environ.get("CXX") or next(filter(shutil.which, ["g++", "c++", "clang++"]), "g++"))
    version = output([*cxx, "--version"]).splitlines()[0]
    sanitize = f"-fsanitize={','.join(SANITIZE)} -O1 -g -fno-omit-frame-pointer" if SANITIZE else ""
    flags = [*cxx, *FLAGS.split(), *shlex.split(os.environ.get("CXXFLAGS", "")), *sanitize.split()]
    BUILD.mkdir(parents=True, exist_ok=True)

    def rule(name: str, command: list[str], rest: str) -> None:
        text = shlex.join(command).replace("$", "$$")
        lines.append(f"rule {name}\n  command = {text} {rest}\n  description = $out\n")

    def compile(name: str, more: list[str], pattern: str) -> None:
        rule(name, flags + more, "-MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc")
        if not (sources := sorted(ROOT.joinpath("csrc").glob(pattern))):
            raise Missing(f"no C++ sources: {ROOT / 'csrc' / pattern} is missing")
        for source in sources:
            objects.append(f"{name}/{source.stem}.o")
            lines.append(f"build {objects[-1]}: {name} ../../{source.relative_to(ROOT).as_posix()}\n")

    for name, (own, pattern, instruction) in SETS.items():
        (BUILD / "probe.cpp").write_text(f'void probe() {{ asm volatile("{instruction}"); }}\n')
        try:
            output([*cxx, *own.split(), "-c", str(BUILD / "probe.cpp"), "-o", str(BUILD / "probe.o")])
        except Missing as error:
            skipped[name] = str(error).partition("\n")[0]
        else:
            have[name] = f"-DSTDC_HAVE_{name}=1"
            compile(name, [*own.split(), f"-DSTDC_ISA={name}"], f"cpu/{pattern}")
    compile("core", list(have.values()), "core/*.cpp")
    rule("archive", ["rm", "-f"], "$out && ar crs $out $in")
    lines.append(f"build libstdc_fast.a: archive {' '.join(objects)}\n")
    if module:
        import pybind11

        include = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
        compile("bindings", [*have.values(), *include], "bindings.cpp")
        rule("link", [*flags, "-shared"], f"$in -o $out {os.environ.get('LDFLAGS', '')}")
        lines.append(f"build {MODULE}: link {' '.join(objects)}\n")
    (BUILD / "build.ninja").write_text("".join(lines))
    ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
    output([*ninja, "-C", str(BUILD), MODULE if module else "libstdc_fast.a"], "pip install ninja", show=True)
    return {"built": True, "compiler": version, "sets": list(have), "skipped": skipped}


class BuildModule(build_ext):
    """Places the module and _build_info.json, or only the latter: the library works without the module."""

    def run(self):
        info = {"built": False, "module": MODULE, "sanitize": ",".join(SANITIZE)}
        try:
            if os.environ.get("STDC_FAST_NATIVE") == "0":
                raise Missing("STDC_FAST_NATIVE=0 was set; unset it")
            info |= build(module=True)
        except (Missing, OSError, ImportError) as error:
            info["reason"], _, info["log"] = str(error).partition("\n")
            print(f"stdc_fast: native module not built: {info['reason']}", file=sys.stderr)
        folder = ROOT / "stdc_fast" if self.inplace else Path(self.build_lib, "stdc_fast")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODULE).unlink(missing_ok=True)  # an earlier one; it may be in use, so never overwritten
        if info["built"]:
            shutil.copy2(BUILD / MODULE, folder)
        (folder / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")

    def get_output_mapping(self):  # what a wheel would hold -> what an editable install holds
        names = [name for name in (MODULE, "_build_info.json") if (ROOT / "stdc_fast" / name).exists()]
        return {str(Path(self.build_lib, "stdc_fast", n)): str(ROOT / "stdc_fast" / n) for n in names}


class BuildCore(Command):
    user_options = [("out=", None, "folder to put libstdc_fast.a in")]

    def initialize_options(self):
        self.out = "."

    def finalize_options(self):
        self.out = Path(self.out)

    def run(self):
        build(module=False)
        self.out.mkdir(parents=True, exist_ok=True)
        print(shutil.copy2(BUILD / "libstdc_fast.a", self.out))


setup(
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "stdc_fast/__init__.py").read_text(), re.M)[1],
    packages=[*find_packages(include=["stdc_fast", "stdc_fast.*"]), "stdc_fast.kernels"],
    package_dir={"stdc_fast.kernels": "kernels"},
    package_data={"stdc_fast": ["weights/*.safetensors", "assets/*.jpg", "tiles/*.json"]},
    ext_modules=[Extension("stdc_fast._C", sources=[])],
    cmdclass={"build_ext": BuildModule, "core": BuildCore},
)
