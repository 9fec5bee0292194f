"""Packaging: what pyproject.toml can not say. csrc/build_native.py builds the native module ``stdc_fast._C``.

``python setup.py library --out DIR`` makes only libstdc_fast.a, for C++ programs; ``emulator --out DIR`` the
module stdc_fast_emulator, in which tests run the CUDA sources on the CPU. The environment: CXX, CXXFLAGS and
LDFLAGS; STDC_FAST_NATIVE=0 leaves the module out; STDC_FAST_SETS="avx2;avx512" is what to compile the CPU
engine for; STDC_FAST_SANITIZE=address,undefined (or thread). For CUDA:
CUDACXX, or an nvcc in CUDA_HOME, on PATH or in /usr/local/cuda; STDC_FAST_CUDA=0 leaves it out, and
STDC_FAST_CUDA_TARGETS="80;90a;90+PTX" is what to compile for, STDC_FAST_CUDA_OPTIONS="load_cg;carveout" how
(docs/environment.md).
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))  # pip runs this file without its folder

from build_native import MODULE, SANITIZE, Missing, build, build_emulator  # noqa: E402


class BuildModule(build_ext):
    """Places the module and _build_info.json, or only the latter: the library works without the module."""

    def run(self):
        info, file = {"built": False, "module": MODULE, "sanitize": ",".join(SANITIZE)}, None
        try:
            if os.environ.get("STDC_FAST_NATIVE") == "0":
                raise Missing("STDC_FAST_NATIVE=0 was set; unset it")
            file, made = build(module=True)
            info |= made
        except (Missing, OSError, ImportError) as error:
            info["reason"], _, info["log"] = str(error).partition("\n")
            print(f"stdc_fast: native module not built: {info['reason']}", file=sys.stderr)
        folder = ROOT / "stdc_fast" if self.inplace else Path(self.build_lib, "stdc_fast")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODULE).unlink(missing_ok=True)  # an earlier one; it may be in use, so never overwritten
        if file:
            shutil.copy2(file, folder)
        (folder / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")

    def get_output_mapping(self):  # what a wheel would hold -> what an editable install holds
        names = [name for name in (MODULE, "_build_info.json") if (ROOT / "stdc_fast" / name).exists()]
        return {str(Path(self.build_lib, "stdc_fast", n)): str(ROOT / "stdc_fast" / n) for n in names}


class BuildLibrary(Command):
    """Makes one file and copies it to where it is wanted, or fails."""

    user_options = [("out=", None, "folder to put libstdc_fast.a in")]

    def initialize_options(self):
        self.out = "."

    def finalize_options(self):
        self.out = Path(self.out)

    def make(self):
        return build(module=False)[0]

    def run(self):
        file = self.make()
        self.out.mkdir(parents=True, exist_ok=True)
        print(shutil.copy2(file, self.out))


class BuildEmulator(BuildLibrary):
    user_options = [("out=", None, "folder to put the module stdc_fast_emulator in")]

    def make(self):
        return build_emulator()


setup(
    version=re.search(r'^__version__ = "(.+)"$', (ROOT / "stdc_fast/version.py").read_text(), re.M)[1],
    packages=[*find_packages(include=["stdc_fast", "stdc_fast.*"]), "stdc_fast.kernels"],
    package_dir={"stdc_fast.kernels": "kernels"},
    package_data={"stdc_fast": ["weights/*.safetensors", "assets/*.jpg", "tables/*.json", "serve/*.html"]},
    ext_modules=[Extension("stdc_fast._C", sources=[])],
    cmdclass={"build_ext": BuildModule, "library": BuildLibrary, "emulator": BuildEmulator},
)
