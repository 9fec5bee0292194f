"""The measuring stick: what is timed, who is refused, what a record holds."""

import dataclasses
import functools
import json
import mmap
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from paths import ROOT

import stdc_fast
from bench import measured, report, suite
from stdc_fast import _native, cli, zoo
from stdc_fast.backends import cpu as engine
from stdc_fast.benchmark import header, limits, memory, records, run, runners, scaling, table, workloads
from stdc_fast.benchmark.runners import Spec
from stdc_fast.benchmark.selection import parse
from stdc_fast.benchmark.workloads import Workload
from stdc_fast.errors import UserError
from stdc_fast.precision import choose

SMALL = Workload("stdc1_camvid", zoo.find("stdc1_camvid"), 128, 256)
OURS = runners.ours("cpu", ["float32"])[0]


def faulty(name, ours=True):
    return dataclasses.replace(OURS, name=name, factory=f"broken_runners:{name}", ours=ours)


def settings(**options):
    return run.Settings(threads=1, rounds=1, **options)


@pytest.fixture(scope="module")
def record():
    """One run of everything that can go wrong beside what goes well."""
    absent = Spec("absent", "float32", "broken_runners:Absent")
    unknown = Spec("not there", "float32", "broken_runners:Absent", needs=("no_such_module",))
    specs = [OURS, *map(faulty, ("WrongWeights", "Shifted", "Crashing", "Raising")), absent, unknown]
    specs += [spec for spec in runners.peers("cpu", ["float32"]) if spec.name in ("eager", "eager folded")]
    return run.measure(SMALL, specs, dataclasses.replace(settings(), rounds=3), ["float32"])


