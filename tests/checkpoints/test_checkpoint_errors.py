"""What is refused, and why: damaged, foreign and malicious files."""

import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import families
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from checkpoint_files import METADATA, canonical, refusal, serialise, thin, write

from stdc_fast import checkpoints


@pytest.mark.parametrize("reader", [checkpoints.read, checkpoints.read_backbone])
def test_nothing_to_read(tmp_path, reader):
    assert "no such file" in refusal(tmp_path / "model.pth", reader)
    assert "folder" in refusal(tmp_path, reader)
    (tmp_path / "empty.pth").touch()
    assert "empty" in refusal(tmp_path / "empty.pth", reader)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "start", [b"", b"PK\x03\x04", b"\x80", b"\x80\x02", bytes(7) + b"\x01{", bytes(8) + b"{"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_bytes(tmp_path, start, seed):
    path = tmp_path / "model.pth"
    path.write_bytes(start + np.random.default_rng(seed).bytes(4000))
    message = refusal(path)
    assert "damaged" in message or "neither" in message
    assert "Python objects" not in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_file(tmp_path, legacy):
    whole = serialise(thin("official"), _use_new_zipfile_serialization=not legacy)
    path = tmp_path / "model.pth"
    name = whole.index(b"cp.arm16") + 4
    for size in (40, name, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = refusal(path)
        assert "damaged" in message, (size, message)
        assert "()" not in message, (size, message)


@pytest.mark.parametrize("size", [9, 200, -1000, -1])
def test_truncated_safetensors(tmp_path, size):
    path = tmp_path / "model.safetensors"
    checkpoints.save({"a": torch.ones(1000), "b": torch.ones(1000)}, path, METADATA)
    path.write_bytes(path.read_bytes()[:size])
    assert "damaged" in refusal(path)


def test_an_archive_of_something_else(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    assert "torch checkpoint" in refusal(tmp_path / "arrays.npz")


@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive")
def test_torchscript_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        for name in ("data.pkl", "constants.pkl", "version"):
            file.writestr(f"model/{name}", b"3\n")
    assert "TorchScript" in refusal(tmp_path / "model.pt")


class Bomb:
    def __init__(self, call, argument):
        self.call, self.argument = call, argument

    def __reduce__(self):
        return (self.call, (self.argument,))


# torch has another message for the modules that it blocks by name, as os.
@pytest.mark.parametrize("call", [os.mkdir, Path.touch])
@pytest.mark.parametrize("reader", [checkpoints.read, checkpoints.read_backbone])
def test_nothing_is_executed(tmp_path, reader, call):
    marker, path = tmp_path / "executed", tmp_path / "model.pth"
    bomb = Bomb(call, marker)
    pickle.loads(pickle.dumps(bomb))
    assert marker.exists()  # so it would work
    marker.rmdir() if marker.is_dir() else marker.unlink()
    state = thin("official")
    for data in (serialise(bomb), pickle.dumps(bomb, protocol=2), serialise({"model": bomb})):
        path.write_bytes(data)
        message = refusal(path, reader)
        assert not marker.exists()
        assert "code" in message and "state_dict()" in message
    path.write_bytes(serialise({**state, "extra": bomb}))
    assert "extra is made by" in refusal(path, reader)
    # Beside the weights it is nobody's business.
    for legacy in (False, True):
        content = {"state_dict": state, "meta": bomb}
        path.write_bytes(serialise(content, _use_new_zipfile_serialization=not legacy))
        reader(path)
    assert not marker.exists()
    # What is not even looked at is not executed either.
    path.write_bytes(pickle.dumps(bomb, protocol=0))
    refusal(path, reader)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.ones(2),
        {},
        {"state_dict": {}},
        {"epoch": 3},
        {"conv": torch.ones(2), "epoch": 3},
        {0: torch.ones(2), 1: torch.ones(2)},
    ],
)
def test_no_state_dict(tmp_path, content):
    assert "no state dict" in refusal(write(tmp_path / "model.pth", content))


def test_another_network(tmp_path):
    state = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)}
    message = refusal(write(tmp_path / "model.pth", state))
    assert "known layout" in message and "layer1.0.conv1.weight" in message


# (family, its name, ours)
SAMPLES = [(f, *pair) for f, row in families.ROWS.items() for pair in row.samples.items()]
STRANGERS = [(f, *pair) for f, row in families.ROWS.items() for pair in row.strangers.items()]
# A name of our backbone would make an official file of any.
RENAMED = [s for s in SAMPLES if s[0] in families.RENAMED and not s[2].startswith("cp.backbone.")]


@pytest.mark.parametrize(("family", "key", "ours"), SAMPLES)
def test_missing_key(tmp_path, family, key, ours):
    state = thin(family)
    del state[key]
    message = refusal(write(tmp_path / "model.pth", families.ROWS[family].contents(state)))
    assert f"1 missing ({ours})" in message and "unexpected" not in message


@pytest.mark.parametrize(("family", "key", "ours"), STRANGERS)
def test_unexpected_key(tmp_path, family, key, ours):
    state = {**thin(family), key: torch.ones(256)}
    message = refusal(write(tmp_path / "model.pth", families.ROWS[family].contents(state)))
    assert f"1 unexpected ({ours})" in message and "missing" not in message


