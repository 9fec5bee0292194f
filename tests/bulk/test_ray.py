"""Jobs by Ray: the same results as on one machine, also where an actor or a whole node dies."""

import json
import os
import subprocess
import sys

import jobs
import pytest
from paths import ROOT

from stdc_fast import bulk
from stdc_fast.bulk import cluster
from stdc_fast.errors import UserError

OPTIONS = {"to": "webdataset", "shard": 2}


@pytest.fixture
def sources(photo, tmp_path):
    folder = jobs.folder_of(photo, tmp_path / "sources", 200, per_folder=20)
    (folder / "cam1" / "030.jpg").write_bytes(b"corrupt")
    return folder


@pytest.fixture
def program():
    """Runs a program in a process of its own, which ends within minutes; its output and errors."""
    pytest.importorskip("psutil", reason="psutil is not installed")
    pytest.importorskip("ray", reason="Ray is not installed; make test-ray has it")

    def run(*command):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, *map(str, command)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.parametrize("scenario", ["nothing", "actor", "node"])
def test_results_are_those_of_one_machine(model, program, sources, tiny_weights, tmp_path, scenario):
    out = tmp_path / "out"
    done = program(ROOT / "tests" / "ray_job.py", scenario, sources, out, tiny_weights)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    seen = json.loads(line)
    assert 0 < seen["killed"] < 180, "it was nearly done before both actors were there"
    assert seen["frames"] == 200
    bulk.label(model, sources, tmp_path / "whole", **OPTIONS)
    assert jobs.tree(out) == jobs.tree(tmp_path / "whole")


def test_the_command_goes_on_with_a_job_of_one_machine(model, program, sources, tiny_weights, tmp_path):
    out = tmp_path / "out"

    class Stop(Exception):
        pass

    left = iter(range(9))

    def stop():
        if next(left, None) is None:
            raise Stop

    with pytest.raises(Stop):
        bulk.label(model, sources, out, **OPTIONS, on_frame=stop)
    command = ("-m", "stdc_fast", "label", sources, "--out", out, "-m", tiny_weights, "--to", "webdataset",
               "--shard", 2, "--device", "cpu", "--dtype", "float32")  # fmt: skip
    done = program(*command, "--ray", "local", "--ray-cpus", 1)
    assert done.returncode == 1, done.stderr  # of the corrupt picture
    assert "1 of 200 frames failed" in done.stderr and "Traceback" not in done.stderr
    bulk.label(model, sources, tmp_path / "whole", **OPTIONS)
    assert jobs.tree(out) == jobs.tree(tmp_path / "whole")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(str(out))]
    assert "191 frames labelled" in line
    done = program(*command, "--ray", "local", "--ray-cpus", 10_000)
    assert done.returncode == 2 and "ask for fewer by --ray-cpus" in done.stderr


def test_without_ray_the_extra_is_named(run_cli, sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run_cli("label", sources, "--out", tmp_path / "out", "--ray", "local")
    assert done.code == 2 and 'pip install "stdc-fast[ray]"' in done.err


@pytest.mark.parametrize(
    ("values", "said"),
    [({"actors": 0}, "--ray-actors"), ({"cpus": 0}, "CPUs from 1 on"), ({"gpus": -1}, "GPUs")],
)
def test_sizes_of_actors_are_checked(values, said):
    with pytest.raises(UserError, match=said):
        cluster.Cluster(**values)
