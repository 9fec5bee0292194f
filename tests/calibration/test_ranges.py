"""Ranges that do not fit, what runs in 8 bits, and images much smaller than those of the calibration."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from levelled import leave_ops_alone
from oracle import street, trained, truth
from PIL import Image
from refusals import refusal
from safetensors import safe_open
from safetensors.torch import save_file

import stdc_fast
from stdc_fast import checkpoints
from stdc_fast.numerics import relative_error
from stdc_fast.pipeline import Workers
from stdc_fast.plan.quantise import candidates
from stdc_fast.precision import INT8_FLOAT32
from stdc_fast.to_files import Outputs, Task, ToFiles


def load(path, **options):
    return stdc_fast.load(path, device="cpu", **options)


@pytest.fixture(scope="module")
def batch(photo):
    """uint8 ``[3, 64, 96, 3]``."""
    return np.stack([photo(seed=seed) for seed in range(3)])


@pytest.fixture(scope="module")
def found(tiny_model, batch):
    with pytest.MonkeyPatch.context() as patch:
        leave_ops_alone(patch)
        return stdc_fast.calibrate(tiny_model, batch, method="max", limit=None)


def test_arguments_of_another_kind(tiny_model, batch):
    assert "expected a loaded model, not 'stdc1'" in refusal(stdc_fast.calibrate, "stdc1", batch)
    assert "keep must be a list" in refusal(stdc_fast.calibrate, tiny_model, batch, keep="conv_out.conv")
    for limit in (0, -1, float("nan"), float("inf"), "x"):
        assert "limit must be a positive error" in refusal(
            stdc_fast.calibrate, tiny_model, batch, limit=limit
        )


def test_ranges_that_do_not_fit_are_refused(tiny_weights, found):
    """Of another version, whose plans had other ops: also where the ops in use here would have theirs."""
    first = next(iter(found.ranges))
    short = {**found.ranges, first: type(found.ranges[first])(*3 * [torch.ones(3, dtype=torch.float64)])}
    for changes, words in (
        ({"ranges": {k: v for k, v in found.ranges.items() if k != first}}, "there is no range of"),
        ({"ranges": short}, "has 3 channels instead of"),
        ({"keep": ("gone",)}, "there is no op gone to leave out"),
    ):
        other = dataclasses.replace(found, **changes)
        assert words in refusal(load, tiny_weights, dtype="int8", calibrate=other)


def test_a_file_with_damaged_ranges_is_calibrated_again(tiny_weights, found, batch, tmp_path, caplog):
    """Its weights are as good as ever, and the remedy that is named starts with loading them."""
    model, path = load(tiny_weights, dtype="float32"), tmp_path / "q.safetensors"
    model.calibration = found
    model.save_file(path)
    with safe_open(path, "pt") as file:
        text, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    first = next(name for name in tensors if name.startswith("ranges/"))
    save_file({**tensors, first: -tensors[first]}, path, text)
    again = load(path, dtype="float32")
    assert again.calibration is None and f"{path}: its ranges for int8 are left out: damaged" in caplog.text
    assert torch.equal(again.label(batch), model.label(batch))
    assert "int8 needs ranges" in refusal(load, path, dtype="int8")
    again.calibrate(batch, method="max", limit=None)
    again.save_file(path)
    assert load(path, dtype="int8").calibration.facts() == again.calibration.facts()


def test_stale_ranges_do_not_become_fresh_in_a_file(tiny_weights, found, tmp_path, caplog):
    """Neither in half precision, where ranges get the mark of the weights as stored."""
    content = checkpoints.read(tiny_weights)
    state = {k: v * 1.01 for k, v in content.state.items()}
    for half in (False, True):
        caplog.clear()
        checkpoints.save(state, tmp_path / "q.safetensors", content.metadata, half, found)
        assert "are of other weights, and are left out" in caplog.text
        assert checkpoints.read(tmp_path / "q.safetensors").calibration is None


@pytest.mark.parametrize("value", [0.0, float("nan")], ids=str)
def test_a_network_that_says_nothing(value, tiny_model, batch):
    """An error of 8 bits is a share of the logits; those of a head that was never trained are none."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.network.conv_out.conv_out.weight.fill_(value)
    said = "zero everywhere" if value == 0 else "NaN or infinite in places"
    assert f"its logits are {said} on these frames" in refusal(stdc_fast.calibrate, model, batch)


def test_what_runs_in_8_bits_is_said(tiny_weights, found, caplog):
    model = load(tiny_weights, dtype=INT8_FLOAT32, backend="eager", calibrate=found)
    assert f"; {len(model.ops_in_levels())} ops in 8 bits" in model.reason and model.ops_in_levels()
    none = dataclasses.replace(found, keep=tuple(candidates(model.plan())))
    assert not caplog.records
    model = load(tiny_weights, dtype=INT8_FLOAT32, backend="eager", calibrate=none)
    assert "; 0 ops in 8 bits" in model.reason and "nothing is faster in 8 bits here" in caplog.text


def test_results_of_other_ops_in_8_bits_are_made_anew(tiny_weights, found, photo, tmp_path):
    """--skip-existing: ranges are the same numbers, but one op more is left out."""
    Image.fromarray(photo()).save(tmp_path / "a.png")
    outputs = Outputs(overlay=False)
    task = Task(tmp_path / "a.png", "a.png", outputs.targets(tmp_path / "a"))
    model = load(tiny_weights, dtype=INT8_FLOAT32, backend="eager", calibrate=found)
    with Workers(1) as workers:
        list(ToFiles(model, outputs, workers).run([task]))
        assert ToFiles(model, outputs, workers).done(task)
        model.calibration = dataclasses.replace(found, keep=tuple(candidates(model.plan())[:1]))
        assert not ToFiles(model, outputs, workers).done(task)


def test_ranges_hold_at_small_sizes():
    """What the embedded network knows of the whole image reaches further there; a range once did not."""
    model = stdc_fast.load(device="cpu", dtype="int8+float32", backend="eager")
    for size in ((64, 96), (96, 192)):
        frames = street(size)
        logits, _ = truth(trained(), frames)
        assert relative_error(model._runs(frames).logits(frames), logits) <= 5e-2
