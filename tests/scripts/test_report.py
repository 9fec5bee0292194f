"""The benchmark report: which rows it shows, that it invents none, and that it is the same every time."""

import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from paths import ROOT
from report_records import H100, PREDICTIONS, everything, quantiles, record, row, without_speed

from bench import bars, measured, plots, report, words
from bench.plots import Plot
from stdc_fast.errors import UserError

SIZES = "512x1024, 720x960, 768x1536, 1024x2048"


@pytest.fixture
def write(tmp_path):
    """Records into files, the report run on them; gives its exit code."""

    def run(records, *options, predictions=()):
        folder = tmp_path / "results"
        folder.mkdir(exist_ok=True)
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (folder / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / "predictions.json").write_text(json.dumps(list(predictions)))
        return report.main([*arguments(tmp_path), *options])

    return run


def arguments(folder):
    places = {
        "results": "results",
        "predictions": "predictions.json",
        "out": "docs/b.md",
        "images": "docs/images",
    }
    return [word for option, place in places.items() for word in (f"--{option}", str(folder / place))]


@pytest.fixture
def text(write, tmp_path, monkeypatch):
    """The document of some records, without its plots, which take most of the time."""
    monkeypatch.setattr(report, "draw", lambda devices, predictions: [])

    def make(records, **options):
        assert write(records, **options) == 0
        return (tmp_path / "docs" / "b.md").read_text()

    return make


def chapter(document, heading):
    """From a heading to the next of its level or a higher one."""
    level = heading.index(" ")
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", document, re.M | re.S)
    assert found, f"no {heading}"
    return found[1]


def lines_with(document, *parts):
    return [line for line in document.split("\n") if all(part in line for part in parts)]


def test_document_and_plots(write, tmp_path):
    assert write(everything(), predictions=PREDICTIONS) == 0
    document = (tmp_path / "docs" / "b.md").read_text()
    images = re.findall(r"!\[(.+?)\]\((.+?)\)\n", document)
    names = {Path(place).name for _, place in images}
    drawn = sorted((tmp_path / "docs" / "images").iterdir())
    assert {path.name for path in drawn} == names
    assert names == {
        *(
            f"benchmark_{name}_amd_epyc.svg"
            for name in ("six", "latency", "roofline", "throughput", "pixels")
        ),
        *(f"benchmark_{name}_nvidia_h100_80gb_hbm3.svg" for name in ("latency", "roofline")),
        "benchmark_predictions_nvidia_h100.svg",
    }
    for path in drawn:
        assert path.stat().st_size < 400_000
        xml.etree.ElementTree.parse(path)
    for _, place in images:
        assert (tmp_path / "docs" / place).is_file()
    for line in document.split("\n"):  # every table has as many cells in each line as in its head
        assert len(line) < 2000
    for table in re.findall(r"(?:^\|.*\|\n?)+", document, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().split("\n")}) == 1


