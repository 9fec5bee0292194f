"""bench/gpu.sh with a stub for the card and for Python: refusals, limits, steps, the one file of results."""

import json
import os
import shutil
import signal
import sys
import time

import pytest
from gpu_script import BENCH, NVIDIA_SMI, PYTHON, RECORDS, TOOLS, Machine, statuses

from stdc_fast import backends

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"one of {', '.join(TOOLS)} is absent"
)


@pytest.fixture
def bare(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def machine(bare):
    bare.add("nvidia-smi", NVIDIA_SMI)
    bare.add("stub-python", PYTHON)
    return bare


# Without a GPU.

REFUSALS = {
    "no driver": (None, PYTHON, "nvidia-smi was not found"),
    "a broken driver": ("echo can not talk to the driver; exit 9", PYTHON, "can not talk to the driver"),
    "no Python": (NVIDIA_SMI, None, "stub-python was not found; set PYTHON"),
    "no torch": (NVIDIA_SMI, f'exec {sys.executable} -S "$@"', "stub-python can not import torch"),
    "no card for torch": (NVIDIA_SMI, f'exec {sys.executable} "$@"', r"torch 2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_without_a_gpu_it_says_what_is_missing(case, bare):
    smi, python, message = REFUSALS[case]
    for name, text in (("nvidia-smi", smi), ("stub-python", python)):
        if text is not None:
            bare.add(name, text)
    code, out, err = bare.run(CUDA_VISIBLE_DEVICES="-1")
    assert code == 3 and out == ""
    assert err.startswith("gpu.sh: no GPU to use: ") and err.count("\n") == 1
    assert message in err
    assert bare.written() == []
    if case == "no card for torch":
        assert "sees no GPU" in err or "was built without CUDA" in err


# With one.


def test_one_file_with_the_summary_and_the_records(machine):
    code, out, _ = machine.run()
    summary, *records = machine.results()
    assert code == 0
    assert (summary["schema"], summary["kind"], summary["broken_records"]) == (1, "gpu_run", 0)
    assert summary["time"].endswith("+00:00")
    assert statuses(summary) == {
        "build": "passed",
        "tests": "passed",
        "cuda": "passed",
        "memcheck": "skipped",
        "racecheck": "skipped",
        "synccheck": "skipped",
        "repeats": "passed",
        "triton": "passed",
        "kernels": "passed",
        "tune": "passed",
        "per_kernel": "passed",
        "variants": "skipped",
        "benchmarks": "passed",
    }
    tails = {step["name"]: step["tail"] for step in summary["steps"]}
    assert tails["build"].splitlines() == [
        "nvcc is absent", "driver 580.1", "building for 90a", "made for 90a", "torch 2.99",
    ]  # fmt: skip
    names = ("tests", "cuda", "triton", "kernels", "repeats")
    assert [tails[name] for name in names] == ["3 passed", "6 passed", "4 passed", "5 passed", "0 differ"]
    assert tails["per_kernel"] == "200 us"
    assert tails["memcheck"] == "compute-sanitizer was not found"
    assert summary["nvidia_smi"] == {"name": "a stub", "driver_version": "580.1", "power.draw [W]": "70.5 W"}
    assert records == [{"kind": "latency", "i": 1}, {"kind": "latency", "i": 2}, {"kind": "kernels"}]
    *_, said, last = out.splitlines()
    assert said.startswith("3 records: bench/results/gpu_")
    absent = ", ".join(f"{name} (compute-sanitizer was not found)" for name in OF_CUDA[1:4])
    there = "variants (there is no bench/prebuilt/default)"
    assert last == f"steps: good; 9 passed; skipped: {absent}, {there}"
    # Each backend is told to end before its part of the limit, and what it found is with the results.
    (first, short), (second, rest) = map(str.split, machine.tuned())
    assert (first, second) == ("cuda", "triton") and int(short) <= 20 < int(rest) <= 65
    # The card is asked, never told.
    asked = (machine.folder / "smi").read_text().splitlines()
    assert len(asked) == 5 and all(line == "-L" or "--query-gpu=" in line for line in asked)


def test_a_failing_step_does_not_stop_the_next(machine):
    machine.add("nvidia-smi", "[ $1 = -L ] || { echo no such field; exit 2; }")
    code, out, _ = machine.run(TESTS="for i in {1..30}; do echo line $i; done; exit 1")
    summary, *records = machine.results()
    assert code == 1
    assert statuses(summary)["tests"] == "failed" and statuses(summary)["benchmarks"] == "passed"
    assert summary["steps"][1]["tail"].splitlines() == [f"line {i}" for i in range(11, 31)]
    assert summary["nvidia_smi"] == {"error": "no such field"}
    assert len(records) == 3
    assert "line 1\n" in out  # all of it is shown


def test_a_step_over_its_limit_is_stopped(machine):
    code, _, _ = machine.run(TESTS="echo begun; sleep 600", SECONDS_TESTS="1")
    summary, *records = machine.results()
    assert code == 1
    assert statuses(summary)["tests"] == "timed out" and statuses(summary)["benchmarks"] == "passed"
    assert summary["steps"][1]["tail"].startswith("begun")
    assert len(records) == 3


def test_a_suite_that_is_stopped_leaves_whole_records(machine):
    code, out, _ = machine.run(
        SUITE=f"""{RECORDS}; printf '{{"kind": "late' >>"$FILE"; sleep 600""", SECONDS_TOTAL="12"
    )
    summary, *records = machine.results()
    assert code == 1
    assert statuses(summary)["tests"] == "passed" and statuses(summary)["benchmarks"] == "timed out"
    assert len(records) == 3 and summary["broken_records"] == 1
    assert "3 records, 1 broken: " in out


def test_the_total_holds_for_all_steps(machine):
    code, _, _ = machine.run(TESTS="sleep 600", SECONDS_TOTAL="2")
    summary, *records = machine.results()
    assert code == 1 and records == []
    assert statuses(summary)["benchmarks"] == "timed out"
    assert summary["steps"][-1]["tail"] == "not started: nothing is left of 2 s"


def test_the_other_steps_leave_time_to_the_benchmarks(machine):
    """Never more than a third of the total; nothing where the benchmarks are not wanted."""
    code, out, _ = machine.run(TRITON="sleep 600", SECONDS_TOTAL="18", SECONDS_BENCHMARKS="9")
    summary, *records = machine.results()
    steps = {step["name"]: step for step in summary["steps"]}
    assert code == 1 and len(records) == 2
    assert statuses(summary)["triton"] == "timed out" and steps["triton"]["seconds"] <= 15
    assert statuses(summary)["benchmarks"] == "passed"
    assert steps["tune"]["tail"] == "not started: nothing is left of 18 s"
    assert "; not started for want of time: " in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("tune, per_kernel")


def test_only_the_wanted_steps_run(machine):
    code, _, _ = machine.run(STEPS="tune tests", TESTS="exit 1", SECONDS_TUNE="45")
    summary, *records = machine.results()
    assert (code, records) == (1, [])
    assert statuses(summary) == {"tests": "failed", "tune": "passed"}
    assert machine.tuned()[0] == "cuda 1"  # of 45 s, all but what two of them need to begin and to end


def test_tiles_of_a_backend_that_fails_do_not_stop_those_of_the_next(machine):
    code, out, _ = machine.run(STEPS="tune", TILES='[ "$7" = triton ] && echo fine')
    (summary,) = machine.results()
    tail = summary["steps"][0]["tail"]
    assert code == 1 and statuses(summary) == {"tune": "failed"}
    assert "cuda was not tuned" in tail and "fine" in tail and "triton was not tuned" not in tail
    assert out.splitlines()[-1] == "steps: NOT GOOD; 0 passed; failed: tune"


def test_tuning_that_had_no_time_is_gone_on_with_in_the_next_call(machine):
    kept, earlier = machine.folder / "kept", machine.folder / "earlier"
    earlier.mkdir()
    (earlier / "times").write_text("of before")
    late = 'echo "cuda, 512x1024: 9 us (stopped at the limit; the same command goes on)"'
    how = {"OUT": str(kept), "TUNED": str(earlier)}
    code, out, _ = machine.run("tune", TILES=late, **how)
    (first,) = kept.glob("gpu_*.jsonl")
    steps = json.loads(first.read_text().splitlines()[0])["steps"]
    assert code == 0 and {step["name"]: step["status"] for step in steps}["tune"] == "unfinished"
    assert out.splitlines()[-1] == "tune: good; 1 passed; unfinished: tune"
    assert (kept / "tuned" / "times").read_text() == "of before"
    first.rename(machine.folder / "first.jsonl")
    before = str(machine.folder / "first.jsonl")
    code, out, _ = machine.run("tune", TILES="echo done", BEFORE=before, **how)
    assert code == 0 and out.splitlines()[-1] == "tune: good; 2 passed"


def test_an_unknown_step_is_refused(machine):
    code, _, err = machine.run(STEPS="tests benchmark", TESTS=': >"$ROOT/ran"')
    assert code == 2 and "unknown step benchmark in STEPS" in err and " per_kernel variants benchmarks" in err
    assert not (machine.folder / "ran").exists() and machine.written() == []


def test_tests_run_in_several_processes_where_pytest_can(machine):
    command = 'echo "$*" with "$OMP_NUM_THREADS"'
    machine.run(NO_XDIST="0", WORKERS="3", STEPS="tests", TESTS=command, OMP_NUM_THREADS="16")
    (summary,), (path,) = machine.results(), machine.written()
    assert summary["steps"][0]["tail"] == "-m pytest -n 3 tests/backends/eager/test_eager_on_gpu.py with 2"
    path.unlink()
    machine.run(STEPS="tests", TESTS=command, OMP_NUM_THREADS="16")
    (summary,) = machine.results()
    assert summary["steps"][0]["tail"] == "-m pytest tests/backends/eager/test_eager_on_gpu.py with 16"


OF_CUDA = ("cuda", "memcheck", "racecheck", "synccheck", "repeats")


def test_sanitizers_run_each_tool(machine):
    machine.add("compute-sanitizer", "exit 1")
    code, _, _ = machine.run(SANITIZE='echo "$TOOL"; [ "$TOOL" != racecheck ]', STEPS=" ".join(OF_CUDA))
    (summary,) = machine.results()
    assert code == 1
    steps = {step["name"]: (step["status"], step["tail"]) for step in summary["steps"]}
    assert list(steps) == list(OF_CUDA)
    assert [steps[name] for name in OF_CUDA[1:4]] == [
        ("passed", "memcheck"), ("failed", "racecheck"), ("passed", "synccheck"),
    ]  # fmt: skip


def test_without_the_cuda_backend_its_steps_are_skipped_with_the_reason(machine):
    machine.add("compute-sanitizer", "exit 0")
    code, _, _ = machine.run(CUDA_RUNS="echo no nvcc at install; exit 1")
    summary, *_ = machine.results()
    steps = {step["name"]: (step["status"], step["tail"]) for step in summary["steps"]}
    assert code == 0
    assert [steps[name] for name in OF_CUDA] == [("skipped", "no nvcc at install")] * 5
    assert steps["build"][0] == steps["triton"][0] == "passed"


def test_a_warning_of_the_cuda_backend_is_no_reason(machine):
    code, _, _ = machine.run(CUDA_RUNS="echo something is old", STEPS="cuda")
    assert code == 0 and statuses(machine.results()[0]) == {"cuda": "passed"}


def test_with_nvcc_the_cuda_backend_has_to_run(machine):
    machine.add("nvcc", "echo nvcc: the; echo release 13.0")
    machine.environment["NVCC"] = "echo nvcc"
    code, _, _ = machine.run(CUDA_RUNS="echo it does not run; exit 1", STEPS="build")
    (summary,), (path,) = machine.results(), machine.written()
    assert code == 1 and statuses(summary) == {"build": "failed"}
    assert summary["steps"][0]["tail"].splitlines()[:2] == ["nvcc: the", "release 13.0"]
    assert summary["steps"][0]["tail"].endswith("it does not run")
    path.unlink()
    code, _, _ = machine.run(STEPS="build", STDC_FAST_CUDA_TARGETS="86;90a")
    assert code == 0 and "made for 86;90a" in machine.results()[0]["steps"][0]["tail"]


def test_a_build_that_fails_is_a_step_that_failed(machine):
    code, _, _ = machine.run(STEPS="build cuda", BUILD="exit 1")
    (summary,) = machine.results()
    assert code == 1 and statuses(summary) == {"build": "failed", "cuda": "passed"}


def test_what_is_tuned_and_what_was_measured_before_can_be_said(machine):
    code, _, _ = machine.run(
        TILES='echo "$*"', SUITE='echo "$*"', STEPS="tune benchmarks", TUNE="triton", BEFORE="a.jsonl b.jsonl"
    )
    (summary,) = machine.results()
    tune, suite = (step["tail"] for step in summary["steps"])
    assert code == 0
    assert (
        " --backend triton --seconds " in tune
        and "cuda" not in tune
        and " --have a.jsonl --have b.jsonl --out " in suite
    )


# Calls of one kind.


def test_a_call_runs_its_steps_and_the_next_one_those_that_did_not_pass(machine):
    out = machine.folder / "kept"
    code, _, _ = machine.run("correctness", TRITON="exit 1", OUT=str(out))
    (first,) = out.glob("gpu_*.jsonl")
    found = statuses(json.loads(first.read_text().splitlines()[0]))
    assert code == 1 and found == {
        "build": "passed", "tests": "passed", "cuda": "passed", "repeats": "passed", "triton": "failed",
        "kernels": "passed",
    }  # fmt: skip
    # On another machine of that kind, where the file was carried.
    moved = first.rename(machine.folder / "first.jsonl")
    repeats = {"TESTS": "exit 1", "CUDA": "exit 1", "OUT": str(out), "BEFORE": str(moved)}
    code, _, _ = machine.run("correctness", **repeats)
    (second,) = out.glob("gpu_*.jsonl")
    summary = json.loads(second.read_text().splitlines()[0])
    again = statuses(summary)
    assert code == 0 and (again["build"], again["triton"]) == ("passed", "passed")
    assert [again[name] for name in ("tests", "cuda", "repeats", "kernels")] == ["skipped"] * 4
    assert summary["steps"][1]["tail"] == "passed before"
    second.unlink()
    assert machine.run("correctness", AGAIN="1", **repeats)[0] == 1
    # Other sources are to be tested anew.
    next(out.glob("gpu_*.jsonl")).unlink()
    (machine.root / "bench" / "new.py").write_text("pass\n")
    assert machine.run("correctness", **repeats)[0] == 1


def test_the_summary_says_in_ten_lines_what_held(machine):
    out = str(machine.folder / "kept")
    assert machine.run("summary", OUT=out)[0] == 2
    machine.run("correctness", REPEATS="exit 1", OUT=out)
    code, said, _ = machine.run("summary", OUT=out)
    lines = said.splitlines()
    assert code == 1 and len(lines) == 10
    assert lines[1] == "staleness, two frames in turns: repeats failed"
    assert lines[2] == "sanitizers: memcheck not run, racecheck not run, synccheck not run"
    assert lines[-1] == "to look at: repeats"


def test_an_unknown_call_is_refused(machine):
    code, _, err = machine.run("test")
    assert code == 2 and "unknown call test; there are correctness sanitizers times" in err


def test_modules_that_were_built_elsewhere_are_tried_and_the_default_one_is_put_back(machine):
    package = machine.root / "stdc_fast"
    package.mkdir()
    for name in ("default", "load_cg"):
        folder = machine.root / "bench" / "prebuilt" / name
        folder.mkdir(parents=True)
        (folder / "_C.so").write_text(name)
    seen = 'cat "$ROOT/tree/stdc_fast/_C.so"; echo'
    out = machine.folder / "kept"
    code, _, _ = machine.run("variants", REPEATS=seen, TIMES=seen, BUILD="exit 1", OUT=str(out))
    (file,) = out.glob("gpu_*.jsonl")
    (build, variants) = json.loads(file.read_text().splitlines()[0])["steps"]
    assert code == 0 and build["tail"].splitlines()[2] == "the module of bench/prebuilt/default"
    assert (
        variants["tail"].split("\n")[1:3] == ["default"] * 2
        and "variant load_cg\nload_cg\nload_cg" in variants["tail"]
    )
    assert (package / "_C.so").read_text() == "default"


@pytest.mark.parametrize("how", ["FITS", "LOADS"])
def test_a_prebuilt_module_that_does_not_fit_is_left_aside(how, machine):
    (machine.root / "stdc_fast").mkdir()
    folder = machine.root / "bench" / "prebuilt" / "default"
    folder.mkdir(parents=True)
    (folder / "_C.so").write_text("default")
    wrong = {how: "echo it is for another Python; exit 1"}
    code, out, _ = machine.run(STEPS="build", **wrong)
    assert code == 1
    assert "bench/prebuilt/default is left aside: it is for another Python" in out and "building" not in out
    (machine.written()[0]).unlink()
    code, out, _ = machine.run(STEPS="build", NVCC="echo true", **wrong)
    assert code == 0 and "building for 90a" in out


def test_an_unusable_folder_is_found_before_the_work(machine):
    (machine.folder / "file").touch()
    code, _, err = machine.run(OUT=str(machine.folder / "file"), TESTS=': >"$ROOT/ran"')
    assert code == 1 and "set OUT" in err
    assert not (machine.folder / "ran").exists()


def test_stopped_from_outside_it_leaves_what_was_done(machine):
    with machine.start(TESTS=': >"$ROOT/begun"; exec sleep 600') as process:
        deadline = time.monotonic() + 30
        while not (machine.folder / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert statuses(machine.results()[0]) == {"build": "passed"}
    assert not list((machine.folder / "temporary").iterdir())
    assert len(os.listdir(machine.root / "bench" / "results")) == 1


# The Python in the script, for which the stub stands above.


def inside(start, end):
    """The script's text from ``start`` to ``end``."""
    text = (BENCH / "gpu.sh").read_text()
    first = text.index(start)
    return text[first : text.index(end, first)]


def test_it_says_of_each_backend_whether_it_runs(capsys):
    exec(inside("from stdc_fast import backends", "\nPY"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [backend.name for backend in backends.BACKENDS]
    for backend, line in zip(backends.BACKENDS, lines, strict=True):
        why_not = backend.why_not_here()
        assert line.endswith(f"does not run: {why_not}" if why_not else f"runs: {backend.about()}")


@pytest.mark.parametrize("why_not", [None, "no nvcc"])
def test_it_asks_whether_the_cuda_backend_runs(why_not, monkeypatch):
    monkeypatch.setattr(type(backends.cuda.BACKEND), "why_not_here", lambda _: why_not)
    with pytest.raises(SystemExit) as end:
        exec(inside("import sys\nfrom stdc_fast.backends import cuda", "\n' 2>&1"), {})
    assert end.value.code == (why_not and f"the CUDA backend does not run: {why_not}")
