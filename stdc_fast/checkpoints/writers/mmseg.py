"""Files of mmsegmentation 1.x."""

from __future__ import annotations

import math
import pprint
import re

import torch

from stdc_fast.checkpoints.canonical import Checkpoint
from stdc_fast.checkpoints.families import State
from stdc_fast.checkpoints.writers.names import Naming
from stdc_fast.checkpoints.writers.writer import (
    BIASES,
    EPS,
    Writer,
    Written,
    averages_differ,
    eps_of,
    normalisation,
    refuse,
    with_counters,
    without_zero_biases,
)

_CLASSIFIER = "conv_out.conv_out"
_BACKBONE = "backbone.backbone."
_STAGES = tuple(f"{_BACKBONE}stages.{i}." + ("#." if i > 1 else "") for i in range(5))

NAMES = Naming(
    stages=_STAGES,
    modules=(
        ("block.conv_list.#", "layers.#"),
        ("halving.avd_layer.0", "downsample.conv"),
        ("halving.avd_layer.1", "downsample.bn"),
        ("halving.skip.0", "skip.0.conv"),
        ("halving.skip.1", "skip.0.bn"),
        ("halving.skip.2", "skip.1.conv"),
        ("halving.skip.3", "skip.1.bn"),
        ("block.conv", "conv"),
        ("block.bn", "bn"),
        ("cp.backbone.conv_last", "backbone.backbone.final_conv"),
        ("cp.arm32.conv", "backbone.arms.0.conv_layer"),
        ("cp.arm32.conv_atten", "backbone.arms.0.atten_conv_layer.1.conv"),
        ("cp.arm32.bn_atten", "backbone.arms.0.atten_conv_layer.1.bn"),
        ("cp.arm16.conv", "backbone.arms.1.conv_layer"),
        ("cp.arm16.conv_atten", "backbone.arms.1.atten_conv_layer.1.conv"),
        ("cp.arm16.bn_atten", "backbone.arms.1.atten_conv_layer.1.bn"),
        ("cp.conv_head32", "backbone.convs.0"),
        ("cp.conv_head16", "backbone.convs.1"),
        ("cp.conv_avg", "backbone.conv_avg"),
        ("ffm.convblk", "backbone.ffm.conv0"),
        ("ffm.conv#", "backbone.ffm.attention.#.conv"),
        ("conv_out.conv", "decode_head.convs.0"),
        ("conv_out.conv_out", "decode_head.conv_seg"),
    ),
)


def _renamed(state: State, variant: str, module: str) -> State:
    result = {}
    for key, value in state.items():
        name = NAMES(key, variant)
        result[name] = value
        if module == "add":
            # There a first layer is a chain of the 1x1 and the halving one, which has its own name besides.
            first = re.fullmatch(r"(.*stages\.\d+\.0\.)(layers\.0|downsample)(\..*)", name)
            if first and first[2] == "downsample":
                result[f"{first[1]}layers.0.1{first[3]}"] = value
            elif first:
                result[f"{first[1]}layers.0.0{first[3]}"] = result.pop(name)
    return result