def test_the_same_files_give_the_same_bytes(write, tmp_path):
    folder = tmp_path / "docs"

    def all_bytes():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    records = everything()[1:]
    assert write(records, predictions=PREDICTIONS) == 0
    first = all_bytes()
    # In a process of its own: other hashes, other counters. Also in files in another order.
    (tmp_path / "results" / "a.jsonl").unlink()
    for i, item in enumerate(reversed(records)):
        (tmp_path / "results" / f"{i}.jsonl").write_text(json.dumps(item))
    command = [sys.executable, "-m", "bench.report", *arguments(tmp_path), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all_bytes() == first


def test_check(write, tmp_path, capsys, monkeypatch):
    plot = tmp_path / "docs" / "images" / "benchmark_latency_amd_epyc.svg"
    drawn = [Plot(plot.name, "bars", "AMD EPYC latency", b"<svg/>")]
    monkeypatch.setattr(report, "draw", lambda devices, predictions: drawn)
    records = everything()[:1]
    assert write(records, "--check") == 1
    assert not (tmp_path / "docs").exists()
    assert write(records) == 0
    capsys.readouterr()
    assert write(records, "--check") == 0
    plot.write_text(plot.read_text() + " ")
    assert write(records, "--check") == 1
    old = plot.with_name("benchmark_latency_of_old.svg")
    old.write_text("")
    other = plot.with_name("plan.svg")
    other.write_text("")
    assert write(records, "--check") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "benchmark_latency_amd_epyc.svg" in errors[0] and str(old) in errors[1]
    assert write(records) == 0
    assert other.exists() and not old.exists()
    assert write(records, "--check") == 0


def test_nothing_measured(text, tmp_path):
    document = text([])
    assert "**Nothing is measured: there are no records.**" in document
    assert (
        chapter(document, "## CPU").strip() == chapter(document, "## NVIDIA GPU").strip() == "Not measured."
    )
    missing = chapter(document, "## Not measured")
    assert "0 are measured and 96 are not" in missing
    (line,) = lines_with(missing, "stdc1")
    assert line == (f"| CPU, NVIDIA GPU | stdc1, stdc2 | {SIZES} | 1, 16 | logits, labels, frame |")


def test_figures_of_a_row(text):
    document = text(
        [record([row(), row("openvino", 0.0612, parity=None, memory=None, prepare_seconds=None)])]
    )
    speed = chapter(document, "#### stdc1_camvid 512x1024 batch 1")
    assert lines_with(speed, "| **ours eager** |", "run0") == []
    assert lines_with(speed, "| **ours eager** |")[0] == (
        "| labels | **ours eager** | bfloat16 | 2 | 50.0 (47.5..52.5) | 15 | 65.0 (61.8..68.2) | 20.0 "
        "| 1.00 (0.98..1.02) | 1.00 (0.98..1.02) | 60 matrix | 99.99 % | 3.0e-03 | 1 |"
    )
    assert lines_with(speed, "| openvino |")[0] == (
        "| labels | openvino | bfloat16 | 2 | 61.2 (58.1..64.3) | 15 | 79.6 (75.6..83.5) | 16.3 "
        "| 1.22 (1.20..1.25) | 1.22 (1.20..1.25) | 60 matrix | - | - | 1 |"
    )
    assert "Ratios are to ours eager bfloat16." in speed
    stored = lines_with(speed, "**ours eager**")[1]
    assert stored == "| **ours eager** | bfloat16 | 2 | 200.0 | - | 30.0 | 17.0 | 3.20 | 1 |"
    runs = chapter(document, "### Runs")
    assert (
        "| 1 | 2026-01-02 03:04 | latency | abc123 | 2 | 2.60 | 0.10, 0.20, 0.30 | 3 % | - | run0 |" in runs
    )
    assert "AMD EPYC 9R14, x86_64, 2 cores, 2 threads; avx2, avx512bf16." in runs
    assert "  - Versions: torch 2.9.0.\n  - Not installed: tensorrt.\n" in runs
    assert "| matrix | bfloat16 | 2 | 680 GFLOP/s | 1 | - |" in chapter(document, "### Limits")


def test_several_baselines_are_named_in_each_row(text):
    other = row("eager", baseline={"runner": "ours native", "dtype": "float32"})
    document = text([record([row(), other])])
    assert "Ratios are to" not in document
    assert lines_with(document, "| eager |", "1.00 (0.98..1.02) to ours native float32 |")


def test_the_newest_wins(text):
    records = [
        record([row(time=0.03)], 5),
        record([row(time=0.04)], 1),
        record([row(time=0.02, threads=1), row(time=0.01, dtype="float32")], 0),
    ]
    speed = chapter(text(records), "#### stdc1_camvid 512x1024 batch 1")
    rows = [line.split(" | ") for line in lines_with(speed, "**ours eager**", "..")]
    assert [(cells[2], cells[3], cells[4][:4], cells[-1]) for cells in rows] == [
        ("float32", "2", "10.0", "1 |"),
        ("bfloat16", "1", "20.0", "1 |"),
        ("bfloat16", "2", "30.0", "3 |"),
    ]


def test_scaling_takes_no_row_of_a_latency_table(text):
    records = [record([row()]), record([row(time=0.5, axis="batch", value=1)], 1, "scaling")]
    document = text(records)
    assert "50.0 (47.5..52.5)" in chapter(document, "### Speed")
    assert "500" not in chapter(document, "### Speed")
    assert "500 (475..525)" in chapter(document, "### Scaling")


@pytest.mark.parametrize("status", ["refused", "failed", "missing"])
def test_no_speed_of_what_was_not_measured(text, status):
    bad = without_speed("openvino", status, "agree on <91 %> | no")
    bad["seconds"] = bad["cold"] = bad["ratio"] = quantiles(0.00777)
    bad |= {"axis": "batch", "value": 1} if status == "failed" else {}
    prediction = PREDICTIONS[1] | {"device": "AMD", "dtype": "bfloat16", "backend": "bad"}
    worse = bad | {"runner": "ours bad", "ours": True}
    document = text([record([row(), bad, worse])], predictions=[prediction])
    assert (
        "7.77" not in document and "0.01" not in document and "777" not in document and "129" not in document
    )
    reasons = chapter(document, "### Without a speed")
    assert f"| 1 | {status} | openvino | bfloat16 | agree on &lt;91 %&gt; \\| no |" in reasons
    if status != "failed":
        assert (
            f"No speed: openvino bfloat16 (labels) {status} \\[1\\]; ours bad bfloat16 (labels)" in document
        )
    assert f"not measured ({status}: agree on" in chapter(document, "## Predictions")
    assert "1 are measured and 95 are not" in document  # by ours eager; ours bad does not count
    (device,) = [measured.Device("x", "cpu", [measured._run(json.loads(json.dumps(record([bad]))))])]
    assert all(found.row.seconds is None for found in device.rows + device.scaling)


def test_refused_rows_reach_no_plot(tmp_path):
    run = measured._run(record([without_speed("openvino", "refused", "wrong", axis="batch", value=1)]))
    assert plots.draw([measured.Device("x", "cpu", [run])], []) == []


def test_the_six_bars_that_decide():
    times = {
        ("ours cpu", "float32"): 0.1, ("ours cpu", "bfloat16"): 0.05, ("ours eager", "bfloat16"): 0.06,
        ("b", "int8"): 0.04, ("b", "bfloat16"): 0.07, ("b", "float32"): 0.09, ("c", "bfloat16"): 0.08,
        ("c", "float32"): 0.11, ("d", "bfloat16"): 0.12,
    }  # fmt: skip
    rows = [row(runner, time, dtype=dtype, scope="frame") for (runner, dtype), time in times.items()]
    rows.append(row("e", 0.01, scope="labels"))
    ((figure, _),) = bars.six(device_of(record(rows)))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "b int8", "ours cpu bfloat16", "b bfloat16", "c bfloat16", "b float32", "ours cpu float32",
    ]  # fmt: skip
    assert list(bars.six(device_of(record(rows[:6])))) == []
    assert list(bars.six(device_of())) == []


