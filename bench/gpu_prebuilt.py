"""Build the native module for a machine without nvcc: by default, and as options for a GPU to decide have it.

    python3.12 -m bench.gpu_prebuilt --targets 90a --out bench/prebuilt

The module is for the Python that runs this. It needs setuptools, pybind11 and ninja, not torch. Each folder
of the output has a module and its _build_info.json, and ``bench/gpu.sh`` takes them from there. The sources
are copied first: no other build is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {
    "default": "",
    **{name: name for name in ("load_cg", "dependents_late", "dependents_never", "carveout")},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_prebuilt", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="90a", help="as STDC_FAST_CUDA_TARGETS")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of them")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "prebuilt")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("csrc", "kernels"):
            shutil.copytree(ROOT / name, tree / name)
        ignore = shutil.ignore_patterns("*.so", "weights", "assets", "__pycache__")
        shutil.copytree(ROOT / "stdc_fast", tree / "stdc_fast", ignore=ignore)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, tree)
        for name in options.variants.split(","):
            ways = {"STDC_FAST_CUDA_TARGETS": options.targets, "STDC_FAST_CUDA_OPTIONS": VARIANTS[name]}
            command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(command, cwd=tree, env=os.environ | ways, check=True)
            info = json.loads((tree / "stdc_fast" / "_build_info.json").read_text())
            if not info["built"] or not info["cuda"]["built"]:
                sys.exit(f"{name} was not built: {info.get('reason') or info['cuda']['reason']}")
            place = options.out / name
            place.mkdir(parents=True, exist_ok=True)
            for file in (info["module"], "_build_info.json"):
                shutil.copy2(tree / "stdc_fast" / file, place)
            print(f"{place}: {(place / info['module']).stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
