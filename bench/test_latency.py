"""Latency of ours and of each peer as a pytest-benchmark suite: ``pytest bench --benchmark-json FILE``.

For following one runner over time with pytest-benchmark's own tools. Runners follow each other in one process
here; ratios between them come from ``stdc-fast benchmark``, where they run in turns.
"""

from pathlib import Path

import pytest
import torch

from stdc_fast.benchmark import parity, workloads
from stdc_fast.benchmark.runners import Missing
from stdc_fast.benchmark.selection import parse
from stdc_fast.benchmark.workloads import Workload, ends


@pytest.fixture(scope="session")
def place(request, tmp_path_factory):
    """(workload, device) that the options ask for."""
    option = request.config.getoption
    device = parse(device=option("--stdc-device")).device
    model = option("--stdc-model")
    weights = workloads.resolve(model, Path(tmp_path_factory.mktemp("weights")))
    return Workload(model, weights, *option("--stdc-size"), option("--stdc-batch")), device


@pytest.fixture(scope="session")
def reference(place):
    """The reference's answer to a scope, computed once."""
    known = {}

    def answer(scope):
        if scope not in known:
            known[scope] = workloads.expected(place[0], [scope])
        return known[scope]

    return answer


def test_latency(benchmark, spec, scope, place, reference):
    workload, device = place
    absent = spec.missing(device)
    if absent is not None:
        pytest.skip(absent)
    try:
        runner = spec.make(workload, device, torch.get_num_threads())
        call = runner.prepare(scope)
    except Missing as error:
        pytest.skip(str(error))
    output = ends(runner.host(call())).numpy()
    found, broken = parity.check({scope: output}, spec.dtype, reference(scope))
    assert not broken, broken
    benchmark.extra_info.update(
        model=workload.model,
        size=workload.size,
        batch=workload.batch,
        scope=scope,
        dtype=spec.dtype,
        parity=found,
    )

    def timed():
        call()
        if device != "cpu":
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=5 if device == "cpu" else 100, warmup_rounds=2)
