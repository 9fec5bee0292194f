"""``stdc-fast predict`` on many pictures: sub-folders, formats, going on, JSON lines, signals, full disks."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import save
from PIL import Image
from refusals import refused, refused_quietly

from stdc_fast import Segmenter

fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")


@pytest.fixture
def pictures(workplace, photo):
    for i in range(8):
        save(photo(64, 96, i), workplace / "in" / f"{i}.png")
    return workplace


@pytest.fixture
def command(tiny_weights):
    return ("predict", "in", "-m", tiny_weights)


def tree(folder):
    """Bytes of all files below a folder, hidden ones too, by their place."""
    folder = Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def outputs(*stems, kind="jpg"):
    return sorted(name for stem in stems for name in (f"{stem}_labels.png", f"{stem}_overlay.{kind}"))


@contextlib.contextmanager
def started(*arguments):
    """A real process, which does not outlive the test."""
    command = [sys.executable, "-m", "stdc_fast", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def line_of(process):
    """The next line of stdout, waited for at most two minutes."""
    assert select.select([process.stdout], [], [], 120)[0], "no line came"
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, process.communicate(timeout=60)
        line += byte
    return json.loads(line)


# ---------------------------------------------------------------- folders and names


def test_rows_come_in_the_order_of_the_files(pictures, command, run_cli):
    (pictures / "in" / "3.png").write_text("no picture")
    for options in ((), ("--workers", "1"), ("--workers", "5", "--batch", "3")):
        run = run_cli(*command, "--json", *options)
        found = json.loads(run.out)
        assert run.code == 1
        assert [row["name"] for row in found["results"]] == [f"in/{i}.png" for i in range(8) if i != 3]
        assert [row["name"] for row in found["failures"]] == ["in/3.png"]
    assert sorted(os.listdir("out")) == outputs(*(i for i in range(8) if i != 3))


def test_time_and_its_parts(pictures, command, run_cli):
    run = run_cli(*command)
    figures = (
        r"\d+\.\d\d s, \d+\.\d a second; threads read \d+\.\d\d s, labelled \d+\.\d\d s, wrote \d+\.\d\d s"
    )
    assert re.fullmatch(rf"8 images labelled in out \({figures}\)\n", run.out)
    found = json.loads(run_cli(*command, "--json").out)
    assert found["per_second"] == pytest.approx(8 / found["seconds"], rel=0.01)
    assert set(found["busy"]) == {"read", "label", "write"}
    assert all(seconds > 0 for seconds in found["busy"].values())
    assert sum(row["seconds"] for row in found["results"]) <= found["busy"]["label"] <= found["seconds"]


def test_a_tree_is_mirrored(workplace, command, run_cli, photo):
    for i, name in enumerate(("b.png", "x/a.png", "x/a.jpg", "x/y/a.png", ".hidden/a.png", "x/.a.png")):
        save(photo(seed=i), workplace / "in" / name)
    (workplace / "in" / "x" / "notes.txt").write_text("notes")
    os.symlink("..", workplace / "in" / "x" / "loop")
    run = run_cli(*command, "--recursive", "--json")
    assert run.code == 0, run.err
    names = [row["name"] for row in json.loads(run.out)["results"]]
    assert names == ["in/b.png", "in/x/a.jpg", "in/x/a.png", "in/x/y/a.png"]
    assert sorted(tree("out")) == sorted(
        [*outputs("b"), *(f"x/{name}" for name in outputs("a", "a_png")), *(f"x/y/{n}" for n in outputs("a"))]
    )
    # Results among the pictures are none of them in the next run, wherever they lie.
    for _ in range(2):
        assert run_cli(*command, "--recursive", "-o", "in").code == 0
    assert {n.removeprefix("x/").removeprefix("y/") for n in tree("in") if n.endswith(".jpg")} == {
        "a.jpg", "a_overlay.jpg", "a_png_overlay.jpg", "b_overlay.jpg",
    }  # fmt: skip
    assert len(json.loads(run_cli(*command, "--recursive", "--json").out)["results"]) == 4
    assert [r["name"] for r in json.loads(run_cli(*command, "--json").out)["results"]] == ["in/b.png"]


def test_equal_names_of_two_trees(workplace, run_cli, tiny_weights, photo):
    for i, name in enumerate(("one/x/a.png", "two/x/a.png", "two/x/a.jpg", "two/a.png")):
        save(photo(seed=i), workplace / name)
    run = run_cli("predict", "one", "two", "-r", "-m", tiny_weights, "--no-labels", "--json")
    written = {row["name"]: row["overlay"] for row in json.loads(run.out)["results"]}
    assert written == {
        "one/x/a.png": "out/x/a_overlay.jpg",
        "two/a.png": "out/a_overlay.jpg",
        "two/x/a.jpg": "out/x/a_jpg_overlay.jpg",
        "two/x/a.png": "out/x/a_png_overlay.jpg",
    }


def test_a_folder_within_another_source_leaves_the_mirror_as_it_is(workplace, run_cli, tiny_weights, photo):
    for i, name in enumerate(("in/a.png", "in/x/a.png")):
        save(photo(seed=i), workplace / name)
    run = run_cli("predict", "in", "in/x", "-r", "-m", tiny_weights, "--no-labels", "--json")
    written = [(row["name"], row["overlay"]) for row in json.loads(run.out)["results"]]
    assert written[:2] == [("in/a.png", "out/a_overlay.jpg"), ("in/x/a.png", "out/x/a_overlay.jpg")]


def test_recursive_is_about_folders(pictures, run_cli, tiny_weights):
    refused_quietly(run_cli("predict", "in/0.png", "-r", "-m", tiny_weights, "-q"), "--recursive is about")


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(("kind", "pillow"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_formats(kind, pillow, pictures, command, run_cli, auto_model):
    assert run_cli(*command, "--format", kind, "--no-legend").code == 0
    assert sorted(os.listdir("out")) == outputs(*range(8), kind=kind)
    with Image.open(f"out/5_overlay.{kind}") as image:
        assert (image.format, image.size) == (pillow, (96, 64))
        if kind == "png":
            assert np.array_equal(np.asarray(image), np.asarray(auto_model.predict("in/5.png").overlay()))


def test_quality(pictures, command, run_cli):
    for quality in (20, 95):
        assert run_cli(*command, "--quality", quality, "-o", f"q{quality}", "--no-labels").code == 0
    assert all(len(tree("q20")[name]) < len(content) for name, content in tree("q95").items())
    refused_quietly(run_cli(*command, "-q", "--format", "png", "--quality", "90"), "PNG keeps every pixel")
    refused_quietly(run_cli(*command, "-q", "--quality", "101"), "between 1 and 100, not 101")
    refused_quietly(run_cli(*command, "-q", "--format", "gif"), "jpg, png, webp, not 'gif'")
    for option in ("--workers", "--batch"):
        assert run_cli(*command, option, "0").code == 2


# ---------------------------------------------------------------- going on


def interrupt(monkeypatch, number, at):
    segment, calls = Segmenter._segment, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return segment(*arguments)

    monkeypatch.setattr(Segmenter, "_segment", interrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on(number, code, pictures, command, run_cli, monkeypatch):
    assert run_cli(*command, "-o", "whole").code == 0
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt(patch, number, 4)
        run = run_cli(*command, "--jsonl", "rows.jsonl")
    assert run.code == code
    assert signal.getsignal(number) is before
    assert run.messages == [
        "stdc-fast: interrupted: 4 of 8 are done, 4 not begun, from in/4.png on; the same command with "
        "--skip-existing goes on"
    ]
    whole, part = tree("whole"), tree("out")
    assert sorted(part) == outputs(0, 1, 2, 3)
    assert part.items() < whole.items()
    (Path("out") / "2_labels.png").unlink()
    run = run_cli(*command, "--skip-existing", "--jsonl", "rows.jsonl")
    assert run.code == 0
    assert run.out.startswith("5 images labelled in out (")
    assert run.out.endswith("; 3 skipped, whose results are there\n")
    assert tree("out") == whole
    rows = [json.loads(line)["name"] for line in Path("rows.jsonl").read_text().splitlines()]
    assert rows == [f"in/{i}.png" for i in (0, 1, 2, 3, 2, 4, 5, 6, 7)]
    found = json.loads(run_cli(*command, "--skip-existing", "--json").out)
    assert (found["results"], found["failures"], found["skipped"]) == ([], [], 8)


def test_what_is_not_skipped(pictures, command, run_cli, photo, tiny_weights):
    """Results of another picture of that name, of other options, and the user's own pictures."""

    def labelled(*more):
        return [
            row["name"]
            for row in json.loads(run_cli(*command, "--skip-existing", "--json", *more).out)["results"]
        ]

    assert len(labelled()) == 8
    assert labelled() == []
    save(photo(seed=99), pictures / "in" / "1.png")
    save(photo(), pictures / "out" / "6_overlay.jpg")
    assert labelled() == ["in/1.png", "in/6.png"]
    assert labelled("--no-overlay") == []
    assert labelled("--no-overlay", "--legend") == []
    for options in (("--alpha", "0.3"), ("--scale", "1"), ("--quality", "50"), ("--dtype", "float64")):
        assert len(labelled(*options)) == 8
        assert labelled(*options) == []
    # Another folder with the same names.
    shutil.copytree("in", "other")
    for path in Path("other").iterdir():
        save(photo(seed=50), path)
    run = run_cli("predict", "other", "-m", tiny_weights, "--skip-existing")
    assert run.out.startswith("8 images labelled")
    # Without the option all are replaced.
    assert run_cli(*command).out.startswith("8 images labelled")


