"""The network as data: buffers, views of their channels, and the ops that read and write them.

A buffer is a tensor ``[N, ceil(H / stride), ceil(W / stride), channels]`` (NHWC) of an input of H x W, so one
plan serves every size; stride 0 is one vector an image. Ops name their weights; the tensors are in
:attr:`Plan.weights <stdc_fast.plan.Plan>`, in float64, convolutions as ``[out, in, k, k]``.

A plan built from a network has the primitive kinds. The rewrites leave the five that a backend runs:
``stem``, ``down``, ``conv``, ``gate``, ``upsample``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

#: Kinds of op that every backend runs; :func:`stdc_fast.plan.optimise` leaves no others for STDC1 and STDC2.
FUSED = frozenset({"stem", "down", "conv", "gate", "upsample"})
#: How a buffer of 8-bit levels is kept, and its least and greatest level. Odd around zero, as weights are.
LEVELS = {"u8": (0, 255), "s8": (-127, 127)}

# What a field of an op holds; plain settings have no role.
_READ = {"role": "read"}
_WRITE = {"role": "write"}
_WEIGHT = {"role": "weight"}


@dataclass(frozen=True)
class Buffer:
    """NHWC tensor whose height and width are those of the input over ``stride``, rounded up.

    ``store`` is how it is kept: "act" in the dtype that the plan runs in, "float32" (logits, vectors, the
    normalised image), "uint8" (raw frames, labels), or "u8" and "s8", levels of 8 bits (:data:`LEVELS`).
    What one level is worth is a step for each channel. The steps belong to the op that writes, and the
    weights of ops that read contain them.
    """

    name: str
    channels: int
    stride: int
    store: str = "act"

    def itemsize(self, act: int) -> int:
        """Bytes a number, where maps have ``act``."""
        return {"act": act, "float32": max(4, act)}.get(self.store, 1)


@dataclass(frozen=True)
class View:
    """``channels`` channels of a buffer from ``offset`` on. A concatenation is two views of one buffer."""

    buffer: str
    offset: int
    channels: int

    @property
    def mask(self) -> int:
        """One bit a channel of the buffer."""
        return ((1 << self.channels) - 1) << self.offset

    def __str__(self) -> str:
        return f"{self.buffer}[{self.offset}:{self.offset + self.channels}]"


@dataclass(frozen=True, kw_only=True)
class Op:
    """One step. Fields hold views that it reads or writes, names of weights, and plain settings."""

    name: str

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def _fields(self, role: str) -> list:
        found = []
        for name in _names(type(self), role):
            value = getattr(self, name)
            found.extend(value if isinstance(value, tuple) else (value,))
        return [value for value in found if value is not None]

    @property
    def reads(self) -> list[View]:
        return self._fields("read")

    @property
    def writes(self) -> list[View]:
        return self._fields("write")

    @property
    def weights(self) -> list[str]:
        return self._fields("weight")

    def macs(self, weights: Mapping[str, Tensor], pixels: Callable[[View], int]) -> int:
        """Multiply-adds for one image, of convolutions and matrix-vector products, taps in the padding too.

        Args:
            weights: of the plan, by name.
            pixels: of a view, in one image.
        """
        return 0

    def with_views(self, change: Callable[[View], View]) -> Op:
        """The same op with each of its views replaced by ``change(view)``."""
        changed = {}
        for name in _names(type(self), "read") + _names(type(self), "write"):
            value = getattr(self, name)
            if value is not None:
                several = isinstance(value, tuple)
                changed[name] = tuple(map(change, value)) if several else change(value)
        return dataclasses.replace(self, **changed)


@functools.cache
def _names(kind: type[Op], role: str) -> tuple[str, ...]:
    """Fields of a kind with that role."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.metadata.get("role") == role)


# Fused kinds.


@dataclass(frozen=True, kw_only=True)
class Conv(Op):
    """Convolution with zero padding ``kernel // 2``: ``act(conv(prologue(input)) + bias)``.

    Two inputs are read as if concatenated: two accumulating products. The prologue computes
    ``input * scale + add``, where ``scale`` is a vector and ``add`` a vector or a map, and doubles the
    result (nearest) with ``up``; outside of the image its result is zero. ``mean`` gets the average of the
    output over each image.

    ``kernel`` is 1 or 3, with stride 1 or 2; ``depthwise`` has weights ``[C, 1, 3, 3]``. Kernel 2 is the
    sub-pixel form of ``up`` and kernel 3: weights ``[3, 3, out, in, 2, 2]``, of even rows, odd rows and the
    last row of an odd height, and columns alike. An even row 2i reads rows i - 1 and i of the input, an
    odd row 2i + 1 reads i and i + 1.

    With ``multipliers`` the inputs are levels and the weights whole numbers. The sum of products is a whole
    number, too, and is multiplied by the output channel's multiplier. With ``levels``, steps of the output's
    channels, the output is divided by them and rounded, ties to even.
    """

    inputs: tuple[View, ...] = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    weight: str = field(metadata=_WEIGHT)
    bias: str | None = field(metadata=_WEIGHT, default=None)
    kernel: int
    stride: int = 1
    depthwise: bool = False
    act: str = "none"
    scale: View | None = field(metadata=_READ, default=None)
    add: View | None = field(metadata=_READ, default=None)
    up: bool = False
    mean: View | None = field(metadata=_WRITE, default=None)
    multipliers: str | None = field(metadata=_WEIGHT, default=None)
    levels: str | None = field(metadata=_WEIGHT, default=None)

    def macs(self, weights: Mapping[str, Tensor], pixels: Callable[[View], int]) -> int:
        weight = weights[self.weight]
        if self.kernel == 2:
            weight = weight[0, 0]  # every pixel belongs to one of the sets
        return pixels(self.output) * weight.numel()


