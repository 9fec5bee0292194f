"""bench/gpu_kernels.py with a clock that only counts: what is timed, what is written, where it stops."""

import json
import math
import time

import pytest
import torch
from engines import small_network

from bench import gpu_kernels
from stdc_fast.backends import tiles, triton
from stdc_fast.errors import UserError

SIZE, DEVICE = (64, 96), tiles.DEVICES["sm_90"]


class Clock:
    """A microsecond a launch, and a second one for each program of it."""

    def __init__(self):
        self.calls = []

    def launches(self, launches):
        self.calls.append(list(launches))
        return sum(1e-6 * (1 + math.prod(launch.grid)) for launch in launches)


@pytest.fixture
def executable():
    if not triton.interpreted():
        pytest.skip("kernels are compiled here; tests/test_triton_gpu.py times them")
    return triton.compile(small_network(), torch.float16, "cpu")


def test_every_kernel_alone_and_all_together(executable):
    clock = Clock()
    record = gpu_kernels.measure("small", executable, SIZE, DEVICE, clock, time.monotonic() + 60)
    together, *alone = clock.calls
    assert len(together) == len(small_network().ops)
    assert [one for (one,) in alone] == together
    assert record["finished"] and record["model"] == "small" and record["dtype"] == "float16"
    for launch, row in zip(together, record["rows"], strict=True):
        programs = math.prod(launch.grid)
        assert (row["op"], row["kind"], row["programs"]) == (launch.op.name, launch.op.kind, programs)
        assert row["measured_us"] == pytest.approx(1 + programs)
        assert row["predicted_us"] == pytest.approx(launch.predicted(DEVICE).seconds * 1e6)
        assert (row["work"] is None) == (launch.work is None)
    assert record["sum_us"] == pytest.approx(record["together_us"])
    assert record["predicted_sum_us"] == pytest.approx(sum(row["predicted_us"] for row in record["rows"]))
    *lines, total = gpu_kernels.table(json.loads(json.dumps(record, allow_nan=False)))
    assert len(lines) == 1 + len(together)
    assert total.startswith(f"small 64x96 float16: {record['together_us']:.0f} us in one graph, ")
    assert "us one by one" in total and "median ratio" in total


def test_it_stops_when_the_time_is_up(executable):
    clock = Clock()
    record = gpu_kernels.measure("small", executable, SIZE, DEVICE, clock, time.monotonic() - 1)
    assert len(clock.calls) == 1 and record["rows"] == []
    assert not record["finished"] and record["sum_us"] is None and record["together_us"] > 0
    assert "not all timed" in gpu_kernels.table(record)[-1]


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="nothing to time: "):
        gpu_kernels.main(["--out", str(tmp_path / "kernels.jsonl")])
    assert list(tmp_path.iterdir()) == []
