"""``pytest bench``: the same runners under pytest-benchmark."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT


def test_the_latency_suite(tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "latency.json"
    options = ["--stdc-size", "128x256", "--stdc-peers", "eager", "--stdc-scopes", "logits,labels"]
    options += ["--benchmark-max-time", "0.02", "--benchmark-min-rounds", "2"]
    command = [sys.executable, "-m", "pytest", "bench", *options, "--benchmark-json", str(path)]
    # In a worker's environment pytest-benchmark would measure nothing.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    found = json.loads(path.read_text())["benchmarks"]
    assert {b["extra_info"]["scope"] for b in found} == {"logits", "labels"}
    assert {"ours eager float32-labels", "eager float32-labels"} <= {b["param"] for b in found}
    assert all(b["stats"]["median"] > 0 for b in found)