def _config(checkpoint: Checkpoint, outputs: int) -> str:
    """The configuration that builds the network with so many outputs, as the text of a Python file."""
    metadata, eps = checkpoint.metadata, eps_of(checkpoint)
    mean, std = normalisation(checkpoint)

    def norm(part: str) -> dict[str, object]:
        return {"type": "BN", "requires_grad": True, **({"eps": eps[part]} if eps[part] != EPS else {})}

    head = {"num_classes": outputs}
    if outputs == 1:
        head = {"num_classes": 2, "out_channels": 1, "threshold": metadata.get("threshold", 0.5)}
    preprocessor = {
        "type": "SegDataPreProcessor",
        "mean": [round(255 * v, 6) for v in mean],
        "std": [round(255 * v, 6) for v in std],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
    }
    model = {
        "type": "EncoderDecoder",
        "data_preprocessor": preprocessor,
        "pretrained": None,
        "backbone": {
            "type": "STDCContextPathNet",
            "backbone_cfg": {
                "type": "STDCNet",
                "stdc_type": {"stdc1": "STDCNet1", "stdc2": "STDCNet2"}[checkpoint.variant],
                "in_channels": 3,
                "channels": (32, 64, 256, 512, 1024),
                "bottleneck_type": checkpoint.module,
                "num_convs": 4,
                "norm_cfg": norm("backbone"),
                "act_cfg": {"type": "ReLU"},
                "with_final_conv": bool(metadata.get("conv_last", False)),
            },
            "last_in_channels": (1024, 512),
            "out_channels": 128,
            "ffm_cfg": {
                "in_channels": 384,
                "out_channels": 256,
                "scale_factor": 4,
                "norm_cfg": norm("fusion"),
            },
            "norm_cfg": norm("context"),
        },
        "decode_head": {
            "type": "FCNHead",
            "in_channels": 256,
            "channels": 256,
            "num_convs": 1,
            **head,
            "in_index": 3,
            "concat_input": False,
            "dropout_ratio": 0.1,
            "norm_cfg": norm("head"),
            "align_corners": bool(metadata.get("align_corners", True)),
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": outputs == 1},
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    if side := metadata.get("short_side"):
        # The longer side is free.
        pipeline.insert(1, {"type": "Resize", "scale": (64 * side, side), "keep_ratio": True})
    elif scale := metadata.get("scale"):
        pipeline.insert(1, {"type": "Resize", "scale_factor": scale, "keep_ratio": True})
    values = {
        "default_scope": "mmseg",
        "data_preprocessor": preprocessor,
        "model": model,
        "test_pipeline": pipeline,
    }
    return "".join(f"{k} = {pprint.pformat(v, width=100, sort_dicts=False)}\n" for k, v in values.items())


def _classifier(state: State, threshold: float | None) -> State:
    """With a bias. Of two outputs that stand for one and its threshold, this one."""
    weight = state[f"{_CLASSIFIER}.weight"]
    bias = state.get(f"{_CLASSIFIER}.bias")
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    if threshold is not None and len(weight) == 2 and not weight[0].any():
        first = math.log(threshold / (1 - threshold))
        if math.isclose(bias[0].item(), first, rel_tol=1e-6, abs_tol=1e-6):
            weight, bias = weight[1:], bias[1:]
            exact = bias.to(weight.dtype)
            bias = exact if torch.equal(exact.double(), bias.double()) else bias
    return {**state, f"{_CLASSIFIER}.weight": weight, f"{_CLASSIFIER}.bias": bias}


def _content(checkpoint: Checkpoint) -> Written:
    state = without_zero_biases(checkpoint.state, BIASES[1:])
    reasons = averages_differ(checkpoint)
    if (eps := eps_of(checkpoint)["arms"]) != EPS:
        reasons.append(f"eps={eps} in its attention refinement (fixed at {EPS})")
    if biases := [k for k in BIASES[1:] if k in state]:
        reasons.append(f"biases in its feature fusion ({', '.join(biases)})")
    refuse("mmsegmentation", reasons, "keep it with --to safetensors")
    state = _classifier(state, checkpoint.metadata.get("threshold"))
    meta: dict[str, object] = {"cfg": _config(checkpoint, len(state[f"{_CLASSIFIER}.weight"]))}
    known = {k: checkpoint.metadata.get(k) for k in ("classes", "palette")}
    if dataset := {k: v for k, v in known.items() if v is not None}:
        meta["dataset_meta"] = dataset
        meta |= {k.upper(): v for k, v in dataset.items()}
    renamed = _renamed(with_counters(state), checkpoint.variant, checkpoint.module)
    note = "its configuration is in meta['cfg'], without auxiliary heads, as training alone has them"
    return {"meta": meta, "state_dict": renamed}, [note]


def _backbone(state: State, variant: str) -> Written:
    # Bare, as mmsegmentation's own converter of official backbones writes it.
    full = {f"cp.backbone.{k}": v for k, v in with_counters(state).items()}
    module = "add" if any(".skip." in k for k in full) else "cat"
    renamed = _renamed(full, variant, module)
    note = f"{variant}, give it to init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone STDCNet"
    return {k.removeprefix(_BACKBONE): v for k, v in renamed.items()}, [note]


MMSEG = Writer("mmseg", _content, _backbone)
