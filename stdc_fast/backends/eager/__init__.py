"""Runs any plan with torch ops: the oracle of every other backend, and what runs where none other does.

Maps are channels_last, except in a block whose input is not. On a CPU, oneDNN gets its weights in its own
layout and applies the ReLU itself, which makes zeros of NaN; nothing else here does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stdc_fast.backends.base import Backend, Executable, not_tiled
from stdc_fast.backends.eager.convolution import Convolution, Subpixel, activate, has_kernels
from stdc_fast.backends.eager.memory import Pieces, Poisoned
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.backends.eager.winograd import SubpixelTiles, Tiles
from stdc_fast.plan.arena import layout, lifetimes
from stdc_fast.plan.ops import (
    LEVELS,
    Add,
    Concat,
    Conv,
    Down,
    Gate,
    Mean,
    Norm,
    Normalise,
    Op,
    Pool,
    Quantise,
    Resize,
    Scale,
    Stem,
    Upsample,
    View,
)
from stdc_fast.plan.plan import Plan
from stdc_fast.postprocess import label_logits
from stdc_fast.precision import FLOAT32, Like, Precision, precision_of
from stdc_fast.reference.networks import upsample

_NHWC = torch.channels_last


class Eager(Backend):
    """Plain PyTorch, on any device."""

    name = "eager"

    def why_not_here(self) -> str | None:
        return None

    def about(self) -> str:
        return "plain PyTorch, on any device"

    def why_not(self, plan: Plan | None, precision: Precision, device: torch.device) -> str | None:
        return None

    def levels(self, plan: Plan, precision: Precision, small: bool) -> list[str]:
        return not_tiled(plan)

    def compile(
        self, plan: Plan, precision: Precision, device: torch.device, small: bool = False
    ) -> EagerExecutable:
        return compile(plan, precision, device)


BACKEND = Eager()


def compile(
    plan: Plan,
    precision: Like = FLOAT32,
    device: torch.device | str = "cpu",
    *,
    rounding=None,
    poisoned: bool = False,
) -> EagerExecutable:
    """Pack a plan's weights for a precision and ``device``.

    Where this CPU has no instructions for the dtype of maps, sums are float32 and what is stored is rounded.

    Args:
        plan: with primitive ops or without.
        precision: of maps and weights; vectors and logits are in the dtype of its sums.
        rounding: one of :mod:`stdc_fast.backends.eager.rounding`: what is stored goes through it, and is
            computed in the dtype of maps.
        poisoned: keep everything in one arena in which all that is dead is NaN, to prove its layout.
    """
    device, precision = torch.device(device), precision_of(precision)
    if device.type == "cpu" and rounding is None and not has_kernels(precision.maps):
        precision, rounding = FLOAT32, Rounding(precision.maps)
    return EagerExecutable(plan, precision, device, rounding, poisoned)


class EagerExecutable(Executable):
    """A plan with packed weights, for inputs of any size. Calls may come from several threads."""

    def __init__(
        self, plan: Plan, precision: Precision, device: torch.device, rounding=None, poisoned: bool = False
    ):
        super().__init__(plan, precision, device)
        self.wide = precision.sums
        self.rounding = rounding
        self.poisoned = poisoned
        self._lives = lifetimes(plan)
        # Instead of labels the caller gets logits.
        self._ends = {op.output: op.input for op in plan.ops if isinstance(op, Upsample)}
        kept = {view.buffer for view in self._ends.values()}
        dying: dict[int, list[str]] = {}
        for buffer, (_, last) in self._lives.items():
            if buffer not in kept:
                dying.setdefault(last, []).append(buffer)
        self.plan = plan  # whose weights are packed here
        self._steps = []
        for i, op in enumerate(plan.ops):
            if not isinstance(op, Upsample):
                run = _RUN[type(op)](self, op)
                self._steps.append((op, run, dying.get(i, [])))
        self.plan = plan.bare()

    def run(self, *inputs: Tensor) -> list[Tensor]:
        maps, *size = self._taken(inputs)
        return self._outputs(maps, *size)

    def _logits_of(self, image: Tensor, seen: tuple[int, int]) -> Tensor:
        (x,), batch, *size = self._taken((image,))
        if seen != tuple(size):
            # A new tensor: the strides of dimensions of size one must not choose the algorithm.
            wide = torch.empty(x.shape, dtype=self.wide, device=x.device, memory_format=_NHWC)
            # Interpolation and normalisation can be exchanged: both are linear, and weights add up to one.
            x = upsample(wide.copy_(x), seen)
        return self._outputs([x], batch, *seen)[0]

    def _labels_of(self, image: Tensor, size: tuple[int, int], seen: tuple[int, int], exact: bool) -> Tensor:
        logits = self._logits_of(image, seen)
        return label_logits(logits, seen if exact else size, size)[0]

    @torch.no_grad()
    def _outputs(self, maps: list[Tensor], batch: int, height: int, width: int) -> list[Tensor]:
        memory = self._memory(batch, height, width)
        with torch.autocast(self.device.type, enabled=False):
            self._run(maps, memory, height, width)
        return [memory.read(self._ends.get(view, view)) for view in self.plan.outputs]

    def _run(self, maps: list[Tensor], memory, height: int, width: int) -> None:
        for x, name in zip(maps, self.plan.inputs, strict=True):
            memory.write(self.plan.whole(name), x)
        for _, run, dying in self._steps:
            run(memory, height, width)
            for buffer in dying:
                memory.free(buffer)

    def _take(self, x: Tensor, name: str) -> Tensor:
        """As ``[N, C, H, W]``; frames stay uint8."""
        self._check_kind(x, name)
        if x.dtype == torch.uint8:
            return x.permute(0, 3, 1, 2)
        # A block keeps the layout it is given: turning maps around takes as long as a convolution.
        kept = self.plan.buffers[name].store == "act" and x.is_contiguous()
        layout = torch.contiguous_format if kept else _NHWC
        return self._store(name, x.to(self.dtype).contiguous(memory_format=layout))

    def _memory(self, batch: int, height: int, width: int):
        if not self.poisoned:
            return Pieces()
        arena = layout(self.plan, batch, height, width, self.dtype.itemsize)
        return Poisoned(arena, {b: self._dtype(b) for b in self._lives}, self.device)

    def _dtype(self, buffer: str) -> torch.dtype:
        stores = {"act": self.dtype, "u8": torch.uint8, "s8": torch.int8}
        return stores.get(self.plan.buffers[buffer].store, self.wide)

    def _store(self, key: str, x: Tensor, offset: int = 0) -> Tensor:
        """A map as it is kept, or its channels from ``offset`` on."""
        x = x.to(self.dtype)
        return x if self.rounding is None else self.rounding.tensor(key, x, offset)

    def _write(self, memory, view: View, x: Tensor, inverse: Tensor | None = None) -> None:
        """``inverse`` is of the steps, where the view is of levels."""
        store = self.plan.buffers[view.buffer].store
        if store in LEVELS:
            low, high = LEVELS[store]
            x = (x.to(inverse.dtype) * inverse).round_().nan_to_num_(low).clamp_(low, high)
            x = x.to(self._dtype(view.buffer))
        elif store == "act":
            x = self._store(view.buffer, x, view.offset)
        memory.write(view, x)

    def _inverse(self, levels: str | None) -> Tensor | None:
        if levels is None:
            return None
        return self.plan.weights[levels].to(self.device, self.wide).reciprocal().view(1, -1, 1, 1)

    def _weight(self, op: Op, name: str, dtype: torch.dtype | None = None) -> Tensor:
        weight = self.plan.weights[name]
        if self.rounding is not None:
            weight = self.rounding.weight(op, name, weight)
        elif dtype is not None and dtype != self.dtype:
            weight = weight.to(self.dtype)  # rounded as all weights are, though computed with more digits
        return weight.to(self.device, dtype or self.dtype)

    def _bias(self, name: str | None, dtype: torch.dtype | None = None) -> Tensor | None:
        return None if name is None else self.plan.weights[name].to(self.device, dtype or self.dtype)


# One function a kind: it packs what the op needs and returns what runs it.


def _stem(e: EagerExecutable, op: Stem):
    weight = e._weight(op, op.weight)
    bias = e._bias(op.bias, e.wide)
    inverse = e._inverse(op.levels)
    if bias is None:
        bias = weight.new_zeros(len(weight), dtype=e.wide)
    if op.offset is None:
        conv = Convolution(weight, bias, stride=2, padding=1, act=op.act)

        def run(memory, height: int, width: int) -> None:
            e._write(memory, op.output, conv(memory.read(op.input)), inverse)

        return run

    # Raw pixels less whole numbers are exact in every dtype. What those numbers lack of the offset goes into
    # the padding, and into the bias, with the weights as rounded.
    offset = torch.tensor(op.offset, device=e.device, dtype=e.wide)
    near = offset.round()
    rest = offset - near
    corrected = bias - (weight.to(e.wide) * rest.view(1, -1, 1, 1)).sum((1, 2, 3))
    conv = Convolution(weight, corrected, stride=2, padding=0, act=op.act)
    # Resized pixels are no whole numbers: they are rounded as those of a normalised image are.
    resized = Convolution(weight, bias, stride=2, padding=1, act=op.act)
    offset, near, rest = (v.view(1, -1, 1, 1) for v in (offset, near, rest.to(e.dtype)))

    def run(memory, height: int, width: int) -> None:
        x = memory.read(op.input)
        if x.is_floating_point():
            e._write(memory, op.output, resized((x - offset).to(e.dtype)), inverse)
            return
        padded = torch.empty(
            (len(x), x.shape[1], height + 2, width + 2), dtype=e.dtype, device=e.device, memory_format=_NHWC
        )
        for border in (padded[:, :, :: height + 1], padded[:, :, :, :: width + 1]):
            border.copy_(rest.expand_as(border))
        torch.sub(x, near, out=padded[:, :, 1:-1, 1:-1])
        e._write(memory, op.output, conv(padded), inverse)

    return run


def _conv(e: EagerExecutable, op: Conv):
    # Logits and vectors are computed in float32: rounding logits would change labels.
    dtype = e.dtype if op.levels else e._dtype(op.output.buffer)
    if any(e._dtype(view.buffer) == e.wide for view in op.inputs):
        dtype = e.wide  # a normalised image, in a plan that is not optimised
    bias, inverse = e._bias(op.bias, e.wide), e._inverse(op.levels)
    tiles = e.rounding is not None and op.name in e.rounding.tiles
    if op.multipliers:
        conv, dtype, tiles = _Whole(e, op), torch.float64, False
    elif tiles:
        kind = SubpixelTiles if op.kernel == 2 else Tiles
        conv = kind(e.plan.weights[op.weight].to(e.device), bias, op.act, e.rounding.dtype)
    elif op.kernel == 2:
        conv = Subpixel(e._weight(op, op.weight, dtype), bias, op.act)
    else:
        groups = op.output.channels if op.depthwise else 1
        weight = e._weight(op, op.weight, dtype)
        conv = Convolution(weight, bias, op.stride, op.kernel // 2, groups, op.act)
    key = f"{op.name}:input"

    def run(memory, height: int, width: int) -> None:
        parts = [memory.read(view) for view in op.inputs]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if op.scale:
            x = x * memory.read(op.scale)
        if op.add:
            x = x + memory.read(op.add)
        if op.scale or op.add:
            x = e._store(key, x)
        x = x.to(dtype)
        size = e.plan.size(op.output.buffer, height, width)
        if op.up and op.kernel == 3:
            x = F.interpolate(x, size, mode="nearest")
        y = conv(x, size) if op.kernel == 2 or tiles else conv(x)
        if op.mean:
            memory.write(op.mean, _mean(y, e.wide))
        e._write(memory, op.output, y, inverse)

    return run


class _Whole:
    """A convolution of levels: exact sums, then multiplier, bias and activation, rounded once."""

    def __init__(self, e: EagerExecutable, op: Conv | Down):
        self.wide, self.act = e.wide, getattr(op, "act", "relu")
        weight = e.plan.weights[op.weight].to(e.device)
        if getattr(op, "kernel", 1) == 2:
            self.sums = Subpixel(weight, None, "none")
        else:
            self.sums = Convolution(weight, None, getattr(op, "stride", 1), weight.shape[-1] // 2)
        multiplier = e.plan.weights[op.multipliers].to(e.device, e.wide)
        self.multiplier = multiplier.double().view(1, -1, 1, 1)
        self.bias = e._bias(op.bias, e.wide).double().view(1, -1, 1, 1)

    def __call__(self, x: Tensor, *size: tuple[int, int]) -> Tensor:
        sums = self.sums(x.double(), *size).to(self.wide).double()
        return activate((sums * self.multiplier + self.bias).to(self.wide), self.act)


def _down(e: EagerExecutable, op: Down):
    if op.multipliers:
        first = _Whole(e, op)
    else:
        first = Convolution(e._weight(op, op.weight), e._bias(op.bias, e.wide), act="relu")
    depthwise = Convolution(
        e._weight(op, op.depthwise_weight), e._bias(op.depthwise_bias, e.wide), 2, 1, op.output.channels
    )
    inverse, pooled = e._inverse(op.levels), e._inverse(op.pooled_levels)

    def run(memory, height: int, width: int) -> None:
        x = e._store(f"{op.name}:inner", first(memory.read(op.input)))
        e._write(memory, op.output, depthwise(x), inverse)
        if op.pooled:
            e._write(memory, op.pooled, _pool(x, op.count_include_pad), pooled)

    return run


def _quantise(e: EagerExecutable, op: Quantise):
    inverse = e._inverse(op.levels)

    def run(memory, *_) -> None:
        x = memory.read(op.input).to(e.wide)
        if op.scale:
            x = x * memory.read(op.scale)
        if op.add:
            x = x + memory.read(op.add)
        e._write(memory, op.output, x, inverse)

    return run


def _gate(e: EagerExecutable, op: Gate):
    layers = [
        (e._weight(op, name, e.wide).flatten(1), e._bias(bias, e.wide), act)
        for name, bias, act in zip(op.layers, op.biases, op.acts, strict=True)
    ]

    def run(memory, height: int, width: int) -> None:
        x = memory.read(op.input).flatten(1)
        for weight, bias, act in layers:
            x = activate(F.linear(x, weight, bias), act)
        memory.write(op.output, x[:, :, None, None])

    return run


def _normalise(e: EagerExecutable, op: Normalise):
    mean, std = (torch.tensor(v, device=e.device, dtype=e.wide).view(1, -1, 1, 1) for v in (op.mean, op.std))
    return lambda memory, *_: e._write(
        memory, op.output, (memory.read(op.input).to(e.wide) / 255 - mean) / std
    )


def _norm(e: EagerExecutable, op: Norm):
    mean, var, gamma, beta = (e._bias(name, e.wide) for name in (op.mean, op.var, op.gamma, op.beta))

    def run(memory, *_) -> None:
        x = memory.read(op.input).to(e.wide)
        e._write(memory, op.output, activate(F.batch_norm(x, mean, var, gamma, beta, eps=op.eps), op.act))

    return run


def _pool(x: Tensor, count_include_pad: bool) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1, count_include_pad=count_include_pad)


def _mean(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.mean((2, 3), keepdim=True, dtype=dtype)


def _simple(compute):
    """An op without weights: ``compute(e, op, *what it reads, size of its output)``."""

    def pack(e: EagerExecutable, op: Op):
        (output,) = op.writes

        def run(memory, height: int, width: int) -> None:
            size = e.plan.size(output.buffer, height, width)
            e._write(memory, output, compute(e, op, *(memory.read(v) for v in op.reads), size))

        return run

    return pack


_RUN = {
    Stem: _stem,
    Conv: _conv,
    Down: _down,
    Gate: _gate,
    Quantise: _quantise,
    Normalise: _normalise,
    Norm: _norm,
    Pool: _simple(lambda e, op, x, size: _pool(x, op.count_include_pad)),
    Mean: _simple(lambda e, op, x, size: _mean(x, e.wide)),
    Concat: _simple(lambda e, op, *parts: torch.cat(parts[:-1], 1)),
    Scale: _simple(lambda e, op, x, scale, size: x * scale),
    Add: _simple(lambda e, op, x, other, size: x + other),
    Resize: _simple(lambda e, op, x, size: F.interpolate(x, size, mode="nearest")),
}
