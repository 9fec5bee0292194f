"""``stdc-fast benchmark --roofline``: what ops compute and move, shares of the limits, table, figure."""

import copy
import dataclasses
import json
import sys

import pytest
import torch
from engines.cpu import needs_native

from bench import measured
from stdc_fast import _native, cli, zoo
from stdc_fast.benchmark import limits, parity, records, roofline, roofline_figure, run, runners, workloads
from stdc_fast.benchmark.selection import parse
from stdc_fast.benchmark.worker import Profile
from stdc_fast.benchmark.workloads import Workload
from stdc_fast.errors import UserError
from stdc_fast.plan.cost import costs
from stdc_fast.viewer.facts import sort_of

WORKLOAD = Workload("stdc1_camvid", zoo.find("stdc1_camvid"), 128, 256, batch=2)
STEM, OUT = "cp.backbone.features.0.conv", "conv_out.conv.conv"
PROLOGUES = ("cp.conv_head32.conv", "cp.conv_head16.conv", OUT)
#: A matrix rate and a bandwidth with which percents are easy.
LIMITS = [
    limits._entry("matrix", "bfloat16", 2, 1e11, "flop/s"),
    limits._entry("matrix", "int8", 2, 9e11, "flop/s"),
    limits._entry("bandwidth", None, 2, 1e10, "byte/s"),
    limits._entry("matrix", "bfloat16", 1, 3e11, "flop/s"),
]
SETTINGS = run.Settings(threads=2, scopes=("labels",), rounds=3)


def engine_ops(plan):
    """(name, kind) as the native engine has them."""
    found = []
    for op in plan.ops:
        if op.name == STEM:
            found.append((f"{STEM}:image", "frame"))
        if op.name in PROLOGUES:
            found.append((f"{op.name}:input", "prologue"))
        found.append((op.name, op.kind))
    return found


@pytest.fixture(scope="module")
def plan():
    return WORKLOAD.plan()


@pytest.fixture(scope="module")
def profiles(plan):
    """Three rounds: each op takes 1, 2 and 3 ms of both threads together."""
    ops = engine_ops(plan)
    return [
        Profile(0.2, 0.08 * n, 0.1 * n, "an isa", [(name, kind, 0.001 * n) for name, kind in ops])
        for n in (1, 2, 3)
    ]


@pytest.fixture(scope="module")
def record(plan, profiles):
    """One dtype that was measured and one that was refused, as if there were such a machine."""
    head = {
        "cpu": {"model": "a CPU", "cores": 2, "features": ["avx2"]},
        "gpus": [],
        "clock_mhz": None,
        "versions": {"torch": "2"},
        "load": {"average": None, "busy": None, "steal": None},
        "device_name": "a CPU",
        "commit": "abc",
        "threads": 2,
    }
    found = []
    for dtype in ("bfloat16", "float32"):
        spec = runners.Spec("ours cpu", dtype, "a:B", ours=True)
        entry = roofline.Profiled(spec, WORKLOAD, 2, profiles=profiles)
        entry.hot["labels"], entry.cold["labels"] = [0.08, 0.16, 0.24], [0.2] * 3
        if dtype == "float32":
            entry.drop("refused", "logits differ")
        (row,) = run.rows(run.Compared(entry), SETTINGS, LIMITS)
        row |= dict.fromkeys(("isa", "ops", "totals"))
        if dtype == "bfloat16":
            row |= roofline.analyse(profiles, plan, WORKLOAD, dtype, SETTINGS, LIMITS)
        found.append(row)
    return {"schema": 1, "id": "x", "kind": "roofline", "header": head, "limits": LIMITS, "rows": found}


def by_name(row):
    return {op["name"]: op for op in row["ops"]}


# What ops compute and move.


@needs_native
def test_ops_in_8_bits_are_held_against_their_own_rate():
    spec = runners.Spec("ours cpu", "int8", "a:B", ours=True)
    plan = roofline.planned(WORKLOAD, spec)
    whole = {op.name for op in plan.ops if getattr(op, "multipliers", None)}
    profile = Profile(0.2, 0.08, 0.1, "an isa", [(op.name, op.kind, 0.002) for op in plan.ops])
    found = roofline.analyse([profile], plan, WORKLOAD, "int8", SETTINGS, LIMITS)
    for op in found["ops"]:
        assert op["dtype"] == ("int8" if op["name"] in whole else "bfloat16")
        if op["limit"]["by"] == "matrix":
            rate = 9e11 if op["name"] in whole else 1e11
            assert op["limit"]["seconds"] == pytest.approx(op["flop"] / rate)
    assert sum(op["flop"] for op in found["ops"]) == WORKLOAD.work()[0]
    small = sum(op["flop"] for op in found["ops"] if op["name"] in whole)
    frame = found["totals"]["frame"]["limit"]["seconds"]
    assert small > 0 and frame == pytest.approx(small / 9e11 + (WORKLOAD.work()[0] - small) / 1e11)
    row = {"dtype": "int8", "ops": found["ops"]}
    _, roofs = roofline_figure._roofs({"limits": LIMITS}, [row], 2)
    assert roofs == {"int8": 9e11, "bfloat16": 1e11}
    assert roofline.planned(WORKLOAD, dataclasses.replace(spec, dtype="bfloat16")) is WORKLOAD.plan()


