"""Files that are no checkpoints: what each is, and what to do, in one line."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_files import refusal, same, serialise, thin, write
from PIL import Image

from stdc_fast import checkpoints
from stdc_fast.errors import UserError


def packed(data, mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        info = tarfile.TarInfo("model.pth")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def saved(save, *arguments):
    buffer = io.BytesIO()
    save(buffer, *arguments)
    return buffer.getvalue()


def zipped(**records):
    def save(buffer):
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in records.items():
                archive.writestr(name, data)

    return saved(save)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 33204127\n"
PICTURE = saved(lambda b: Image.new("RGB", (8, 8)).save(b, "PNG"))
FILES = {
    "a Git LFS pointer": (LFS, "git lfs pull"),
    "gzip": (gzip.compress(b"x" * 99), "compressed (gzip); unpack"),
    "bzip2": (bz2.compress(b"x" * 99), "compressed (bzip2)"),
    "xz": (lzma.compress(b"x" * 99), "compressed (xz)"),
    "tar": (packed(b"x" * 99, "w"), "tar archive; unpack"),
    "tar.gz": (packed(b"x" * 99, "w:gz"), "compressed (gzip)"),
    "a page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "xml": (b'<?xml version="1.0"?><net name="x"></net>', "OpenVINO"),
    "json": (b'{"weight_map": {}}', "JSON"),
    "a text": (b"import torch\n", "text file"),
    "npy": (saved(np.save, np.ones(3)), "NumPy array"),
    "npz": (saved(np.savez, np.ones(3)), "is NumPy arrays"),
    "a zip with it": (zipped(**{"a/model.pth": "x"}), "zip archive with a/model.pth in it; unpack"),
    "another zip": (zipped(**{"word/document.xml": "x"}), "a zip archive, not a torch checkpoint"),
    "a picture": (PICTURE, "picture"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:\x00", "ONNX"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(99), "TensorFlow Lite"),
    "bytes": (bytes(range(1, 200)), "neither"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("reader", [checkpoints.read, checkpoints.read_backbone])
def test_what_a_file_is(tmp_path, name, reader):
    data, said = FILES[name]
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    assert said in refusal(path, reader)


@pytest.mark.filterwarnings("ignore")
def test_programs_of_torch(tmp_path):
    module = torch.nn.Linear(2, 2).eval()
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 2)), tmp_path / "model.pt")
    assert "TorchScript" in refusal(tmp_path / "model.pt")
    torch.save(module, tmp_path / "whole.pth")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "whole.pth")
    torch.save({"model": module, "epoch": 1}, tmp_path / "whole.pth")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "whole.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torch_export(tmp_path):
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "model.pt2")
    assert "torch.export" in refusal(tmp_path / "model.pt2")


def test_one_changed_byte_is_seen(tmp_path):
    """torch.load (2.13) does not look at the archive's check sums."""
    state = {k: v.contiguous() for k, v in thin("mmseg").items()}
    whole = bytearray(serialise(state))
    wanted = np.float32(state["backbone.conv_avg.conv.weight"].flatten()[0]).tobytes() * 64
    whole[whole.index(wanted) + 100] ^= 1
    path = tmp_path / "model.pth"
    path.write_bytes(whole)
    torch.load(path, weights_only=True)
    assert "check sum" in refusal(path) and "copy it again" in refusal(path)


def test_what_is_not_needed_is_not_read(tmp_path):
    """An optimizer's state may be damaged, or larger than memory: nobody asks for it."""
    state, momentum = thin("mmseg"), torch.full((4096,), 0.125)
    whole = bytearray(serialise({"state_dict": state, "optimizer": {"state": {0: momentum}}}))
    whole[whole.index(momentum.numpy().tobytes()) + 9] ^= 1
    path = tmp_path / "model.pth"
    path.write_bytes(whole)
    assert same(checkpoints.read(path).state, checkpoints.from_state(state).state)


