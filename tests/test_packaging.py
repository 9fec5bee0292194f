"""sdist -> wheel -> installation outside the clone: everything that is needed at run time is in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_from_an_sdist(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "out", "runs", "*.egg-info", "*cache*")
    shutil.copytree(ROOT, source, ignore=ignore)
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    sdist = tmp_path / run(sys.executable, "-c", build, cwd=source).split()[-1]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, sdist)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", site, wheel)
    for notice in ("LICENSE", "NOTICE"):
        assert list(site.glob(f"stdc_fast-*.dist-info/**/{notice}")), f"{notice} is missing"
    code = (
        "import stdc_fast, pathlib, numpy\n"
        "print(pathlib.Path(stdc_fast.__file__).parent)\n"
        "model = stdc_fast.load(device='cpu')\n"
        "print(model.predict(numpy.zeros((64, 96, 3), numpy.uint8)).labels.shape)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    printed = run(sys.executable, "-c", code, cwd=tmp_path, env=environment).splitlines()
    assert printed == [str(site / "stdc_fast"), "(64, 96)"]
