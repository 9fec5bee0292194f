"""mmsegmentation 0.x and 1.x."""

from __future__ import annotations

import re
from collections.abc import Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from stdc_fast.checkpoints import config
from stdc_fast.checkpoints.families.family import Family, KeyMap, Said, State, merge_aliases
from stdc_fast.checkpoints.rebuild import value_of
from stdc_fast.errors import UserError

if TYPE_CHECKING:
    from stdc_fast.checkpoints.containers import Content

# Its "add" blocks of stride 2 hold the down-sampling a second time, and their shortcut as two modules.
_BLOCK_RULES = (
    (r"layers\.0\.0\.", "conv_list.0."),
    (r"layers\.(\d+)\.", r"conv_list.\1."),
    (r"downsample\.conv\.", "avd_layer.0."),
    (r"downsample\.bn\.", "avd_layer.1."),
    (r"(?<=\d\.)skip\.0\.conv\.", "skip.0."),
    (r"(?<=\d\.)skip\.0\.bn\.", "skip.1."),
    (r"(?<=\d\.)skip\.1\.conv\.", "skip.2."),
    (r"(?<=\d\.)skip\.1\.bn\.", "skip.3."),
)
_SECOND = re.compile(r"(.*\bstages\.\d\.\d+\.)layers\.0\.1\.(.*)")


def _once(tensors: Mapping[str, Tensor]) -> State:
    state, aliases = {}, {}
    for key, value in tensors.items():
        if second := _SECOND.match(key):
            aliases[f"{second[1]}downsample.{second[2]}"] = (key, value)
        else:
            state[key] = value
    return merge_aliases(state, aliases)


_MAP = KeyMap(
    block=r"backbone\.backbone\.stages\.(\d)\.(?:(\d+)\.)?",
    stages=("0", "1", "2", "3", "4"),
    rules=(
        *_BLOCK_RULES,
        (r"^backbone\.backbone\.final_conv\.", "cp.backbone.conv_last."),
        (r"^backbone\.arms\.0\.", "cp.arm32."),
        (r"^backbone\.arms\.1\.", "cp.arm16."),
        (r"^(cp\.arm\d+)\.conv_layer\.", r"\1.conv."),
        (r"^(cp\.arm\d+)\.atten_conv_layer\.1\.conv\.", r"\1.conv_atten."),
        (r"^(cp\.arm\d+)\.atten_conv_layer\.1\.bn\.", r"\1.bn_atten."),
        (r"^backbone\.convs\.0\.", "cp.conv_head32."),
        (r"^backbone\.convs\.1\.", "cp.conv_head16."),
        (r"^backbone\.conv_avg\.", "cp.conv_avg."),
        (r"^backbone\.ffm\.conv0\.", "ffm.convblk."),
        (r"^backbone\.ffm\.attention\.([12])\.conv\.", r"ffm.conv\1."),
        (r"^decode_head\.convs\.0\.", "conv_out.conv."),
        (r"^decode_head\.conv_seg\.", "conv_out.conv_out."),
    ),
)

_BACKBONE = KeyMap(
    block=r"(?:backbone\.)?stages\.(\d)\.(?:(\d+)\.)?",
    stages=("0", "1", "2", "3", "4"),
    rules=(*_BLOCK_RULES, (r"^cp\.backbone\.", "")),
)


def _backbone(tensors: Mapping[str, Tensor]) -> State:
    # What the converter of official backbones leaves of their aliases is no layer of its own.
    stages = {k: v for k, v in tensors.items() if re.match(r"(backbone\.)?stages\.", k)}
    return {k: v for k, v in _BACKBONE(_once(stages)).items() if k.startswith("features.")}


def _said(content: Content, state: State) -> Said:
    meta = content.around.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    about = meta.get("dataset_meta")
    about = about if isinstance(about, Mapping) else {}
    classes = value_of(about.get("classes", meta.get("CLASSES")))
    palette = value_of(about.get("palette", meta.get("PALETTE")))
    text = next((meta[k] for k in ("cfg", "config") if isinstance(meta.get(k), str)), None)
    read = None if text is None else config.parse(text)
    if text is not None and read is None:
        raise UserError("holds a configuration that is no Python; save the bare state dict")
    if read is None or not _part(_part(read, "model"), "decode_head"):
        notes = ("no configuration in the file: align_corners, eps, mean and std as published",)
        return Said(classes=classes, palette=palette, notes=notes)
    options = _options(read)
    notes = () if "mean" in options else ("no mean and std in its configuration: as published",)
    return Said(options, dict.fromkeys(options, "its configuration"), classes, palette, notes)


