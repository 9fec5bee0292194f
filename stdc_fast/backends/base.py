"""What the executables of native backends share: the contract, checked before any pointer is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast.plan.ops import Add, Conv, Down, Gate, Scale, Stem, Upsample
from stdc_fast.plan.plan import Plan


class NativeExecutable:
    """A plan with packed weights, for inputs of any size.

    A backend implements :meth:`_compute`.
    """

    #: :meth:`labels` takes frames of another size than the network sees.
    resizes = True

    def __init__(self, plan: Plan, dtype: torch.dtype, device: torch.device | str):
        self.dtype = dtype
        self.device = torch.device(device)
        self.plan = plan.bare()
        labelled = {op.output.buffer: op.input for op in plan.ops if isinstance(op, Upsample)}
        output = plan.outputs[0]
        self._output = labelled.get(output.buffer, output)
        self._frames = plan.buffers[plan.inputs[0]].store == "uint8"
        self._logits = plan.buffers[self._output.buffer].store == "float32"

    def _compute(
        self,
        inputs: list[Tensor],
        batch: int,
        seen: tuple[int, int],
        labels: tuple[int, int] | None,
        exact: bool,
    ) -> Tensor:
        """Labels ``[N, H, W]``, or logits or a map ``[N, C, H, W]``, of inputs ``[N, H, W, C]``."""
        raise NotImplementedError

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The main output: logits ``[N, C, ceil(H/8), ceil(W/8)]`` in float32 of a network, the map
        ``[N, C, H, W]`` of a block, in the dtype of the backend.

        Inputs are raw frames uint8 ``[N, H, W, 3]``, a normalised image ``[N, 3, H, W]``, or a block's maps
        ``[N, C, H, W]``. ValueError for other shapes, dtypes or devices.
        """
        return self._run(inputs)

    def logits(self, image: Tensor, seen: tuple[int, int]) -> Tensor:
        """Float32 logits ``[N, C, ceil(h/8), ceil(w/8)]`` of raw frames, seen as ``(h, w)``."""
        return self._run((image,), seen=tuple(seen))

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """As a list of one, like the eager backend."""
        return [self._run(inputs)]

    def labels(
        self,
        image: Tensor,
        size: tuple[int, int] | None = None,
        *,
        seen: tuple[int, int] | None = None,
        exact: bool = True,
    ) -> Tensor:
        """Class ids uint8 ``[N, H, W]`` straight from the image, without logits at full size.

        Args:
            image: raw frames uint8 ``[N, H, W, 3]`` or a normalised image ``[N, 3, H, W]``.
            size: of the labels; by default the image's.
            seen: (H, W) that the network sees; a raw frame of another size is resized on the way.
            exact: where ``size`` is not ``seen``, interpolate the logits to ``seen`` first, as the official
                protocol does; else straight to ``size``.
        """
        if not self._logits:
            raise ValueError(f"{self.plan.name} gives a map, not labels")
        shape = self._shape(image)
        if seen is not None and not self._frames and tuple(seen) != shape:
            raise ValueError(f"an image of {shape} can not be seen as {tuple(seen)}; resize it first")
        return self._run((image,), tuple(size or shape), tuple(seen or shape), exact)

    def _shape(self, x: Tensor) -> tuple[int, int]:
        if x.ndim != 4:
            raise ValueError(f"expected four dimensions, got {list(x.shape)}")
        return tuple(x.shape[1:3] if self._frames else x.shape[2:])

    def _run(self, inputs, labels=None, seen=None, exact=True) -> Tensor:
        if len(inputs) != len(self.plan.inputs):
            shapes = [list(x.shape) for x in inputs]
            raise ValueError(f"{self.plan.name} has {len(self.plan.inputs)} inputs, got {shapes}")
        # Named, so that they live until the backend returns.
        given = [self._checked(x, name) for x, name in zip(inputs, self.plan.inputs, strict=True)]
        sizes = {(len(x), *self._shape(x)) for x in inputs}
        if len(sizes) > 1 or 0 in next(iter(sizes))[1:]:
            raise ValueError(f"inputs of different or empty sizes: {[list(x.shape) for x in inputs]}")
        batch, height, width = next(iter(sizes))
        # An ordinary tensor, the caller's to write to and to train with, also under inference_mode.
        with torch.inference_mode(False), torch.no_grad():
            return self._compute(given, batch, seen or (height, width), labels, exact)

    def _checked(self, x: Tensor, name: str) -> Tensor:
        """As ``[N, H, W, C]``."""
        buffer = self.plan.buffers[name]
        if x.device != self.device or x.layout != torch.strided:
            raise ValueError(f"expected a dense tensor on {self._place}, got {x.layout} on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "native backends are for inference; use torch.no_grad() or the reference modules"
            )
        x = x.detach().resolve_neg()
        if buffer.store == "uint8":
            if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[3] != buffer.channels:
                raise ValueError(f"expected uint8 frames [N, H, W, 3], got {x.dtype} {list(x.shape)}")
            return x
        if x.ndim != 4 or x.shape[1] != buffer.channels or not x.is_floating_point():
            raise ValueError(
                f"expected a float input [N, {buffer.channels}, H, W], got {x.dtype} {list(x.shape)}"
            )
        return x.permute(0, 2, 3, 1)

    @property
    def _place(self) -> str:
        return "the CPU" if self.device.type == "cpu" else str(self.device)

    def _new(self, batch: int, seen: tuple[int, int], labels: tuple[int, int] | None) -> Tensor:
        """A tensor for the result, ``[N, H, W, C]``."""
        if labels is not None:
            return torch.empty((batch, *labels, 1), dtype=torch.uint8, device=self.device)
        size = self.plan.size(self._output.buffer, *seen)
        dtype = torch.float32 if self._logits else self.dtype
        return torch.empty((batch, *size, self._output.channels), dtype=dtype, device=self.device)


