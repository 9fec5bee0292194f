"""What torch.save and training code put around the same weights: python torch_files.py OUT

The network is that of stdc_fast.reference, whose names are the official ones; its norms are plain.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import random
import re
import sys
import types
import uuid
import warnings
import zipfile
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[2]))
import corpus
import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import prune

from stdc_fast.reference.networks import STDCSeg

PACKAGES = corpus.versions("torch", "numpy", "omegaconf")


class Phase(enum.Enum):
    TRAIN = 1
    TEST = 2


@dataclasses.dataclass
class Settings:
    lr: float = 1e-3
    names: tuple[str, ...] = ("a", "b")
    phase: Phase = Phase.TRAIN


class Tagged(nn.Parameter):
    """A parameter of a class of one's own."""


def network() -> STDCSeg:
    made = STDCSeg("stdc1", 7, classifier_bias=True)
    corpus.randomise(made)
    return made.eval()


def arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Of the values that the file holds, whatever their dtype."""
    made = STDCSeg("stdc1", 7, classifier_bias=True).double().eval()
    made.load_state_dict(
        {k: v.detach().to(torch.float64) if v.is_floating_point() else v for k, v in state.items()}
    )
    x = corpus.picture(120, 250)
    with torch.inference_mode():
        y = torch.from_numpy(x).double()
        return corpus.segmentation(x, made.logits8(y).numpy(), made(y).numpy())


def beside() -> dict[str, object]:
    """Harmless objects that training code keeps beside the weights."""
    net = nn.Linear(2, 2)
    adam = torch.optim.AdamW(net.parameters())
    net(torch.ones(2)).sum().backward()
    adam.step()
    one = torch.optim.lr_scheduler.OneCycleLR(adam, 1.0, 10)
    steps = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5)
    return {
        "namespace": argparse.Namespace(lr=1e-3, crop=(512, 1024), root=pathlib.Path("data")),
        "simple_namespace": types.SimpleNamespace(lr=1e-3),
        "path": pathlib.PurePosixPath("a/b"),
        "path_posix": pathlib.PosixPath("a/b"),
        "path_windows": pathlib.PureWindowsPath("a/b"),
        "datetime": [datetime.datetime(2026, 1, 2, 3), datetime.timedelta(1), datetime.date(2026, 1, 2)],
        "timezone": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc),
        "defaultdict": collections.defaultdict(list, a=[1.0]),
        "defaultdict_float": collections.defaultdict(float, a=1.0),
        "counter": [collections.Counter("aab"), collections.deque([1, 2], 3), {1, 2}, frozenset({3})],
        "slice": [slice(1, 2), range(3), 1 + 2j, b"x", bytearray(b"y"), Ellipsis, NotImplemented],
        "numpy_generator": np.random.default_rng(0),
        "numpy_random_state": [np.random.RandomState(0), np.random.get_state(), random.getstate()],
        "numpy_scalars": [
            np.float64(0.7),
            np.int64(3),
            np.float32(1),
            np.bool_(True),
            np.str_("a"),
            np.datetime64(0, "s"),
        ],
        "numpy_arrays": [
            np.arange(6).reshape(2, 3)[:, ::-1],
            np.array(["a", None], object),
            np.zeros(2, "U3"),
            np.ma.ones(2),
        ],
        "enum": [Phase.TRAIN, re.compile("a+", re.I), re.I],
        "dataclass": Settings(),
        "partial": functools.partial(nn.BatchNorm2d, eps=1e-5),
        "functions": [nn.functional.cross_entropy, torch.relu, len, np.mean],
        "classes": [nn.BatchNorm2d, dict, np.float32, STDCSeg],
        "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), uuid.UUID(int=1)],
        "omegaconf": OmegaConf.create({"lr": 1e-3, "sizes": [1, 2], "of": "${lr}"}),
        "adamw": adam.state_dict(),
        "schedulers": [one.state_dict(), steps.state_dict()],
        "scheduler_object": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters(), 0.1), 3),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "torch_values": [torch.device("cuda:0"), torch.float16, torch.Size([1, 2]), torch.get_rng_state()],
        "generator_state": torch.Generator().get_state(),
        "loss_module": nn.CrossEntropyLoss(ignore_index=255),
        "ordered": collections.OrderedDict(a=collections.OrderedDict(b=1)),
        "chain": [collections.ChainMap({"a": 1}), collections.UserDict(a=1)],
        "named_tuple": torch.max(torch.ones(2, 2), 0),
        "exception": ValueError("diverged"),
    }


def containers(state: dict) -> dict[str, object]:
    epoch = {"epoch": 3, "best": 0.7}
    inner = {"state_dict": state, **epoch}
    usual = [
        "model_state_dict",
        "model_state",
        "params",
        "state",
        "model",
        "net",
        "network",
        "weights",
        "module",
    ]
    names = [*usual, "model_weights", "student"]
    found = {f"in_{name}": {name: state, **epoch} for name in names}
    return {
        **found,
        "in_model_state_dict_nested": {"model": inner},
        "in_checkpoint_model": {"checkpoint": {"model": state}, **epoch},
        "in_list": [epoch, state],
        "in_tuple": (state, 3),
        "in_lists_of_parameters": list(state.items()),
        "mixed": {**state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "bare_dict": dict(state),
    }


def prefixes(net: nn.Module) -> dict[str, dict]:
    from torch.optim.swa_utils import AveragedModel

    part = copy.deepcopy(net)
    part.cp = torch.compile(part.cp)
    state = net.state_dict()
    ddp = {f"module._orig_mod.{k}": v for k, v in state.items()}
    return {
        "averaged_model": AveragedModel(net).state_dict(),
        "compiled": torch.compile(net).state_dict(),
        "compiled_part": part.state_dict(),
        "compiled_data_parallel": ddp,
        "data_parallel_compiled": torch.compile(nn.DataParallel(net)).state_dict(),
        "fsdp": {f"_fsdp_wrapped_module.{k}": v for k, v in state.items()},
        "fsdp_inner": {k.replace("cp.", "cp._fsdp_wrapped_module.", 1): v for k, v in state.items()},
        "checkpoint_wrapper": {
            k.replace("cp.", "cp._checkpoint_wrapped_module.", 1): v for k, v in state.items()
        },
        "own_prefix_net": {f"net.{k}": v for k, v in state.items()},
        "own_prefix_model_student": {f"model.student.{k}": v for k, v in state.items()},
        "with_criterion": {**{f"model.{k}": v for k, v in state.items()}, "criterion.weight": torch.ones(7)},
    }


def layouts(state: dict) -> dict[str, dict]:
    """The same values in other storages, dtypes and classes."""

    def each(change, only=lambda k, v: v.is_floating_point()):
        return {k: change(v) if only(k, v) else v for k, v in state.items()}

    flat = torch.cat([v.flatten() for v in state.values() if v.is_floating_point()])
    views, at = {}, 0
    for k, v in state.items():
        views[k] = flat[at : at + v.numel()].view(v.shape) if v.is_floating_point() else v
        at += v.numel() if v.is_floating_point() else 0

    def strided(v):
        wide = torch.zeros(*v.shape, 2)
        wide[..., 0] = v
        return wide[..., 0]

    def with_state(v):
        made = nn.Parameter(v)
        made.tag = "x"
        return made

    return {
        "one_storage": views,
        "strided": each(strided),
        "channels_last": each(
            lambda v: v.contiguous(memory_format=torch.channels_last), lambda k, v: v.ndim == 4
        ),
        "transposed": each(
            lambda v: v.transpose(0, 1).contiguous().transpose(0, 1), lambda k, v: v.ndim == 4
        ),
        "float64": each(lambda v: v.double()),
        "float16": each(lambda v: v.half()),
        "bfloat16": each(lambda v: v.bfloat16()),
        "float8_e4m3fn": each(lambda v: v.to(torch.float8_e4m3fn), lambda k, v: v.ndim == 4),
        "float8_e5m2": each(lambda v: v.to(torch.float8_e5m2), lambda k, v: v.ndim == 4),
        "parameters": each(nn.Parameter),
        "parameters_with_state": each(with_state),
        "parameters_of_a_class": each(Tagged),
        "buffers": each(nn.Buffer),
        "negated_view": each(lambda v: torch._neg_view(-v)),
    }


def refused(net: nn.Module, state: dict) -> dict[str, tuple[object, str]]:
    key = "conv_out.conv_out.weight"

    def other(value):
        return {**state, key: value}

    weight = state[key]
    parametrised = copy.deepcopy(net)
    nn.utils.parametrizations.weight_norm(parametrised.conv_out.conv_out)
    pruned = copy.deepcopy(net)
    prune.l1_unstructured(pruned.conv_out.conv_out, "weight", 0.5)
    fused = copy.deepcopy(net)
    fused.conv_out.conv.conv = nn.utils.fuse_conv_bn_eval(fused.conv_out.conv.conv, fused.conv_out.conv.bn)
    fused.conv_out.conv.bn = nn.Identity()
    quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    return {
        "whole_network": (net, "a pickled network, not a state dict: its class would have to run"),
        "whole_network_in_dict": ({"model": net, "epoch": 3}, "a pickled network, not a state dict"),
        "complex": (other(weight.to(torch.complex64)), f"{key} is complex64"),
        "integer": (other((weight * 100).to(torch.int8)), f"{key} is int8"),
        "meta": (other(weight.to("meta")), f"{key} is on the meta device, without values"),
        "quantised": (other(quantised), f"{key} is quantised, qint8"),
        "nan": (other(weight * float("nan")), f"{key} holds NaN"),
        "parametrised": (parametrised.state_dict(), "conv_out.conv_out has a weight norm: parametrizations"),
        "pruned": (pruned.state_dict(), "conv_out.conv_out is pruned: weight_orig and weight_mask"),
        "fused": (fused.state_dict(), "conv_out.conv's norm is folded into its convolution"),
        "empty_dict": ({}, "no tensors"),
        "one_tensor": (torch.ones(3), "one tensor, no names"),
        "optimizer_only": (
            {"optimizer": torch.optim.SGD(net.parameters(), 0.1, 0.9).state_dict()},
            "no weights",
        ),
    }


def big_endian(source: Path, path: Path, state: dict) -> None:
    """As a machine of the other byte order writes it; torch swaps on loading."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:
                size = 8 if len(data) == 8 else 4  # a storage of 8 bytes is a counter's
                data = np.frombuffer(data, f"u{size}").byteswap().tobytes()
            new.writestr(name, data)


