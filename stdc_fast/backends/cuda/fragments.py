"""The weights of each op as the CUDA kernels read them: products in the order of a warp's lanes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from stdc_fast.backends.gpu import weights
from stdc_fast.plan.ops import Conv, Down, Gate, Stem
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision

#: Input channels of the longest step of a convolution 1x1 and of others, in 16s: ``step_depth`` of
#: ``csrc/cuda/tile_product.cuh``.
DEPTH, DEPTH_OF_TAPS = 8, 4


def pack(plan: Plan, precision: Precision, device: torch.device) -> dict[str, SimpleNamespace]:
    """The weights of each op: rounded once, or whole numbers of 8 bits, biases float32; ``weight`` as
    :func:`fragments`.
    """
    found = weights.pack(plan, precision, torch.device("cpu"))
    for op in plan.ops:
        if isinstance(op, (Stem, Conv, Down)):
            levels = getattr(op, "multipliers", None) is not None
            weight = found[op.name].weight
            found[op.name].weight = _ORDER[type(op)](op, pairs(weight) if levels else weight)
            vars(found[op.name]).pop("start", None)  # these kernels multiply levels of uint8 as they are
        if isinstance(op, Down):  # in vectors of eight
            one = found[op.name]
            rest = (0, -one.depthwise.shape[1] % 8)
            one.depthwise = F.pad(one.depthwise, rest).to(precision.weights)  # as it was rounded
            one.depthwise_bias = F.pad(one.depthwise_bias, rest)
        if isinstance(op, Gate):  # rows of whole vectors
            one = found[op.name]
            one.weights = [F.pad(w, (0, -w.shape[1] % 8)).contiguous() for w in one.weights]
        if isinstance(op, Stem):
            found[op.name].offset = found[op.name].offset.tolist()  # goes with the launch
    return weights.moved(found, device)


def fragments(weight: Tensor) -> Tensor:
    """``[taps, inputs, outputs]`` as ``[taps, inputs / 16, outputs / 16, 32, 8]``, rounded up with zeros.

    A lane of a warp has, one after the other, what ``mma.m16n8k16`` wants of it for the first and the second
    eight outputs: rows 2t, 2t + 1, 2t + 8 and 2t + 9 of column g, where the lane is 4 g + t (PTX ISA, matrix
    fragments for mma.m16n8k16).
    """
    taps, inputs, outputs = weight.shape
    weight = F.pad(weight, (0, -outputs % 16, 0, -inputs % 16))
    parts = weight.view(
        taps, -(-inputs // 16), 2, 4, 2, -(-outputs // 16), 2, 8
    )  # ., ., half, t, row, ., eight, g
    return parts.permute(0, 1, 5, 7, 3, 6, 2, 4).reshape(taps, parts.shape[1], parts.shape[5], 32, 8)


def pairs(weight: Tensor) -> Tensor:
    """int8 ``[.., inputs, outputs]`` as int16 ``[.., inputs / 2, outputs]``, the first of two inputs below.

    ``mma.m16n8k32`` wants of a lane the rows of 8 bits where ``mma.m16n8k16`` wants those of 16, each half as
    wide (PTX ISA, matrix fragments for mma.m16n8k32).
    """
    two = weight.unflatten(-2, (-1, 2)).transpose(-1, -2).contiguous()
    return two.view(torch.int16).squeeze(-1)


def core_matrices(stream: Tensor) -> Tensor:
    """Flat :func:`fragments` in the order of ``wgmma``: ``[.., outputs / 8, 2, 8, 8]``, as many bytes.

    Of each 16 inputs of a tap and 8 outputs the first 8 inputs of each output, then the others: core matrices
    without swizzle, K-major (PTX ISA, matrix descriptors of wgmma).
    """
    parts = stream.view(-1, 8, 4, 2, 2, 2)  # ., g, t, eight, half, row
    return parts.permute(0, 3, 4, 1, 2, 5).flatten()


def _of_stem(op: Stem, weight: Tensor) -> Tensor:
    """Rows of three pixels of three colours as four pixels of four."""
    taps = weight[:27].view(3, 3, 3, -1)
    return fragments(F.pad(taps, (0, 0, 0, 1, 0, 1)).reshape(3, 16, -1)).contiguous()


def _of_conv(op: Conv, weight: Tensor) -> Tensor:
    if op.kernel == 2:
        return stream(list(weight.reshape(-1, 4, *weight.shape[-2:])))
    channels = [view.channels // (2 if op.multipliers else 1) for view in op.inputs]
    rows = [op.kernel**2 * count for count in channels]
    return stream([part.reshape(op.kernel**2, -1, weight.shape[-1]) for part in weight.split(rows)])


def _of_down(op: Down, weight: Tensor) -> Tensor:
    return stream([weight[None]])


def stream(parts: list[Tensor]) -> Tensor:
    """Parts ``[taps, inputs, outputs]`` one after the other in the order in which they are multiplied, flat.

    That is ``[inputs / 16, taps, outputs / 16, 32, 8]`` of each. A step reads all its units also where fewer
    are left, so that zeros follow.
    """
    found = [fragments(part).transpose(0, 1) for part in parts]
    taps = len(parts[0])
    rest = found[0].new_zeros(((DEPTH if taps == 1 else DEPTH_OF_TAPS) - 1) * taps, *found[0].shape[2:])
    return torch.cat([part.flatten() for part in [*found, rest]])


_ORDER = {Stem: _of_stem, Conv: _of_conv, Down: _of_down}