@fifos
def test_a_signal_while_a_pipe_is_waited_for(pictures, tiny_weights):
    os.mkfifo("pipe")
    arguments = ("predict", "in/0.png", "in/1.png", "pipe", "in/2.png", "-m", tiny_weights, "--jsonl", "-")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with started(*arguments) as process:
            # Whole lines, while the process waits.
            assert [line_of(process)["name"] for _ in range(2)] == ["in/0.png", "in/1.png"]
            assert process.poll() is None
            process.send_signal(number)
            out, err = process.communicate(timeout=120)
        assert process.returncode == code
        assert out == b""
        assert err.decode().splitlines()[-1] == (
            "stdc-fast: interrupted: 2 of 4 are done, 2 not begun, from pipe on; the same command with "
            "--skip-existing goes on"
        )
        assert b"Traceback" not in err
        assert sorted(tree("out")) == outputs(0, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_folder(number, code, pictures, command, run_cli):
    """In a real process, at no certain time: whatever is there is whole, and the run can go on."""
    for i in range(8, 200):
        shutil.copy(f"in/{i % 8}.png", f"in/{i}.png")
    with started(*command, "--jsonl", "-") as process:
        first = line_of(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    rows = [first, *map(json.loads, out.splitlines())]
    assert 0 < len(rows) < 200
    assert sorted(tree("out")) == sorted(
        Path(row[kind]).name for row in rows for kind in ("labels", "overlay")
    )
    for name, content in tree("out").items():
        with Image.open(Path("out") / name) as image:
            image.load()
        assert content
    found = json.loads(run_cli(*command, "--skip-existing", "--json").out)
    assert found["skipped"] == len(rows) and len(found["results"]) == 200 - len(rows)
    assert len(tree("out")) == 400


# ---------------------------------------------------------------- JSON lines


def test_json_lines_hold_results_and_failures(pictures, command, run_cli):
    (pictures / "in" / "3.png").write_text("no picture")
    run = run_cli("predict", "nowhere/*.png", *command[1:], "--jsonl", "lines/rows.jsonl", "--json")
    assert run.code == 1
    rows = [json.loads(line) for line in Path("lines/rows.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["nowhere/*.png", *(f"in/{i}.png" for i in range(8))]
    assert [row["name"] for row in rows if "error" in row] == ["nowhere/*.png", "in/3.png"]
    assert [row for row in rows if "error" not in row] == json.loads(run.out)["results"]
    run_cli(*command, "--jsonl", "lines/rows.jsonl")
    assert len(Path("lines/rows.jsonl").read_text().splitlines()) == 8


def test_a_line_that_was_cut_spoils_no_other(pictures, command, run_cli):
    Path("rows.jsonl").write_text('{"name": "in/0.p')
    assert run_cli(*command, "-q", "--jsonl", "rows.jsonl", "--skip-existing").code == 0
    cut, *rows = Path("rows.jsonl").read_text().splitlines()
    assert cut == '{"name": "in/0.p'
    assert [json.loads(row)["name"] for row in rows] == [f"in/{i}.png" for i in range(8)]


def test_json_lines_on_stdout_stand_alone(pictures, command, run_cli):
    run = run_cli(*command, "--jsonl", "-")
    assert [json.loads(line)["name"] for line in run.out.splitlines()] == [f"in/{i}.png" for i in range(8)]
    assert "8 images labelled" in run.err
    assert run_cli(*command, "--jsonl", "-", "-q").err == ""
    run = run_cli("predict", "in/0.png", *command[2:], "--jsonl", "-")
    assert len(run.out.splitlines()) == 1 and json.loads(run.out)["labels"] == "out/0_labels.png"


def test_where_json_lines_can_not_go(pictures, command, run_cli):
    refused_quietly(run_cli(*command, "-q", "--jsonl", "-", "--json"), "--jsonl - both go to stdout")
    refused_quietly(run_cli(*command, "-q", "--jsonl", "in/0.png"), "--jsonl would overwrite in/0.png")
    refused_quietly(run_cli(*command, "-q", "--jsonl", "in"), "in: can not be written")
    assert Image.open("in/0.png").size == (96, 64)
    assert not os.path.exists("out")


# ---------------------------------------------------------------- disks


def test_files_too_large_for_the_disk(pictures, command):
    """A limit on the size of files stands for a full disk: each write fails, and nothing half is left."""
    resource = pytest.importorskip("resource", reason="this system has no limits of a process")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "from stdc_fast.cli import main; sys.argv = ['stdc-fast', *sys.argv[1:]]; main()"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command), "--format", "png"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    messages = [line for line in done.stderr.splitlines() if line.startswith("stdc-fast: ")]
    assert len(messages) == 9 and messages[-1] == "stdc-fast: 8 of 8 failed"
    for i, message in enumerate(messages[:8]):
        assert message.startswith(f"stdc-fast: out/{i}_overlay.png: can not be written (")
    assert "Traceback" not in done.stderr
    assert tree("out") == {}


def test_one_that_can_not_be_written_stops_no_other(pictures, command, run_cli):
    Path("out/4_labels.png").mkdir(parents=True)
    refused(run_cli(*command), "4_labels.png", summary=True, code=1)
    others = outputs(*(i for i in range(8) if i != 4))
    assert sorted(tree("out")) == sorted([*others, "4_overlay.jpg"])
