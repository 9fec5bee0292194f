"""Triton's kernels compiled for GPUs that are not here: their machine code, and the tables of tiles."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import pytest
from paths import ROOT

pytest.importorskip("triton", reason="Triton is not installed")


from bench import ahead, ahead_report, ship
from stdc_fast import kernels  # before a test changes whether they are interpreted
from stdc_fast.backends.gpu import tables
from stdc_fast.backends.gpu.chooser import best
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.gpu.tables import FOLDER
from stdc_fast.backends.triton import tiles
from stdc_fast.backends.triton.tiles import TritonModel, TritonTiles
from stdc_fast.precision import BFLOAT16, FLOAT16, FLOAT32, INT8

# Compiled by default; the other targets, and all else that is shipped, in the wide matrix.
TARGET = "sm_90"
#: One process that compiles: the others of pytest-xdist have the other cores.
WORKERS = 1 if "PYTEST_XDIST_WORKER" in os.environ else None


def run(*options):
    """``python -m bench.ahead``, in a process of its own: kernels may be interpreted in this one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.ahead", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def compiled(folder, *options):
    """(records, finished process)."""
    out = folder / "records.jsonl"
    finished = run("--out", out, *options)
    assert out.exists(), finished.stderr[-3000:]
    return [json.loads(line) for line in out.read_text().splitlines()], finished


def check(records, finished=None):
    """By what the records say, and by bench.ahead's own word."""
    for r in records:
        what, device = f"{r['kernel']} for {r['target']}: {r['where']}", DEVICES[r["target"]]
        assert r["stack"] == r["local"] == 0, what
        assert r["shared"] <= device.shared, what
        assert 16 <= r["registers"] <= 255, what
        assert r["predicted_us"] > 0, what
        if r["kernel"] in ("stem", "conv", "down") and r["dtype"] != "fp32":
            assert r["products"] and r["instruction"], what
        if r["kernel"] == "conv":
            assert r["asynchronous"], what
        assert r["dependent"] == (device.capability >= (9, 0)), what
    assert not [p for r in records for p in ahead.problems(r)]
    if finished is not None:
        assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.parametrize("target", [pytest.param("sm_80", marks=pytest.mark.wide), TARGET])
def test_every_kernel_of_the_network_is_compiled_well(target, tmp_path):
    options = ("--targets", target, "--variants", "stdc1", "--dtypes", "float16", "--sizes", "512x1024")
    own, finished = compiled(tmp_path, *options)
    check(own, finished)
    assert {r["kernel"] for r in own} == set(kernels.__all__) - {"prologue"}  # the end of a block
    used = {r["instruction"] for r in own if r["kernel"] == "conv"}
    assert ("wgmma" in used) == (target == "sm_90")
    assert "mma.sync" in used
    splits = [r for r in own if re.match(r"\d+x\d+x\d+/", r["tiles"])]
    assert splits, "no kernel whose tiles are shared"


# Of sm_90 all, of sm_86 one of each kind; compiled in one go, as each process has to import torch and Triton.
FEW = ((TARGET, True), ("sm_86", False))
SOME = [*FEW, *(pytest.param(key, True, marks=pytest.mark.wide) for key in DEVICES if key != TARGET)]


@pytest.fixture(scope="module")
def in_8_bits():
    """(Target, whether of all of its kernels in 8 bits) -> records, compiled together for FEW."""

    @functools.cache
    def of(wanted):
        found = {}
        for target, whole in wanted:
            for job in ahead.jobs(["stdc1"], [target], [INT8], [(512, 1024)]):
                words, given = job.work.split() or [""], dict(job.signature).get("x")
                kind = (target, job.kernel, words[0], words[-1], given, "/" in job.tiles.split(" ")[0])
                found.setdefault(job.key if whole else kind, job)
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv("TRITON_INTERPRET", raising=False)  # for the processes that compile
            return list(ahead.compile_all(list(found.values()), WORKERS))

    def records(*one):
        return [r for r in of(FEW if one in FEW else (one,)) if r["target"] == one[0]]

    return records


