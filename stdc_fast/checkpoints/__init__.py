"""Weights on disk: our safetensors format, and reading the other families' checkpoints.

Every family becomes one canonical state dict: the names of :class:`stdc_fast.reference.STDCSeg`,
which are those of the paper's own code without its aliases. Files are told apart by content, never
by name. Nothing is executed on loading: pickles are read with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.reference.networks import STAGES, STDCSeg

FORMAT = "stdc_fast 1"
State = dict[str, Tensor]

# Heads that only training uses, by family.
_TRAINING_ONLY = {
    "official": r"conv_out(16|32|_sp\d+)\.|cp\.backbone\.(conv_last|fc|bn|linear)\.",
    "mmseg": r"auxiliary_head\.|backbone\.backbone\.final_conv\.",
    "super-gradients": r"aux_head_s(16|32)\.|detail_head8\.",
}


class _StandIn:
    """Takes the place of what training code pickles beside the weights, such as logs; does nothing."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS = [
    (_StandIn, name)
    for name in (
        "mmengine.logging.history_buffer.HistoryBuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",
    )
]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in canonical form.

    ``state`` has the inference tensors in the file's dtype, ``metadata`` what the file says of itself
    (empty for foreign ones), ``report`` one line about what was mapped and dropped.
    """

    state: State
    variant: str
    num_classes: int
    module: str
    family: str
    metadata: dict[str, object]
    report: str

    def network(self, dtype: torch.dtype = torch.float32) -> STDCSeg:
        """The reference network with these weights, in eval mode, on the CPU."""
        network = _build(self, self.metadata.get("count_include_pad", True)).to(dtype)
        state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}
        state.update({k: v.to(state[k].dtype, copy=True) for k, v in self.state.items() if k in state})
        network.load_state_dict(state, assign=True)  # to_empty() imports torch's symbolic shapes: a second
        for key, value in state.items():
            if not torch.isfinite(value).all():
                raise UserError(f"{key} exceeds the range of {dtype}; load it as bfloat16 or float32")
        return network.eval()


def read(path: str | Path) -> Checkpoint:
    """Read a segmentation checkpoint of any known family, strictly.

    Families: official STDC-Seg, mmsegmentation, super-gradients, and our safetensors. A decoder without
    ``num_batches_tracked`` in an official file marks its in-place batch norm, which scales by
    ``|gamma| + 1e-5``; it is turned into plain batch norm in float64.

    Raises UserError, naming the file, for anything that is not exactly one STDC-Seg network with
    finite weights; the first missing and unexpected keys are listed.
    """
    path = Path(path)
    tensors, metadata, container = _open(path)
    try:
        return _canonical(tensors, metadata, container)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_backbone(path: str | Path) -> State:
    """Backbone tensors (``features.*``) of a classification or segmentation checkpoint.

    Takes the official ImageNet files and every family of :func:`read`; for fine-tuning.
    """
    tensors, _, _ = _open(Path(path))
    if any(k.startswith("features.") for k in tensors):
        state = {k: v for k, v in tensors.items() if k.startswith("features.")}
        for key, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{path}: {key} holds NaN or infinite values; copy the file again")
        return state
    prefix = "cp.backbone."
    return {k.removeprefix(prefix): v for k, v in read(path).state.items() if k.startswith(prefix)}


def _open(path: Path) -> tuple[State, dict[str, object], str]:
    """Tensors without ``module.`` prefixes, our metadata if any, and the name of the container."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a checkpoint file")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can not be read ({error.strerror})") from None
    if not head:
        raise UserError(f"{path}: is empty; download or copy it again")
    metadata: dict[str, object] | None = None
    if head[8:9] == b"{":
        container = "safetensors"
        tensors, metadata = _open_safetensors(path)
    elif head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        container, tensors = _open_pickle(path)
    else:
        raise UserError(f"{path}: is neither a torch nor a safetensors file")
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors, metadata, container