def test_every_multiply_add_is_counted_once(plan):
    found = roofline.work(plan, engine_ops(plan), 2, 128, 256, 2)
    assert sum(work.flop for work in found) == WORKLOAD.work()[0]
    alone = {op.name: cost for op, cost in zip(plan.ops, costs(plan, 2, 128, 256, 2), strict=True)}
    for (name, _), work in zip(engine_ops(plan), found, strict=True):
        if name in alone:
            assert work.flop == 2 * alone[name].macs
            if name not in (STEM, *PROLOGUES):
                assert work.bytes == alone[name].bytes
        else:
            assert work.flop == 0
    assert {work.sort for work in found} == {*map(sort_of, plan.ops), "frame", "prologue"}


@pytest.mark.parametrize("itemsize", [2, 4])
def test_bytes_of_what_the_engine_puts_before_an_op(plan, itemsize):
    ops = engine_ops(plan)
    works = roofline.work(plan, ops, 2, 72, 104, itemsize)
    found = {name: work.bytes for (name, _), work in zip(ops, works, strict=True)}
    image = 2 * 72 * 104 * 4 * itemsize
    assert found[f"{STEM}:image"] == 2 * 72 * 104 * 3 + image
    assert found[STEM] == image + 2 * 36 * 52 * 32 * itemsize + 27 * 32 * itemsize + 32 * 4
    feature, weights = 2 * 9 * 13 * 256 * itemsize, 9 * 256 * 256 * itemsize + 256 * 4
    assert found[f"{OUT}:input"] == feature + 2 * 256 * 4 + feature
    assert found[OUT] == feature + feature + weights
    # conv_head16 adds a map and doubles: its input is 5x7, its output 9x13.
    small = 2 * 5 * 7 * 128 * itemsize
    assert found["cp.conv_head16.conv:input"] == small + 2 * 128 * 4 + small + small


def test_an_engine_that_fuses_more_has_the_plans_bytes(plan):
    ops = [(op.name, op.kind) for op in plan.ops]
    works = roofline.work(plan, ops, 1, 64, 96, 2)
    assert [work.bytes for work in works] == [cost.bytes for cost in costs(plan, 1, 64, 96, 2)]
    (other,) = roofline.work(plan, [("result", "export")], 1, 64, 96, 2)
    assert other == roofline.Work("export", 0, None)


# Shares of the limits.


def test_an_op_is_held_against_the_longer_of_both_times(plan, profiles):
    found = roofline.analyse(profiles, plan, WORKLOAD, "bfloat16", SETTINGS, LIMITS)
    assert found["isa"] == "an isa"
    assert [op["name"] for op in found["ops"]] == [name for name, _ in engine_ops(plan)]
    for op in found["ops"]:
        assert op["seconds"] == pytest.approx({"p20": 0.0007, "p50": 0.001, "p80": 0.0013, "n": 3})
        matrix, memory = op["flop"] / 1e11, op["bytes"] / 1e10  # those of two threads
        assert op["limit"]["seconds"] == pytest.approx(max(matrix, memory))
        assert op["limit"]["percent"] == pytest.approx(100 * max(matrix, memory) / 0.001)
        assert op["limit"]["by"] == ("matrix" if matrix > memory else "bandwidth")
    ops = by_name(found)
    assert ops[OUT]["limit"]["by"] == "matrix"
    assert ops["upsample"]["limit"]["by"] == ops[f"{STEM}:image"]["limit"]["by"] == "bandwidth"


def test_totals(plan, profiles):
    found = roofline.analyse(profiles, plan, WORKLOAD, "bfloat16", SETTINGS, LIMITS)
    ops, totals, flop = found["ops"], found["totals"], WORKLOAD.work()[0]
    convolutions = [op for op in ops if op["kind"] in ("stem", "down") or op["kind"].startswith("conv ")]
    assert len(convolutions) == sum(op.kind in ("stem", "down", "conv") for op in plan.ops)
    one = totals["convolutions"]
    assert one["seconds"] == pytest.approx(0.001 * len(convolutions))
    assert one["flop"] == sum(op["flop"] for op in convolutions) < flop  # gates have some
    assert one["limit"]["percent"] == pytest.approx(100 * one["flop"] / 1e11 / one["seconds"])
    assert totals["ops"]["seconds"] == pytest.approx(0.001 * len(ops))
    floors = sum(op["limit"]["seconds"] for op in ops)
    assert totals["ops"]["limit"]["percent"] == pytest.approx(100 * floors / totals["ops"]["seconds"])
    assert totals["clocked"]["seconds"] == pytest.approx(0.2)
    assert totals["rest"]["seconds"] == pytest.approx(0.2 - 0.001 * len(ops))
    assert totals["rest"]["flop"] == totals["rest"]["bytes"] == 0
    assert totals["frame"]["seconds"] == pytest.approx(0.16)
    assert totals["frame"]["flop"] == flop
    assert totals["frame"]["limit"] == pytest.approx(
        {"seconds": flop / 1e11, "percent": 100 * flop / 1e11 / 0.16, "by": "matrix"}
    )


