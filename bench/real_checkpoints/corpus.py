"""What all makers share: random weights, and the answers that are written beside each checkpoint.

Beside FILE lie FILE.json, with the keys of :func:`answer`, and FILE.npz with an input and the true output.
No module of stdc_fast is imported, and torch only where it is used: PaddlePaddle's environment has none.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys
import types
from pathlib import Path

import numpy as np


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def stub(*names: str) -> None:
    """Empty modules in place of those that the checkpoint code imports and never calls."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = []

        def attribute(wanted: str, name: str = name) -> type:
            if wanted.startswith("__"):
                raise AttributeError(wanted)
            return type(wanted, (), {"__module__": name})

        module.__getattr__ = attribute
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)


def randomise(network, seed: int = 0) -> None:
    """Random weights and statistics of a trained network's size; a quarter of all norm weights negative."""
    import torch

    g = torch.Generator().manual_seed(seed)

    def uniform(like, low: float, high: float):
        return torch.rand(like.shape, generator=g) * (high - low) + low

    def normal(like, std: float):
        return torch.randn(like.shape, generator=g) * std

    with torch.no_grad():
        for m in network.modules():
            if getattr(m, "running_var", None) is not None:
                sign = torch.where(uniform(m.weight, 0, 1) < 0.25, -1.0, 1.0)
                m.weight.copy_(uniform(m.weight, 0.5, 1.5) * sign)
                m.bias.copy_(normal(m.bias, 0.2))
                m.running_mean.copy_(normal(m.running_mean, 0.2))
                m.running_var.copy_(uniform(m.running_var, 0.5, 1.5))
                if getattr(m, "num_batches_tracked", None) is not None:
                    m.num_batches_tracked.fill_(60000)
            elif isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
                m.weight.copy_(normal(m.weight, math.sqrt(2 / m.weight[0].numel())))
                if m.bias is not None:
                    m.bias.copy_(normal(m.bias, 0.5))


def picture(height: int = 128, width: int = 256, seed: int = 0) -> np.ndarray:
    """A normalised input, float32 [1, 3, H, W]."""
    return np.random.default_rng(seed).standard_normal((1, 3, height, width)).astype(np.float32)


def answer(
    path: str | Path,
    *,
    family: str,
    packages: dict[str, str],
    made: str,
    expect: str = "load",
    why: str = "",
    kind: str = "segmentation",
    options: dict | None = None,
    said: str = "",
    classes: list[str] | None = None,
    palette: list | None = None,
    tensors: int | None = None,
    load: dict | None = None,
    arrays: dict[str, np.ndarray] | None = None,
) -> None:
    """Write the truth about a checkpoint beside it.

    Args:
        family: whose layout the names are of.
        packages: versions of what wrote the file.
        made: by which of its functions.
        expect: "load"; "refuse"; or "either" where exact numbers or a true refusal are both right.
        why: the true reason where it must, or may, be refused.
        kind: "segmentation", "backbone", "classifier" or "none".
        options: settings of the network that differ from the published one.
        said: what the file itself tells of the options, such as in meta['cfg'].
        classes, palette: as they are in the file, or None.
        tensors: number of inference tensors, without batch counters and second names.
        load: arguments that a user must give since the file can not tell.
        arrays: ``x`` float32 [1, 3, H, W]; ``logits`` float64 [1, K, ceil(H/stride), ceil(W/stride)], every
            ``stride``-th row and column of the full size; ``low`` float64, the logits at 1/8; or of backbones
            ``features8``, ``features16`` and ``features32``, or ``scores`` [1, K].
    """
    text = dict(
        family=family,
        packages=packages,
        made=made,
        kind=kind,
        expect=expect,
        why=why,
        options=options or {},
        said=said,
        classes=classes,
        palette=palette,
        tensors=tensors,
        load=load or {},
    )
    Path(f"{path}.json").write_text(json.dumps(text, indent=1) + "\n")
    if arrays is not None:
        np.savez_compressed(f"{path}.npz", **arrays)
    print(Path(path).name, expect, flush=True)


def segmentation(x: np.ndarray, low: np.ndarray, full: np.ndarray, stride: int = 8) -> dict[str, np.ndarray]:
    """The arrays of :func:`answer` for a segmentation network."""
    assert low.dtype == full.dtype == np.float64
    return dict(x=x, low=low, logits=full[:, :, ::stride, ::stride], stride=np.array(stride))


def counts(name: str) -> bool:
    """Whether a tensor counts batches only."""
    return name.endswith("num_batches_tracked")
