"""The document on the CUDA kernels, and what it is made of."""

import json

import pytest

from bench import build_time, cuda_report, ptxas
from stdc_fast import _native
from stdc_fast.backends import cuda

GPU = cuda.native()
MISSING = f"no CUDA kernels: {_native.cuda_info().get('reason')}"
needs_kernels = pytest.mark.skipif(GPU is None, reason=MISSING)


@needs_kernels
def test_the_document_is_of_these_tables_and_results():
    assert cuda_report.OUT.read_text() == cuda_report.text()


def test_recorded_kernels_have_no_problems():
    rows = [json.loads(line) for line in (cuda_report.RESULTS / "cuda_ptxas.jsonl").read_text().splitlines()]
    assert len({(row["kernel"], row["object"], row["arch"]) for row in rows}) == len(rows) > 100
    assert not ptxas.problems(rows)


def test_recorded_bugs_were_found_by_all_schedules():
    rows = [json.loads(line) for line in (cuda_report.RESULTS / "cuda_bugs.jsonl").read_text().splitlines()]
    assert len(rows) > 20 and all(row["watched"] == row["of"] and row["found"] for row in rows)


def test_lines_of_source():
    found = build_time.lines()
    assert set(found) == set(build_time.PARTS) and min(found.values()) > 100


@needs_kernels
def test_a_branch_shortens_the_prediction():
    from stdc_fast.backends.gpu.model import DEVICES

    lowered = cuda_report.lowered("sm_90", "stdc1", (512, 1024), 1)
    alone = sum(launch.predicted(DEVICES["sm_90"]).seconds for launch in lowered.launches)
    assert lowered.branch is not None and 0 < lowered.predicted(DEVICES["sm_90"]) < alone


@pytest.mark.parametrize(
    "capability, targets, expected",
    [
        ((8, 6), ["80", "86", "90+PTX"], "86"),
        ((8, 9), ["80", "86", "90a"], "86"),
        ((8, 0), ["86"], None),
        ((9, 0), ["80", "90a", "90+PTX"], "90a"),
        ((9, 0), ["80+PTX"], "80+PTX"),
        ((10, 0), ["80+PTX", "90a", "90+PTX"], "90+PTX"),
        ((10, 0), ["90a"], None),
    ],
)
def test_which_code_a_gpu_runs(capability, targets, expected):
    """Dependent launches need code for 90 or later, whatever the GPU is."""
    assert cuda.code(capability, targets) == expected
