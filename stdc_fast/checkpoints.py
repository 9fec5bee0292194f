"""Weights on disk: our safetensors format, and reading the other families' checkpoints."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

FORMAT = "stdc_fast 1"


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary path in the same folder, then rename it to ``path``.

    Whatever happens, ``path`` is either the old file or the whole new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(
    state: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, object], half: bool = False
) -> None:
    """Write a canonical state dict and its metadata as safetensors, atomically.

    Args:
        state: inference tensors of :class:`~stdc_fast.reference.STDCSeg`, any float dtype.
        path: file to write.
        metadata: JSON-able values; see ``docs/checkpoints.md`` for the keys.
        half: store convolution weights as fp16; norm statistics stay float32.
    """
    tensors = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        small = half and tensor.ndim == 4
        tensors[name] = tensor.detach().to("cpu", torch.float16 if small else torch.float32).contiguous()
    text = {"format": FORMAT, **{k: json.dumps(v) for k, v in metadata.items()}}
    write_atomic(path, lambda p: safetensors.torch.save_file(tensors, p, metadata=text))


#: Heads that only training uses, as they are named in the canonical (official) layout.
TRAINING_ONLY = ("conv_out16.", "conv_out32.", "conv_out_sp2.", "conv_out_sp4.", "conv_out_sp8.", "conv_out_sp16.")


def inference_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's state dict without what only training uses."""
    return {
        k: v
        for k, v in network.state_dict().items()
        if not k.startswith(TRAINING_ONLY) and not k.endswith("num_batches_tracked")
    }
