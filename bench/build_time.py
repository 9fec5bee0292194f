"""How long the native module takes to build from nothing, with and without CUDA, and its lines of source.

    python -m bench.build_time --out docs/results/cuda_build.json

Builds in a copy of the sources that git knows, as ``pip install .`` would, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stdc_fast.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "kernels": (
        "csrc/cuda/*.cu",
        "csrc/cuda/tile_*.cuh",
        "csrc/cuda/epilogue.cuh",
        "csrc/cuda/forms.h",
    ),
    "primitives": ("csrc/cuda/primitives.cuh",),
    "launches": ("csrc/cuda/launch.cuh", "csrc/include/gpu.h", "csrc/bindings_gpu.cpp"),
    "emulator": ("csrc/emulator/*",),
}


def lines() -> dict[str, int]:
    """Lines of source by part, without empty ones."""
    found = {}
    for name, patterns in PARTS.items():
        files = [file for pattern in patterns for file in sorted(ROOT.glob(pattern))]
        found[name] = sum(bool(line.strip()) for file in files for line in file.read_text().splitlines())
    return found


def build(tree: Path, **environment: str) -> dict:
    """Builds the module in a tree without any objects: seconds, and what the build says of itself."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    info = json.loads((tree / "stdc_fast" / "_build_info.json").read_text())
    if not info["built"]:
        raise SystemExit(f"the module was not built: {info['reason']}")
    size = (tree / "stdc_fast" / info["module"]).stat().st_size
    return {"seconds": round(seconds, 1), "bytes": size, "cuda": info["cuda"], "compiler": info["compiler"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.build_time", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    record = {"cores": os.cpu_count(), "lines": lines()}
    for name, environment in (("without", {"STDC_FAST_CUDA": "0"}), ("with", {})):
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder, "tree")
            subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
            record[name] = build(tree, **environment)
            print(f"{name} CUDA: {record[name]['seconds']} s", file=sys.stderr)
    text = json.dumps(record, indent=1) + "\n"
    write_atomic(options.out, lambda path: Path(path).write_text(text))


if __name__ == "__main__":
    main()
