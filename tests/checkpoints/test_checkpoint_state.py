"""State dicts in memory: the same checkpoints as from files, and families as rows."""

import dataclasses
import re
from pathlib import Path

import families
import pytest
import torch
from checkpoint_files import DECODER_NORMS, METADATA, canonical, read, same, thin

from stdc_fast import checkpoints
from stdc_fast.checkpoints import families as rows
from stdc_fast.errors import UserError
from stdc_fast.reference import STDCSeg

PACKAGE = Path(checkpoints.__file__).parent


def refusal(*arguments):
    """The message with which a state dict is refused: one line."""
    with pytest.raises(UserError) as caught:
        checkpoints.from_state(*arguments)
    message = str(caught.value)
    assert "\n" not in message and "FILE" not in message.replace("--backbone FILE", "")
    return message


@pytest.mark.parametrize("family", families.ROWS)
def test_a_state_dict_gives_what_its_file_gives(tmp_path, family):
    state, row = thin(family), families.ROWS[family]
    from_file = read(tmp_path / "model.pth", row.contents(state))
    for given in (state, row.contents(state), {f"module.{k}": v for k, v in state.items()}):
        loaded = checkpoints.from_state(given)
        assert same(loaded.state, from_file.state)
        same_but = {"state": loaded.state, "report": loaded.report, "notes": loaded.notes}
        assert loaded == dataclasses.replace(from_file, metadata=loaded.metadata, **same_but)
        mapped = [re.sub(r"\(.*?\)", "", c.report, count=1).split(";")[0] for c in (loaded, from_file)]
        assert mapped[0] == mapped[1]
    assert same(loaded.network().state_dict(), from_file.network().state_dict())


@pytest.mark.parametrize("family", families.ROWS)
def test_the_callers_tensors_are_neither_copied_nor_changed(family):
    state = {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in thin(family).items()}
    before = [(k, v, v._version, v.detach().clone()) for k, v in state.items()]
    loaded = checkpoints.from_state(state)
    loaded.network()
    assert [k for k, *_ in before] == list(state)
    for key, tensor, version, copy in before:
        assert state[key] is tensor and tensor._version == version and torch.equal(tensor, copy)
    places = {v.data_ptr() for v in state.values()}
    converted = {f"{n}.weight" for n in DECODER_NORMS} if family == "official" else set()
    assert {k for k, v in loaded.state.items() if v.data_ptr() not in places} == converted
    assert not any(v.requires_grad for v in loaded.state.values())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_any_float_dtype(dtype):
    # Contiguous, since a tensor of 8 bits is not converted through strides of zero everywhere.
    state = {k: v.contiguous().to(dtype) if v.is_floating_point() else v for k, v in thin("official").items()}
    loaded = checkpoints.from_state(state)
    made = loaded.network().state_dict()
    for key, value in canonical(state).items():
        assert torch.equal(made[key], value.float())


@pytest.mark.parametrize("family", families.ROWS)
def test_a_checkpoints_own_state_and_metadata_give_it_again(family):
    first = checkpoints.from_state(thin(family))
    again = checkpoints.from_state(first.state, first.metadata)
    assert again.family == "stdc_fast" and "in-place" not in again.report
    assert same(again.state, first.state)
    assert same(again.network().state_dict(), first.network().state_dict())


def test_metadata_tells_canonical_names_from_official_ones():
    state = checkpoints.from_state(thin("official-plain")).state
    assert all((state[f"{n}.weight"] < 0).all() for n in DECODER_NORMS)
    assert "batch_norm='in-place' or 'plain'" in refusal(state)
    ours, official = checkpoints.from_state(state, {}), checkpoints.from_state(state, batch_norm="in-place")
    assert (ours.family, official.family) == ("stdc_fast", "official")
    for name in DECODER_NORMS:
        assert torch.equal(ours.state[f"{name}.weight"], state[f"{name}.weight"])
        assert (official.state[f"{name}.weight"] > 0).all()
    assert "in-place" in official.report


