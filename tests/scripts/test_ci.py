""".ci/run, with programs that write down what they are asked to do."""

import os
import shutil
import subprocess

import pytest
from paths import ROOT

SAYS = {"ffmpeg": "ffmpeg version 7", "convert": "Version: ImageMagick 7", "exiftool": "13.1"}
PACKAGES = {"ffmpeg": "ffmpeg", "convert": "imagemagick", "exiftool": "libimage-exiftool-perl"}


@pytest.fixture
def run(tmp_path):
    """Runs it where programs print what is given; returns (the finished process, what was called)."""
    if not (ROOT / ".ci/run").is_file() or shutil.which("bash") is None:
        pytest.skip("no .ci/run, or no bash")
    shutil.copytree(ROOT / ".ci", tmp_path / "tree/.ci")
    programs = tmp_path / "programs"
    programs.mkdir()

    def call(failing="", **says):
        log = tmp_path / "log"
        log.write_text("")
        for name, text in (SAYS | says).items():
            write(programs / name, f"echo '{text}'" if text else "exit 127")
        for name in ("make", "apt-get"):
            fails = "exit 2" if name == failing else ""
            write(programs / name, f'echo "{name} $*" >> {log}\n{fails}')
        write(programs / "sudo", 'while [ "$1" = -n ]; do shift; done\n"$@"')
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        script = [shutil.which("bash"), str(tmp_path / "tree/.ci/run")]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
        return done, log.read_text().splitlines()

    return call


def write(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def asked(called):
    """Packages that were to be installed."""
    (line,) = [line for line in called if line.startswith("apt-get install")] or [""]
    return set(line.split()) & {*PACKAGES.values()}


def test_everything_is_run_in_order(run):
    done, called = run()
    assert done.returncode == 0, done.stderr
    assert asked(called) == set()
    assert [line for line in called if line.startswith("make")] == [
        "make lint",
        "make test",
        "make test-sanitize",
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [("convert", "this stands in for another"), ("convert", ""), ("ffmpeg", "avconv"), ("exiftool", "usage")],
)
def test_a_program_that_is_another_is_installed(run, name, says):
    done, called = run(**{name: says})
    assert done.returncode == 0, done.stderr
    assert asked(called) == {PACKAGES[name]}


def test_without_a_way_to_install_the_tests_run(run):
    done, called = run("apt-get", convert="")
    assert done.returncode == 0 and "not installed: imagemagick" in done.stderr
    assert called[-1] == "make test-sanitize"


def test_a_failure_is_the_end(run):
    done, called = run("make")
    assert done.returncode == 2 and called[-1] == "make lint"