def native_memory():
    """Bytes of weights and arena of the native engine with one thread, the more of frames and images."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings().threads)
    model, found = stdc_fast.load(SMALL.weights, device="cpu", dtype="float32"), []
    for scope in ("logits", "labels"):
        executable = engine.compile(model.plan(scope == "labels"))
        (executable if scope == "logits" else executable.labels)(SMALL.input(scope))
        found.append(executable.memory)
    torch.set_num_threads(before)
    return tuple(map(max, zip(*found, strict=True)))


def row(record, name, scope="labels"):
    (found,) = (r for r in record["rows"] if r["runner"] == name and r["scope"] == scope)
    return found


@pytest.mark.parametrize(
    ("name", "why"), [("WrongWeights", "logits differ by"), ("Shifted", "labels of scope labels agree on")]
)
def test_a_broken_backend_is_refused(record, name, why):
    for scope in ("logits", "labels"):
        refused = row(record, name, scope)
        assert refused["status"] == "refused"
        assert why in refused["reason"]
        for key in ("seconds", "cold", "ratio", "ratio_same_dtype", "limit", "memory"):
            assert refused[key] is None
    text = "\n".join(table.rows(record, workloads.SCOPES))
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    assert line.startswith(f"{name} float32: refused: ")


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("Crashing", "failed", "its process was ended by SIGKILL"),
        ("Raising", "failed", "ValueError: no kernel for 64x128"),
        ("absent", "missing", "its driver is too old"),
        ("not there", "missing", "no_such_module not installed"),
    ],
)
def test_a_fault_is_the_runners_own(record, name, status, why):
    assert (row(record, name)["status"], row(record, name)["reason"]) == (status, why)
    assert row(record, name)["seconds"] is None
    assert row(record, OURS.name)["seconds"]["n"] == 3


def test_figures_of_a_run(record):
    for name in (OURS.name, "eager", "eager folded"):
        for scope in ("logits", "labels"):
            one = row(record, name, scope)
            assert one["status"] == "measured"
            assert 0 < one["seconds"]["p20"] <= one["seconds"]["p50"] <= one["seconds"]["p80"] < 10
            assert one["parity"]["logits"] < 1e-5
            assert one["parity"]["labels"] >= 0.9999
            assert one["baseline"] == {"runner": OURS.name, "dtype": "float32"}
            assert one["limit"]["percent"] == pytest.approx(
                100 * one["limit"]["seconds"] / one["seconds"]["p50"]
            )
            assert one["memory"]["host_peak"] >= one["memory"]["host_before"] > 0
            memory = one["memory"]
            if name == "ours cpu":
                assert (memory["weights"], memory["arena"]) == native_memory()
            else:
                # Sub-pixel convolutions have 16 weights where a 3x3 has nine.
                more = 1.107 if one["ours"] else 1
                assert memory["weights"] == pytest.approx(more * 4 * 8.27e6, rel=0.01)
                assert memory["arena"] is None
    assert row(record, OURS.name)["ratio"] == {"p20": 1, "p50": 1, "p80": 1, "n": 3}
    assert {(e["what"], e["dtype"]) for e in record["limits"]} == {
        ("matrix", "float32"),
        ("matrix", "int8"),
        ("bandwidth", None),
    }
    assert all(e["value"] > 1e8 for e in record["limits"])


def test_the_report_reads_what_is_written(record, tmp_path):
    records.append(record, tmp_path / "cpu.jsonl")
    records.append(record | {"id": "another"}, tmp_path / "cpu.jsonl")
    (device,) = measured.read(tmp_path)
    assert device.kind == "cpu"
    assert len(device.runs) == 2


def test_the_command_refuses_ours(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runners, "ours", lambda *_: [faulty("WrongWeights")])
    arguments = ["--size", "64x128", "--dtype", "float32", "--peers", "none", "--rounds", "1", "-q"]
    arguments += ["--out", str(tmp_path / "r.jsonl")]
    monkeypatch.setattr(sys, "argv", ["stdc-fast", "benchmark", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("stdc-fast: WrongWeights float32 was refused: logits differ by")
    assert " ms " not in printed.out
    written = json.loads((tmp_path / "r.jsonl").read_text())
    assert [r["seconds"] for r in written["rows"]] == [None, None]


def test_the_command_prints_a_table(monkeypatch, capsys):
    arguments = ["--size", "128x256", "--dtype", "float32", "--peers", "eager", "--scopes", "labels,frame"]
    monkeypatch.setattr(sys, "argv", ["stdc-fast", "benchmark", *arguments, "--rounds", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = capsys.readouterr()
    for word in ("GFLOP/s", "commit", "threads", "1 round,", "ours eager", "busy"):
        assert word in printed.out
    assert printed.out.count("\neager  ") == 2
    assert "round 1 of at most 1" in printed.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peers": "eager,tensorflow"}, ["tensorflow", "OpenVINO"]),
        ({"scopes": "label"}, ["'label'", "logits, labels, frame"]),
        ({"dtype": "float64"}, ["float64", "reference"]),
        ({"dtype": "float31"}, ["float31"]),
        ({"dtype": ","}, ["--dtype is empty"]),
        ({"backends": "cudaa"}, ["did you mean cuda"]),
        ({"device": "cuda:99"}, ["cuda:99"]),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError) as error:
        parse(**options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_int8_of_ours_has_the_maps_of_this_processor():
    asked = parse(dtype="int8", peers="none", device="cpu")
    (name,) = asked.dtypes
    assert name == choose("int8", "cpu")[0].name
    assert {spec.dtype for spec in asked.specs} == {name} and all(spec.ours for spec in asked.specs)
    assert run.multiplied(name) == ["int8", str(choose("auto", "cpu")[0])]
    assert run.multiplied("bfloat16") == ["bfloat16"]


def test_options():
    asked = parse(dtype="float32,bfloat16", peers="OpenVINO", int8=True, device="cpu")
    native = [("ours cpu", "float32"), ("ours cpu", "bfloat16")] if (_native.why_not() is None) else []
    keys = [spec.key for spec in asked.specs if spec.ours]
    assert [key for key in keys if key[0] == "ours cpu"] == native
    assert keys[0] == (native or [("ours eager", "float32")])[0]  # the first is what others are compared with
    assert set(keys) - set(native) == {("ours eager", "float32"), ("ours eager", "bfloat16")}
    assert {spec.dtype for spec in asked.specs if not spec.ours} == {"float32", "bfloat16", "int8"}
    assert {spec.name for spec in asked.specs if not spec.ours} == {"OpenVINO"}
    gpu = {spec.key for spec in runners.ours("cuda", ["float16", "float32"])}
    assert gpu == {("ours eager", "float16"), ("ours eager", "float32")}
    gpu = {spec.name for spec in runners.peers("cuda", ["float16", "float32"])}
    assert {"cuDNN graph", "TensorRT", "torch.compile", "ONNX Runtime", "eager as published"} <= gpu


def test_backends_that_refuse_a_dtype():
    keys = [spec.key for spec in runners.ours("cpu", ["float16", "float32"])]
    assert ("ours eager", "float16") in keys
    assert ("ours cpu", "float16") not in keys
    assert [spec.key for spec in runners.ours("cpu", ["float16", "float32"], ["eager"])] == [
        ("ours eager", "float16"),
        ("ours eager", "float32"),
    ]


@pytest.mark.skipif(_native.why_not() is not None, reason="needs the native module")
def test_nothing_that_a_backend_runs():
    with pytest.raises(
        UserError, match=r"cpu can not run float16 here: it computes in float32, bfloat16 and int8"
    ):
        runners.ours("cpu", ["float16"], ["cpu"])
    with pytest.raises(UserError, match="cpu can not run float32 here: it does not run on cuda"):
        runners.ours("cuda", ["float32"], ["cpu"])


def test_peers_that_need_instructions(monkeypatch):
    monkeypatch.setattr(runners, "cpu", lambda: {"features": ["avx2"]})
    spec = Spec("peer", "bfloat16", "a:B")
    assert spec.missing("cpu") == "this processor has no bfloat16 instructions"
    assert spec.missing("cuda:0") is None
    monkeypatch.setattr(runners.shutil, "which", lambda name: None)
    assert Spec("peer", "float32", "a:B", compiler=True).missing("cpu") == "no C++ compiler was found"


# The method.


class FakeWorker:
    """Answers turns from a list, and counts them."""

    def __init__(self, cold, hot):
        self.cold, self.hot, self.turns = cold, iter(hot), 0

    def ask(self, command, *arguments):
        assert command == "turn"
        self.turns += 1
        return self.cold, next(self.hot)


class NoMeter:
    def again(self):
        pass


def timed(hot, name="peer"):
    entry = run.Entry(dataclasses.replace(OURS, name=name, ours=name == "ours"), SMALL, 1)
    entry.worker, entry.frames = FakeWorker(9.0, hot), {"labels": 1}
    return entry


def test_ratios_are_taken_round_by_round():
    # The machine gets ten times slower in the third round; the ratio stays.
    ours = timed([1.0, 1.0, 10.0, 1.0, 1.0], "ours")
    peer = timed([2.0, 2.0, 20.0, 2.0, 2.0])
    options = settings(scopes=("labels",), seconds=1e9)
    run._rounds([ours, peer], dataclasses.replace(options, rounds=5), 1e18, NoMeter())
    (_, other) = run._with_ratios([ours, peer], True)
    assert other.ratios["labels"] == {"p20": 2.0, "p50": 2.0, "p80": 2.0, "n": 5}
    assert other.baseline == ("ours", "float32")
    assert peer.cold["labels"] == [9.0] * 5


def test_three_rounds_are_done_in_any_case():
    entry = timed([1.0] * 9)
    run._rounds([entry], dataclasses.replace(settings(scopes=("labels",)), rounds=9), 0.0, NoMeter())
    assert entry.worker.turns == 3


def test_runners_that_do_not_fit_together(monkeypatch):
    specs = [OURS, *runners.peers("cpu", ["float32"])]
    monkeypatch.setattr(memory, "available", lambda: 64 << 30)
    assert run.grouped(specs, SMALL, settings()) == [specs]
    monkeypatch.setattr(memory, "available", lambda: 2 << 30)
    groups = run.grouped(specs, SMALL, settings())
    assert len(groups) > 1
    assert all(group[0] == OURS for group in groups)
    assert [spec for group in groups for spec in group[1:]] == specs[1:]
    monkeypatch.setattr(memory, "available", lambda: None)
    assert run.grouped([OURS], SMALL, settings()) == [[OURS]]


def test_percent_of_the_limit():
    entries = [
        limits._entry("matrix", "float32", 2, 1e11, "flop/s"),
        limits._entry("bandwidth", None, 2, 1e10, "byte/s"),
    ]
    two = dataclasses.replace(settings(), threads=2)
    found = run.percent(0.4, int(2e10), int(1e9), "float32", 2, two, entries)
    assert found == {"seconds": 0.2, "percent": pytest.approx(50), "by": "matrix"}
    assert run.percent(0.4, 1, int(1e9), "float32", 2, two, entries)["by"] == "bandwidth"
    assert run.percent(0.4, 1, 1, "bfloat16", 2, two, entries) is None
    higher = limits._entry("matrix", "float32", 2, 2e11, "flop/s")
    assert higher in limits.merge(entries, [higher])
    assert len(limits.merge(entries, [higher])) == 2


def test_memory_of_this_process():
    memory.reset_peak()
    before = memory.peak()
    # A map of its own: the allocator may have as much that is free, but still in memory.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(b"1" * len(block))
        assert memory.peak() - before > 60 << 20
        assert memory.resident() > len(block)
    memory.reset_peak()
    memory.trim()
    assert memory.available() > 1 << 20


def test_header():
    head = header.header("cpu", 2)
    assert head["device"] == "cpu"
    assert head["threads"] == 2
    assert head["versions"]["torch"] == torch.__version__
    assert 0 <= head["load"]["busy"] <= 1
    assert json.loads(json.dumps(head)) == head


def test_fitted_exponents():
    rows = [
        {"axis": "pixels", "runner": name, "dtype": "float32", "value": n, "status": "measured",
         "seconds": {"p50": 3e-9 * n**power}}
        for name, power in (("a", 1.0), ("b", 0.8))
        for n in (1000, 2000, 8000)
    ]  # fmt: skip
    rows.append(rows[0] | {"status": "failed", "seconds": None})
    found = {fit["runner"]: fit for fit in scaling.fits(rows)}
    assert found["a"]["exponent"] == pytest.approx(1.0)
    assert found["b"]["exponent"] == pytest.approx(0.8)
    assert found["b"]["r2"] == pytest.approx(1.0)
    assert scaling.fits(rows[:1]) == []
    assert scaling.fits(rows[:2])[0]["r2"] is None  # a line goes through any two points


def test_scaling(monkeypatch, tmp_path):
    # Large enough for the gate to forgive a pixel whose two best classes are one in float32.
    monkeypatch.setattr(scaling, "SIZES", ((128, 256), (128, 320)))
    monkeypatch.setattr(scaling, "SMALL", (128, 256))
    monkeypatch.setattr(scaling, "BATCHES", (1, 2))
    options = dataclasses.replace(settings(), threads=2)
    record = scaling.measure(SMALL, [OURS], options, ["float32"])
    assert [(r["axis"], r["value"]) for r in record["rows"]] == [
        ("pixels", 32768), ("pixels", 40960), ("batch", 1), ("batch", 2), ("threads", 1), ("threads", 2),
    ]  # fmt: skip
    assert {fit["axis"] for fit in record["fits"]} == {"pixels", "batch", "threads"}
    records.append(record, tmp_path / "cpu.jsonl")
    measured.read(tmp_path)
    assert any("time grows as pixels^" in line for line in table.fits(record))


def test_records_are_appended(tmp_path):
    path = tmp_path / "folder" / "r.jsonl"
    records.append({"a": 1}, path)
    path.write_text(path.read_text().rstrip("\n"))  # as some editors leave it
    records.append({"b": 2}, path)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'
    with pytest.raises(ValueError, match="JSON"):
        records.append({"c": float("nan")}, path)
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'
    for refuse in (records.check, functools.partial(records.append, {})):
        with pytest.raises(UserError, match="can not be written"):
            refuse(tmp_path)
    records.check(tmp_path / "new.jsonl")
    records.check(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_only_files_of_records_are_appended_to(tmp_path):
    (tmp_path / "readme").write_bytes(b"\xff\xfe no records")
    with pytest.raises(UserError, match="no file of records"):
        records.check(tmp_path / "readme")
    records.append({"a": 1}, tmp_path / "real.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    records.append({"b": 2}, tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len((tmp_path / "real.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scaling", "--size", "64x128"], "--scaling has its own sizes"),
        (["--roofline", "--scaling"], "two measurements"),
        (["--roofline", "--peers", "eager"], "leave out --scopes, --peers and --int8"),
        (["--roofline", "--scopes", "frame"], "leave out --scopes, --peers and --int8"),
        (["--roofline", "--backends", "eager"], "--roofline needs backend cpu, whose ops have clocks"),
        (["--plot", "x.svg"], "--plot is of one --roofline"),
        (["--roofline", "--size", "64x64", "--size", "96x96", "--plot", "x.svg"], "with one --size"),
        (["--roofline", "--plot", "x.pdf"], "x.pdf: figures are written as .svg or .png"),
        (["--roofline", "--plot", "/proc/x/y.svg"], "/proc/x/y.svg: can not be written"),
        (["--size", "native"], "--size must be HEIGHTxWIDTH here"),
        (["--size", "16x16"], "--size 16x16: both sides must be at least 32"),
        (["--threads", "100000"], "--threads 100000: this machine has"),
        (["--model", "nonsense"], "stdc1 and stdc2 are random weights"),
        (["--photo", "nowhere.jpg"], "nowhere.jpg: no such file"),
        (["--out", "/proc/x/y"], "/proc/x/y: can not be written"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(run, "measure", None)
    monkeypatch.setattr(sys, "argv", ["stdc-fast", "benchmark", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_few_rounds_have_no_spread(record):
    two = json.loads(json.dumps(record))
    for one in two["rows"]:
        for key in ("seconds", "ratio"):
            if one[key]:
                one[key] |= {"n": 2, "p20": 7.125, "p80": 7.375}
    assert "7125" not in "\n".join(table.rows(two, workloads.SCOPES))
    assert "7.12" not in "\n".join(table.rows(two, workloads.SCOPES))


def test_rows_that_are_slower_hot_than_cold_are_flagged(record):
    odd = json.loads(json.dumps(record))
    for one in odd["rows"]:
        if one["seconds"]:
            one["seconds"]["p50"], one["cold"]["p50"] = 0.002, 0.003
    assert table.COLD not in table.rows(odd, workloads.SCOPES)
    assert " !" not in "\n".join(table.rows(odd, workloads.SCOPES))
    row(odd, "eager")["cold"]["p50"] = 0.001
    lines = table.rows(odd, workloads.SCOPES)
    assert lines.count(table.COLD) == 1
    (flagged,) = (line for line in lines if " ! " in line)
    assert flagged.startswith("eager ")
    assert "1.000 !" in flagged


def test_two_commands_append_to_one_file(tmp_path):
    path = tmp_path / "r.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: records.append({"n": i}, path), range(40)))
    assert sorted(json.loads(line)["n"] for line in path.read_text().splitlines()) == list(range(40))


# The suite and what is committed.


def test_jobs_of_the_suite():
    for job in (*suite.CPU_JOBS, *suite.GPU_JOBS):
        asked = parse(dtype=job.dtype, scopes=",".join(job.scopes), int8=job.int8, device="cpu")
        assert asked.scopes == job.scopes
    dtypes = ["float32", "float16"]
    names = {spec.name for device in ("cpu", "cuda") for spec in runners.peers(device, dtypes)}
    for text in (suite.FEW, suite.GPU, suite.GPU_FEW):
        assert set(text.split(",")) <= names


def test_the_suite_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    assert suite.done(path, "cpu") == set()
    head = {"commit": "abc", "device": "cpu"}
    for job, of in (("one", head), ("two", head | {"commit": "def"}), ("three", head | {"device": "cuda"})):
        records.append({"job": job, "header": of}, path)
    monkeypatch.setattr(suite.info, "commit", lambda: "abc")
    assert suite.done(path, "cpu") == {"one"}


def test_predictions_are_read():
    assert measured.read_predictions(ROOT / "bench" / "predictions.json")


def test_the_document_is_what_the_records_say():
    # The text only: the bytes of plots depend on matplotlib's version.
    text, bench = ROOT / "docs" / "benchmarks.md", ROOT / "bench"
    wanted = report.files(bench / "results", bench / "predictions.json", text, text.parent / "images")
    assert text.read_bytes() == wanted[text]
    assert {path.name for path in wanted if path.suffix == ".svg"} == {
        path.name for path in (text.parent / "images").glob("benchmark_*.svg")
    }
