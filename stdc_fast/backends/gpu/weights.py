"""The weights of each op as Triton's kernels read them: rounded once, biases float32."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from stdc_fast.plan.ops import Conv, Down, Gate, Stem
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision


def pack(plan: Plan, precision: Precision, device: torch.device) -> dict[str, SimpleNamespace]:
    """The weights of each op as its kernel reads them: rounded once, biases float32."""
    source = _Source(plan, precision)
    packed = {op.name: _PACK[type(op)](source, op) for op in plan.ops if type(op) in _PACK}
    return moved(packed, device)


def moved(packed: dict[str, SimpleNamespace], device: torch.device) -> dict[str, SimpleNamespace]:
    """The same, its tensors and lists of tensors on a device.

    Computed on the CPU and copied at once: whatever stream reads them first finds them there.
    """
    for found in packed.values():
        for name, value in vars(found).items():
            if isinstance(value, Tensor):
                setattr(found, name, value.to(device))
            elif isinstance(value, list) and isinstance(value[0], Tensor):
                setattr(found, name, [w.to(device) for w in value])
    return packed


class _Source:
    def __init__(self, plan: Plan, precision: Precision):
        self.plan, self.precision = plan, precision

    def weight(self, name: str) -> Tensor:
        return self.plan.weights[name].to(self.precision.weights)

    def wide(self, name: str | None, channels: int) -> Tensor:
        """A bias, or zeros."""
        return torch.zeros(channels) if name is None else self.plan.weights[name].float()

    def columns(self, weight: Tensor) -> Tensor:
        """Output channels, the last dimension, padded to a multiple of 16."""
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[-1] % 16))
        return padded.contiguous()


def _pack_stem(s: _Source, op: Stem) -> SimpleNamespace:
    weight = s.weight(op.weight)
    bias = s.wide(op.bias, len(weight))
    offset = torch.zeros(2, 3)
    if op.offset is not None:
        # Raw pixels less whole numbers are exact in every dtype. What those lack of the offset goes into
        # the border, and into the bias, with the weights as rounded.
        exact = torch.tensor(op.offset, dtype=torch.float32)
        offset = torch.stack([exact.round(), exact - exact.round()])
        bias = bias - (weight.float() * offset[1].view(1, -1, 1, 1)).sum((1, 2, 3))
    taps = weight.permute(2, 3, 1, 0).reshape(27, len(weight))
    taps = torch.nn.functional.pad(taps, (0, 0, 0, 5))
    return SimpleNamespace(weight=s.columns(taps), bias=bias, offset=offset)


def _pack_conv(s: _Source, op: Conv) -> SimpleNamespace:
    weight = s.weight(op.weight)
    out = op.output.channels
    if op.kernel == 2:
        packed = weight.permute(0, 1, 4, 5, 3, 2)  # sets of rows and columns, taps, in, out
    else:
        parts = weight.split([view.channels for view in op.inputs], 1)
        packed = torch.cat([part.permute(2, 3, 1, 0).reshape(-1, out) for part in parts])
    return SimpleNamespace(weight=s.columns(packed), bias=s.wide(op.bias, out))


def _pack_down(s: _Source, op: Down) -> SimpleNamespace:
    n = op.output.channels
    depthwise = s.weight(op.depthwise_weight).float().reshape(n, 9).T.contiguous()
    return SimpleNamespace(
        weight=s.columns(s.weight(op.weight).flatten(1).T),
        bias=s.wide(op.bias, n),
        depthwise=depthwise,
        depthwise_bias=s.wide(op.depthwise_bias, n),
    )


def _pack_gate(s: _Source, op: Gate) -> SimpleNamespace:
    weights = [s.weight(name).flatten(1).contiguous() for name in op.layers]
    biases = [s.wide(b, len(w)) for b, w in zip(op.biases, weights, strict=True)]
    return SimpleNamespace(weights=weights, biases=biases)


_PACK = {Stem: _pack_stem, Conv: _pack_conv, Down: _pack_down, Gate: _pack_gate}