def _open_safetensors(path: Path) -> tuple[State, dict[str, object]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged safetensors file ({error}); copy it again") from None
    if text.get("format") != FORMAT:
        if text.get("format", "").startswith("stdc_fast"):
            raise UserError(f"{path}: has format {text['format']!r}, this version reads {FORMAT!r}")
        return tensors, None
    try:
        metadata = {k: json.loads(v) for k, v in text.items() if k != "format"}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: damaged metadata ({error})") from None
    return tensors, metadata


def _open_pickle(path: Path) -> tuple[str, State]:
    try:
        # By path, torch would go by the suffix.
        with open(path, "rb") as file, torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises many types
        text = str(error).strip()
        found = re.search(r"GLOBAL ([\w.]+) (was not|whose module)", text)
        if found:
            raise UserError(
                f"{path}: holds Python objects ({found[1]}) that could run code on loading; save the bare "
                "weights where it came from: torch.save(model.state_dict(), file)"
            ) from None
        if "TorchScript" in text:
            raise UserError(f"{path}: is a TorchScript archive; give the state dict") from None
        # What the unpickler says is advice to load without weights_only.
        broken = isinstance(error, pickle.UnpicklingError) or not text
        first = "broken pickle" if broken else text.split("\n")[0].split(". ")[0]
        raise UserError(f"{path}: damaged or not a torch checkpoint ({first}); copy it again") from None
    container = "state dict"
    if isinstance(content, Mapping):
        for key in ("ema_net", "net", "state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                container, content = key, content[key]
                break
    tensors = dict(content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
        raise UserError(f"{path}: holds no state dict (names and tensors)")
    return container, tensors


def _canonical(tensors: State, metadata: dict[str, object] | None, container: str) -> Checkpoint:
    ours, metadata = metadata is not None, metadata or {}
    if ours:
        family, mapped, dropped = "stdc_fast", dict(tensors), 0
    else:
        family = _family(tensors)
        kept = {k: v for k, v in tensors.items() if not re.match(_TRAINING_ONLY[family], k)}
        mapped = _MAPS[family](kept)
        trained = [k for k in tensors if k not in kept and not k.endswith("num_batches_tracked")]
        dropped = len(trained)
    has_counters = any(k.endswith("num_batches_tracked") and not k.startswith("cp.backbone.") for k in mapped)
    state = {k: v for k, v in mapped.items() if not k.endswith("num_batches_tracked")}
    note = ""
    if family == "official" and not has_counters:
        for key, value in state.items():
            if re.search(r"\.(bn|bn_atten)\.weight$", key) and not key.startswith("cp.backbone."):
                # Others stay as they are, for _check() to refuse.
                state[key] = value.double().abs() + 1e-5 if value.is_floating_point() else value
        note = "; in-place batch norm of the decoder converted (|gamma| + 1e-5)"
    classifier = state.get("conv_out.conv_out.weight")
    result = Checkpoint(
        state,
        str(metadata.get("variant") or _variant(state)),
        len(classifier) if classifier is not None and classifier.ndim and len(classifier) else 1,
        "add" if any(re.match(r"cp\.backbone\.features\.\d+\.skip\.", k) for k in state) else "cat",
        family,
        metadata,
        f"{family} ({container}): mapped {len(state)} of {len(state)} tensors, "
        f"dropped {dropped} training-only ones{note}",
    )
    _check(result)
    return result


def _family(tensors: State) -> str:
    def has(pattern: str) -> bool:
        return any(re.match(pattern, k) for k in tensors)

    if has(r"cp\.backbone\.(features\.|x\d+\.)"):
        return "official"
    if has(r"backbone\.backbone\.stages\.|decode_head\."):
        return "mmseg"
    if has(r"cp\.backbone\.stages\.block_s"):
        return "super-gradients"
    if has(r"(stages|backbone\.stages)\."):
        raise UserError(
            "holds a classification backbone of another code base, whose layout is not read; "
            "give the official backbone file or a segmentation checkpoint"
        )
    if has(r"features\."):
        raise UserError(
            "holds a classification backbone, not a segmentation network; "
            "use it to start a training: stdc-fast train --backbone FILE"
        )
    first = ", ".join(list(tensors)[:3])
    raise UserError(
        "is not an STDC-Seg checkpoint of a known layout (official, mmsegmentation, "
        f"super-gradients, stdc_fast safetensors); its first keys are {first}"
    )


def _from_official(tensors: State) -> State:
    """Drop the second name (``x8.0.2`` for ``features.2``) of each backbone tensor."""
    state, aliases = {}, {}
    for key, value in tensors.items():
        alias = re.match(r"cp\.backbone\.x\d+\.0\.(\d+\..+)", key)
        if alias:
            aliases[f"cp.backbone.features.{alias[1]}"] = (key, value)
        else:
            state[key] = value
    for name, (key, value) in aliases.items():
        if name not in state:
            state[name] = value
        elif not torch.equal(state[name], value):
            raise UserError(f"{key} and {name} should be the same tensor but differ; the file is damaged")
    return state


_MMSEG_RULES = [
    (r"layers\.(\d+)\.", r"conv_list.\1."),
    (r"downsample\.conv\.", "avd_layer.0."),
    (r"downsample\.bn\.", "avd_layer.1."),
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
]

_SG_RULES = [
    (r"conv_list\.1\.0\.seq\.conv\.", "avd_layer.0."),
    (r"conv_list\.1\.0\.seq\.bn\.", "avd_layer.1."),
    (r"conv_list\.1\.1\.seq\.", "conv_list.1."),
    (r"^(cp\.backbone\..*)\.seq\.", r"\1."),
    (r"^(cp\.arm\d+)\.conv_first\.seq\.", r"\1.conv."),
    (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.conv\.", r"\1.conv_atten."),
    (r"^(cp\.arm\d+)\.attention_block\.1\.seq\.bn\.", r"\1.bn_atten."),
    (r"^cp\.upsample(16|32)\.1\.seq\.", r"cp.conv_head\1."),
    (r"^cp\.context_embedding\.context_embedding\.1\.seq\.", "cp.conv_avg."),
    (r"^ffm\.pw_conv\.seq\.", "ffm.convblk."),
    (r"^ffm\.attention_block\.1\.seq\.conv\.", "ffm.conv1."),
    (r"^ffm\.attention_block\.2\.", "ffm.conv2."),
    (r"^segmentation_head\.0\.seg_head\.0\.seq\.", "conv_out.conv."),
    (r"^segmentation_head\.0\.seg_head\.2\.", "conv_out.conv_out."),
]


def _rename(tensors: State, stage: str, stages: list[str], rules: list[tuple[str, str]]) -> State:
    """Number the backbone's blocks through, then apply the rules in order.

    ``stage`` is a pattern with groups (stage, block) and ``stages`` the stage names from 1/2 to 1/32.
    """
    blocks = {s: set() for s in stages}
    for key in tensors:
        found = re.match(stage, key)
        if found and found[1] in blocks:
            blocks[found[1]].add(int(found[2] or 0))
    start, offset = {}, 0
    for name in stages:
        start[name] = offset
        offset += len(blocks[name])
    state = {}
    for key, value in tensors.items():
        found = re.match(stage, key)
        name = key
        if found and found[1] in start:
            index = start[found[1]] + int(found[2] or 0)
            name = f"cp.backbone.features.{index}.{key[found.end() :]}"
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in state:
            raise UserError(f"{key} stands for {name}, which is there already; the file mixes two layouts")
        state[name] = value
    return state


_MAPS: dict[str, Callable[[State], State]] = {
    "official": _from_official,
    "mmseg": lambda t: _rename(
        t, r"backbone\.backbone\.stages\.(\d)\.(?:(\d+)\.)?", list("01234"), _MMSEG_RULES
    ),
    "super-gradients": lambda t: _rename(
        t,
        r"cp\.backbone\.stages\.(block_s\d+)\.(\d+)\.",
        [f"block_s{2 << i}" for i in range(5)],
        _SG_RULES,
    ),
}


def _variant(state: State) -> str:
    blocks = {int(m[1]) for k in state if (m := re.match(r"cp\.backbone\.features\.(\d+)\.", k))}
    for name, stages in STAGES.items():
        if max(blocks, default=0) == 1 + sum(stages):
            return name
    counts = " or ".join(f"{2 + sum(s)} ({n})" for n, s in STAGES.items())
    raise UserError(f"its backbone has {len(blocks)} blocks; known are {counts}")


def _build(checkpoint: Checkpoint, count_include_pad: object = True) -> STDCSeg:
    """On "meta": its weights are about to be replaced."""
    bias = checkpoint.family == "mmseg" or "conv_out.conv_out.bias" in checkpoint.state
    form = (checkpoint.variant, checkpoint.num_classes, checkpoint.module, bool(count_include_pad))
    with torch.device("meta"):
        return STDCSeg(*form, classifier_bias=bias)


def _check(checkpoint: Checkpoint) -> None:
    """Names, shapes, dtypes and values must be exactly those of the network."""
    state = checkpoint.state
    if checkpoint.variant not in STAGES:
        raise UserError(f"says it is a {checkpoint.variant!r}; known are {', '.join(STAGES)}")
    expected = inference_state(_build(checkpoint))
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise UserError(f"does not match {checkpoint.variant} of {checkpoint.family}: {'; '.join(parts)}")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}, "
                f"{checkpoint.variant} needs {list(expected[key].shape)}"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{key} is {tensor.dtype}, not a float tensor")
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{key} holds NaN or infinite values; the file is damaged or its training diverged"
            )
    if checkpoint.num_classes > 256:
        raise UserError(f"has {checkpoint.num_classes} classes; labels are bytes, so at most 256")
    check_metadata(checkpoint.metadata, state)


def check_metadata(metadata: dict[str, object], state: State) -> None:
    """What :func:`stdc_fast.load` builds on must have the right types."""
    plain = json.loads(json.dumps({k: metadata.get(k) for k in ("classes", "palette")}))
    classes, palette = plain["classes"], plain["palette"]
    if classes is not None and not isinstance(classes, list):
        raise UserError(f"its classes are {classes!r}, not a list of names")
    if classes is not None and not (
        all(isinstance(n, str) for n in classes) and len(set(classes)) == len(classes)
    ):
        raise UserError("its classes are not all different names")
    if palette is not None and not (
        classes
        and isinstance(palette, list)
        and len(palette) == len(classes)
        and all(isinstance(c, list) and len(c) == 3 and all(v in range(256) for v in c) for c in palette)
    ):
        raise UserError("its metadata 'palette' is not one [R, G, B] of 0..255 for each class")
    count = len(state["conv_out.conv_out.weight"])
    if classes is not None and len(classes) != count:
        raise UserError(f"names {len(classes)} classes but its classifier has {count}")
    side = metadata.get("short_side")
    if side is not None and not (isinstance(side, int) and side >= 32):
        raise UserError(f"its metadata 'short_side' is not a number of pixels from 32 on, but {side!r}")


def inference_state(network: nn.Module) -> State:
    """The network's state dict without training-only heads and batch counters."""
    return {
        k: v
        for k, v in network.state_dict().items()
        if not re.match(_TRAINING_ONLY["official"], k) and not k.endswith("num_batches_tracked")
    }


def save(state: State, path: str | Path, metadata: dict[str, object], half: bool = False) -> None:
    """Write a canonical state dict and its metadata as safetensors, atomically.

    Args:
        state: inference tensors of :class:`~stdc_fast.reference.STDCSeg`, any float dtype.
        path: file to write.
        metadata: JSON-able values; ``docs/checkpoints.md`` lists the keys.
        half: store convolution weights as fp16; norm statistics stay float32.

    Raises UserError if the file can not be written, or a weight does not fit fp16.
    """
    tensors = {}
    for name, tensor in state.items():
        small = half and tensor.ndim == 4
        stored = tensor.detach().to("cpu", torch.float16 if small else torch.float32).contiguous()
        if small and not torch.isfinite(stored).all():
            raise UserError(f"{path}: {name} exceeds the range of fp16; save it without half")
        tensors[name] = stored
    text = {"format": FORMAT, **{k: json.dumps(v) for k, v in metadata.items()}}
    write_atomic(path, lambda p: safetensors.torch.save_file(tensors, p, metadata=text))
