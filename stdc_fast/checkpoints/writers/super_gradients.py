"""Files of super-gradients 3.x."""

from __future__ import annotations

from stdc_fast.checkpoints.canonical import Checkpoint
from stdc_fast.checkpoints.families import State
from stdc_fast.checkpoints.writers.names import Naming, ordered
from stdc_fast.checkpoints.writers.writer import (
    BIASES,
    EPS,
    Writer,
    Written,
    averages_differ,
    eps_of,
    normalisation,
    refuse,
    unkept,
    with_counters,
    without_zero_biases,
)

NAMES = Naming(
    stages=tuple(f"cp.backbone.stages.block_s{2 << i}.#." for i in range(5)),
    modules=(
        ("halving.conv_list.1", "conv_list.1.1.seq"),
        ("halving.avd_layer.0", "conv_list.1.0.seq.conv"),
        ("halving.avd_layer.1", "conv_list.1.0.seq.bn"),
        ("block.conv_list.#", "conv_list.#.seq"),
        ("block.conv", "seq.conv"),
        ("block.bn", "seq.bn"),
        ("cp.arm#.conv", "cp.arm#.conv_first.seq"),
        ("cp.arm#.conv_atten", "cp.arm#.attention_block.1.seq.conv"),
        ("cp.arm#.bn_atten", "cp.arm#.attention_block.1.seq.bn"),
        ("cp.conv_head#", "cp.upsample#.1.seq"),
        ("cp.conv_avg", "cp.context_embedding.context_embedding.1.seq"),
        ("ffm.convblk", "ffm.pw_conv.seq"),
        ("ffm.conv1", "ffm.attention_block.1.seq.conv"),
        ("ffm.conv2", "ffm.attention_block.2"),
        ("conv_out.conv", "segmentation_head.0.seg_head.0.seq"),
        ("conv_out.conv_out", "segmentation_head.0.seg_head.2"),
    ),
)

# That code by default goes by the order of the tensors where names differ, so theirs is kept.
_ORDER = (
    *(f"cp.backbone.stages.block_s{2 << i}." for i in range(5)),
    "cp.context_embedding.", "cp.arm32.", "cp.upsample32.", "cp.arm16.", "cp.upsample16.", "ffm.",
    "segmentation_head.",
)  # fmt: skip


def _renamed(state: State, variant: str) -> State:
    renamed = {NAMES(k, variant): v for k, v in with_counters(state).items()}
    # Within a block by number: the halving layer is in the list of the others.
    blocks = sorted((k for k in renamed if ".conv_list." in k), key=_place)
    rest = iter(blocks)
    keys = [next(rest) if ".conv_list." in k else k for k in renamed]
    return ordered({k: renamed[k] for k in keys}, _ORDER)


def _place(name: str) -> tuple[object, ...]:
    """Sorts tensors of the backbone's blocks by stage, block and layer; those of a layer stay as they are."""
    parts = name.split(".")
    layer = tuple(int(p) for p in parts[6:8] if p.isdigit())
    return int(parts[3].removeprefix("block_s")), int(parts[4]), layer


def _refusals(module: str) -> list[str]:
    return ["STDC modules of the form 'add'"] if module == "add" else []


def _content(checkpoint: Checkpoint) -> Written:
    metadata = checkpoint.metadata
    state = without_zero_biases(checkpoint.state, BIASES)
    reasons = _refusals(checkpoint.module) + averages_differ(checkpoint)
    if not metadata.get("align_corners", True):
        reasons.append("align_corners=False")
    if set(eps_of(checkpoint).values()) != {EPS}:
        reasons.append(f"eps={metadata['eps']} (its norms have {EPS})")
    if metadata.get("conv_last"):
        reasons.append("conv_last")
    if biases := [k for k in BIASES if k in state]:
        reasons.append(f"a bias ({', '.join(biases)})")
    refuse("super-gradients", reasons, "keep it with --to safetensors, or use --to mmseg")
    mean, std = normalisation(checkpoint)
    # In words that its factories take, so that none of its classes has to be pickled.
    steps = [
        {"SegmentationPadToDivisible": {"divisible_value": 32, "fill_image": 0}},
        {"StandardizeImage": {"max_value": 255.0}},
        {"NormalizeImage": {"mean": mean, "std": std}},
        {"ImagePermute": {"permutation": [2, 0, 1]}},
    ]
    content: dict[str, object] = {"net": _renamed(state, checkpoint.variant)}
    processing: dict[str, object] = {"image_processor": {"ComposeProcessing": {"processings": steps}}}
    if metadata.get("classes") is not None:
        processing["class_names"] = metadata["classes"]
    content["processing_params"] = processing
    notes = ["build the network with use_aux_heads=False, as the training heads are not in it"]
    return content, notes + unkept(checkpoint, "palette", "threshold", "short_side", "scale")


def _backbone(state: State, variant: str) -> Written:
    module = "add" if any(".skip." in k for k in state) else "cat"
    refuse("super-gradients", _refusals(module), "keep it with --to safetensors, or use --to mmseg")
    renamed = _renamed({f"cp.backbone.{k}": v for k, v in state.items()}, variant)
    note = f"{variant}, load it with load_backbone=True"
    return {"net": {k.removeprefix("cp."): v for k, v in renamed.items()}}, [note]


SUPER_GRADIENTS = Writer("super-gradients", _content, _backbone)
