"""Runs any plan with torch ops: the oracle of every other backend, and what runs where none other does.

Maps are channels_last, except in a block whose input is not. On a CPU, oneDNN gets its weights in its own
layout and applies the ReLU itself, which makes zeros of NaN; nothing else here does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stdc_fast.backends.eager.convolution import Convolution, Subpixel, activate
from stdc_fast.backends.eager.memory import Pieces, Poisoned
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.plan.arena import layout, lifetimes
from stdc_fast.plan.ops import (
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
    Resize,
    Scale,
    Stem,
    Upsample,
    View,
)
from stdc_fast.plan.plan import Plan
from stdc_fast.postprocess import resize_argmax

_NHWC = torch.channels_last


def compile(
    plan: Plan,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    rounding=None,
    poisoned: bool = False,
) -> Executable:
    """Pack a plan's weights for ``dtype`` and ``device``.

    A 16-bit dtype that this CPU has no instructions for is computed in float32, rounding what is stored.

    Args:
        plan: with primitive ops or without.
        dtype: float64, float32, bfloat16 or float16: of maps and weights. Vectors and logits are float32, or
            float64 with it.
        rounding: one of :mod:`stdc_fast.backends.eager.rounding`: what is stored goes through it, and is
            computed in ``dtype``.
        poisoned: keep everything in one arena in which all that is dead is NaN, to prove its layout.
    """
    device = torch.device(device)
    if device.type == "cpu" and rounding is None and not _native(dtype):
        dtype, rounding = torch.float32, Rounding(dtype)
    return Executable(plan, dtype, device, rounding, poisoned)


def _native(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for ``dtype`` on this CPU; torch's own are twenty times slower."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


class Executable:
    """A plan with packed weights, for inputs of any size. Calls may come from several threads."""

    #: Whether :meth:`labels` takes frames of another size than the network sees.
    resizes = False

    def __init__(self, plan: Plan, dtype: torch.dtype, device: torch.device, rounding, poisoned: bool):
        self.plan = plan
        self.dtype = dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.device = device
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
        self._steps = []
        for i, op in enumerate(plan.ops):
            if not isinstance(op, Upsample):
                run = _RUN[type(op)](self, op)
                self._steps.append((op, run, dying.get(i, [])))
        self.plan = plan.bare()  # the float64 weights are not needed any more

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The main output: logits ``[N, C, ceil(H/8), ceil(W/8)]`` in float32 of a network, the map
        ``[N, C, H, W]`` of a block.

        Inputs are raw frames uint8 ``[N, H, W, 3]``, a normalised image ``[N, 3, H, W]``, or a block's maps
        ``[N, C, H, W]``. ValueError for other shapes.
        """
        return self.run(*inputs)[0]

    def labels(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Class ids uint8 ``[N, H, W]`` at the image's size, or at ``size``."""
        frame = image.shape[1:3] if image.dtype == torch.uint8 else image.shape[2:]
        return resize_argmax(self(image), tuple(size or frame))[0]

    @torch.no_grad()
    def run(self, *inputs: Tensor) -> list[Tensor]:
        """All outputs; logits in place of labels."""
        shapes = [list(x.shape) for x in inputs]
        if len(inputs) != len(self.plan.inputs):
            raise ValueError(f"{self.plan.name} has {len(self.plan.inputs)} inputs, got {shapes}")
        maps = [self._nchw(x, name) for x, name in zip(inputs, self.plan.inputs, strict=True)]
        if len({(len(x), *x.shape[2:]) for x in maps}) > 1 or not all(x[:1].numel() for x in maps if len(x)):
            raise ValueError(f"inputs of different or empty sizes: {shapes}")
        batch, _, height, width = maps[0].shape
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

    def _nchw(self, x: Tensor, name: str) -> Tensor:
        buffer = self.plan.buffers[name]
        if buffer.store == "uint8":
            if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[3] != buffer.channels:
                raise ValueError(f"expected uint8 frames [N, H, W, 3], got {x.dtype} {list(x.shape)}")
            return x.permute(0, 3, 1, 2)
        if x.ndim != 4 or x.shape[1] != buffer.channels or not x.is_floating_point():
            raise ValueError(
                f"expected a float input [N, {buffer.channels}, H, W], got {x.dtype} {list(x.shape)}"
            )
        # A block keeps the layout it is given: turning maps around takes as long as a convolution.
        layout = torch.contiguous_format if buffer.store == "act" and x.is_contiguous() else _NHWC
        return self._store(name, x.to(self.dtype).contiguous(memory_format=layout))

    def _memory(self, batch: int, height: int, width: int):
        if not self.poisoned:
            return Pieces()
        arena = layout(self.plan, batch, height, width, self.dtype.itemsize)
        return Poisoned(arena, {b: self._dtype(b) for b in self._lives}, self.device)

    def _dtype(self, buffer: str) -> torch.dtype:
        return self.dtype if self.plan.buffers[buffer].store == "act" else self.wide

    def _store(self, key: str, x: Tensor) -> Tensor:
        """A map as it is kept."""
        x = x.to(self.dtype)
        return x if self.rounding is None else self.rounding.tensor(key, x)

    def _write(self, memory, view: View, x: Tensor) -> None:
        if self.plan.buffers[view.buffer].store == "act":
            x = self._store(view.buffer, x)
        memory.write(view, x)

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


def _stem(e: Executable, op: Stem):
    weight = e._weight(op, op.weight)
    bias = e._bias(op.bias, e.wide)
    if bias is None:
        bias = weight.new_zeros(len(weight), dtype=e.wide)
    if op.offset is None:
        conv = Convolution(weight, bias, stride=2, padding=1, act=op.act)

        def run(memory, height: int, width: int) -> None:
            e._write(memory, op.output, conv(memory.read(op.input)))

        return run

    # Raw pixels less whole numbers are exact in every dtype. What those numbers lack of the offset goes into
    # the padding, and into the bias, with the weights as rounded.
    offset = torch.tensor(op.offset, device=e.device, dtype=e.wide)
    near = offset.round()
    rest = offset - near
    bias = bias - (weight.to(e.wide) * rest.view(1, -1, 1, 1)).sum((1, 2, 3))
    conv = Convolution(weight, bias, stride=2, padding=0, act=op.act)
    near, rest = near.view(1, -1, 1, 1), rest.view(1, -1, 1, 1).to(e.dtype)

    def run(memory, height: int, width: int) -> None:
        x = memory.read(op.input)
        padded = torch.empty(
            (len(x), x.shape[1], height + 2, width + 2), dtype=e.dtype, device=e.device, memory_format=_NHWC
        )
        for border in (padded[:, :, :: height + 1], padded[:, :, :, :: width + 1]):
            border.copy_(rest.expand_as(border))
        torch.sub(x, near, out=padded[:, :, 1:-1, 1:-1])
        e._write(memory, op.output, conv(padded))

    return run


def _conv(e: Executable, op: Conv):
    # Logits and vectors are computed in float32: rounding logits would change labels.
    dtype = e._dtype(op.output.buffer)
    if any(e._dtype(view.buffer) == e.wide for view in op.inputs):
        dtype = e.wide  # a normalised image, in a plan that is not optimised
    weight, bias = e._weight(op, op.weight, dtype), e._bias(op.bias, e.wide)
    if op.kernel == 2:
        conv = Subpixel(weight, bias, op.act)
    else:
        groups = op.output.channels if op.depthwise else 1
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
        if dtype != e.dtype:
            x = x.to(dtype)
        size = e.plan.size(op.output.buffer, height, width)
        if op.up and op.kernel == 3:
            x = F.interpolate(x, size, mode="nearest")
        y = conv(x, size) if op.kernel == 2 else conv(x)
        if op.mean:
            memory.write(op.mean, _mean(y, e.wide))
        e._write(memory, op.output, y)

    return run


def _down(e: Executable, op: Down):
    first = Convolution(e._weight(op, op.weight), e._bias(op.bias, e.wide), act="relu")
    depthwise = Convolution(
        e._weight(op, op.depthwise_weight), e._bias(op.depthwise_bias, e.wide), 2, 1, op.output.channels
    )

    def run(memory, height: int, width: int) -> None:
        x = e._store(f"{op.name}:inner", first(memory.read(op.input)))
        e._write(memory, op.output, depthwise(x))
        if op.pooled:
            e._write(memory, op.pooled, _pool(x, op.count_include_pad))

    return run


def _gate(e: Executable, op: Gate):
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


def _normalise(e: Executable, op: Normalise):
    mean, std = (torch.tensor(v, device=e.device, dtype=e.wide).view(1, -1, 1, 1) for v in (op.mean, op.std))
    return lambda memory, *_: e._write(
        memory, op.output, (memory.read(op.input).to(e.wide) / 255 - mean) / std
    )


def _norm(e: Executable, op: Norm):
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

    def pack(e: Executable, op: Op):
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
    Normalise: _normalise,
    Norm: _norm,
    Pool: _simple(lambda e, op, x, size: _pool(x, op.count_include_pad)),
    Mean: _simple(lambda e, op, x, size: _mean(x, e.wide)),
    Concat: _simple(lambda e, op, *parts: torch.cat(parts[:-1], 1)),
    Scale: _simple(lambda e, op, x, scale, size: x * scale),
    Add: _simple(lambda e, op, x, other, size: x + other),
    Resize: _simple(lambda e, op, x, size: F.interpolate(x, size, mode="nearest")),
}