@dataclass(frozen=True, kw_only=True)
class Stem(Op):
    """First convolution, 3x3 stride 2: ``act(conv(image - offset) + bias)``, zero-padded after subtracting.

    For raw frames ``offset`` is the pixel (three numbers in 0..255) that normalisation maps to zero, and the
    weights are those for pixels. For a normalised image it is None. ``levels`` is as of :class:`Conv`.
    """

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    weight: str = field(metadata=_WEIGHT)
    bias: str | None = field(metadata=_WEIGHT, default=None)
    act: str = "none"
    offset: tuple[float, ...] | None = None
    levels: str | None = field(metadata=_WEIGHT, default=None)

    def macs(self, weights: Mapping[str, Tensor], pixels: Callable[[View], int]) -> int:
        return pixels(self.output) * weights[self.weight].numel()


@dataclass(frozen=True, kw_only=True)
class Down(Op):
    """1x1 convolution and ReLU, then depthwise 3x3 stride 2 to ``output`` and average pool 3x3 stride 2 to
    ``pooled``; what lies between is no buffer. ``multipliers`` of the 1x1 and the levels of each output are
    as of :class:`Conv`.
    """

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    pooled: View | None = field(metadata=_WRITE, default=None)
    weight: str = field(metadata=_WEIGHT)
    bias: str | None = field(metadata=_WEIGHT, default=None)
    depthwise_weight: str = field(metadata=_WEIGHT)
    depthwise_bias: str | None = field(metadata=_WEIGHT, default=None)
    count_include_pad: bool = True
    multipliers: str | None = field(metadata=_WEIGHT, default=None)
    levels: str | None = field(metadata=_WEIGHT, default=None)
    pooled_levels: str | None = field(metadata=_WEIGHT, default=None)

    def macs(self, weights: Mapping[str, Tensor], pixels: Callable[[View], int]) -> int:
        depthwise = pixels(self.output) * weights[self.depthwise_weight].numel()
        return pixels(self.input) * weights[self.weight].numel() + depthwise


@dataclass(frozen=True, kw_only=True)
class Gate(Op):
    """One or two matrix-vector products on a pooled vector, each with bias and activation."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    layers: tuple[str, ...] = field(metadata=_WEIGHT)
    biases: tuple[str | None, ...] = field(metadata=_WEIGHT)
    acts: tuple[str, ...]

    def macs(self, weights: Mapping[str, Tensor], pixels: Callable[[View], int]) -> int:
        return sum(weights[name].numel() for name in self.layers)


@dataclass(frozen=True, kw_only=True)
class Upsample(Op):
    """Bilinear from 1/8 to the frame's size, then argmax; the lowest class of a tie."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    align_corners: bool = True


@dataclass(frozen=True, kw_only=True)
class Quantise(Op):
    """A map, with the prologue of :class:`Conv`, as levels: ``round((input * scale + add) / levels)``.

    Ties go to even. Only plans of 8 bits have it, see :mod:`stdc_fast.plan.quantise`.
    """

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    scale: View | None = field(metadata=_READ, default=None)
    add: View | None = field(metadata=_READ, default=None)
    levels: str = field(metadata=_WEIGHT)


# Primitive kinds: the network as written.


@dataclass(frozen=True, kw_only=True)
class Normalise(Op):
    """Raw frame to normalised image: ``(x / 255 - mean) / std``."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """Batch norm with stored statistics, then the activation."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    gamma: str | None = field(metadata=_WEIGHT, default=None)
    beta: str | None = field(metadata=_WEIGHT, default=None)
    mean: str = field(metadata=_WEIGHT)
    var: str = field(metadata=_WEIGHT)
    eps: float
    act: str = "none"


@dataclass(frozen=True, kw_only=True)
class Pool(Op):
    """Average pool 3x3 stride 2, padding 1."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)
    count_include_pad: bool = True


@dataclass(frozen=True, kw_only=True)
class Mean(Op):
    """Average over each image: a map to a vector."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)


@dataclass(frozen=True, kw_only=True)
class Concat(Op):
    """Concatenation of channels."""

    inputs: tuple[View, ...] = field(metadata=_READ)
    output: View = field(metadata=_WRITE)


@dataclass(frozen=True, kw_only=True)
class Scale(Op):
    """A map times a vector."""

    input: View = field(metadata=_READ)
    scale: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)


@dataclass(frozen=True, kw_only=True)
class Add(Op):
    """A map plus a map or a vector."""

    input: View = field(metadata=_READ)
    other: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)


@dataclass(frozen=True, kw_only=True)
class Resize(Op):
    """Nearest up-sampling to twice the size, or one less: pixel i of the output is pixel i // 2."""

    input: View = field(metadata=_READ)
    output: View = field(metadata=_WRITE)


ACTIVATIONS = ("none", "relu", "sigmoid", "sigmoid+1")
