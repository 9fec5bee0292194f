"""Files that hold no STDC-Seg weights, or damaged ones: python others.py OUT ZH320 BISENET

ZH320 and BISENET are checkouts of zh320/realtime-semantic-segmentation-pytorch at c77b1b6 and of
CoinCheung/BiSeNet at 6b4b67a.
"""

from __future__ import annotations

import gzip
import importlib
import io
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[2]))
import corpus
import h5py
import numpy as np
import onnx
import safetensors.torch
import torch
from torch import nn

from stdc_fast.reference.networks import STDCSeg

PACKAGES = corpus.versions("torch", "numpy", "onnx", "h5py", "safetensors")


def network() -> STDCSeg:
    made = STDCSeg("stdc1", 7)
    corpus.randomise(made)
    return made.eval()


def packages_of(folder: Path, package: str, module: str) -> types.ModuleType:
    """A module of a checkout, without its package's __init__, which imports what is not needed."""
    for name in [n for n in sys.modules if n.split(".")[0] == package.split(".")[0]]:
        del sys.modules[name]
    parent = types.ModuleType(package)
    parent.__path__ = [str(folder / package.replace(".", "/"))]
    sys.modules[package] = parent
    return importlib.import_module(f"{package}.{module}")


def damaged(out: Path, told) -> None:
    state = network().state_dict()
    whole = io.BytesIO()
    torch.save(state, whole)
    data = whole.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [i for i in archive.infolist() if "/data/" in i.filename]
        largest = max(names, key=lambda i: i.file_size)
    at = largest.header_offset + 4096 + largest.file_size // 2
    flipped = bytearray(data)
    flipped[at] ^= 0x40
    told("flipped_byte.pth", bytes(flipped), f"damaged: the CRC of {largest.filename} differs")
    for part in (0.1, 0.5, 0.999):
        told(
            f"truncated_{part}.pth",
            data[: int(len(data) * part)],
            "damaged: cut off, the zip's directory is missing",
        )
    legacy = io.BytesIO()
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    old = legacy.getvalue()
    told("truncated_legacy.pth", old[: len(old) // 2], "damaged: cut off within a tensor")
    tensors = safetensors.torch.save({k: v.contiguous() for k, v in state.items()})
    told("truncated.safetensors", tensors[: len(tensors) // 2], "damaged: cut off")
    told("compressed.pth.gz", gzip.compress(data, 1), "compressed by gzip; unpack it first")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("model.pth")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    told("packed.tar", packed.getvalue(), "a tar archive with model.pth in it; unpack it first")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.pth", data)
    told("packed.zip", packed.getvalue(), "a zip archive with model.pth in it; unpack it first")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    told("text.zip", packed.getvalue(), "a zip archive without weights")


def formats(out: Path, told) -> None:
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    for name, program in {"script": torch.jit.script(small), "trace": torch.jit.trace(small, x)}.items():
        program.save(str(out / f"torch{name}.pt"))
        told(f"torch{name}.pt", None, "a TorchScript archive, which is a program")
    torch.export.save(torch.export.export(small, (x,)), str(out / "exported.pt2"))
    told("exported.pt2", None, "a torch.export archive, which is a program")
    one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [one], [other])
    told("model.onnx", onnx.helper.make_model(graph).SerializeToString(), "an ONNX file, which is a program")
    np.savez(out / "arrays.npz", a=np.ones(3))
    told("arrays.npz", None, "a NumPy archive without weights of STDC-Seg")
    np.save(out / "array.npy", np.ones(3))
    told("array.npy", None, "a NumPy array")
    with h5py.File(out / "keras.h5", "w") as file:
        file.attrs["keras_version"] = "2.4.0"
        file.create_group("model_weights/conv2d").create_dataset("kernel:0", data=np.ones((3, 3, 3, 4), "f4"))
    told("keras.h5", None, "an HDF5 file, as of Keras")
    page = b"<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning</title></head></html>\n"
    told("page.pth", page, "an HTML page: the download of a page, not of the file")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 33012345\n"
    told("pointer.pth", pointer, "a git LFS pointer; fetch the file itself: git lfs pull")
    told("empty.pth", b"", "empty")
    told("zeros.pth", bytes(1 << 16), "zeros: a download that was never filled")
    told("text.pth", b"epoch 3, best mIoU 0.7\n", "text")
    told("message.pth", b'{"message": "Not Found"}\n', "JSON text, such as a server's error")
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    told("picture.pth", png, "a PNG picture")
    told(
        "list_of_dicts.pkl", pickle.dumps([{"image": "a.png", "score": 0.5}] * 3), "a pickle without tensors"
    )
    told("protocol0.pkl", pickle.dumps({"a": 1}, 0), "a pickle without tensors")


def networks(out: Path, told, zh320: Path, bisenet: Path) -> None:
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.path.insert(0, str(zh320))
    for arch in ("stdc1", "stdc2"):
        made = packages_of(zh320, "models", "stdc").STDC(19, encoder_type=arch, use_detail_head=True)
        torch.save({"state_dict": made.state_dict(), "epoch": 3}, out / f"zh320_{arch}.pth")
        told(f"zh320_{arch}.pth", None, "zh320's network of the same name, which is another one")
    made = packages_of(zh320, "models", "ddrnet").DDRNet(19)
    torch.save(made.state_dict(), out / "ddrnet.pth")
    told("ddrnet.pth", None, "DDRNet, not STDC-Seg")
    torch.hub.load_state_dict_from_url = None
    for name in ("bisenetv1", "bisenetv2"):
        for key in [n for n in sys.modules if n.split(".")[0] == "lib"]:
            del sys.modules[key]
        sys.modules["lib"] = types.ModuleType("lib")
        sys.modules["lib"].__path__ = [str(bisenet / "lib")]
        module = packages_of(bisenet, "lib.models", name)
        for part in (module, sys.modules.get("lib.models.resnet")):
            if part is not None:  # its constructor downloads a backbone
                part.modelzoo = types.SimpleNamespace(load_url=lambda url: {})
        made = getattr(module, {"bisenetv1": "BiSeNetV1", "bisenetv2": "BiSeNetV2"}[name])
        made.load_pretrain = lambda self: None
        torch.save(made(19).state_dict(), out / f"{name}.pth")
        told(f"{name}.pth", None, "BiSeNet, not STDC-Seg, though some names are the same")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    safetensors.torch.save_file(other.state_dict(), out / "another.safetensors", metadata={"format": "pt"})
    told("another.safetensors", None, "another network's weights")


def main(out: Path, zh320: Path, bisenet: Path) -> None:
    out.mkdir(exist_ok=True)

    def told(name: str, data: bytes | None, why: str) -> None:
        if data is not None:
            (out / name).write_bytes(data)
        made = "by its own package" if data is None else "bytes"
        corpus.answer(
            out / name, family="none", packages=PACKAGES, made=made, kind="none", expect="refuse", why=why
        )

    damaged(out, told)
    formats(out, told)
    networks(out, told, zh320, bisenet)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