def _options(read: dict[str, object]) -> dict[str, object]:
    """Options of the network that a configuration describes; UserError for what none here has."""
    model = read["model"]
    context, head = _part(model, "backbone"), _part(model, "decode_head")
    stages, fusion = _part(context, "backbone_cfg"), _part(context, "ffm_cfg")
    expected = (
        ("backbone.upsample_mode", context.get("upsample_mode", "nearest"), "nearest"),
        ("decode_head.in_index", head.get("in_index", -1), (3, -1)),
        ("decode_head.dilation", head.get("dilation", 1), 1),
        ("backbone.backbone_cfg.in_channels", stages.get("in_channels", 3), 3),
        *(
            (f"{name}.act_cfg", _act(part), "ReLU")
            for name, part in (
                ("backbone.backbone_cfg", stages),
                ("backbone.ffm_cfg", fusion),
                ("decode_head", head),
            )
        ),
    )
    for name, value, wanted in expected:
        if value != wanted and value not in (wanted if isinstance(wanted, tuple) else ()):
            raise UserError(
                f"its configuration says model.{name}={short(value)}, a network that is not supported"
            )
    eps = {
        "backbone": _eps(stages),
        "arms": 1e-5,  # these always have their own default
        "context": _eps(context),
        "fusion": _eps(fusion),
        "head": _eps(head),
    }
    options: dict[str, object] = {
        "align_corners": head.get("align_corners") if head.get("align_corners") is not None else False,
        "eps": eps["head"] if all(v == eps["head"] for v in eps.values()) else eps,
        **_normalisation(read, model),
    }
    if head.get("out_channels") == 1:
        threshold = head.get("threshold")
        options["threshold"] = 0.3 if threshold is None else threshold
    return options


def _part(of: Mapping, name: str) -> dict:
    """A part of a configuration; empty where there is none. UserError for one that only running it gives."""
    part = of.get(name)
    if part is config.UNKNOWN:
        raise UserError(f"its configuration computes {name}; save the bare state dict")
    return part if isinstance(part, dict) else {}


def _step(steps: object) -> dict:
    """The step of a pipeline that normalises, with its numbers; empty where there is none."""
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict):
            if step.get("type") == "Normalize" and "mean" in step:
                return step
            if found := _step(step.get("transforms")):
                return found
    return {}


def _act(part: dict) -> object:
    act = part.get("act_cfg", {"type": "ReLU"})
    return act.get("type") if isinstance(act, dict) else act


def _eps(part: dict) -> object:
    return _part(part, "norm_cfg").get("eps", 1e-5)


def _normalisation(read: dict[str, object], model: dict) -> dict[str, object]:
    """mean and std in RGB of 0..1; in the order of the file's channels where the network reads BGR."""
    of = _part(model, "data_preprocessor") or _part(read, "data_preprocessor")
    rgb, described = of.get("bgr_to_rgb", False), bool(of)
    if "mean" not in of:
        # mmcv's step of that name, in 0.x and 1.x. Its settings are a name of their own, mostly.
        step = _step(read.get("test_pipeline")) or _part(read, "img_norm_cfg")
        if step:
            of, rgb = step, step.get("to_rgb", True)
        elif described:
            of = {"mean": [0, 0, 0], "std": [1, 1, 1]}  # SegDataPreProcessor then normalises nothing
        else:
            return {}
    if not isinstance(rgb, bool):
        raise UserError("its configuration computes the order of the channels; save the bare state dict")
    of = {k: of.get(k, config.UNKNOWN) for k in ("mean", "std")}
    try:
        mean, std = (np.asarray(of[k], float) / 255 for k in ("mean", "std"))
    except (TypeError, ValueError):
        mean = std = np.zeros(0)
    if mean.shape != (3,) or std.shape != (3,):
        raise UserError(
            f"its configuration has mean={short(of['mean'])} and std={short(of['std'])}, "
            "not three numbers each"
        )
    options = {k: [round(float(v), 12) for v in values] for k, values in (("mean", mean), ("std", std))}
    return options if rgb else {**options, "channels": "bgr"}


FAMILY = Family(
    name="mmseg",
    names=r"backbone\.backbone\.stages\.|decode_head\.",
    training_only=r"auxiliary_head\.|data_preprocessor\.",
    rename=lambda tensors: _MAP(_once(tensors)),
    said=_said,
    classifier_bias=True,
    backbone_names=r"(backbone\.)?stages\.\d\.",
    backbone=_backbone,
)