def presented(output: Tensor, labels: bool) -> Tensor:
    """What :meth:`NativeExecutable._new` made, as ``[N, H, W]`` or ``[N, C, H, W]``."""
    return output[..., 0] if labels else output.permute(0, 3, 1, 2)


def unfit(plan: Plan) -> str | None:
    """Why no native backend runs a plan, or None; some have reasons of their own besides."""
    if len(plan.outputs) != 1:
        return "plans with training heads are left to eager"
    averages = {op.mean.buffer for op in plan.ops if isinstance(op, Conv) and op.mean}
    ends = {op.output: op.input for op in plan.ops if isinstance(op, Upsample)}
    output = ends.get(plan.outputs[0], plan.outputs[0])
    if plan.buffers[output.buffer].stride == 0:
        return "its output is a vector"
    wide = {b.name for b in plan.buffers.values() if b.store == "float32" and b.stride} - set(plan.inputs)
    if wide - {output.buffer} or (wide and output != plan.whole(output.buffer)):
        return "it has maps in float32 besides its logits"
    for op in plan.ops:
        if not isinstance(op, (Stem, Conv, Down, Gate, Scale, Add, Upsample)):
            return f"{op.kind} {op.name}: not one of its ops"
        if isinstance(op, Conv):
            if op.depthwise or op.act not in ("none", "relu") or len(op.inputs) > 2:
                return f"{op.kind} {op.name}: depthwise or another activation"
            if op.up and op.kernel != 2:
                return f"{op.kind} {op.name}: up-sampling is not in the sub-pixel form"
            if plan.buffers[op.output.buffer].stride == 0:
                return f"{op.kind} {op.name}: of a vector"
            if len(op.inputs) > 1 and (op.kernel == 2 or op.scale or op.add):
                return f"{op.kind} {op.name}: two inputs with a prologue or up-sampling"
            store = plan.buffers[op.output.buffer].store
            if store == "float32" and op.output != plan.whole(op.output.buffer):
                return f"{op.kind} {op.name}: a part of the logits"
        if isinstance(op, Gate) and len(op.layers) > 2:
            return f"{op.kind} {op.name}: more than two layers"
        if isinstance(op, Upsample) and op.input.channels > 256:
            return f"{op.kind} {op.name}: more than 256 classes do not fit into uint8"
        if not isinstance(op, Gate) and any(v.buffer in averages for v in op.reads):
            return f"{op.kind} {op.name}: reads an average"
        if isinstance(op, Stem) and (op.act != "relu" or plan.weights[op.weight].shape[1] != 3):
            return f"{op.kind} {op.name}: not of RGB"
    return None
