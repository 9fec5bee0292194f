"""examples/cpp, built and run as its README says: the labels are Python's, and mistakes are one line."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import ROOT

import stdc_fast
from stdc_fast import _native

COMMANDS = re.search(r"```sh\n(.*?)```", (ROOT / "examples/cpp/README.md").read_text(), re.DOTALL)[1]


def execute(command, folder):
    """Runs a command of the README, with its files in ``folder``."""
    words = shlex.split(command.replace("build/cpp", str(folder)))
    programs = {"python": [sys.executable], "stdc-fast": [sys.executable, "-m", "stdc_fast"]}
    words = [*programs.get(words[0], words[:1]), *words[1:]]
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith("STDC_FAST_") or k == "STDC_FAST_CPU_ISA"
    }
    return subprocess.run(
        words, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all but the last command were run."""
    if os.name != "posix" or shutil.which("c++") is None:
        pytest.skip("no C++ compiler: c++ is not found")
    folder = tmp_path_factory.mktemp("cpp")
    for command in COMMANDS.splitlines()[:-1]:
        done = execute(command, folder)
        assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def label_frame(folder):
    def run(*arguments, plan="stdc1.plan"):
        words = [folder / "label_frame", folder / plan, *arguments]
        return execute(shlex.join(map(str, words)), folder)

    return run


def test_its_labels_are_those_of_python(folder):
    if reason := _native.why_not():
        pytest.skip(reason)
    *_, last = COMMANDS.splitlines()
    done = execute(last, folder)
    assert (done.returncode, done.stderr) == (0, "")
    first, *counts = done.stdout.splitlines()
    assert first == f"STDC-Seg_stdc1, {_native.module().best_isa()}, 2 threads"

    pixels = np.frombuffer((folder / "frame.rgb").read_bytes(), np.uint8).reshape(1, 256, 320, 3)
    model = stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32", backend="cpu")
    expected = torch.bincount(model.label(pixels, size="native").flatten()).tolist()
    assert len(counts) > 4
    assert counts == [f"{label}: {n}" for label, n in enumerate(expected) if n]


def test_mistakes_are_one_line(folder, label_frame):
    plan, frame = (folder / "stdc1.plan").read_bytes(), folder / "frame.rgb"
    damaged = {
        "empty.plan": b"",
        "cut.plan": plan[: len(plan) // 2],
        "header.plan": plan[:500],
        "other.plan": b"RIFF" + plan,
    }
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    size = (256, 320)
    done = {
        "missing.plan: can not be read": label_frame(frame, *size, plan="missing.plan"),
        "empty.plan: can not be read": label_frame(frame, *size, plan="empty.plan"),
        "it is cut off": label_frame(frame, *size, plan="cut.plan"),
        "not a usable saved plan: it is cut off": label_frame(frame, *size, plan="header.plan"),
        "not a usable saved plan: no stdc-plan": label_frame(frame, *size, plan="other.plan"),
        "missing.rgb: can not be read": label_frame(folder / "missing.rgb", *size),
        f"{folder}: can not be read": label_frame(folder, *size),
        "245760 bytes, not 256 x 321 x 3": label_frame(frame, 256, 321),
        "0 is no number from 1 to 65536": label_frame(frame, 0, 320),
        "99999999999 is no number": label_frame(frame, 256, "99999999999"),
        "-1 is no number from 1 to 256": label_frame(frame, *size, -1),
        "usage: label_frame PLAN FRAME HEIGHT WIDTH": label_frame(frame, 256),
    }
    for message, result in done.items():
        assert result.returncode == 1 and result.stdout == "", message
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert result.stderr.startswith("label_frame: ") and message in result.stderr


def test_a_plan_without_a_row_kernel_is_refused_when_it_is_read(folder):
    """A dtype that an instruction set has only some kernels for: a sentence, not a call of null."""
    program = folder / "missing_kernel"
    sources = f"tests/native/missing_kernel.cpp {folder}/libstdc_fast.a"
    done = execute(f"c++ -std=c++17 -O1 -Icsrc -Icsrc/include {sources} -pthread -o {program}", folder)
    assert done.returncode == 0, done.stderr
    done = execute(f"{program} {folder}/stdc1.plan", folder)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said.pop("of another dtype") == "nothing"
    for what, sentence in said.items():
        kind = "frame" if what == "border" else what
        assert re.fullmatch(
            rf"not a usable saved plan: op \S+: instruction set reduced has no {kind} of float32", sentence
        )
    assert set(said) == {"conv", "down", "prologue", "frame", "border"}


def test_export_names_the_values_it_takes(run_cli, tmp_path):
    done = run_cli("export", "stdc1_camvid", "--out", tmp_path / "a.plan", "--dtype", "float16")
    assert done.code == 2 and done.messages == [
        "stdc-fast: format plan has dtype float32 or bfloat16 or int8, not 'float16'"
    ]
    done = run_cli("export", "stdc1_camvidd", "--out", tmp_path / "a.plan")
    assert done.code == 2 and "did you mean stdc1_camvid" in done.messages[0]
    assert not list(tmp_path.iterdir())
    done = run_cli("export", "stdc1_camvid", "--out", tmp_path / "a.plan", "--dtype", "bfloat16")
    assert done.code == 0 and "MB, plan, bfloat16, " in done.out
    assert (tmp_path / "a.plan").read_bytes().startswith(b"stdc-plan 2\nSTDC-Seg_stdc1 bfloat16\n")
