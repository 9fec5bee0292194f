"""``stdc_fast.calibrate`` and int8 models: ranges from frames, kept in files, bound to their weights."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from levelled import leave_ops_alone
from PIL import Image
from refusals import refusal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import stdc_fast
from stdc_fast import Calibration, checkpoints
from stdc_fast.backends.eager.rounding import Observer
from stdc_fast.calibration import frames as pictures
from stdc_fast.numerics import relative_error
from stdc_fast.plan.quantise import candidates, wanted
from stdc_fast.precision import INT8_FLOAT32


def load(path, **options):
    return stdc_fast.load(path, device="cpu", **options)


@pytest.fixture(scope="module")
def batch(photo):
    """uint8 ``[6, 64, 96, 3]``."""
    return np.stack([photo(seed=seed) for seed in range(6)])


@pytest.fixture(scope="module")
def found(tiny_model, batch):
    return stdc_fast.calibrate(tiny_model, batch)


@pytest.fixture
def model(tiny_weights, found):
    """A model of its own that runs in 8 bits and in float32 maps."""
    return load(tiny_weights, dtype=INT8_FLOAT32, backend="eager", calibrate=found)


@pytest.fixture
def ops_alone(monkeypatch):
    leave_ops_alone(monkeypatch)


# What is found.


def test_ranges_are_of_all_that_any_op_may_read(tiny_model, found):
    plan = tiny_model.plan()
    needed = wanted(plan, candidates(plan))
    assert {key: len(one.low) for key, one in found.ranges.items()} == needed
    assert wanted(tiny_model.plan(False), candidates(tiny_model.plan(False))) == needed
    assert found.frames == 5 and found.about["held_out"] == 1 and found.source == "arrays"
    assert found.fingerprint == checkpoints.fingerprint(tiny_model.network)
    assert found.version == stdc_fast.__version__
    assert str(found) == f"ranges by {found.method} of 5 frames of arrays"


def test_the_model_stays_as_it_was(tiny_model, batch, ops_alone):
    before = tiny_model.precision, tiny_model.calibration, tiny_model.label(batch)
    stdc_fast.calibrate(tiny_model, batch[:2], method="max", limit=None)
    assert tiny_model.precision is before[0] and tiny_model.calibration is before[1]
    assert torch.equal(tiny_model.label(batch), before[2])


def test_extremes_are_those_that_another_look_finds(tiny_model, batch, ops_alone):
    from stdc_fast.backends import eager

    found = stdc_fast.calibrate(tiny_model, batch[:1], method="max", limit=None)
    assert found.frames == 1 and found.about["held_out"] == 0
    observer = Observer()
    eager.compile(tiny_model.plan(), rounding=observer).logits(torch.from_numpy(batch[:1]))
    for key, one in found.ranges.items():
        low, high = observer.ranges[key]
        assert float(one.low.min()) == pytest.approx(low, abs=1e-6)
        assert float(one.high.max()) == pytest.approx(high, rel=1e-6)


def test_the_best_method_has_the_least_error(found):
    rows = found.about["compared"]
    assert [row["method"] for row in rows] == ["max", "percentile:99.999", "percentile:99.99", "mse"]
    assert found.method == min(rows, key=lambda row: row["error"])["method"]
    assert all(0 < row["error"] < 0.2 and 0.9 < row["agreement"] <= 1 for row in rows)
    (best,) = [row for row in rows if row["method"] == found.method]
    assert (found.about["error"], found.about["agreement"]) == (best["error"], best["agreement"])


def test_frames_are_drawn_by_the_seed(tiny_model, photo, tmp_path):
    for i in range(9):
        Image.fromarray(photo(seed=i)).save(tmp_path / f"{i}.png")

    def drawn(seed):
        return [name for name, _ in pictures.choose(tmp_path, 4, seed).items]

    assert drawn(0) == drawn(0) and len(set(drawn(0))) == 4
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1
    looked, held = pictures.split(pictures.choose(tmp_path, 8, 0), [False] * 8, 0)
    names = [{name for name, _ in part.items} for part in (looked, held)]
    assert not names[0] & names[1] and [len(part) for part in names] == [6, 2]
    assert looked.source == held.source == "/".join(tmp_path.parts[-2:])


def test_frames_of_every_kind_say_the_same(tiny_model, photo, tmp_path, ops_alone):
    """A folder, paths, arrays, one array, and normalised tensors."""
    arrays = [photo(seed=i) for i in range(2)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    normal = stdc_fast.images.normalise(torch.from_numpy(np.stack(arrays)))
    sources = (tmp_path, sorted(tmp_path.iterdir()), normal)
    results = [stdc_fast.calibrate(tiny_model, s, method="max", limit=None) for s in sources]
    for one in results[1:]:
        assert one.frames == results[0].frames == 1
        for key, expected in results[0].ranges.items():
            assert torch.allclose(one.ranges[key].high, expected.high, rtol=1e-4, atol=1e-5)


def test_ops_that_are_kept(tiny_model, batch, ops_alone):
    plan = tiny_model.plan()
    first, second = candidates(plan)[:2]
    found = stdc_fast.calibrate(tiny_model, batch[:2], method="max", keep=["features.1", second], limit=None)
    assert found.keep == (first, second)
    model = load_in_8_bits(tiny_model, found)
    ops = {op.name: op for op in model.compiled_plan().ops}
    assert not ops[first].multipliers and not ops[second].multipliers
    assert [op.name for op in ops.values() if getattr(op, "multipliers", None)] == model.ops_in_levels()


def load_in_8_bits(model, found):
    other = copy.deepcopy(model)
    other.calibration = found
    other.dtype = INT8_FLOAT32
    return other


def test_an_op_beyond_the_limit_is_kept(tiny_model, batch):
    """Between the errors of two ops, so that one side is left out and the other is not."""
    free = stdc_fast.calibrate(tiny_model, batch[:3], method="max", limit=1.0)
    errors = {row["name"]: row["error"] for row in free.about["alone"]}
    assert list(errors) == candidates(tiny_model.plan()) and free.keep == ()
    assert set(free.about["ops"]) <= set(errors)
    middle = sorted(errors.values())[len(errors) // 2]
    found = stdc_fast.calibrate(tiny_model, batch[:3], method="max", limit=middle)
    assert set(found.keep) == {name for name, error in errors.items() if error > middle}
    whys = {row["name"]: row["kept"] for row in found.about["alone"]}
    assert all(bool(whys[name]) == (name in found.keep) for name in errors)
    assert not set(found.about["ops"]) & set(found.keep)


def test_progress_sees_every_step(tiny_model, batch):
    steps = []

    def progress(items, what, total):
        items = list(items)
        steps.append(what)
        assert len(items) == total
        return items

    stdc_fast.calibrate(tiny_model, batch[:4], progress=progress)
    assert (
        steps[:5] == ["frames", "greatest values", "histograms", "float32", "methods"]
        and "each op alone" in steps
    )


# What is refused.


def unreadable(folder, photo):
    Image.fromarray(photo()).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:99])
    return folder


def flat(folder, photo):
    for i in range(3):
        Image.new("RGB", (96, 64), (10 * i, 20, 30)).save(folder / f"{i}.png")
    return folder


def with_nan(folder, photo):
    x = stdc_fast.images.normalise(torch.from_numpy(photo())[None])
    x[0, 1, 5, 5] = torch.nan
    return x


BAD = {
    "no frames": (lambda folder, photo: [], "no frames to calibrate on"),
    "no frames in an array": (lambda folder, photo: np.zeros((0, 64, 96, 3), np.uint8), "no frames"),
    "an empty folder": (lambda folder, photo: folder, "holds no image files"),
    "no folder": (lambda folder, photo: folder / "nothing", "no such file"),
    "an unreadable picture": (unreadable, "b.png: can not be decoded"),
    "one flat colour each": (flat, "of one flat colour"),
    "NaN": (with_nan, "NaN or infinity"),
    "no pictures at all": (lambda folder, photo: 7, "expected a path"),
    "too small a picture": (lambda folder, photo: [photo(8, 8)], "too small"),
}


@pytest.mark.parametrize("name", BAD)
def test_frames_that_say_nothing(name, tiny_model, tiny_weights, tmp_path, photo):
    make, said = BAD[name]
    source = make(tmp_path, photo)
    assert said in refusal(stdc_fast.calibrate, tiny_model, source)
    assert said in refusal(load, tiny_weights, dtype="int8", calibrate=source)


def test_some_flat_frames_are_no_matter(tiny_model, photo, ops_alone):
    frames = [np.zeros((64, 96, 3), np.uint8), photo(), photo(seed=1)]
    assert stdc_fast.calibrate(tiny_model, frames, method="max", limit=None).frames == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count must be a number of frames from 1 on, not 0"),
        ({"count": 2.5}, "not 2.5"),
        ({"method": "median"}, "method must be best, max"),
        (
            {"keep": ["features.11"]},
            "no op that can run in 8 bits is called 'features.11'; did you mean",
        ),
        ({"keep": ["zzz"]}, "known are features.1, "),
    ],
    ids=str,
)
def test_wrong_arguments(options, said, tiny_model, batch):
    assert said in refusal(stdc_fast.calibrate, tiny_model, batch, **options)


# A model in 8 bits.


def test_logits_are_near_those_of_floats(model, tiny_model, batch):
    x = stdc_fast.images.normalise(torch.from_numpy(batch))
    assert relative_error(model(x), tiny_model(x)) < 0.1
    assert relative_error(model(x), tiny_model(x)) > 1e-5  # it is not the plan of floats
    agreement = (model.label(batch) == tiny_model.label(batch)).float().mean()
    assert agreement > 0.9
    kinds = {getattr(op, "multipliers", None) is not None for op in model.compiled_plan().ops}
    assert kinds == {True, False}


def test_frames_and_normalised_images_have_the_same_ops(model):
    frames, images = (model.compiled_plan(raw) for raw in (True, False))
    assert [op.name for op in frames.ops] == [op.name for op in images.ops]


def test_int8_is_never_chosen_without_being_asked_for(tiny_weights, found):
    model = load(tiny_weights, calibrate=found)
    assert not model.precision.levels and model.calibration is found
    assert load(tiny_weights, dtype="int8", calibrate=found).precision.name.startswith("int8")


def test_without_ranges(tiny_weights, found):
    said = refusal(load, tiny_weights, dtype="int8")
    assert f"{tiny_weights}: int8 needs ranges" in said
    assert f"stdc-fast calibrate {tiny_weights} FOLDER --out FILE.safetensors" in said
    model = load(tiny_weights, dtype="float32")
    before = model.precision
    assert "int8 needs ranges" in refusal(setattr, model, "dtype", "int8") and model.precision is before
    model.calibration = found
    model.dtype = "int8"
    assert model.precision.levels and "set after loading" in model.reason
    assert "unknown dtype 'auto'" in refusal(setattr, model, "dtype", "auto")
    assert "expected a Calibration, not str" in refusal(setattr, model, "calibration", "q.safetensors")


def test_a_gpu_is_refused(tiny_weights, found, monkeypatch):
    from stdc_fast import zoo

    monkeypatch.setattr(zoo.backends, "resolve_device", lambda device: torch.device("cuda"))
    monkeypatch.delenv("STDC_FAST_BACKEND", raising=False)
    assert "int8 needs the CUDA kernels or Triton on a GPU (" in refusal(
        stdc_fast.load, tiny_weights, dtype="int8", calibrate=found
    )


def changed_by_training(model):
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(torch.randn(2, 3, 64, 96)).square().mean().backward()
    optimizer.step()
    model.eval().requires_grad_(False)


def changed_by_load_state_dict(model):
    state = {k: v * 1.01 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def changed_by_hand(model):
    with torch.no_grad():
        model.network.conv_out.conv_out.weight[0, 0] += 1e-3


@pytest.mark.parametrize("change", [changed_by_training, changed_by_load_state_dict, changed_by_hand])
def test_ranges_of_other_weights_are_refused(change, model, batch, tmp_path, caplog, ops_alone):
    model.label(batch)
    change(model)
    for call in (model.label, model.predict):
        said = refusal(call, batch)
        assert "are of other weights than it has; calibrate it again" in said
    model.save_pretrained(tmp_path)
    assert "are of other weights, and are left out" in caplog.text
    assert load(tmp_path).calibration is None
    model.dtype = "float32"
    model.label(batch)
    model.calibrate(batch, method="max", limit=None)
    model.dtype = "int8"
    model.label(batch)


def test_another_networks_ranges(tmp_path, tiny_network, found):
    other = copy.deepcopy(tiny_network)
    with torch.no_grad():
        next(other.parameters())[0, 0, 0, 0] += 0.1
    path = tmp_path / "other.safetensors"
    checkpoints.save(checkpoints.inference_state(other), path, {"variant": "stdc1"})
    checkpoints.save_ranges(found, tmp_path / "q.ranges.safetensors")
    for given in (found, tmp_path / "q.ranges.safetensors"):
        assert "are of other weights" in refusal(load, path, dtype="int8", calibrate=given)


def test_other_ranges_pack_anew(model, found, batch):
    before = model(stdc_fast.images.normalise(torch.from_numpy(batch)))
    half = {k: dataclasses.replace(r, low=r.low / 2, high=r.high / 2) for k, r in found.ranges.items()}
    model.calibration = dataclasses.replace(found, ranges=half)
    after = model(stdc_fast.images.normalise(torch.from_numpy(batch)))
    assert relative_error(after, before) > 1e-3


def test_copies_and_pickles_keep_ranges(model, batch):
    expected = model.label(batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.label(batch), expected)


def test_accelerate_has_no_ranges(tiny_network):
    assert "has no ranges, which int8 needs" in refusal(
        stdc_fast.accelerate, copy.deepcopy(tiny_network), dtype="int8"
    )


def test_an_exported_program_is_of_floats(model, caplog):
    program = torch.export.export(model, (torch.randn(1, 3, 64, 96),))
    assert "is exported in float32, as exported programs have no ranges" in caplog.text
    assert "stdc_seg" in str(program.graph)


# The fingerprint.


def test_the_fingerprint_is_of_weights_and_settings(tiny_network):
    mark = checkpoints.fingerprint(tiny_network)
    assert mark == checkpoints.fingerprint(copy.deepcopy(tiny_network).double())
    assert mark == checkpoints.fingerprint(copy.deepcopy(tiny_network).to(memory_format=torch.channels_last))
    for change in ("weight", "statistics", "eps", "mean", "pad"):
        other = copy.deepcopy(tiny_network)
        if change == "weight":
            other.conv_out.conv_out.weight.data[0, 0] *= 1.001
        elif change == "statistics":
            other.conv_out.conv.bn.running_mean[3] += 1e-3
        elif change == "eps":
            other.conv_out.conv.bn.eps = 1e-3
        elif change == "mean":
            other.mean = (0.5, 0.5, 0.5)
        else:
            pools = [m for m in other.modules() if isinstance(m, torch.nn.AvgPool2d)]
            pools[0].count_include_pad = False
        assert checkpoints.fingerprint(other) != mark, change


# Files.


def same(a, b):
    assert a.facts() == b.facts() and a.ranges.keys() == b.ranges.keys()
    for key, one in a.ranges.items():
        for field in ("low", "high", "mean"):
            assert torch.equal(getattr(one, field), getattr(b.ranges[key], field)), key


def test_a_model_with_ranges_as_a_file(model, found, batch, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    for source in (tmp_path, path):
        again = load(source, dtype=INT8_FLOAT32, backend="eager")
        same(again.calibration, found)
        assert torch.equal(again.label(batch), model.label(batch))
    plain = load(path, dtype="float32", backend="eager")
    assert "calibration" not in plain.metadata
    float_model = copy.deepcopy(model)
    float_model.dtype = "float32"
    assert torch.equal(plain.label(batch), float_model.label(batch))
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "stdc_fast 3"
        assert json.loads(file.metadata()["calibration"])["frames"] == 5
    again.save_pretrained(tmp_path / "again")
    same(load(tmp_path / "again").calibration, found)


def test_ranges_of_weights_in_half_precision(model, batch, tmp_path):
    model.save_pretrained(tmp_path, half=True)
    again = load(tmp_path, dtype="int8")
    assert again.calibration.fingerprint != model.calibration.fingerprint
    assert (again.label(batch) == model.label(batch)).float().mean() > 0.9


def test_ranges_alone_as_a_file(tiny_weights, found, batch, tmp_path):
    path = tmp_path / "q.ranges.safetensors"
    checkpoints.save_ranges(found, path)
    same(checkpoints.read_ranges(path), found)
    same(load(tiny_weights, dtype="int8", calibrate=path).calibration, found)
    assert "holds ranges of a network, no weights; give it to load() as calibrate=" in refusal(load, path)
    assert "has no ranges; stdc-fast calibrate makes them" in refusal(checkpoints.read_ranges, tiny_weights)
    assert "no such file" in refusal(checkpoints.read_ranges, tmp_path / "nothing.safetensors")


def test_ranges_beside_the_weights(tiny_weights, found, tmp_path, caplog):
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(tiny_weights.read_bytes())
    beside = tmp_path / "net.ranges.safetensors"
    checkpoints.save_ranges(found, beside)
    same(load(weights, dtype="int8").calibration, found)
    same(load(tmp_path).calibration, found)  # the folder has one file of weights
    beside.write_bytes(beside.read_bytes()[:1000])
    assert "net.ranges.safetensors: damaged safetensors file" in refusal(load, weights, dtype="int8")
    assert load(weights).calibration is None and "are left out" in caplog.text


def rewritten(path, tensors=None, facts=None):
    """A file of ranges with some of it replaced."""
    content = load_file(path)
    with safe_open(path, "pt") as file:
        text = file.metadata()
    said = {**json.loads(text["calibration"]), **(facts or {})}
    save_file({**content, **(tensors or {})}, path, {**text, "calibration": json.dumps(said)})


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"frames": "many"}, "frames is 'many'"),
        ({"keep": [1]}, "keep is [1]"),
        ({"fingerprint": None}, "fingerprint is None"),
    ],
    ids=str,
)
def test_damaged_facts(facts, said, found, tmp_path):
    path = tmp_path / "q.ranges.safetensors"
    checkpoints.save_ranges(found, path)
    rewritten(path, facts=facts)
    assert f"damaged ranges ({said}" in refusal(checkpoints.read_ranges, path)


@pytest.mark.parametrize("values", [[[1.0], [0.0], [0.5]], [[torch.nan]] * 3, [[0.0], [1.0]]], ids=str)
def test_damaged_ranges(values, found, tmp_path):
    path = tmp_path / "q.ranges.safetensors"
    checkpoints.save_ranges(found, path)
    rewritten(path, {"ranges/a": torch.tensor(values)})
    assert "damaged ranges (ranges/a is not of finite numbers" in refusal(checkpoints.read_ranges, path)


def test_ranges_of_a_version_whose_plans_had_other_ops(model, found, batch):
    key = next(iter(found.ranges))
    some = {k: one for k, one in found.ranges.items() if k != key}
    model.calibration = dataclasses.replace(found, ranges=some)
    assert "do not fit (there is no range of" in refusal(model.label, batch)


def test_ranges_of_a_damaged_calibration_are_none():
    assert "there are none" in refusal(Calibration.of, {}, facts())
    assert "said of them is 3" in refusal(Calibration.of, {}, 3)


def facts():
    texts = dict.fromkeys(("method", "source", "fingerprint", "version"), "x")
    return {**texts, "frames": 1, "keep": [], "about": {}}