def test_reasons_are_gathered(text):
    cells = itertools.product(("stdc1", "stdc2"), (1, 16), ("logits", "labels"))
    rows = [
        without_speed("tensorrt", "missing", "not installed", model=model, batch=batch, scope=scope)
        for model, batch, scope in cells
    ]
    document = text([record([*rows, row(model="stdc1", scope="frame")])])
    (line,) = lines_with(chapter(document, "### Without a speed"), "tensorrt")
    assert "| stdc1, stdc2 512x1024 batch 1, 16 (logits, labels) |" in line
    document = text([record(rows)])
    assert lines_with(document, "tensorrt", "| every workload |")


def test_gpu_and_predictions(text):
    document = text(everything(), predictions=PREDICTIONS)
    gpu = chapter(document, "## NVIDIA GPU: NVIDIA H100 80GB HBM3")
    assert "capability 9.0, 79.1 GiB, driver 570.1, at most 1980 MHz, at most 700 W." in gpu
    assert "| abc123 | 2 | 1.98 |" in gpu
    assert "| labels | **ours triton** | float16 | - | 0.260 (0.247..0.273) |" in gpu
    ladder = chapter(document, "### NVIDIA H100")
    (line,) = lines_with(ladder, "Triton")
    assert line == (
        "| stdc1 512x1024 batch 1 | labels | float16 | Triton, one CUDA graph | 220..270 "
        "| 260 (247..273) \\[NVIDIA H100 80GB HBM3, stdc1_camvid, run 1\\] | within | a \\| guess |"
    )
    assert len(lines_with(ladder, "| not measured | - |")) == 2
    missing = chapter(document, "## Not measured")
    # On the CPU two sizes in three scopes, one of them also in batches of 16, and a third size; one on the
    # GPU.
    assert "9 are measured and 87 are not" in missing
    assert lines_with(missing, "| NVIDIA GPU | stdc1 | 512x1024 | 1 | logits, frame |")


