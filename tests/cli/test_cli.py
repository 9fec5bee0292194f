"""The command line: what it writes and prints, and one line and exit code 2 for every mistake.

Most tests run it in this process; importing torch takes a real one seconds.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import save
from PIL import Image
from refusals import refused, refused_quietly

import stdc_fast
from stdc_fast import checkpoints
from stdc_fast.listing import expand, without_results

# ---------------------------------------------------------------- predict


def test_predict_one_image(run_cli, tiny_weights, auto_model, photo, workplace):
    save(photo(80, 120), workplace / "street.png")
    run = run_cli("predict", "street.png", "-m", tiny_weights)
    assert run.code == 0
    expected = auto_model.predict("street.png")
    with Image.open("out/street_labels.png") as labels:
        assert labels.mode == "P"
        assert np.array_equal(np.asarray(labels), expected.labels)
    with Image.open("out/street_overlay.jpg") as overlay:
        shown = np.asarray(expected.overlay(legend=True)).astype(int)
        assert overlay.format == "JPEG" and np.abs(np.asarray(overlay) - shown).mean() < 4
    assert sorted(os.listdir("out")) == ["street_labels.png", "street_overlay.jpg"]
    assert "street.png: 120x80, network input 96x64, tiny" in run.out
    for name, share in expected.shares().items():
        assert any(name in line and f"{share:.2%}" in line for line in run.out.splitlines())
    assert "out/street_overlay.jpg" in run.out
    assert run.err == ""  # remarks are for who watches


def test_predict_options(run_cli, tiny_weights, auto_model, photo, workplace):
    save(photo(80, 120), workplace / "a.png")
    args = ("predict", "a.png", "-m", tiny_weights, "-q")
    wanted = ("--no-labels", "--no-legend", "--alpha", "1", "--size", "80x100", "--format", "png")
    run = run_cli(*args, "--out", "x/y", *wanted)
    assert run.code == 0
    assert run.err == ""
    assert os.listdir("x/y") == ["a_overlay.png"]
    expected = auto_model.predict("a.png", size=(80, 100))
    assert np.array_equal(np.asarray(Image.open("x/y/a_overlay.png")), expected.colours())
    for i, (options, target) in enumerate(
        [(("--scale", "0.75"), "90x60"), (("--size", "native"), "120x80"), (("--size", "64X100"), "100x64")]
    ):
        run = run_cli(*args, *options, "-o", f"o{i}", "--no-overlay")
        assert f"network input {target}" in run.out
        assert os.listdir(f"o{i}") == ["a_labels.png"]
    assert run_cli(*args, "--no-overlay", "--no-labels", "-o", "none").code == 0
    assert not os.path.exists("none")
    run = run_cli(*args, "--dtype", "float64", "--device", "cpu", "--backend", "eager", "--json")
    assert len(json.loads(run.out)["results"]) == 1


def test_predict_folders_globs_and_equal_stems(run_cli, tiny_weights, auto_model, photo, workplace):
    pictures = ["in/a.jpg", "in/a.png", "in/b.png", "more/a.png", "x[1].png"]
    for i, name in enumerate(pictures):
        save(photo(64, 96, i), workplace / name)
    run = run_cli("predict", "in", "more/*.png", "x[1].png", "-m", tiny_weights, "--json")
    assert run.code == 0
    found = json.loads(run.out)
    assert found["model"] == "tiny"
    assert found["failures"] == []
    assert [r["name"] for r in found["results"]] == pictures
    written = {r[key] for r in found["results"] for key in ("labels", "overlay")}
    assert len(written) == 10
    assert written == {f"out/{name}" for name in os.listdir("out")}
    assert {"out/a_labels.png", "out/a_png_labels.png", "out/x[1]_labels.png"} < written
    for entry in found["results"]:
        expected = auto_model.predict(entry["name"])
        assert np.array_equal(np.asarray(Image.open(entry["labels"])), expected.labels)
        timeless = {k: v for k, v in expected.to_dict().items() if k != "seconds"}
        assert timeless.items() <= entry.items()


def test_names_that_become_equal_by_their_suffix(run_cli, tiny_weights, photo, workplace):
    for name in ("a.bmp", "a.png", "a_png.bmp", "sub/a.png"):
        save(photo(), workplace / name)
    run = run_cli(
        "predict", "a.bmp", "a.png", "a_png.bmp", "sub", "-m", tiny_weights, "--no-overlay", "--json"
    )
    assert len({r["labels"] for r in json.loads(run.out)["results"]}) == 4
    assert len(os.listdir("out")) == 4


def test_progress_goes_to_who_watches_stderr(run_cli, tiny_weights, photo, workplace, monkeypatch):
    for i in range(2):
        save(photo(seed=i), workplace / "in" / f"{i}.png")
    run = run_cli("predict", "in", "-m", tiny_weights)
    assert run.code == 0
    assert run.out.startswith("2 images labelled in out (")
    assert run.err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run = run_cli("predict", "in", "-m", tiny_weights)
    assert "100%" in run.err and "193 of 193" in run.err
    assert run_cli("predict", "in", "-m", tiny_weights, "-q").err == ""
    json.loads(run_cli("predict", "in", "-m", tiny_weights, "--json").out)


def bad_images(folder, photo, huge_png):
    """Names of files that can not be labelled."""
    folder.mkdir()
    Image.fromarray(photo(200, 300)).save(folder / "truncated.jpg")
    content = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("not an image\nat all\n")
    (folder / "zero.png").write_bytes(b"")
    save(photo(16, 16), folder / "small.png")
    huge_png(folder / "huge.png", 60000, 60000)
    huge_png(folder / "large.png", 9000, 9000)
    return ["huge.png", "large.png", "small.png", "text.jpg", "truncated.jpg", "zero.png"]


def test_bad_images_fail_alone_in_one_line(run_cli, tiny_weights, photo, huge_png, workplace):
    for name in [*bad_images(workplace / "in", photo, huge_png), "missing.png"]:
        start = time.process_time()
        run = run_cli("predict", f"in/{name}", "-m", tiny_weights, "-q")
        refused_quietly(run, f"in/{name}")
        assert time.process_time() - start < 10  # nothing decodes 60000x60000
    assert not os.path.exists("out")


def test_bad_images_do_not_stop_a_batch(run_cli, tiny_weights, photo, huge_png, workplace):
    bad = bad_images(workplace / "in", photo, huge_png)
    for name in ("aaa.png", "middle.png", "zzz.png"):
        save(photo(), workplace / "in" / name)
    sources = ("nowhere/*.png", "empty", "in", "missing.png")
    (workplace / "empty").mkdir()
    failing = ["nowhere/*.png", "empty", *bad, "missing.png"]
    run = run_cli("predict", *sources, "-m", tiny_weights)
    refused(run, *failing, summary=True, code=1)
    assert "9 of 12 failed" in run.messages[-1]
    assert run.lines[-len(failing) - 1 :] == run.messages  # at the end, after the progress
    assert run.out.startswith("3 images labelled")
    assert len(os.listdir("out")) == 6
    found = json.loads(run_cli("predict", *sources, "-m", tiny_weights, "--json").out)
    assert [r["name"] for r in found["results"]] == ["in/aaa.png", "in/middle.png", "in/zzz.png"]
    assert len(found["failures"]) == 9
    for entry, name in zip(found["failures"], failing, strict=True):
        assert name in entry["name"]
        assert name in entry["error"]


def test_a_size_error_names_the_file(run_cli, tiny_weights, photo, workplace):
    save(photo(), workplace / "a.png")
    save(photo(40, 50), workplace / "b.png")
    run = run_cli("predict", "a.png", "b.png", "-m", tiny_weights, "--scale", "0.6")
    refused(run, "b.png", summary=True, code=1)


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 5000], ids=["name", "path"])
def test_names_too_long(name, run_cli, tiny_weights, photo, workplace):
    save(photo(), workplace / "a.png")
    refused(run_cli("predict", name, "a.png", "-m", tiny_weights), "xxx", summary=True, code=1)
    assert len(os.listdir("out")) == 2
    refused_quietly(run_cli("predict", "a.png", "-m", name, "-q"), "xxx")


def test_a_name_that_is_no_text(run_cli, tiny_weights, photo, workplace):
    name = os.fsdecode(b"\xff.png")
    try:
        save(photo(), workplace / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    run = run_cli("predict", name, "-m", tiny_weights, "-q")
    assert run.code == 0, run.err
    assert len(os.listdir("out")) == 2


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_unwritable_output(place, run_cli, tiny_weights, photo, workplace):
    (workplace / "file").write_text("keep")
    save(photo(), workplace / "in" / "a.png")
    save(photo(), workplace / "in" / "b.png")
    run = run_cli("predict", "in/a.png", "-m", tiny_weights, "-o", place, "-q")
    assert place in refused_quietly(run, "a_overlay.jpg")
    refused(run_cli("predict", "in", "-m", tiny_weights, "-o", place), "a_ov", "b_ov", summary=True)
    assert (workplace / "file").read_text() == "keep"


def test_outputs_never_overwrite_inputs(run_cli, tiny_weights, photo, workplace):
    """With the results beside the photos, x_overlay.jpg may be the user's own."""
    for i, suffix in enumerate(("jpg", "png", "webp")):
        own = [workplace / suffix / "x.png", workplace / suffix / f"x_overlay.{suffix}"]
        for path in own:
            save(photo(seed=i), path)
        before = [path.read_bytes() for path in own]
        run = run_cli("predict", suffix, "-m", tiny_weights, "-o", suffix, "--format", suffix)
        assert run.code == 1 and f"would overwrite {suffix}/x_overlay.{suffix}, an input" in run.err
        assert [path.read_bytes() for path in own] == before


