"""Kill -9 at any moment: the results in the end are those of a run that nobody disturbed, byte for byte."""

import os
import random
import signal
import subprocess
import sys
import time

import jobs
import pytest
from killed import killed
from paths import ROOT

import stdc_fast
from stdc_fast import bulk

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can not fork")
KILLS = {"png": 7, "webdataset": 7, "parquet": 6}


@pytest.fixture
def sources(photo, tmp_path):
    folder = jobs.folder_of(photo, tmp_path / "sources", 60, per_folder=20)
    (folder / "cam1" / "030.jpg").write_bytes(b"corrupt")
    jobs.tar_of(photo, folder / "more.tar", [f"{i}.jpg" for i in range(8)])
    return folder


@pytest.mark.parametrize("to", KILLS)
def test_killed_at_random_moments(tiny_weights, sources, tmp_path, to):
    if to == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    # Of its own, for processes that fork want one that nothing has run yet.
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    how = {"to": to, "shard": 4}
    chance, out = random.Random(to), tmp_path / "out"
    count = 0
    for _ in range(KILLS[to]):
        frames = chance.randrange(0, 12)
        count += killed(model, sources, out, frames, chance.uniform(0, 0.03), **how)
    assert count == KILLS[to], "it was done before all kills"
    # Whatever there is by now is whole.
    state = bulk.status(out)
    assert not state["running"] and 0 < state["shards"].count("done") < len(state["shards"])
    bulk.label(model, sources, out, **how)
    bulk.label(model, sources, tmp_path / "whole", **how)
    assert jobs.tree(out) == jobs.tree(tmp_path / "whole")
    assert bulk.status(out)["labelled"] == 67 and bulk.status(out)["failed"] == 1


def test_a_command_that_was_killed_blocks_nobody(sources, tiny_weights, tmp_path, run_cli):
    out = tmp_path / "out"
    command = [
        "label",
        str(sources),
        "--out",
        str(out),
        "-m",
        str(tiny_weights),
        "--shard",
        "4",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "stdc_fast", *command], env=environment, cwd=tmp_path)
    try:
        end = time.monotonic() + 120
        while not (out / "job" / "shards" / "000001.json").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)  # it shall not be done before the second one begins
        assert process.poll() is None
        second = run_cli(*command)
    finally:
        process.kill()
        process.wait(60)
    assert second.code == 2 and "another process works on this job" in second.err
    assert bulk.status(out)["shards"].count("pending") > 0
    assert run_cli(*command).code == 1  # of the corrupt picture
    assert len(jobs.results(out)) == 67