def main(out: Path) -> None:
    net = network()
    state = net.state_dict()
    truth = arrays(state)
    used = sum(not corpus.counts(k) for k in state)

    def write(name: str, content: object, made: str, found=truth, expect="load", why="", **options) -> None:
        path = out / f"torch_{name}.pth"
        torch.save(content, path, **options)
        told(path, made, found, expect, why)

    def told(path: Path, made: str, found=truth, expect="load", why="") -> None:
        loads = expect != "refuse"
        corpus.answer(
            path,
            family="official names with plain norms",
            packages=PACKAGES,
            made=made,
            expect=expect,
            why=why,
            tensors=used if loads else None,
            arrays=found if loads else None,
        )

    for name, value in beside().items():
        write(
            f"beside_{name}",
            {"state_dict": state, "extra": value},
            f"torch.save, beside the weights {type(value).__name__}",
        )
    for name, value in containers(state).items():
        unusual = name in ("in_list", "in_tuple", "in_lists_of_parameters", "mixed", "in_student")
        reason = "a container of no known training code" if unusual else ""
        write(name, value, "torch.save of a container", expect="either" if unusual else "load", why=reason)
    for name, value in prefixes(net).items():
        write(f"prefix_{name}", value, "torch.save of a wrapped network's state_dict()")
    for name, value in layouts(state).items():
        write(f"stored_{name}", value, "torch.save of a state dict", arrays(value))
    for protocol in (2, 3, 4, 5):
        write(
            f"protocol{protocol}",
            {"state_dict": state, "extra": Settings()},
            f"torch.save(pickle_protocol={protocol})",
            pickle_protocol=protocol,
        )
        write(
            f"legacy_protocol{protocol}",
            {"state_dict": state, "extra": np.float64(0.7)},
            f"torch.save(_use_new_zipfile_serialization=False, pickle_protocol={protocol})",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=False,
        )
    for name, value in layouts(state).items():
        if name in ("one_storage", "transposed", "bfloat16", "parameters"):
            write(
                f"legacy_{name}",
                value,
                "legacy torch.save",
                arrays(value),
                _use_new_zipfile_serialization=False,
            )
    for name, (value, why) in refused(net, state).items():
        write(f"refused_{name}", value, "torch.save", expect="refuse", why=why)
    special(out, net, state, write, told)