def test_results_of_an_earlier_run_are_no_inputs(run_cli, tiny_weights, photo, workplace, caplog):
    save(photo(), workplace / "in" / "x.png")
    overlays = []
    for suffix in ("jpg", "jpg", "png", "webp"):
        overlays = sorted({*overlays, f"x_overlay.{suffix}"})
        assert run_cli("predict", "in", "-m", tiny_weights, "-o", "in", "--format", suffix).code == 0
        assert sorted(os.listdir("in")) == ["x.png", "x_labels.png", *overlays]
    # Whatever the folder of the next results is; one that is named alone is a picture.
    files = [Path("in") / name for name in os.listdir("in")]
    assert without_results(files) == [Path("in/x.png")]
    assert expand("in")[0] == [Path("in/x.png")]
    assert without_results(files[1:2]) == files[1:2]
    assert [line for line in caplog.messages if "in/" in line] == [
        "in/: results of an earlier run are left out: 2, with x_labels.png, x_overlay.jpg"
    ]


def test_stdin_is_a_source(run_cli, tiny_weights, auto_model, photo, workplace, monkeypatch):
    save(photo(), workplace / "a.png")
    with open("a.png") as file:
        monkeypatch.setattr(sys, "stdin", file)
        run = run_cli("predict", "-", "-m", tiny_weights)
    assert run.code == 0, run.err
    with Image.open("out/stdin_labels.png") as labels:
        assert np.array_equal(np.asarray(labels), auto_model.predict("a.png").labels)


