"""The paper's own code: python official.py OUT SOURCE

SOURCE is a checkout of MichaelFan01/STDC-Seg at commit 59ff37f. Its in-place batch norm is a CUDA extension.
Here the rule of its modules/src/inplace_abn_cpu.cpp takes its place, in the class of modules/bn.py:
(x - mean) / sqrt(var + eps) * (|gamma| + eps) + beta. So names and counters of the files are the real ones.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import corpus
import torch
from torch import nn

PACKAGES = {"STDC-Seg": "59ff37f", **corpus.versions("torch")}
CLASSES = 19


def forward(x, weight, bias, mean, var, training, momentum, eps, activation, slope):
    assert not training and activation == "none"
    scale = (var + eps).rsqrt() * (weight.abs() + eps)
    return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]


def source(folder: Path) -> types.ModuleType:
    """models/model_stages.py, with the rule above in place of the extension of modules/functions.py."""
    functions = types.ModuleType("modules.functions")
    functions.inplace_abn = functions.inplace_abn_sync = forward
    functions.ACT_RELU, functions.ACT_LEAKY_RELU = "relu", "leaky_relu"
    functions.ACT_ELU, functions.ACT_NONE = "elu", "none"
    package = types.ModuleType("modules")
    package.__path__ = [str(folder / "modules")]
    sys.modules.update(
        {"modules": package, "modules.functions": functions, "torchvision": types.ModuleType("tv")}
    )
    sys.path.insert(0, str(folder))
    from models import model_stages

    return model_stages


def plain(network: nn.Module) -> nn.Module:
    """The same network with nn.BatchNorm2d in its decoder, as a comment of model_stages.py has it."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "InPlaceABNSync":
                setattr(parent, name, nn.BatchNorm2d(child.num_features))
    return network


def inference(state: dict) -> int:
    unused = ("conv_out16", "conv_out32", "conv_out_sp")
    used = [k for k in state if not k.startswith(unused) and not corpus.counts(k)]
    used = [k for k in used if not any(f".backbone.{n}." in k for n in ("x2", "x4", "x8", "x16", "x32"))]
    return len([k for k in used if not any(f".backbone.{n}." in k for n in ("fc", "bn", "linear"))])


def main(out: Path, folder: Path) -> None:
    stages = source(folder)

    def network(backbone: str, norm: str = "in place", last: bool = False) -> nn.Module:
        made = stages.BiSeNet(backbone, CLASSES, use_boundary_8=True, use_conv_last=last)
        if norm == "plain":
            made = plain(made)
        corpus.randomise(made)
        return made.eval()

    def answers(name: str, made: nn.Module, state: dict, how: str, **more: object) -> None:
        old = {k: more.pop(k) for k in ("_use_new_zipfile_serialization",) if k in more}
        torch.save(state, out / name, **old)
        double, x = made.double(), corpus.picture(120, 250)
        kept = {}
        handle = double.conv_out.register_forward_hook(lambda m, i, o: kept.update(low=o))
        with torch.inference_mode():
            full = double(torch.from_numpy(x).double())[0]
        handle.remove()
        last = sum("conv_last" in k for k in state if not corpus.counts(k))
        used = inference({k.removeprefix("module."): v for k, v in state.items()})
        if not more.get("options", {}).get("use_conv_last"):
            used -= last
        corpus.answer(
            out / name,
            family="official",
            packages=PACKAGES,
            made=how,
            tensors=used,
            arrays=corpus.segmentation(x, kept["low"].numpy(), full.numpy()),
            **more,
        )
        made.float()

    saved = "torch.save(net.module.state_dict()) of train.py"
    for arch, backbone in (("stdc1", "STDCNet813"), ("stdc2", "STDCNet1446")):
        made = network(backbone)
        answers(f"official_{arch}.pth", made, made.state_dict(), saved)
        wrapped = {f"module.{k}": v for k, v in made.state_dict().items()}
        assert list(nn.DataParallel(made).state_dict()) == list(wrapped)
        if arch == "stdc1":
            answers(
                "official_stdc1_dataparallel.pth",
                made,
                wrapped,
                "torch.save of a DataParallel's state_dict()",
            )
        if arch == "stdc1":
            bare = {k: v for k, v in made.state_dict().items() if not corpus.counts(k)}
            answers(
                "official_stdc1_without_counters.pth",
                made,
                bare,
                f"{saved}, then without num_batches_tracked",
                options={"decoder norm": "in place"},
                said="no counter anywhere, as of a plain network whose counters were removed",
                load={"norm": "in place"},
            )
            answers(
                "official_stdc1_legacy.pth",
                made,
                made.state_dict(),
                f"{saved} by torch < 1.6, as of the published files: no zip archive",
                _use_new_zipfile_serialization=False,
            )
        made = network(backbone, "plain")
        answers(f"official_{arch}_plain.pth", made, made.state_dict(), f"{saved}, with nn.BatchNorm2d")
        stripped = {k: v for k, v in made.state_dict().items() if not corpus.counts(k)}
        answers(
            f"official_{arch}_plain_without_counters.pth",
            made,
            stripped,
            f"{saved}, with nn.BatchNorm2d, then without num_batches_tracked",
            options={"decoder norm": "plain"},
            said="no counter anywhere, not even in the backbone, whose norms are always plain",
            load={"norm": "plain"},
        )
        made = network(backbone, last=True)
        answers(
            f"official_{arch}_conv_last.pth",
            made,
            made.state_dict(),
            f"{saved}, of use_conv_last=True",
            options={"use_conv_last": True},
            said="nothing: conv_last is in every file of this code and is not used without the option",
            load={"use_conv_last": True},
        )
        classifier(out, arch, getattr(sys.modules["nets.stdcnet"], backbone))


def classifier(out: Path, arch: str, build: type[nn.Module]) -> None:
    """The ImageNet files, whose .tar is a torch file, and the same state bare."""
    made = build(num_classes=1000, dropout=0.0, block_num=4)
    corpus.randomise(made)
    made = made.eval()
    state = made.state_dict()
    name = {"stdc1": "STDCNet813M_73.91.tar", "stdc2": "STDCNet1446_76.47.tar"}[arch]
    bare = {k: v.clone() for k, v in state.items()}
    torch.save({"state_dict": state}, out / f"official_{name}")
    torch.save(bare, out / f"official_{arch}_classifier.pth")
    x = corpus.picture()
    made = made.double()
    with torch.inference_mode():
        y = torch.from_numpy(x).double()
        features, scores = made(y)[2:], made.forward_impl(y)
    arrays = {f"features{s}": f.numpy() for s, f in zip((8, 16, 32), features, strict=True)}
    for file in (f"official_{name}", f"official_{arch}_classifier.pth"):
        corpus.answer(
            out / file,
            family="official",
            packages=PACKAGES,
            made="torch.save of {'state_dict': ...}" if file.endswith("tar") else "torch.save(state_dict())",
            kind="backbone",
            tensors=sum(k.startswith("features.") and not corpus.counts(k) for k in bare),
            arrays=dict(x=x, scores=scores.numpy(), **arrays),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