def test_tensors_that_are_larger_than_any(tmp_path):
    """A few bytes may be said to be any number of elements, with strides of zero."""
    state = dict(thin("mmseg"))
    state["decode_head.convs.0.bn.weight"] = torch.ones(1).expand(1 << 30)
    path = write(tmp_path / "model.pth", state)
    assert "decode_head.convs.0.bn.weight: has the shape [1073741824]" in refusal(path)
    state |= {f"decode_head.convs.{i}.bn.weight": torch.ones(1).expand(1 << 25) for i in range(9)}
    assert "has 310 million weights" in refusal(write(path, state))


def test_another_network_is_not_read(tmp_path):
    whole = bytearray(serialise({"layer.weight": torch.full((4096,), 0.125)}))
    whole[whole.index(np.full(4096, 0.125, np.float32).tobytes()) + 9] ^= 1
    path = tmp_path / "model.pth"
    path.write_bytes(whole)
    assert "known layout" in refusal(path)


def test_compressed_records_and_records_twice(tmp_path):
    state = thin("mmseg")
    source = zipfile.ZipFile(io.BytesIO(serialise(state)))
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in source.infolist():
            archive.writestr(info.filename, source.read(info))
    assert same(checkpoints.read(path).state, checkpoints.from_state(state).state)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(source.infolist()[0].filename, b"other")
    assert "there twice" in refusal(path)


def test_archives_that_are_far_smaller_than_what_they_hold(tmp_path):
    """In 100 kB, or with records that lie in each other, there is no checkpoint."""
    path = tmp_path / "model.pth"
    for name, said in (
        ("a/data.pkl", "compressed, and too large unpacked"),
        ("a/data/0", "too large unpacked"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/version", "3")
            with archive.open(name, "w") as record:
                for _ in range(34 if name.endswith("pkl") else 520):
                    record.write(bytes(1 << 20))
        assert path.stat().st_size < 1 << 20 and said in refusal(path)
    whole = serialise({"weight": torch.arange(4096)})
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        (info,) = (i for i in archive.infolist() if i.filename.endswith("/data/0"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/data/0", bytes(4096))
        for i in range(1, 9):  # more names for the same bytes
            again = zipfile.ZipInfo(f"a/data/{i}")
            again.header_offset, again.file_size, again.compress_size, again.CRC = 0, 4096, 4096, info.CRC
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    assert "lie in each other" in refusal(path)


def test_another_byte_order(tmp_path):
    source = zipfile.ZipFile(io.BytesIO(serialise(thin("mmseg"))))
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in info.filename:
                size = 8 if len(data) == 8 else 4  # one counter is int64, all else float32
                data = np.frombuffer(data, f"u{size}").byteswap().tobytes()
            archive.writestr(info, data)
    assert same(checkpoints.read(path).state, checkpoints.from_state(thin("mmseg")).state)


KINDS = {
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "a quantised tensor",
    ),
    "sparse": (lambda: torch.eye(2).to_sparse(), "a sparse tensor"),
    "meta": (lambda: torch.ones(2, device="meta"), "on the meta device"),
    "conjugated": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_other_tensors_are_named(tmp_path, kind):
    make, said = KINDS[kind]
    path = write(tmp_path / "model.pth", {**thin("mmseg"), "decode_head.conv_seg.weight": make()})
    message = refusal(path)
    assert "decode_head.conv_seg.weight" in message and said in message


OTHERS = {
    "BiSeNetV2": ["detail.S1.0.conv.weight", "segment.S1S2.conv.conv.weight", "bga.left1.0.weight"],
    "BiSeNet with a ResNet": [
        "cp.resnet.conv1.weight",
        "cp.arm16.conv.conv.weight",
        "ffm.convblk.conv.weight",
    ],
    "called STDC as well": ["stage1.0.weight", "stage3.0.conv.0.weight", "arm4.conv.0.weight"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_look_alike(tmp_path, name):
    path = write(tmp_path / "model.pth", {k: torch.ones(1) for k in OTHERS[name]})
    assert name in refusal(path)


def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "model.pth", thin("mmseg"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match="can not be read"):
        checkpoints.read(path)
