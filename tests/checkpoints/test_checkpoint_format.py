"""Our own safetensors: round trips, metadata, failed writes."""

import families
import pytest
import safetensors.torch
import torch
from checkpoint_files import METADATA, read, refusal, relative_error, same, weights

from stdc_fast import checkpoints
from stdc_fast.errors import UserError
from stdc_fast.reference import STDCSeg


def test_round_trip_is_bit_exact(tmp_path):
    first = read(tmp_path / "model.pth", families.ROWS["mmseg"].contents(weights("mmseg")))
    path = tmp_path / "new" / "folder" / "model.safetensors"
    checkpoints.save(first.state, path, METADATA)
    second = checkpoints.read(path)
    assert same(second.state, first.state)
    assert {v.dtype for v in second.state.values()} == {torch.float32}
    assert (second.metadata, second.family, second.variant) == (METADATA, "stdc_fast", "stdc1")
    bias = second.network().conv_out.conv_out.bias
    assert torch.equal(bias, weights("mmseg")["decode_head.conv_seg.bias"])
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_in_place_norm_is_converted_once(tmp_path):
    # The decoder has no counters in our files either, and must not be taken for in-place norm again.
    first = read(tmp_path / "model.pth", weights("official"))
    checkpoints.save(first.state, tmp_path / "model.safetensors", METADATA)
    second = checkpoints.read(tmp_path / "model.safetensors")
    assert same(second.state, {k: v.float() for k, v in first.state.items()})
    assert "in-place" not in second.report


def test_round_trip_without_metadata(tmp_path):
    # Nothing in save() demands metadata, and the format's mark alone says whose file it is.
    state = read(tmp_path / "model.pth", weights("official-plain")).state
    checkpoints.save(state, tmp_path / "model.safetensors", {})
    loaded = checkpoints.read(tmp_path / "model.safetensors")
    assert loaded.family == "stdc_fast"
    assert same(loaded.state, state)


def test_half_keeps_the_norms(tmp_path):
    state = read(tmp_path / "model.pth", families.ROWS["mmseg"].contents(weights("mmseg"))).state
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    checkpoints.save(state, full, METADATA)
    checkpoints.save(state, half, METADATA, half=True)
    loaded = checkpoints.read(half)
    assert loaded.metadata == METADATA
    convolutions = [k for k in state if state[k].ndim == 4]
    assert len(convolutions) == 29 + 9 + 2 + 1  # the backbone's, one per decoder norm, gate, classifier
    for key, value in state.items():
        wanted = value.half() if key in convolutions else value
        assert loaded.state[key].dtype == wanted.dtype and torch.equal(loaded.state[key], wanted)
    assert half.stat().st_size < 0.51 * full.stat().st_size
    assert loaded.network().conv_out.conv_out.weight.dtype == torch.float32


@pytest.mark.parametrize(("module", "include_pad"), [("cat", True), ("cat", False), ("add", True)])
def test_round_trip_of_each_module(tmp_path, module, include_pad):
    made = STDCSeg("stdc1", 3, module, include_pad, training_heads=True).eval()
    families.randomise(made, 2)
    metadata = {"variant": "stdc1", "count_include_pad": include_pad}
    checkpoints.save(checkpoints.inference_state(made), tmp_path / "model.safetensors", metadata)
    loaded = checkpoints.read(tmp_path / "model.safetensors")
    assert (loaded.module, loaded.num_classes) == (module, 3)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        ours, wanted = loaded.network(torch.float64)(x), made.double()(x)
        assert relative_error(ours, wanted) <= 1e-10
        if module == "cat":  # else the flag would not have been tested
            other = STDCSeg("stdc1", 3, module, not include_pad).double().eval()
            other.load_state_dict(made.state_dict(), strict=False)
            assert relative_error(other(x), wanted) > 1e-4


def test_inference_state_leaves_training_out():
    made = STDCSeg("stdc1", 3, training_heads=True)
    state = checkpoints.inference_state(made)
    assert len(state) == 193
    left_out = made.state_dict().keys() - state.keys()
    heads = ("conv_out16.", "conv_out32.", "conv_out_sp8.")
    assert all(k.startswith(heads) or k.endswith("num_batches_tracked") for k in left_out)
    assert not any(k.startswith(heads) for k in state)
    assert checkpoints.inference_state(STDCSeg("stdc1", 3)).keys() == state.keys()


def test_a_failed_save_leaves_the_old_file(tmp_path):
    state = checkpoints.inference_state(STDCSeg("stdc1", 3))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    state["ffm.conv1.weight"] = state["ffm.conv1.weight"] + 1e5
    with pytest.raises(UserError, match=r"ffm\.conv1\.weight.*fp16"):
        checkpoints.save(state, path, {}, half=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_places_that_can_not_be_written(tmp_path):
    state = {"a": torch.ones(3)}
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "model.safetensors", tmp_path):
        assert "written" in refusal(path, lambda p: checkpoints.save(state, p, {}))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000, "{"], ids=["digits", "nested", "cut"])
def test_metadata_that_is_no_json(tmp_path, value):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(
        {"weight": torch.zeros(1)}, path, metadata={"format": "stdc_fast 1", "classes": value}
    )
    assert "damaged metadata" in refusal(path)