@pytest.mark.parametrize("target, every", SOME)
def test_kernels_in_8_bits_are_compiled_well(target, every, in_8_bits):
    found = in_8_bits(target, every)
    check(found)
    whole = [r for r in found if r["dtype"] in ("u8", "i8") and r["kernel"] in ("conv", "down")]
    assert {r["dtype"] for r in whole} == {"u8", "i8"} and {r["kernel"] for r in whole} == {"conv", "down"}
    assert all(r["whole"] == r["products"] > 0 for r in whole)
    assert {r["kernel"] for r in found} == set(kernels.__all__)
    used = {r["instruction"] for r in whole}
    assert "mma.sync" in used and ("wgmma" in used) == (target == "sm_90")


def test_recorded_kernels_in_8_bits_have_no_problems():
    lines = (ROOT / "docs/results/triton_ahead_int8.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert {r["target"] for r in found} == {"sm_80", "sm_86", "sm_87", "sm_89", "sm_90"}
    assert not [p for r in found for p in ahead.problems(r)]
    assert sum(r["whole"] for r in found if r["dtype"] in ("u8", "i8")) > 1000


@pytest.mark.wide
@pytest.mark.parametrize("target", DEVICES)
def test_every_shipped_kernel_is_compiled_well(target, tmp_path):
    check(*compiled(tmp_path, "--targets", target))


@pytest.mark.wide
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_float32_is_compiled_well(target, tmp_path):
    found, finished = compiled(tmp_path, "--targets", target, "--dtypes", "float32", "--variants", "stdc1")
    check(found, finished)
    assert not any(r["products"] for r in found), "TF32 that nobody asked for"


@pytest.mark.wide
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_plans_with_odd_channels_are_compiled(target, monkeypatch):
    """The interpreter sees no types, and accepts what the compiler does not. What is not aligned is copied
    the slow way, so only what a kernel must not need is checked.
    """
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # for the processes that compile
    device, todo = DEVICES[target], {}
    for make in (
        *cases.CONVS.values(),
        *cases.LOGITS.values(),
        *cases.SUBPIXEL.values(),
        *cases.DOWNS.values(),
    ):
        for launch in ahead.lowered(make(), device, FLOAT16, (41, 67), labels=None).launches:
            job = ahead.job_of(launch, device, "a plan")
            todo.setdefault(job.key, job)
    for record in ahead.compile_all(list(todo.values())):
        assert record["shared"] <= device.shared and record["local"] == 0
        assert record["products"] or record["kernel"] in ("gate", "prologue", "upsample")


@pytest.mark.parametrize(
    "target, few",
    [(TARGET, True), *(pytest.param(one, False, marks=pytest.mark.wide) for one in (TARGET, "sm_86"))],
)
def test_down_needs_no_more_shared_memory_than_is_said(target, few, monkeypatch):
    """What the compiler moves out of the loop over nine pixels is counted too."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # for the processes that compile
    device, todo = DEVICES[target], []
    for channels, dtype in ((512, FLOAT16), (256, FLOAT32)):
        plan = cases.down(channels, 128, True)()
        work = next(
            launch.work
            for launch in ahead.lowered(plan, device, dtype, (32, 64), labels=None).launches
            if launch.work is not None
        )
        options = [t for t in tiles.candidates(work, device) if t.pixels <= 64]
        alone, staged = ([t for t in options if (t.stages == 1) == one] for one in (True, False))
        some = [t for group in (alone, staged) for t in group[:: len(group) // (1 if few else 4) or 1]]
        for t in [*some, *([] if few else [best(TritonModel(device), work)])]:
            whole = ahead.lowered(plan, device, dtype, (32, 64), choose=lambda w, t=t: t, labels=None)
            job = ahead.job_of(whole.launches[0], device, "down")
            todo.append((job, tiles.shared_bytes(work, t)))
    assert any(job.stages == 1 for job, _ in todo) and any(job.stages > 1 for job, _ in todo)
    for record, (job, said) in zip(ahead.compile_all([job for job, _ in todo], WORKERS), todo, strict=True):
        assert record["shared"] <= said, f"{job.work} {job.tiles}: {record['shared']} bytes, {said} said"


# Sizes that no table has: photos as the embedded weights see them, and others.
@pytest.mark.wide
@pytest.mark.parametrize("size", ["630x840", "630x1120", "840x630", "720x1280", "1080x1920", "384x1280"])
def test_modelled_tiles_can_be_launched(size, tmp_path):
    options = ("--variants", "stdc1", "--dtypes", "float16,float32", "--sizes", size)
    found, _ = compiled(tmp_path, *options, "--targets", "sm_80,sm_86,sm_89,sm_90,sm_120")
    for r in found:
        assert r["shared"] <= DEVICES[r["target"]].shared, f"{r['target']} {r['where']} {r['tiles']}"


GOOD = {
    "key": "", "kernel": "conv", "target": "sm_90", "where": "an op", "work": "", "warps": 4, "stages": 3,
    "tiles": "8x16x64/2 by 64, 4 warps, 3 stages", "dtype": "fp16", "products": 8, "instruction": "wgmma",
    "asynchronous": 24, "dependent": True, "shared": 1 << 16, "registers": 128, "stack": 0, "local": 0,
    "predicted_us": 5.0, "triton": "3.7.1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"products": 0, "instruction": ""}, "no tensor core instructions"),
        ({"instruction": "mma.sync"}, "wgmma was expected"),
        ({"asynchronous": 0}, "no asynchronous copies"),
        ({"shared": 228 << 10}, "bytes of shared memory"),
        ({"target": "sm_86", "dependent": False, "shared": 100 << 10}, "bytes of shared memory"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"local": 4}, "4 of local memory"),
        ({"dependent": False}, "does not wait"),
    ],
)
def test_a_bad_kernel_is_named(change, said):
    assert not ahead.problems(GOOD)
    bad = " ".join(ahead.problems(GOOD | change))
    assert said in bad and "an op" in bad


def test_products_of_another_dtype_are_named():
    levels = GOOD | {"dtype": "u8", "whole": 8}
    assert not ahead.problems(levels)
    assert "in another dtype" in " ".join(ahead.problems(levels | {"whole": 0}))
    assert "no tensor core" in " ".join(ahead.problems(levels | {"whole": 0, "products": 0}))


def test_what_a_small_tile_or_another_kernel_may_be():
    small = GOOD | {"tiles": "4x8x64 by 64, 4 warps, 3 stages", "instruction": "mma.sync"}
    gate = GOOD | {"kernel": "gate", "tiles": "", "products": 0, "instruction": "", "asynchronous": 0}
    assert not ahead.problems(small) and not ahead.problems(gate)


@pytest.mark.parametrize("key", DEVICES)
def test_the_shipped_tables_have_every_kernel_of_both_networks(key):
    device, table = DEVICES[key], tables.shipped(key, TritonTiles)
    missing = set()

    def choose(work):
        if work.key not in table:
            missing.add(work.key)
            return best(TritonModel(device), work)
        assert TritonModel(device).fits(work, table[work.key])
        return table[work.key]

    for variant in ("stdc1", "stdc2"):
        for n, height, width in ship.SIZES:
            if n == 1:
                for dtype in (FLOAT16, BFLOAT16, INT8):
                    plan = ahead.network_of(variant, dtype.levels)
                    ahead.lowered(plan, device, dtype, (height, width), n, choose)
    assert not missing


def test_the_tables_file_says_where_it_comes_from():
    for key in DEVICES:
        assert "not measured" in tables.read(FOLDER / f"{key}.json", TritonTiles)["from"]


def test_the_document_is_of_the_records():
    """It is what the command makes of docs/results/triton_ahead.jsonl, with the tiles of now."""
    source = Path("docs/results/triton_ahead.jsonl")
    found = [json.loads(line) for line in (ROOT / source).read_text().splitlines()]
    assert not [p for r in found for p in ahead.problems(r)]
    assert (ROOT / ahead_report.OUT).read_text() == ahead_report.document(found, source)


def test_bad_requests_are_one_line(tmp_path):
    for options, said in ((["--targets", "sm_75"], "unknown targets sm_75"), (["--sizes", "512"], "512")):
        finished = run("--out", tmp_path / "x", *options)
        assert finished.returncode == 2 and said in finished.stderr.splitlines()[-1]
        assert "Traceback" not in finished.stderr and not (tmp_path / "x").exists()


def test_a_job_is_what_its_machine_code_depends_on():
    device = DEVICES["sm_90"]
    whole = ahead.lowered(ahead.network("stdc1"), device, FLOAT16, (64, 128))
    jobs = [ahead.job_of(launch, device, "here") for launch in whole.launches]
    job = next(job for job in jobs if job.kernel == "conv")
    assert dataclasses.replace(job, where="there", predicted_us=0.0).key == job.key
    for change in ({"warps": 8}, {"stages": 9}, {"target": "sm_80"}, {"constants": job.constants[1:]}):
        assert dataclasses.replace(job, **change).key != job.key
