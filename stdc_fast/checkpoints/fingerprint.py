"""By which ranges know the network that they are of."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from stdc_fast.checkpoints.canonical import inference_state
from stdc_fast.reference.networks import STDCSeg


def fingerprint(network: STDCSeg) -> str:
    """SHA-256 of all that decides what a network's maps are: its weights as float32, and its settings.

    Training heads do not count, nor the dtype and the device in which it is held.
    """
    state = inference_state(network)
    named = dict(network.named_modules())
    settings = {
        "mean": [float(v) for v in network.mean],
        "std": [float(v) for v in network.std],
        "eps": [m.eps for name, m in named.items() if f"{name}.running_mean" in state],
        "count_include_pad": [m.count_include_pad for m in named.values() if isinstance(m, nn.AvgPool2d)],
    }
    found = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in sorted(state.items()):
        found.update(f"\n{name} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy())
    return found.hexdigest()
