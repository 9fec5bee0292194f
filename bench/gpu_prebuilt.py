"""Build what a GPU's machine without nvcc needs: the native module, also as options have it, and tools.

    python3.12 -m bench.gpu_prebuilt --targets 90a --out bench/prebuilt
    python3.12 -m bench.gpu_prebuilt --check --out bench/prebuilt

The module is for the Python that runs this. It needs setuptools, pybind11 and ninja, not torch, and includes
no torch. Each folder of the output has a module and its _build_info.json, where ``bench/gpu.sh`` takes them.
Beside them are the programs of ``bench.gpu_constants`` and ``bench.gpu_sanitize``, and ``made.json``.
The sources are copied first: no other build is touched. Objects of build/native of the same sources and
targets are used again, so the same targets for another Python take a minute. ``--check`` says whether what is
there is of these sources and for this Python.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
VARIANTS = {
    "default": "",
    **{name: name for name in ("load_cg", "dependents_late", "dependents_never", "carveout")},
}
#: Programs of a GPU's machine, by source in bench/, and nvcc's flags.
TOOLS = {"gpu_constants.cu": [], "gpu_planted.cu": ["-shared", "-Xcompiler", "-fPIC"]}
MADE = "made.json"


def sources() -> str:
    """A digest of all that the module is made of."""
    found = hashlib.sha256()
    for path in sorted(ROOT.joinpath("csrc").rglob("*")):
        if path.suffix in (".cu", ".cuh", ".h", ".cpp", ".py") and "emulator" not in path.parts:
            found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def made(targets: str) -> dict[str, str]:
    """What ``made.json`` says of a build."""
    python = sysconfig.get_config_var("EXT_SUFFIX")
    return {"sources": sources(), "python": python, "targets": targets}


def why_not(folder: Path) -> str | None:
    """Why what is in a folder does not fit this tree and this Python, in one line; or None."""
    remedy = "python -m bench.gpu_prebuilt builds it again"
    try:
        found = json.loads((folder / MADE).read_text())
    except (OSError, ValueError):
        return f"{folder / MADE} is not there or broken; {remedy}"
    now = made("")
    if found.get("sources") != now["sources"]:
        return f"it is of other sources of csrc, {found.get('sources')} and not {now['sources']}; {remedy}"
    if found.get("python") != now["python"]:
        return f"it is for another Python, {found.get('python')} and not {now['python']}; {remedy}"
    return None


def copy_tree(tree: Path) -> None:
    """What setup.py needs, and the objects that are there. Times are kept, by which ninja goes."""
    for name in ("csrc", "kernels"):
        shutil.copytree(ROOT / name, tree / name)
    ignore = shutil.ignore_patterns("*.so", "weights", "assets", "__pycache__")
    shutil.copytree(ROOT / "stdc_fast", tree / "stdc_fast", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    if (built := ROOT / "build" / "native").is_dir():
        shutil.copytree(built, tree / "build" / "native", ignore=shutil.ignore_patterns("*.so"))


def build_module(tree: Path, targets: str, options: str, place: Path) -> None:
    ways = {"STDC_FAST_CUDA_TARGETS": targets, "STDC_FAST_CUDA_OPTIONS": options}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, env=os.environ | ways, check=True)
    info = json.loads((tree / "stdc_fast" / "_build_info.json").read_text())
    if not info["built"] or not info["cuda"]["built"]:
        sys.exit(f"{place.name} was not built: {info.get('reason') or info['cuda']['reason']}")
    place.mkdir(parents=True, exist_ok=True)
    for file in (info["module"], "_build_info.json"):
        shutil.copy2(tree / "stdc_fast" / file, place)
    if strip := shutil.which("strip"):
        subprocess.run([strip, "--strip-unneeded", str(place / info["module"])], check=True)
    print(f"{place}: {(place / info['module']).stat().st_size / 1e6:.1f} MB", flush=True)


def build_tools(targets: str, out: Path) -> None:
    from csrc.build_native import find_nvcc, gencode

    nvcc = find_nvcc()
    known = subprocess.run([*nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    codes = gencode(targets, known.stdout.split())[1]
    for name, flags in TOOLS.items():
        target = out / Path(name).stem
        command = [*nvcc, "-std=c++17", "-O3", *codes, *flags, str(ROOT / "bench" / name), "-o", str(target)]
        subprocess.run(command, check=True)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_prebuilt", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="90a", help="as STDC_FAST_CUDA_TARGETS")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of them")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "prebuilt")
    parser.add_argument("--work", type=Path, help="folder of the build, kept; else build/prebuilt")
    parser.add_argument("--check", action="store_true", help="build nothing; exit code 1 if it does not fit")
    options = parser.parse_args(arguments)
    if options.check:
        sys.exit(why_not(options.out))
    tree = options.work or ROOT / "build" / "prebuilt"
    shutil.rmtree(tree, ignore_errors=True)
    copy_tree(tree)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / MADE).unlink(missing_ok=True)  # until all of it is there
    build_tools(options.targets, options.out)
    for name in options.variants.split(","):
        build_module(tree, options.targets, VARIANTS[name], options.out / name)
    (options.out / MADE).write_text(json.dumps(made(options.targets), indent=1) + "\n")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB in all, as they are")


if __name__ == "__main__":
    main()