def test_a_whole_reference_network_counts_batches_and_so_needs_no_metadata():
    made = STDCSeg("stdc1", 3, training_heads=True).eval()
    families.randomise(made, 2)
    state = checkpoints.inference_state(made)
    for loaded in (checkpoints.from_state(made.state_dict()), checkpoints.from_state(state, {})):
        assert same(loaded.state, state) and loaded.num_classes == 3


def test_metadata_is_kept_and_not_shared():
    state, metadata = checkpoints.from_state(thin("mmseg")).state, {**METADATA, "count_include_pad": False}
    loaded = checkpoints.from_state(state, metadata)
    assert loaded.metadata == metadata
    assert not loaded.network().cp.backbone.features[2].skip.count_include_pad
    metadata["variant"] = "stdc2"
    assert loaded.metadata["variant"] == "stdc1"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"classes": ["a", "b", "c"]}, "names 3 classes but its classifier has 19"),
        ({"classes": {"a"}}, "its classes are {'a'}, not a list of names"),
        ({"classes": ["a"] * 19}, "not all different"),
        ({"short_side": 8}, "short_side"),
        ({"variant": "stdc2"}, "does not match stdc2"),
        ([("variant", "stdc1")], "a dict or None, not list"),
    ],
    ids=str,
)
def test_metadata_that_does_not_fit(metadata, said):
    assert said in refusal(canonical(thin("official")), metadata)


@pytest.mark.parametrize("family", families.RENAMED)
def test_metadata_goes_with_canonical_names_only(family):
    state = thin(family)
    message = refusal(state, {"variant": "stdc1"})
    assert "canonical names" in message and "without metadata" in message and next(iter(state)) in message


@pytest.mark.parametrize("given", [None, "model.pth", {}, {"epoch": 3}, STDCSeg("stdc1", 3)], ids=type)
def test_no_state_dict(given):
    message = refusal(given)
    assert message.startswith("state dict: holds no state dict") and "network.state_dict()" in message


def test_tensors_without_values():
    state = {k: v.to("meta") for k, v in checkpoints.inference_state(STDCSeg("stdc1", 3)).items()}
    assert "meta device" in refusal(state, {})


@pytest.mark.parametrize("family", families.ROWS)
def test_the_checks_are_those_of_files(family):
    key, ours = next(iter(families.ROWS[family].samples.items()))
    state = thin(family)
    broken = {**state, key: torch.full(state[key].shape, float("nan"))}
    assert refusal(broken).startswith(f"state dict: {ours} holds NaN or infinite values")
    del broken[key]
    assert f"1 missing ({ours})" in refusal(broken)


def test_a_family_is_one_row(monkeypatch):
    # A code base that calls everything mine_*, whose norms hold the logarithm of gamma.
    def exponential(state, options):
        return {k: v.exp() if k.startswith("ffm.convblk.bn.w") else v for k, v in state.items()}, "exp(gamma)"

    row = rows.Family(
        "log-gamma",
        names=r"mine_",
        training_only=r"mine_teacher\.",
        rename=lambda t: {k.removeprefix("mine_"): v for k, v in t.items()},
        convert=exponential,
        classifier_bias=True,
    )
    state = checkpoints.from_state(thin("mmseg")).state
    theirs = {f"mine_{k}": v for k, v in state.items()} | {"mine_teacher.weight": torch.ones(1)}
    assert "known layout (paddle, official, mmseg, super-gradients, stdc_fast safetensors)" in refusal(theirs)
    monkeypatch.setattr(rows, "FAMILIES", (*rows.FAMILIES, row))
    loaded = checkpoints.from_state(theirs)
    assert loaded.report == (
        "log-gamma (state dict): mapped 194 of 194 tensors, dropped 1 training-only ones; exp(gamma)"
    )
    gamma = "ffm.convblk.bn.weight"
    assert same(loaded.state, {**state, gamma: state[gamma].exp()})
    del theirs["mine_conv_out.conv_out.bias"]
    assert "1 missing (conv_out.conv_out.bias)" in refusal(theirs)


def test_only_a_familys_own_file_names_it():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ("families", "writers"):
            assert not re.search(r"[\"'](official|mmseg|paddle|super-gradients)[\"']", path.read_text()), path
