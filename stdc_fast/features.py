"""``create_model``: networks to be trained, and backbones that give their feature maps, as of timm.

Only the interface is timm's; the package is not needed.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stdc_fast import checkpoints, registry, zoo
from stdc_fast import nn as fused
from stdc_fast.checkpoints import writers
from stdc_fast.errors import UserError
from stdc_fast.placement import on_cpu
from stdc_fast.reference.layers import ConvBNReLU, STDCModule
from stdc_fast.reference.networks import STAGES, STDCBackbone, STDCSeg
from stdc_fast.start import copy_backbone, copy_whole

log = logging.getLogger(__name__)

# Strides of a backbone's feature maps.
_REDUCTIONS = (2, 4, 8, 16, 32)


class FeatureInfo:
    """What the feature maps of a backbone are, with the attributes and methods of ``timm``'s.

    Attributes:
        info: of each of the backbone's maps: num_chs, reduction (the stride), module (its name), index.
        out_indices: of the maps that the backbone gives.
    """

    def __init__(self, info: list[dict[str, object]], out_indices: Sequence[int]):
        self.info, self.out_indices = info, tuple(out_indices)

    def from_other(self, out_indices: int | Sequence[int]) -> FeatureInfo:
        """The same for other maps."""
        return FeatureInfo(copy.deepcopy(self.info), _indices(out_indices))

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> object:
        """A value of each map that is given; with ``idx`` of that map, or list of maps, of the backbone."""
        if idx is None:
            idx = self.out_indices
        return [self.info[i][key] for i in idx] if isinstance(idx, (tuple, list)) else self.info[idx][key]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> object:
        """As :meth:`get`, with several values or all."""
        if idx is None:
            idx = self.out_indices
        if isinstance(idx, (tuple, list)):
            return [self.get_dicts(keys, i) for i in idx]
        return self.info[idx] if keys is None else {k: self.info[idx][k] for k in keys}

    def channels(self, idx: int | Sequence[int] | None = None) -> object:
        """Channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> object:
        """Strides of the maps; a map of stride s has ``ceil(H / s)`` rows."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> object:
        """Names of the modules that give the maps."""
        return self.get("module", idx)

    def __getitem__(self, item: int) -> dict[str, object]:
        return self.info[item]

    def __len__(self) -> int:
        return len(self.info)


class FeatureBackbone(nn.Module):
    """An STDC backbone that gives a list of feature maps.

    ``forward`` maps ``[N, in_chans, H, W]`` to a list of ``[N, C, ceil(H / stride), ceil(W / stride)]`` in
    the order of ``out_indices``. Its blocks are those of :mod:`stdc_fast.nn`: fast in eval mode where no
    gradient is asked for, and otherwise what the reference is. Names of weights are those of
    :class:`stdc_fast.reference.STDCBackbone`. Layers after the last map that is given are left out.

    Attributes:
        feature_info: :class:`FeatureInfo`.
        variant: "stdc1" or "stdc2".
    """

    def __init__(self, backbone: STDCBackbone, out_indices: int | Sequence[int] = (0, 1, 2, 3, 4)):
        super().__init__()
        self.variant = backbone.variant
        ends = [0, 1]
        for count in backbone.stages:
            ends.append(ends[-1] + count)
        info = [
            {"num_chs": c, "reduction": r, "module": f"features.{end}", "index": i}
            for i, (c, r, end) in enumerate(zip(backbone.channels, _REDUCTIONS, ends, strict=True))
        ]
        self.feature_info = FeatureInfo(info, _indices(out_indices))
        self._ends = [ends[i] for i in self.feature_info.out_indices]
        self.features = nn.Sequential(*map(_fused, list(backbone.features)[: max(self._ends) + 1]))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self._ends:
                found[i] = x
        return [found[end] for end in self._ends]


def _fused(layer: nn.Module) -> nn.Module:
    """The module of :mod:`stdc_fast.nn` with the weights of a reference layer, where there is one."""
    if isinstance(layer, STDCModule):
        widths = [block.conv.out_channels for block in layer.conv_list]
        pool = not hasattr(layer, "skip") or layer.skip.count_include_pad
        first = layer.conv_list[0].conv.in_channels
        made = fused.STDCModule(first, sum(widths), len(widths), layer.stride, pool)
    elif isinstance(layer, ConvBNReLU):
        conv = layer.conv
        made = fused.ConvBNReLU(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
    else:
        return layer
    made.load_state_dict(layer.state_dict())
    return made


def _indices(given: int | Sequence[int]) -> tuple[int, ...]:
    """Indices of maps, counted from the first; a number stands for so many of the last, as in timm."""
    count = len(_REDUCTIONS)
    try:
        listed = tuple(range(-given, 0)) if isinstance(given, int) else tuple(given)
        found = tuple(i + count if i < 0 else i for i in listed)
        if isinstance(given, bool) or not found or not all(type(i) is int and 0 <= i < count for i in found):
            raise TypeError
    except TypeError:
        raise UserError(
            f"out_indices must be numbers from 0 to {count - 1}, or how many of the last maps, not {given!r}"
        ) from None
    return found


@on_cpu
def create_model(
    model_name: str = "stdc1",
    pretrained: bool | str | Path = False,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    training_heads: bool = False,
    download: bool = False,
) -> STDCSeg | FeatureBackbone:
    """A network to be trained, in training mode: the segmentation network, or its backbone alone.

        network = stdc_fast.create_model("stdc1", num_classes=7, pretrained="stdc1_camvid")
        backbone = stdc_fast.create_model("stdc2", features_only=True, out_indices=(2, 3, 4))

    Args:
        model_name: "stdc1" or "stdc2".
        pretrained: False for weights by chance, as the paper's code draws them; a name or file of a backbone,
            which leaves all else to chance; a name or file of a segmentation network; or True for the
            backbone of ImageNet that :func:`stdc_fast.list_models` knows of this network.
        num_classes: outputs of the segmentation network; None takes those of ``pretrained``, else 19. Where
            they are not as many as there, the last layer is left to chance.
        in_chans: channels of images, for backbones. Weights of the first layer are made to fit as timm does:
            summed for one channel, repeated for others.
        features_only: the backbone alone, a :class:`FeatureBackbone`.
        out_indices: of its maps at strides 2, 4, 8, 16 and 32; a number is how many of the last ones.
        training_heads: of the segmentation network, see :class:`stdc_fast.reference.STDCSeg`.
        download: fetch ``pretrained`` if it is not on this machine.

    A trained network labels images as ``stdc_fast.Segmenter(network, ClassSet.from_names(names))``.
    UserError for names, files and combinations that do not fit.
    """
    _check(model_name, features_only, in_chans, num_classes, out_indices, training_heads)
    if isinstance(pretrained, bool):
        path = zoo.find(f"{model_name}_in1k.mmseg", download, backbone=True) if pretrained else None
    else:
        path = zoo.find(pretrained, download, backbone=True)
    if features_only:
        backbone = STDCBackbone(model_name)
        if path is not None:
            copy_backbone(backbone, checkpoints.read_backbone(path), pretrained)
        _take_channels(backbone, in_chans)
        return FeatureBackbone(backbone, (0, 1, 2, 3, 4) if out_indices is None else out_indices)
    whole = None if path is None or writers.holds_backbone(path) else checkpoints.read(path)
    count = num_classes or (whole.num_classes if whole else 19)
    network = STDCSeg(model_name, count, training_heads=training_heads)
    if whole is not None:
        remedy = f"load({str(pretrained)!r}).network.train().requires_grad_() is that network"
        if whole.variant != model_name:
            remedy = f"call create_model({whole.variant!r}, ...)"
        copy_whole(network, whole, pretrained, whole.num_classes == count, remedy)
        if whole.num_classes != count:
            log.warning("%s: has %d classes, not %d, so the last layer starts anew",
                        pretrained, whole.num_classes, count)  # fmt: skip
    elif path is not None:
        copy_backbone(network.cp.backbone, checkpoints.read_backbone(path), pretrained)
    return network.train()


def _check(name, features_only, in_chans, num_classes, out_indices, training_heads) -> None:
    if not isinstance(name, str) or name not in STAGES:
        if isinstance(name, str) and (name in registry.RECORDS or name in zoo.list_models()):
            raise UserError(f"{name!r} is a name of weights; create_model({name[:5]!r}, pretrained={name!r})")
        raise UserError(f"unknown network {name!r}; choose one of {', '.join(STAGES)}")
    for what, value in (("in_chans", in_chans), ("num_classes", num_classes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{what} must be a whole number from 1 on, not {value!r}")
    if features_only and (num_classes is not None or training_heads):
        raise UserError(
            "a backbone has no classes; leave out features_only, or num_classes and training_heads"
        )
    if not features_only and (in_chans != 3 or out_indices is not None):
        raise UserError(
            "in_chans and out_indices are for backbones; leave them out, or add features_only=True"
        )


def _take_channels(backbone: STDCBackbone, count: int) -> None:
    """Exchange the first convolution for one of so many input channels."""
    old = backbone.features[0].conv
    if count == old.in_channels:
        return
    weight = old.weight.detach()
    if count == 1:
        weight = weight.sum(1, keepdim=True)
    else:
        repeats = math.ceil(count / old.in_channels)
        weight = weight.repeat(1, repeats, 1, 1)[:, :count] * (old.in_channels / count)
    new = nn.Conv2d(count, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    with torch.no_grad():
        new.weight.copy_(weight)
    backbone.features[0].conv = new