def special(out: Path, net: nn.Module, state: dict, write, told) -> None:
    """Files that need torch's switches, and sharded ones."""
    key = "conv_out.conv_out.weight"
    sparse = {**state, key: state[key].to_sparse()}
    write("sparse", sparse, "torch.save, one weight sparse", expect="either", why="a sparse weight")
    torch.serialization.set_crc32_options(False)
    write("without_crc", state, "torch.save after torch.serialization.set_crc32_options(False)")
    torch.serialization.set_crc32_options(True)
    tag = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:3"
    write("from_cuda", state, "torch.save with location tags of a GPU")
    write(
        "from_cuda_legacy", state, "legacy, with location tags of a GPU", _use_new_zipfile_serialization=False
    )
    torch.serialization.location_tag = tag
    path = out / "torch_big_endian.pth"
    big_endian(out / "torch_bare_dict.pth", path, state)
    told(path, "a state dict's archive with big-endian storages and the mark 'big', as s390x writes")
    sharded(out, net, told)


def sharded(out: Path, net: nn.Module, told) -> None:
    """FSDP2's state dict, whose tensors are DTensors, saved by one process without gathering."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    dist.init_process_group("gloo", rank=0, world_size=1)
    made = fully_shard(copy.deepcopy(net), mesh=dist.init_device_mesh("cpu", (1,)))
    path = out / "torch_fsdp2_dtensor.pth"
    torch.save(made.state_dict(), path)
    told(path, "torch.save of an FSDP2 state_dict(): DTensors", expect="either", why="DTensors: gather them")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
