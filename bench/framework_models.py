"""STDC-Seg networks of the real packages, with random weights and without their data or downloads.

mmsegmentation (or onedl-mmsegmentation, which has the same modules) is built from the configuration that it
ships. Modules that a package imports and never calls for this network are empty: compiled operators, mmdet,
reports on data sets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGES = ("mmsegmentation", "onedl-mmsegmentation", "super-gradients")


def installed() -> str | None:
    """The one of :data:`PACKAGES` that is installed here, as "name version"."""
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return None


def _stub(*names: str) -> None:
    def missing(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})

    for name in names:
        with contextlib.suppress(Exception):
            if importlib.util.find_spec(name) is not None:
                __import__(name)
                continue
        module = types.ModuleType(name)
        module.__getattr__ = missing
        module.__path__ = []
        sys.modules[name] = module


def mmseg_config(variant: str = "stdc1", classes: int = 19) -> Any:
    """The configuration that the package ships, without its download and with plain batch norm."""
    _stub("mmcv.ops", "mmcv.ops.point_sample", "mmcv.ops.multi_scale_deform_attn",
          "mmdet", "mmdet.models", "mmdet.models.dense_heads", "mmdet.models.utils",
          "mmdet.utils")  # fmt: skip
    import mmseg
    from mmengine.config import Config

    name = f"{variant}_in1k-pre_4xb12-80k_cityscapes-512x1024.py"
    config = Config.fromfile(Path(mmseg.__file__).parent / ".mim/configs/stdc" / name)
    config.merge_from_dict(
        {"model.backbone.backbone_cfg.init_cfg": None, "model.decode_head.num_classes": classes}
    )
    _plain_norms(config.model)
    return config


def _plain_norms(part: Any) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "norm_cfg":
                part[key] = {"type": "BN", "requires_grad": True}
            else:
                _plain_norms(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            _plain_norms(value)


def mmseg_model(variant: str = "stdc1", classes: int = 19) -> nn.Module:
    config = mmseg_config(variant, classes)
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    return randomised(MODELS.build(config.model))


def import_torchvision() -> None:
    """Without its compiled operators, whose fakes torch would look for: they may be for other builds."""
    register = torch.library.register_fake
    torch.library.register_fake = lambda *args, **kwargs: lambda function: function
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register


def sg_model(variant: str = "stdc1", classes: int = 19) -> nn.Module:
    os.environ["CRASH_HANDLER"] = "FALSE"
    import_torchvision()
    base = "data_gradients"
    parts = ("", ".common", ".common.decorators", ".dataset_adapters", ".dataset_adapters.base_adapter",
             ".dataset_adapters.config", ".dataset_adapters.config.data_config",
             ".dataset_adapters.config.typing_utils", ".dataset_adapters.classification_adapter",
             ".dataset_adapters.detection_adapter", ".dataset_adapters.segmentation_adapter", ".utils",
             ".utils.data_classes", ".utils.data_classes.data_samples")  # fmt: skip
    _stub("onnxsim", *(f"{base}{part}" for part in parts))
    from super_gradients.training import models

    return randomised(models.get(f"{variant}_seg", num_classes=classes))


def model(variant: str = "stdc1", classes: int = 19) -> nn.Module:
    """Of the package that is installed."""
    return (
        sg_model(variant, classes)
        if (installed() or "").startswith("super")
        else mmseg_model(variant, classes)
    )


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Norms and classifiers with weights in which no error can hide; in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
                module.running_mean.copy_(uniform(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            elif isinstance(module, nn.Conv2d) and module.out_channels < 32:
                module.weight.copy_(uniform(module.weight, -0.5, 0.5))
    return network.eval()