def test_without_a_measured_limit_there_is_no_percent(plan, profiles):
    found = roofline.analyse(profiles, plan, WORKLOAD, "float32", SETTINGS, LIMITS)
    assert all(op["limit"] is None for op in found["ops"])
    assert all(total["limit"] is None for total in found["totals"].values())
    still = [profile._replace(ops=[(*op[:2], 0.0) for op in profile.ops]) for profile in profiles]
    found = roofline.analyse(still, plan, WORKLOAD, "bfloat16", SETTINGS, LIMITS)
    assert all(op["limit"] is None for op in found["ops"])
    assert found["totals"]["ops"]["limit"] is found["totals"]["convolutions"]["limit"] is None


# What is shown.


def test_the_table(record):
    text = roofline.lines(record)
    (line,) = (line for line in text if line.startswith("conv_out.conv  "))
    op = by_name(record["rows"][0])[OUT]
    gflops = f"{op['flop'] / 0.001 / 1e9:.1f}"
    words = ["conv_out.conv", "conv", "3x3", "1.000", "0.5", "%", f"{op['flop'] / 1e6:.1f}", gflops]
    assert line.split()[:8] == words
    assert line.split()[-3:] == [f"{op['limit']['percent']:.0f}", "%", "matrix"]
    (line,) = (line for line in text if line.startswith("features.0.conv:image"))
    assert line.split()[1] == "frame"
    for name in ("all convolutions", "all ops", "rest: waiting", "frame with these clocks", "frame   "):
        assert sum(line.startswith(name) for line in text) == 1
    assert "stdc1_camvid 128x256, batch 2, labels: ours cpu bfloat16, an isa, 2 threads; 3 rounds" in text
    assert "ours cpu float32: refused: logits differ" in text
    assert text[-1] == roofline.NOTE
    assert all(len(line) <= 120 for block in text for line in block.splitlines())


def test_who_was_refused_has_no_speed(record):
    refused = record | {"rows": record["rows"][1:]}
    assert roofline.lines(refused) == ["", "ours cpu float32: refused: logits differ"]
    assert record["rows"][1]["seconds"] is record["rows"][1]["ops"] is None


def test_the_figure(record, tmp_path):
    for name in ("r.svg", "r.png", "again.svg"):
        roofline.draw(record, tmp_path / name)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "r.svg").read_text()
    assert text.startswith("<?xml") and text == (tmp_path / "again.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.svg", "r.png", "r.svg"]


def test_what_the_figure_shows(record):
    from stdc_fast.benchmark import roofline_figure

    (row,) = (row for row in record["rows"] if row["status"] == "measured")
    page = roofline_figure.figure(record, [row])
    (axes,) = page.axes
    (points,) = axes.collections
    ops = [op for op in row["ops"] if op["flop"]]
    wanted = [[op["flop"] / op["bytes"], op["flop"] / 0.001] for op in ops]
    assert points.get_offsets().tolist() == [pytest.approx(point) for point in wanted]
    texts = [text.get_text() for text in axes.texts]
    assert "bfloat16\n100 GFLOP/s" in texts  # that of two threads; int8 has no row
    assert not any("int8" in text for text in texts)
    assert sum(text.isdigit() for text in texts) == roofline_figure.LISTED
    assert any("upsample (no FLOP: no point)" in text for text in texts)
    bare = copy.deepcopy(record) | {"limits": []}
    assert len(roofline_figure.figure(bare, bare["rows"][:1]).axes) == 1  # without roofs


def test_figures_that_can_not_be_written(record, tmp_path):
    with pytest.raises(UserError, match=r"r\.pdf: figures are written as \.svg or \.png"):
        roofline.draw(record, tmp_path / "r.pdf")
    with pytest.raises(UserError, match="nothing was measured"):
        roofline.draw(record | {"rows": record["rows"][1:]}, tmp_path / "r.svg")
    assert list(tmp_path.iterdir()) == []


def test_the_report_leaves_rooflines_out(record, tmp_path):
    records.append(record, tmp_path / "cpu.jsonl")
    assert measured.read(tmp_path) == []