@pytest.mark.parametrize(
    ("time", "verdict"), [(0.0001, "faster, 0.45 of the low"), (0.00054, "slower, 2.00 times")]
)
def test_verdicts(text, time, verdict):
    gpu = [row("ours triton", time, dtype="float16")]
    records = [record(gpu, device="cuda", device_name=H100["name"])]
    assert lines_with(text(records, predictions=PREDICTIONS), "Triton", verdict)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "stdc2"},
        {"height": 720},
        {"batch": 2},
        {"dtype": "float32"},
        {"scope": "frame"},
        {"runner": "triton"},
    ],
)
def test_predictions_of_something_else_do_not_match(text, changes):
    gpu = [row("ours triton", 0.00025, dtype="float16") | changes]
    records = [record(gpu, device="cuda", device_name=H100["name"])]
    ladder = chapter(text(records, predictions=PREDICTIONS), "## Predictions")
    assert len(lines_with(ladder, "| not measured |")) == 3


def test_coverage(text):
    rows = [row(scope=scope, batch=batch) for scope in measured.SCOPES for batch in (1, 16)]
    rows.append(row("openvino", height=720, width=960))  # peers alone cover nothing
    missing = chapter(text([record(rows)]), "## Not measured")
    assert "6 are measured and 90 are not:" in missing
    table = [line for line in missing.split("\n") if line.startswith(("| CPU", "| NVIDIA"))]
    assert table == [
        "| CPU | stdc1 | 720x960, 768x1536, 1024x2048 | 1, 16 | logits, labels, frame |",
        f"| CPU | stdc2 | {SIZES} | 1, 16 | logits, labels, frame |",
        f"| NVIDIA GPU | stdc1, stdc2 | {SIZES} | 1, 16 | logits, labels, frame |",
    ]
    assert measured.not_measured([]) != []


def test_merge_covers_each_cell_once():
    cells = [cell for i, cell in enumerate(measured.PROMISED) if i % 7 and i % 5]
    again = [cell for sets in measured.merge(cells) for cell in itertools.product(*sets)]
    assert sorted(again) == sorted(cells)
    assert len(measured.merge(cells)) < len(cells)
    assert measured.merge([]) == []


def device_of(*records):
    runs = [measured._run(item) for item in records]
    return measured.Device("AMD EPYC", "cpu", runs)


def test_repeats():
    first = record([row(time=0.050), row("openvino", 0.060)])
    second = record([row(time=0.052), row("openvino", 0.080)], 1)
    third = record([row(time=0.052, threads=1)], 2)
    pairs = {(r.what, r.later.row.runner): r for r in device_of(first, second, third).repeats}
    assert set(pairs) == set(itertools.product(("ratio", "seconds"), ("ours eager", "openvino")))
    assert pairs["seconds", "ours eager"].agrees and not pairs["seconds", "openvino"].agrees
    # The interval of a ratio is 2 % to each side: 1.00 against 1.04 just touch.
    assert pairs["ratio", "ours eager"].agrees and not pairs["ratio", "openvino"].agrees
    assert pairs["seconds", "openvino"].change == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("commits", "rows"),
    [
        (("abc", "def"), [row(), row()]),
        (("abc-dirty", "abc-dirty"), [row(), row()]),
        (("unknown", "unknown"), [row(), row()]),
        ((None, None), [row(), row()]),
        (("abc", "abc"), [row(), without_speed("ours eager", "refused", "wrong")]),
        (("abc", "abc"), [row(), row(axis="batch", value=1)]),
        (("abc", "abc"), [row(), row(scope="frame")]),
    ],
)
def test_what_is_no_repetition(commits, rows):
    records = [record([r], i, commit=c) for i, (c, r) in enumerate(zip(commits, rows, strict=True))]
    assert device_of(*records).repeats == []