@pytest.mark.parametrize(("family", "key", "ours"), RENAMED)
@pytest.mark.parametrize("first", [False, True])
def test_one_name_must_not_overwrite_another(tmp_path, family, key, ours, first):
    # Our name beside the family's own for the same tensor: one of the two would be lost in silence.
    extra, state = {ours: torch.ones(256)}, thin(family)
    assert key in state
    state = {**extra, **state} if first else {**state, **extra}
    message = refusal(write(tmp_path / "model.pth", families.ROWS[family].contents(state)))
    assert key in message or ours in message


def test_first_differing_keys_are_listed(tmp_path):
    state = thin("official")
    missing = [k for k in state if k.startswith("cp.conv_avg.")]
    assert len(missing) == 5
    for key in missing:
        del state[key]
    unexpected = [f"cp.conv_max.{i}" for i in range(7)]
    state.update({k: torch.ones(1) for k in unexpected})
    message = refusal(write(tmp_path / "model.pth", state))
    assert f"5 missing ({', '.join(missing[:3])}, ...)" in message
    assert f"7 unexpected ({', '.join(unexpected[:3])}, ...)" in message
    assert not any(k in message for k in missing[3:] + unexpected[3:])


def test_unknown_number_of_blocks(tmp_path):
    state = thin("official")
    state = {k: v for k, v in state.items() if "features.7." not in k and not k.startswith("cp.backbone.x")}
    message = refusal(write(tmp_path / "model.pth", state))
    assert "7 blocks" in message and "8 (stdc1)" in message and "14 (stdc2)" in message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("cp.arm32.conv.conv.weight", (128, 1024, 1, 1)),
        ("cp.conv_avg.bn.running_mean", (64,)),
        ("ffm.convblk.bn.weight", ()),
        ("ffm.conv1.weight", (64, 256)),
        ("conv_out.conv_out.weight", (19, 128, 1, 1)),
        ("conv_out.conv_out.weight", (0, 256, 1, 1)),
        ("conv_out.conv_out.weight", ()),
    ],
)
def test_wrong_shape(tmp_path, key, shape):
    state = thin("official")
    state[key] = torch.ones(shape)
    message = refusal(write(tmp_path / "model.pth", state))
    assert f"{key} has shape {list(shape)}" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "key", ["cp.conv_head16.conv.weight", "ffm.convblk.bn.weight", "conv_out.conv.bn.running_var"]
)
def test_values_must_be_finite(tmp_path, key, value):
    state = thin("official")
    state[key] = state[key].clone()
    state[key].view(-1)[-1] = value
    message = refusal(write(tmp_path / "model.pth", state))
    assert f"{key} holds NaN or infinite values" in message and "diverged" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
@pytest.mark.parametrize(
    "key", ["cp.conv_head16.conv.weight", "ffm.convblk.bn.weight", "conv_out.conv.bn.bias"]
)
def test_tensors_must_be_floating_point(tmp_path, key, dtype):
    state = thin("official")
    state[key] = torch.ones(state[key].shape, dtype=dtype)
    message = refusal(write(tmp_path / "model.pth", state))
    assert f"{key} is {dtype}, not a float tensor" in message


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"classes": ["a", "b", "c"]}, "names 3 classes but its classifier has 19"),
        ({"classes": 19}, "classes"),
        ({"variant": "stdc3"}, "'stdc3'; known are stdc1, stdc2"),
        ({"variant": "stdc2"}, "does not match stdc2"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, metadata, said):
    checkpoints.save(canonical(thin("official")), tmp_path / "model.safetensors", metadata)
    assert said in refusal(tmp_path / "model.safetensors")


def test_metadata_that_can_not_be_read(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata, said in (
        ({"format": "stdc_fast 1", "classes": "[1, 2"}, "metadata"),
        ({"format": "stdc_fast 4"}, "'stdc_fast 4', this version reads 'stdc_fast 1', 'stdc_fast 2' and"),
    ):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata=metadata)
        assert said in refusal(path)


def test_the_format_on_disk(tmp_path):
    # What other programs may rely on: a mark, JSON values, plain tensors.
    path = tmp_path / "model.safetensors"
    checkpoints.save({"a": torch.ones(3)}, path, METADATA)
    with safetensors.safe_open(path, framework="pt") as file:
        text = file.metadata()
        assert torch.equal(file.get_tensor("a"), torch.ones(3))
    assert text.pop("format") == "stdc_fast 1"
    assert {k: json.loads(v) for k, v in text.items()} == METADATA


def test_training_logs_beside_the_weights_do_no_harm(tmp_path, monkeypatch):
    """mmengine pickles its own objects and NumPy scalars beside the weights: read past, never made."""
    made = []

    class HistoryBuffer:
        def __init__(self):
            self.values = np.arange(3.0)

        def __setstate__(self, state):
            made.append(state)

    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {
        "meta": {"best": np.float64(0.7)},
        "message_hub": {"log": HistoryBuffer()},
        "state_dict": thin("mmseg"),
    }
    path = write(tmp_path / "iter_80000.pth", content)
    assert checkpoints.read(path).family == "mmseg"
    assert made == []
