"""What a checkpoint file is, what was read from it and where, and what loading it carelessly would change."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stdc_fast import images
from stdc_fast.backends.eager.ranges import fp16_overflow
from stdc_fast.checkpoints import families
from stdc_fast.checkpoints.canonical import Checkpoint, from_content
from stdc_fast.checkpoints.containers import Content, open_file
from stdc_fast.checkpoints.options import OPTIONS
from stdc_fast.checkpoints.writers.writer import BIASES, EPS, MEAN, STD
from stdc_fast.errors import UserError
from stdc_fast.plan import build, optimise
from stdc_fast.reference import ConvBNReLU
from stdc_fast.reference.networks import STDCSeg, upsample

PHOTO = Path(__file__).parent / "assets" / "street.jpg"
#: What of a network its tensors do not show, and what the published ones have.
PUBLISHED = {name: published for name, (_, _, published) in OPTIONS.items() if name != "batch_norm"}
_LAST = "cp.backbone.conv_last."
# Without a size of its own the network is tried at this one.
_SHORT_SIDE = 512
_FIRST = 3


def examine(path: Path, photo: Path = PHOTO, **options: object) -> dict[str, object]:
    """Everything about a checkpoint file, as JSON-able values.

    Args:
        path: any file.
        photo: image on which careless ways of loading are compared with the right one.
        options: what the file does not say of its network, as for :func:`stdc_fast.checkpoints.read`.

    Returns a dict. "file" is always there. "refused" is the reason why the file cannot be loaded, or None.
    The rest is there as far as it is known: "weights", "tensors", "options", "batch_norm", "classes",
    "palette", "fp16", "suspicious", "photo", "careless". Raises UserError for a file or photo that is not
    there.
    """
    found: dict[str, object] = {"file": _file(path), "refused": None}
    picture = images.read_image(photo)
    try:
        content = open_file(path)
    except UserError as error:
        return found | {"refused": str(error)}
    found["tensors"] = _tensors(content)
    family = next((f for f in families.FAMILIES if f.holds(content.tensors)), None)
    family = families.OURS if content.metadata is not None else family
    weights = {
        "kind": "unknown" if family is None else "segmentation",
        "family": None if family is None else family.name,
        "container": content.container,
    }
    found["weights"] = weights
    if family is None and (code_base := _code_base(content)) is not None:
        return found | {"weights": weights | {"kind": "backbone", "family": code_base}}
    try:
        checkpoint = from_content(content, options)
        network = checkpoint.network()
    except UserError as error:
        return found | {"refused": str(error)}
    size = _size(checkpoint, *picture.shape[:2])
    found |= {
        "weights": weights | _weights(checkpoint),
        "options": _options(checkpoint),
        "batch_norm": _batch_norm(checkpoint),
        **_names(checkpoint),
        "fp16": fp16_overflow(optimise(build(network))),
        "suspicious": list(_suspicious(checkpoint)),
        "photo": {"file": str(photo), "height": size[0], "width": size[1]},
        "careless": list(_careless(checkpoint, content, network, _resized(picture, size))),
    }
    found["tensors"] |= _mapping(checkpoint, content)
    return found


def _file(path: Path) -> dict[str, object]:
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(
            f"{path}: can not be read ({error.strerror or error}); give a checkpoint file"
        ) from None
    facts: dict[str, object] = {"name": str(path), "bytes": size, "sha256": digest.hexdigest()}
    # torch.hub's convention, which mmsegmentation follows: the name ends with the start of the hash.
    if named := re.search(r"-([0-9a-f]{8,})\.\w+$", path.name):
        facts["name_has_its_hash"] = digest.hexdigest().startswith(named[1])
    return facts


def _tensors(content: Content) -> dict[str, object]:
    names = list(content.tensors)
    dtypes = Counter(
        str(v.dtype).removeprefix("torch.") for k, v in content.tensors.items() if not _counts_batches(k)
    )
    return {"in_file": len(names), "first": names[:_FIRST], "dtypes": dict(dtypes.most_common())}


def _mapping(checkpoint: Checkpoint, content: Content) -> dict[str, object]:
    family = next((f for f in families.FAMILIES if f.name == checkpoint.family), families.OURS)
    counters = [k for k in content.tensors if _counts_batches(k)]
    others = [k for k in content.tensors if not _counts_batches(k)]
    training = [k for k in others if family.trains_only(k)]
    return {
        "mapped": len(checkpoint.state),
        "training_only": len(training),
        "first_training_only": training[:_FIRST],
        "batch_counters": len(counters),
        "second_names": max(0, len(others) - len(training) - len(checkpoint.state)),
    }


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _code_base(content: Content) -> str | None:
    """Whose classification backbone it is, if it is one."""
    return next((f.name for f in families.FAMILIES if f.holds_backbone(content.tensors)), None)


def _weights(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "variant": checkpoint.variant,
        "module": checkpoint.module,
        "num_classes": checkpoint.num_classes,
        "report": checkpoint.report,
        "notes": list(checkpoint.notes),
    }


def _options(checkpoint: Checkpoint) -> dict[str, dict[str, object]]:
    result = {}
    for name, published in {**PUBLISHED, "short_side": None, "scale": None}.items():
        value = checkpoint.metadata.get(name, published)
        origin = "metadata" if name in checkpoint.metadata else "default"
        if value is not None:
            result[name] = {"value": value, "from": checkpoint.origins.get(name, origin)}
    return result


def _batch_norm(checkpoint: Checkpoint) -> dict[str, object]:
    in_place = "in-place batch norm" in checkpoint.report
    if checkpoint.family == "official":
        origin = checkpoint.origins.get("batch_norm", "batch counters")
    else:
        origin = "family"
    return {"decoder": "in-place, scaled by |gamma| + 1e-5" if in_place else "plain", "from": origin}


def _names(checkpoint: Checkpoint) -> dict[str, object]:
    values = {k: checkpoint.metadata.get(k) for k in ("classes", "palette")}
    return {k: {"value": v, "from": "default" if v is None else "file"} for k, v in values.items()}


def _suspicious(checkpoint: Checkpoint) -> Iterator[dict[str, object]]:
    """Values that a trained network rarely has, by tensor."""
    for name, tensor in checkpoint.state.items():
        values = tensor.double()
        kind = "variance" if name.endswith(".running_var") else "norm" if values.ndim == 1 else "convolution"
        if kind == "norm" and not name.endswith(".weight"):
            continue
        for test, what in _TESTS[kind]:
            if count := int(test(values).sum()):
                yield {"tensor": name, "channels": count, "of": len(values), "what": what}


#: By kind of tensor: which channels are suspicious, and why. In-place batch norm has no weight below 1e-5.
_TESTS: dict[str, tuple[tuple[Callable[[Tensor], Tensor], str], ...]] = {
    "variance": (
        (lambda v: v < 0, "a negative variance, which gives NaN"),
        (lambda v: (v >= 0) & (v < 1e-10), "a variance of almost 0: they are constant"),
        (lambda v: v > 1e6, "a variance above 1e6"),
    ),
    "norm": (
        (lambda v: v.abs() < 1.0001e-5, "a norm weight of almost 0: they are dead"),
        (lambda v: v.abs() > 1e3, "a norm weight above 1000"),
    ),
    "convolution": (
        (lambda v: (v == 0).flatten(1).all(1), "nothing but zeros: they are dead"),
        (lambda v: (v.abs() > 1e3).flatten(1).any(1), "weights above 1000"),
    ),
}


def _size(checkpoint: Checkpoint, height: int, width: int) -> tuple[int, int]:
    side, factor = (checkpoint.metadata.get(k) for k in ("short_side", "scale"))
    if side or not factor:
        factor = (side or min(_SHORT_SIDE, height, width)) / min(height, width)
    return round(height * factor), round(width * factor)


def _resized(picture: object, size: tuple[int, int]) -> Tensor:
    """Float ``[1, 3, H, W]`` of 0..1."""
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    return upsample(x, size)


@dataclasses.dataclass(frozen=True)
class _Use:
    """A way to use a network: what is normalised with, and how logits are enlarged."""

    network: STDCSeg
    mean: list[float]
    std: list[float]
    align_corners: bool

    @torch.inference_mode()
    def labels(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        logits = self.network.logits8((x - mean) / std)
        size, corners = x.shape[2:], self.align_corners
        return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=corners).argmax(1)


def _careless(
    checkpoint: Checkpoint, content: Content, network: STDCSeg, x: Tensor
) -> Iterator[dict[str, object]]:
    """By careless way of loading the file: the share of labels that it would change."""
    said = {k: checkpoint.metadata.get(k, v) for k, v in PUBLISHED.items()}
    right = _Use(network, said["mean"], said["std"], said["align_corners"])
    expected = right.labels(x)

    def changed(how: str, use: _Use, image: Tensor = x) -> dict[str, object]:
        return {"how": how, "changed": (use.labels(image) != expected).double().mean().item()}

    def altered(change: Callable[[nn.Module], object]) -> _Use:
        other = copy.deepcopy(network)
        for module in other.modules():
            change(module)
        return dataclasses.replace(right, network=other)

    if norms := _other_norms(checkpoint, content):
        how, state = norms
        other = dataclasses.replace(checkpoint, state={**checkpoint.state, **state}).network()
        yield changed(how, dataclasses.replace(right, network=other))
    corners = not said["align_corners"]
    yield changed(f"with align_corners={corners}", dataclasses.replace(right, align_corners=corners))
    if said["eps"] != EPS:
        yield changed(f"with eps={EPS}", altered(_published_eps))
    if not said["count_include_pad"] and checkpoint.module == "cat":
        yield changed("with count_include_pad=True", altered(_published_pool))
    if said["conv_last"]:
        yield changed("without conv_last", altered(_without_conv_last))
    elif last := {k: v for k, v in content.tensors.items() if k.startswith(_LAST)}:
        yield changed("with its conv_last applied", dataclasses.replace(right, network=_with(last, network)))
    biases = {k: torch.zeros_like(checkpoint.state[k]) for k in BIASES if k in checkpoint.state}
    if any(checkpoint.state[k].any() for k in biases):
        other = dataclasses.replace(checkpoint, state={**checkpoint.state, **biases}).network()
        yield changed(f"without {', '.join(biases)}", dataclasses.replace(right, network=other))
    published = dataclasses.replace(right, mean=MEAN, std=STD)
    if published != right:
        yield changed("normalised with ImageNet's mean and deviation", published)
    yield changed("given BGR instead of RGB", right, x.flip(1))


def _other_norms(checkpoint: Checkpoint, content: Content) -> tuple[str, dict[str, Tensor]] | None:
    """Of an official file, the decoder's norm weights by the rule that is not its own, and what that is."""
    if checkpoint.family != "official":
        return None
    in_place = "in-place batch norm" in checkpoint.report
    decoder = [k for k in checkpoint.state if re.match(r"(?!cp\.backbone\.).*\.(bn|bn_atten)\.weight$", k)]
    if in_place:
        return "as plain batch norm", {k: content.tensors[k] for k in decoder}
    return "as in-place batch norm", {k: checkpoint.state[k].double().abs() + 1e-5 for k in decoder}


def _published_eps(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        module.eps = EPS


def _published_pool(module: nn.Module) -> None:
    if isinstance(module, nn.AvgPool2d):
        module.count_include_pad = True


def _with(last: families.State, network: STDCSeg) -> STDCSeg:
    """The network with the convolution that official files hold and seldom use, on the features at 1/32."""
    layer, other = ConvBNReLU(1024, 1024, 1), copy.deepcopy(network)
    layer.load_state_dict({k.removeprefix(_LAST): v for k, v in last.items()}, strict=False)
    layer.eval()
    other.cp.backbone.register_forward_hook(lambda module, x, features: (*features[:-1], layer(features[-1])))
    return other


def _without_conv_last(module: nn.Module) -> None:
    if hasattr(module, "uses_conv_last"):
        module.uses_conv_last = False
