"""bench/gpu_kernels.py with a clock that only counts: what is timed, what is written, where it stops."""

import json
import math
import os
import time

import hosted
import pytest
import torch
from sketch import small_network

from bench import gpu_constants, gpu_kernels
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.gpu.model import DEVICES, NODE
from stdc_fast.errors import UserError
from stdc_fast.precision import FLOAT16

SIZE, DEVICE = (64, 96), DEVICES["sm_90"]


class Clock:
    """A microsecond a launch, and a second one for each program of it."""

    def __init__(self):
        self.calls = []

    def launches(self, lowered, launches=None):
        assert lowered.arena.any() and all(x.any() for x in lowered.inputs.values())
        self.calls.append(list(launches or lowered.launches))
        return sum(1e-6 * (1 + launch.predicted(DEVICE).programs) for launch in self.calls[-1])


def of_triton():
    if not triton.interpreted():
        pytest.skip("kernels are compiled here; those of GPUs time them")
    return triton.compile(small_network(), torch.float16, "cpu")


def of_cuda():
    native = hosted.module()
    return cuda.CudaExecutable(small_network(), FLOAT16, torch.device("cpu"), native, hosted.chooser())


@pytest.fixture(params=["triton", "cuda"])
def case(request):
    return request.param, of_cuda() if request.param == "cuda" else of_triton()


def measured(case, clock, seconds):
    name, executable = case
    return gpu_kernels.measure("small", name, executable, SIZE, DEVICE, clock, time.monotonic() + seconds)


def test_every_kernel_alone_and_all_together(case):
    clock = Clock()
    record = measured(case, clock, 60)
    together, *alone = clock.calls
    assert sum(1 + len(launch.also) for launch in together) == len(small_network().ops)
    assert [one for (one,) in alone] == together
    assert record["finished"] and record["dtype"] == "float16"
    assert (record["model"], record["backend"]) == ("small", case[0])
    for launch, row in zip(together, record["rows"], strict=True):
        expected = launch.predicted(DEVICE)
        assert row["programs"] == (math.prod(launch.grid) if case[0] == "triton" else expected.programs)
        assert (row["op"], row["kind"]) == (launch.name, launch.kind)
        assert row["measured_us"] == pytest.approx(1 + row["programs"])
        assert row["predicted_us"] == pytest.approx(expected.seconds * 1e6)
        assert (row["work"] is None) == (launch.work is None) == (row["tiles"] is None)
    assert record["sum_us"] == pytest.approx(record["together_us"])
    assert record["predicted_sum_us"] == pytest.approx(sum(row["predicted_us"] for row in record["rows"]))
    *lines, total = gpu_kernels.table(json.loads(json.dumps(record, allow_nan=False)))
    assert len(lines) == 1 + len(together)
    start = f"{case[0]} small 64x96 float16: {record['together_us']:.0f} us in one graph"
    assert total.startswith(start)
    assert (record["predicted_together_us"] is None) == (case[0] == "triton")
    assert "us one by one" in total and "median ratio" in total


def test_it_stops_when_the_time_is_up(case):
    clock = Clock()
    record = measured(case, clock, -1)
    assert len(clock.calls) == 1 and record["rows"] == []
    assert not record["finished"] and record["sum_us"] is None and record["together_us"] > 0
    assert "not all timed" in gpu_kernels.table(record)[-1]


@pytest.mark.parametrize("backend", ["all", "cuda", "triton"])
def test_without_a_gpu_it_says_so(backend, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"nothing to time: (cuda|triton): "):
        gpu_kernels.main(["--out", str(tmp_path / "kernels.jsonl"), "--backend", backend])
    assert list(tmp_path.iterdir()) == []


# Constants.

MEASURED = {"node": 2e-6, "dependent_node": 1e-6, "cache": 5e12, "mma_8_warps": 4e14, "new": 3.0}


def test_constants_are_shown_beside_what_the_model_has():
    for device in DEVICES.values():
        found = gpu_constants.assumed(device)
        assert all(value > 0 for value in found.values())
        assert ("dependent_node" in found) == (device.capability >= (9, 0))
    head, *lines = gpu_constants.table({"constants": MEASURED, "assumed": gpu_constants.assumed(DEVICE)})
    assert len(lines) == len(MEASURED) and "assumed" in head
    assert f"{2e-6 / NODE:.2f}" in lines[0] and lines[-1].split() == ["new", "3"]


def test_constants_are_what_the_program_prints(tmp_path, monkeypatch):
    """With a stub for nvcc, which writes a program."""
    stub = tmp_path / "nvcc"
    (tmp_path / "answer").write_text(json.dumps(MEASURED))
    stub.write_text(
        f'#!/bin/sh\necho "$*" >{tmp_path}/asked\nwhile [ "$1" != -o ]; do shift; done\n'
        f'printf "#!/bin/sh\\ncat {tmp_path}/answer\\n" >$2; chmod +x $2\n'
    )
    stub.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(stub))
    assert gpu_constants.measure(DEVICE)["constants"] == MEASURED
    asked = (tmp_path / "asked").read_text()
    assert "arch=compute_90,code=sm_90" in asked and "gpu_constants.cu" in asked
    stub.write_text("#!/bin/sh\necho 'error: no such thing' >&2; exit 1\n")
    with pytest.raises(UserError, match="does not compile: error: no such thing"):
        gpu_constants.measure(DEVICE)
    stub.unlink()
    monkeypatch.delenv("CUDACXX")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="nvcc was not found"):
        gpu_constants.measure(DEVICE)