def test_a_range_is_passed_on(run_cli, tiny_weights, auto_model, photo, workplace):
    save(photo()[:, :, 0].astype(np.uint16) * 16, workplace / "a.png")
    run = run_cli("predict", "a.png", "-m", tiny_weights)
    refused(run, "--range 0,4095")
    assert run_cli("predict", "a.png", "-m", tiny_weights, "--range", "0,4080").code == 0
    with Image.open("out/a_labels.png") as labels:
        assert np.array_equal(np.asarray(labels), auto_model.predict(photo()[:, :, 0]).labels)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--range", "0"), "--range must be BLACK,WHITE"),
        (("--range", "9,1"), "9,1"),
        (("--range", "nan,1"), "nan"),
        (("--size", "64"), "--size"),
        (("--size", "64x"), "64x"),
        (("--size", "64x96x3"), "64x96x3"),
        (("--size", "-64x96"), "-64x96"),
        (("--size", "²x²"), "²x²"),  # digits for str.isdigit, not for int
        (("--size", "natve"), "natve"),
        (("--size", "8x8"), "8x8"),
        (("--scale", "nan"), "nan"),
        (("--scale", "-1"), "-1"),
        (("--scale", "1e308"), "scale"),
        (("--scale", "1", "--size", "native"), "not both"),
        (("--alpha", "2"), "--alpha"),
        (("--quality", "80", "--no-overlay"), "--quality is about overlays"),
        (("--skip-existing", "--no-overlay", "--no-labels"), "--skip-existing is about results"),
        (("--alpha", "nan"), "--alpha"),
        (("--device", "gpu"), "gpu"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--dtype", "half"), "half"),
        (("--backend", "eagr"), "eager"),
    ],
    ids=str,
)
def test_wrong_options(options, name, run_cli, tiny_weights, photo, workplace):
    save(photo(), workplace / "a.png")
    refused_quietly(run_cli("predict", "a.png", "-m", tiny_weights, "-q", *options), name)
    assert not os.path.exists("out")


