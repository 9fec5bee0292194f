"""The real build around sources that take no time to compile, for tests of it."""

import json
import os
import shutil
import subprocess
import sys

from paths import ROOT

SOURCES = {
    "stdc_fast/__init__.py": "",
    "stdc_fast/version.py": '__version__ = "0"\n',
    "csrc/core/core.cpp": "int core() { return 1; }\n",
    "csrc/cpu/conv.cpp": "namespace STDC_ISA { int conv() { return 2; } }\n",
    "csrc/cpu/down.cpp": "namespace STDC_ISA { int down() { return 3; } }\n",
    "csrc/bindings.cpp": "int bindings() { return 4; }\n",
    "csrc/bindings_watch.cpp": "int bindings_watch() { return 10; }\n",
}


def run(*command, cwd=None, **environment):
    """What a command that succeeds prints, both streams. Settings of the build are not inherited."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STDC_FAST_") and k != "PYTHONPATH"}
    clean |= {key: str(value) for key, value in environment.items()}
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, timeout=300, check=False, **merged)
    assert done.returncode == 0, done.stdout
    return done.stdout


def write(folder, sources):
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def small_tree(folder):
    write(folder, SOURCES)
    for name in ("setup.py", "csrc/build_native.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build_in_place(tree, **environment):
    """(All that building in a source tree prints, _build_info.json.)"""
    printed = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, **environment)
    return printed, json.loads((tree / "stdc_fast" / "_build_info.json").read_text())
