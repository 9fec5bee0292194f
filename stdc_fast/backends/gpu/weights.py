"""The weights of each op: rounded once, or whole numbers of 8 bits, biases float32; as rows of outputs."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from stdc_fast.plan.ops import Conv, Down, Gate, Quantise, Stem, View
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision


def pack(plan: Plan, precision: Precision, device: torch.device) -> dict[str, SimpleNamespace]:
    """The weights of each op: rounded once, biases float32.

    Of levels, ``weight`` is int8, with the ``multipliers``, and ``start``: what is to be added to sums for
    inputs that are kept less 128, int32 ``[inputs, taps + 1, outputs]``, of each tap and of all, in front of
    which the sub-pixel form has its sets; without taps for ``down``. Of levels that are written ``inverse``
    and ``pooled_inverse`` are one over their steps.
    """
    source = _Source(plan, precision)
    packed = {op.name: _PACK[type(op)](source, op) for op in plan.ops if type(op) in _PACK}
    for op in plan.ops:
        for field, name in (("levels", "inverse"), ("pooled_levels", "pooled_inverse")):
            if steps := getattr(op, field, None):
                setattr(packed[op.name], name, plan.weights[steps].float().reciprocal())
        if getattr(op, "multipliers", None):
            packed[op.name].multipliers = plan.weights[op.multipliers].float()
            packed[op.name].start = source.start(op)
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

    def weight(self, name: str, levels: str | None = None) -> Tensor:
        return self.plan.weights[name].to(self.precision.weights if levels is None else torch.int8)

    def start(self, op: Conv | Down) -> Tensor:
        weight = self.plan.weights[op.weight]
        if isinstance(op, Down):
            return self._lack(op.input, weight.sum((1, 2, 3)))
        inputs = weight.split([view.channels for view in op.inputs], -3)
        found = []
        for view, part in zip(op.inputs, inputs, strict=True):
            taps = part.sum(-3).flatten(-2)  # [.., outputs, taps]
            taps = torch.cat([taps, taps.sum(-1, keepdim=True)], -1).transpose(-1, -2)
            found.append(self._lack(view, taps))
        return torch.stack(found, -3)

    def _lack(self, view: View, sums: Tensor) -> Tensor:
        return (128 * sums * (self.plan.buffers[view.buffer].store == "u8")).to(torch.int32).contiguous()

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
    weight = s.weight(op.weight, op.multipliers)
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
        weight=s.columns(s.weight(op.weight, op.multipliers).flatten(1).T),
        bias=s.wide(op.bias, n),
        depthwise=depthwise,
        depthwise_bias=s.wide(op.depthwise_bias, n),
    )


def _pack_gate(s: _Source, op: Gate) -> SimpleNamespace:
    weights = [s.weight(name).flatten(1).contiguous() for name in op.layers]
    biases = [s.wide(b, len(w)) for b, w in zip(op.biases, weights, strict=True)]
    return SimpleNamespace(weights=weights, biases=biases)


def _pack_quantise(s: _Source, op: Quantise) -> SimpleNamespace:
    return SimpleNamespace()


_PACK = {Quantise: _pack_quantise, Stem: _pack_stem, Conv: _pack_conv, Down: _pack_down, Gate: _pack_gate}