# All of it.


class Rates:
    """Limits of a machine, without measuring it."""

    def __init__(self, settings, dtypes):
        self.best = LIMITS

    def again(self):
        pass

    def close(self):
        pass


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(run, "Meter", Rates)

    def call(*arguments):
        small = ["--size", "128x256", "--rounds", "1", "--threads", "2", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["stdc-fast", "benchmark", "--roofline", *small, *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


@needs_native
def test_the_command(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "TURN", 0.001)
    code, out, err = command("--dtype", "float32,bfloat16", "--batch", "2", "--out", "r", "--plot", "r.svg")
    assert code == 0, err
    assert "GFLOP/s" in out and "all convolutions" in out and roofline.NOTE in out
    assert "r.svg: written" in err
    assert (tmp_path / "r.svg").exists()
    record = json.loads((tmp_path / "r").read_text())
    assert (record["schema"], record["kind"]) == (1, "roofline")
    assert [row["dtype"] for row in record["rows"]] == ["float32", "bfloat16"]
    flop = WORKLOAD.work()[0]
    for row in record["rows"]:
        assert row["status"] == "measured" and row["scope"] == "labels" and row["batch"] == 2
        assert row["isa"] == _native.module().best_isa()
        assert row["memory"]["arena"] > 0
        assert all(op["bytes"] and op["seconds"]["p50"] > 0 for op in row["ops"])
        assert sum(op["flop"] for op in row["ops"]) == row["totals"]["frame"]["flop"] == flop
        spent = sum(op["seconds"]["p50"] for op in row["ops"])
        assert row["totals"]["rest"]["seconds"] == pytest.approx(row["totals"]["clocked"]["seconds"] - spent)
        assert row["totals"]["rest"]["seconds"] > -1e-9  # one round: threads can not be busy for longer


@needs_native
def test_the_command_prints_json(command, monkeypatch):
    monkeypatch.setattr(run, "TURN", 0.001)
    code, out, err = command("--dtype", "float32", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert [row["status"] for row in json.loads(out)["rows"]] == ["measured"]


@needs_native
def test_nothing_is_timed_that_computes_something_else(command, monkeypatch, tmp_path):
    monkeypatch.setattr(parity, "check", lambda *_: ({"logits": 1.0, "labels": 0.5}, ["labels differ"]))
    monkeypatch.setattr(roofline.Profiled, "turn", None)
    code, out, err = command("--dtype", "float32", "--quiet", "--plot", str(tmp_path / "r.svg"))
    assert code == 1
    assert err == "stdc-fast: ours cpu float32 was refused: labels differ\n"
    assert "ours cpu float32: refused: labels differ" in out
    assert "all ops" not in out
    assert list(tmp_path.iterdir()) == []


@needs_native
def test_a_dtype_that_the_engine_lacks(command):
    code, _, err = command("--dtype", "float16")
    assert code == 2
    assert "backend cpu can not run float16 here: it computes in float32, bfloat16 and int8" in err
    assert err.count("\n") == 1


def test_it_is_of_the_native_engine_alone(command, monkeypatch):
    for device, asked, words in (
        ("cuda:0", "all", "which does not run on cuda:0; use --device cpu"),
        ("cpu", "eager", "whose ops have clocks; leave out --backends eager"),
        ("cpu", "cpu,eager", "leave out --backends cpu,eager"),
    ):
        with pytest.raises(UserError, match=words):
            roofline.check(device, asked)
    monkeypatch.setattr(_native, "why_not", lambda: "it was not built")
    code, out, err = command()
    assert (code, out) == (2, "")
    assert "backend cpu is not available: it was not built" in err
    assert err.count("\n") == 1


def test_what_the_roofline_profiles_is_what_the_model_runs():
    if _native.why_not() is not None:
        pytest.skip("needs the native module")
    (spec,) = parse(dtype="float32", backends="cpu", peers="none", device="cpu").specs
    runner = spec.make(Workload("m", WORKLOAD.weights, 64, 96), "cpu", torch.get_num_threads())
    call = runner.prepare("labels")
    call()
    engine = runner.executable("labels").engine
    engine.profile(True)
    call()
    engine.profile(False)
    assert [(name, images) for name, _, _, images in engine.profiled()] == [
        (name, 1) for name, _ in engine_ops(WORKLOAD.plan())
    ]
    assert all(seconds > 0 for _, _, seconds, _ in engine.profiled())
    assert (runner.weights, runner.arena) == engine.memory
    (spec,) = parse(dtype="float32", backends="eager", peers="none", device="cpu").specs
    other = spec.make(WORKLOAD, "cpu", 1)
    assert other.weights == workloads.weight_bytes(WORKLOAD.plan(), 4)
    assert other.arena is None