def test_wrong_options_are_said_once(run_cli, tiny_weights, photo, workplace):
    """Not once for every image of a folder."""
    for i in range(3):
        save(photo(), workplace / "in" / f"{i}.png")
    for options in (("--scale", "-1"), ("--scale", "1", "--size", "native")):
        refused_quietly(run_cli("predict", "in", "-m", tiny_weights, "-q", *options), options[0][2:])


def test_the_command_line_parser_refuses_too(run_cli, workplace):
    for arguments in (("predict",), ("bogus",), ("predict", "a.png", "--scale", "x"), ("info", "--bogus")):
        run = run_cli(*arguments)
        assert run.code == 2
        assert run.out == ""
        assert arguments[-1] in run.err or "SRC" in run.err


def test_bad_weights(run_cli, tiny_network, photo, workplace):
    save(photo(), workplace / "a.png")
    state = checkpoints.inference_state(tiny_network)
    state["ffm.conv1.weight"] = torch.full_like(state["ffm.conv1.weight"], float("nan"))
    checkpoints.save(state, workplace / "nan.safetensors", {}, half=False)
    (workplace / "text.pth").write_text("hello")
    (workplace / "zero.pth").write_bytes(b"")
    content = (workplace / "nan.safetensors").read_bytes()
    (workplace / "cut.safetensors").write_bytes(content[: len(content) // 2])
    for name in ("nan.safetensors", "text.pth", "zero.pth", "cut.safetensors", "missing.pth", "in/"):
        refused_quietly(run_cli("predict", "a.png", "-m", name, "-q"), name.rstrip("/"))
    message = refused_quietly(run_cli("predict", "a.png", "-m", "nan.safetensors", "-q"), "nan.safetensors")
    assert "ffm.conv1.weight holds NaN" in message
    message = refused_quietly(run_cli("predict", "a.png", "-m", "stdc1_camvit", "-q"), "stdc1_camvit")
    assert "unknown model" in message
    assert not os.path.exists("out")


def test_the_default_model(run_cli, embedded, photo, workplace):
    save(photo(), workplace / "a.png")
    run = run_cli("predict", "a.png")
    assert run.code == 0
    assert embedded in run.out
    assert embedded in run_cli("info").out


# ---------------------------------------------------------------- info, help


def test_info(run_cli):
    run = run_cli("info")
    assert run.code == 0
    assert run.err == ""
    found = json.loads(run_cli("info", "--json").out)
    for name, version in (("stdc_fast", stdc_fast.__version__), ("torch", torch.__version__)):
        assert found["versions"][name] == version
        assert version in run.out
    assert found["cpu"]["threads"] == torch.get_num_threads()
    backends = {b["name"]: b for b in found["backends"]}
    assert backends["eager"]["available"]
    assert backends[found["default_backend"]]["available"]
    for name, backend in backends.items():
        assert backend["reason"]
        assert any(name in line and backend["reason"] in line for line in run.out.splitlines())
    (line,) = [line for line in run.out.splitlines() if line.startswith("native ")]
    assert line.endswith(found["native"]["reason"])
    assert [m["name"] for m in found["models"]] == stdc_fast.list_models(status="embedded")


def test_the_environment_chooses_the_backend(run_cli, monkeypatch, tiny_weights, photo, workplace):
    save(photo(), workplace / "a.png")
    monkeypatch.setenv("STDC_FAST_BACKEND", "eager")
    assert json.loads(run_cli("info", "--json").out)["default_backend"] == "eager"
    monkeypatch.setenv("STDC_FAST_BACKEND", "bogus")
    refused_quietly(run_cli("predict", "a.png", "-m", tiny_weights, "-q"), "STDC_FAST_BACKEND")
    # info is where one looks then: it explains instead of failing.
    assert "STDC_FAST_BACKEND" in run_cli("info").out


def test_version_and_help(run_cli):
    assert run_cli("--version").out == f"stdc-fast {stdc_fast.__version__}\n"
    for option in ("--help", "-h"):
        run = run_cli(option)
        assert run.code == 0
        assert all(command in run.out for command in ("predict", "val", "train", "convert", "info"))
    for command in ("predict", "val", "train", "convert", "info"):
        run = run_cli(command, "--help")
        assert run.code == 0
        assert run.err == ""


def start(*arguments, **options):
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "stdc_fast", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_started_without_stdout(tiny_weights, photo, workplace):
    save(photo(), workplace / "a.png")
    line = f"exec {sys.executable} -m stdc_fast predict a.png -m {tiny_weights} >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert (workplace / "out" / "a_labels.png").exists()


def test_completion_by_a_shell():
    environment = {"_STDC_FAST_COMPLETE": "complete_bash", "COMP_WORDS": "stdc-fast ben", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "stdc_fast"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.stdout.split() == ["benchmark"]


@pytest.mark.parametrize("command", ["predict", "val", "train", "convert", "benchmark"])
def test_help_on_a_usual_terminal(run_cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_cli(command, "--help").out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 110


def test_as_a_program(tiny_weights, photo, workplace):
    """One real process: stdout holds the JSON and nothing else, whatever else happens."""
    for i in range(2):
        save(photo(seed=i), workplace / "in" / f"{i}.png")
    (workplace / "in" / "bad.jpg").write_text("no image")
    process = start("predict", "in", "-m", tiny_weights, "--json")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    found = json.loads(out)
    assert len(found["results"]) == 2
    assert [f["name"] for f in found["failures"]] == [os.path.join("in", "bad.jpg")]
    messages = err.splitlines()
    assert len(messages) == 2
    assert os.path.join("in", "bad.jpg") in messages[0]
    assert messages[1] == "stdc-fast: 1 of 3 failed"
    assert "Traceback" not in err
    assert len(os.listdir("out")) == 4


@pytest.mark.skipif(os.name != "posix", reason="pipes break otherwise elsewhere")
def test_a_reader_that_leaves(workplace):
    """``stdc-fast info | head -0``"""
    process = start("info")
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=600)
    process.stderr.close()
    assert process.returncode != 0
    assert err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_one_line(workplace):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "stdc_fast", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.startswith("stdc-fast: stdout can not be written: ") and done.stderr.count("\n") == 1


def test_info_explains_a_wrong_variable(run_cli, monkeypatch):
    monkeypatch.setenv("STDC_FAST_BACKEND", "eger")
    done = run_cli("info")
    assert done.code == 0
    assert "did you mean eager?" in done.out


def test_an_empty_source_is_not_the_current_folder(run_cli, tiny_weights, tmp_path):
    done = run_cli("predict", "", "-m", tiny_weights, "--out", tmp_path)
    assert done.code == 2
    assert done.messages == ["stdc-fast: the source is an empty name; give a file, a folder or a glob"]