def test_ratios_to_different_baselines_are_not_compared():
    other = row(baseline={"runner": "ours eager", "dtype": "float32"})
    repeats = device_of(record([row()]), record([other], 1)).repeats
    assert [r.what for r in repeats] == ["seconds"]


def test_runs_between_are_skipped_by_commit():
    records = [
        record([row(time=t)], i, commit=c)
        for i, (t, c) in enumerate([(1, "a"), (2, "b"), (1, "a"), (1, "a")])
    ]
    repeats = [r for r in device_of(*records).repeats if r.what == "seconds"]
    assert len(repeats) == 2 and all(r.agrees for r in repeats)


def test_repeatability_in_the_document(text):
    runners = [f"peer{i}" for i in range(12)]
    first = record([row(), *(row(name, 0.06) for name in runners)])
    second = record([row(), *(row(name, 0.06 * (1.2 + 0.1 * i)) for i, name in enumerate(runners))], 1)
    found = chapter(text([first, second]), "### Repeatability")
    assert "| ratio | 13 | 1 | 8 % | 70.0 % | 130.0 % |" in found
    assert "| seconds | 13 | 1 | 8 % | 70.0 % | 130.0 % |" in found
    assert "The furthest apart, 10 of 24:" in found
    worst = lines_with(found, "| peer")
    assert (
        len(worst) == 10
        and "| ratio |" in worst[0]
        and "peer11" in worst[0]
        and "+130.0 % | 1, 2 |" in worst[0]
    )
    assert "no two runs" in chapter(text([first]), "### Repeatability")


BROKEN = {
    "not JSON": "{oops",
    "lacks 'rows'": json.dumps({k: v for k, v in record([]).items() if k != "rows"}),
    "lacks 'scope'": json.dumps(record([{k: v for k, v in row().items() if k != "scope"}])),
    "schema 2": json.dumps(record([]) | {"schema": 2}),
    "without a time zone": json.dumps(record([]) | {"time": "2026-01-02T03:04:05"}),
    "none of measured": json.dumps(record([row(status="fast")])),
    "has no seconds": json.dumps(record([row(seconds=None)])),
    "not in order": json.dumps(record([row(seconds={"p20": 2, "p50": 1, "p80": 3, "n": 5})])),
    "NaN is no number": json.dumps(record([row(flop=float("nan"))])),
    "limit of 0": json.dumps(record([]) | {"limits": [record([])["limits"][0] | {"value": 0}]}),
    "'fast' is no number": json.dumps(record([row(flop="fast")])),
    "damaged": "[1]",
    "is in": json.dumps(record([])),
}


@pytest.mark.parametrize("why", BROKEN)
def test_damaged_lines(write, tmp_path, capsys, why):
    assert write([record([]), "", BROKEN[why]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'results' / 'a.jsonl'}:3: ") and why in line
    assert not (tmp_path / "docs").exists()


def test_missing_files(write, tmp_path, capsys):
    assert report.main(arguments(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'results'}: no such folder")
    assert write([], predictions=[{**PREDICTIONS[0], "low_us": 3000}]) == 2
    assert "predictions.json" in capsys.readouterr().err
    (tmp_path / "predictions.json").unlink()
    assert report.main(arguments(tmp_path)) == 2
    assert "predictions.json: can not be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="UTF-8"):
        (tmp_path / "results" / "a.jsonl").write_bytes(b"\xff\xfe")
        measured.read(tmp_path / "results")


def test_numbers():
    assert [words.significant(v) for v in (1234.5, 99.96, 3.14159, 0.00123, 0)] == [
        "1234", "100.0", "3.14", "0.00123", "0",
    ]  # fmt: skip
    assert [words.percent(v) for v in (1, 0.99999, 0.5, None)] == ["100.00 %", "99.99 %", "50.00 %", "-"]
    assert words.amount(1.7e11, "flop/s") == "170 GFLOP/s"
    assert words.text("a|b\n<c>") == "a\\|b &lt;c&gt;"
