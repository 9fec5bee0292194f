"""The contract of all backends: what one is, what it makes of a plan, and which plans native ones run."""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast.plan.ops import FUSED, LEVELS, Conv, Gate, Op, Stem, Upsample
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.quantise import candidates
from stdc_fast.postprocess import label_logits
from stdc_fast.precision import Precision
from stdc_fast.reference.networks import upsample


class Backend:
    """Runs plans. There is one object a backend, ``BACKEND`` of its module, in
    :data:`stdc_fast.backends.BACKENDS`.

    Each "why not" is one line that names the remedy where there is one, or None where nothing speaks
    against it. The questions come in this order; a later one is asked only where the earlier ones had None
    for an answer.
    """

    #: As in ``load(backend=...)`` and STDC_FAST_BACKEND.
    name: str

    def __reduce__(self) -> str:
        return "BACKEND"  # of its module: copies and pickles of a model keep the same object

    def why_not_here(self) -> str | None:
        """Why it can not be used in this process."""
        raise NotImplementedError

    def about(self) -> str:
        """What it runs with here, where it can be used: versions, instruction sets."""
        raise NotImplementedError

    def why_not_by_default(self) -> str | None:
        """Why it runs only for somebody who asks for it by name."""
        return None

    def why_not(self, plan: Plan | None, precision: Precision, device: torch.device) -> str | None:
        """Why it does not run a plan; None stands for STDC-Seg as published.

        Raises UserError for a mistake in the environment variables that it reads.
        """
        raise NotImplementedError

    def memory(self, small: bool) -> str | None:
        """What :meth:`compile` does with ``small`` or without; None where there is no choice."""
        return None

    def levels(self, plan: Plan, precision: Precision, small: bool) -> list[str]:
        """Names of the ops that it multiplies in 8 bits, of :func:`stdc_fast.plan.quantise.candidates`.

        The plan is one of floats, as :meth:`why_not` gets it; ``small`` is as for :meth:`compile`, which gets
        the plan with these ops on levels.
        """
        return []

    def compile(
        self, plan: Plan, precision: Precision, device: torch.device, small: bool = False
    ) -> Executable:
        """The plan with packed weights. ValueError for what it does not run.

        ``small`` asks for fewer bytes of weights rather than speed, where there is a choice.
        """
        raise NotImplementedError


def not_tiled(plan: Plan) -> list[str]:
    """Names of the ops that can multiply levels and that Winograd's tiles do not do."""

    def tiled(op: Op) -> bool:
        return isinstance(op, Conv) and (op.kernel == 2 or (op.kernel == 3 and op.stride == 1))

    fit = set(candidates(plan))
    return [op.name for op in plan.ops if op.name in fit and not tiled(op)]


class Executable:
    """A plan with packed weights, for inputs of any size.

    A backend implements :meth:`run`, :meth:`_logits_of` and :meth:`_labels_of`.

    Attributes:
        plan: without its weights.
        precision, device: what it computes in, and where.
        repeats: whether :meth:`again` ever has an answer.
    """

    repeats = False

    def __init__(self, plan: Plan, precision: Precision, device: torch.device | str):
        self.plan = plan.bare()
        self.precision = precision
        self.device = torch.device(device)
        ends = {op.output.buffer: op for op in plan.ops if isinstance(op, Upsample)}
        output = plan.outputs[0]
        end = ends.get(output.buffer)
        #: Logits of a network, else what the plan gives.
        self._output = end.input if end else output
        self._align_corners = end.align_corners if end else True
        self._frames = plan.buffers[plan.inputs[0]].store == "uint8"
        self._of_network = plan.buffers[self._output.buffer].store == "float32"

    @property
    def dtype(self) -> torch.dtype:
        """Of the maps."""
        return self.precision.maps

    @property
    def memory(self) -> tuple[int, int] | None:
        """Bytes of packed weights and of the arena; None where torch keeps them."""
        return None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The main output: logits ``[N, C, ceil(H/8), ceil(W/8)]`` in float32 of a network, the map
        ``[N, C, H, W]`` of a block, in the dtype of the maps.

        Inputs are raw frames uint8 ``[N, H, W, 3]``, a normalised image ``[N, 3, H, W]``, or a block's maps
        ``[N, C, H, W]``. ValueError for other shapes, dtypes or devices.
        """
        return self.run(*inputs)[0]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """All outputs; logits in place of labels."""
        raise NotImplementedError

    def logits(self, image: Tensor, seen: tuple[int, int] | None = None) -> Tensor:
        """Float32 logits ``[N, C, ceil(h/8), ceil(w/8)]`` of raw frames uint8 ``[N, H, W, 3]`` or of a
        normalised image ``[N, 3, H, W]``, which the network sees resized to ``seen``, (h, w).
        """
        image, _, seen = self._resized(image, seen)
        return self._logits_of(image, seen)

    def labels(
        self,
        image: Tensor,
        size: tuple[int, int] | None = None,
        *,
        seen: tuple[int, int] | None = None,
        exact: bool = True,
    ) -> Tensor:
        """Class ids uint8 ``[N, H, W]`` straight from the image, by the published protocol: the image is
        normalised and resized to ``seen``, the logits to ``seen`` and then to ``size``; then argmax.

        Args:
            image: raw frames uint8 ``[N, H, W, 3]`` or a normalised image ``[N, 3, H, W]``.
            size: of the labels; by default the image's.
            seen: (H, W) that the network sees; by default the image's.
            exact: else the logits are interpolated straight to ``size``, for comparison.
        """
        if not self._of_network:
            raise ValueError(f"{self.plan.name} gives a map, not labels")
        image, shape, seen = self._resized(image, seen)
        size = tuple(size or shape)
        if not self._align_corners:  # no kernel has that interpolation: it is torch's
            return label_logits(self._logits_of(image, seen), seen if exact else size, size, False, False)[0]
        return self._labels_of(image, size, seen, exact)

    def again(
        self, frames: Tensor, size: tuple[int, int] | None = None, seen: tuple[int, int] | None = None
    ) -> Tensor | None:
        """:meth:`labels` of raw frames like earlier ones, at the least cost; they may come later, on the
        current stream. None where :meth:`labels` must do it.
        """
        return None

    def _logits_of(self, image: Tensor, seen: tuple[int, int]) -> Tensor:
        """As :meth:`logits`; a normalised image has the size that is seen."""
        raise NotImplementedError

    def _labels_of(self, image: Tensor, size: tuple[int, int], seen: tuple[int, int], exact: bool) -> Tensor:
        """As :meth:`labels`, likewise."""
        raise NotImplementedError

    def _resized(self, image: Tensor, seen: tuple[int, int] | None):
        """(image, its size, size that is seen). Raw frames are resized by the backend, on the way."""
        shape = self._shape(image)
        seen = tuple(seen or shape)
        if seen != shape and not self._frames:
            image = upsample(image, seen)
        return image, shape, seen

    def _shape(self, x: Tensor) -> tuple[int, int]:
        if x.ndim != 4:
            raise ValueError(f"expected four dimensions, got {list(x.shape)}")
        return tuple(x.shape[1:3] if self._frames else x.shape[2:])

    def _taken(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], int, int, int]:
        """(inputs as :meth:`_take` gives them, batch, height, width). ValueError where they do not match."""
        shapes = [list(x.shape) for x in inputs]
        if len(inputs) != len(self.plan.inputs):
            raise ValueError(f"{self.plan.name} has {len(self.plan.inputs)} inputs, got {shapes}")
        taken = [self._take(x, name) for x, name in zip(inputs, self.plan.inputs, strict=True)]
        sizes = {(len(x), *self._shape(x)) for x in inputs}
        if len(sizes) > 1 or 0 in next(iter(sizes))[1:]:
            raise ValueError(f"inputs of different or empty sizes: {shapes}")
        return taken, *next(iter(sizes))

    def _take(self, x: Tensor, name: str) -> Tensor:
        """An input of that name in the backend's own layout. ValueError for what is none."""
        raise NotImplementedError

    def _check_kind(self, x: Tensor, name: str) -> None:
        """ValueError unless a tensor is an input of that name, as far as dtype and channels go."""
        buffer = self.plan.buffers[name]
        if buffer.store == "uint8":
            if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[3] != buffer.channels:
                raise ValueError(f"expected uint8 frames [N, H, W, 3], got {x.dtype} {list(x.shape)}")
        elif x.ndim != 4 or x.shape[1] != buffer.channels or not x.is_floating_point():
            raise ValueError(
                f"expected a float input [N, {buffer.channels}, H, W], got {x.dtype} {list(x.shape)}"
            )


class NativeExecutable(Executable):
    """The contract of native backends, checked before any pointer is taken.

    A backend implements :meth:`_compute`.
    """

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

    def run(self, *inputs: Tensor) -> list[Tensor]:
        return [self._run(inputs)]

    def _logits_of(self, image: Tensor, seen: tuple[int, int]) -> Tensor:
        return self._run((image,), seen)

    def _labels_of(self, image: Tensor, size: tuple[int, int], seen: tuple[int, int], exact: bool) -> Tensor:
        return self._run((image,), seen, size, exact)

    def _run(self, inputs, seen=None, labels=None, exact=True) -> Tensor:
        # Named, so that they live until the backend returns.
        taken, batch, height, width = self._taken(inputs)
        # An ordinary tensor, the caller's to write to and to train with, also under inference_mode.
        with torch.inference_mode(False), torch.no_grad():
            return self._compute(taken, batch, seen or (height, width), labels, exact)

    def _take(self, x: Tensor, name: str) -> Tensor:
        """As ``[N, H, W, C]``."""
        if x.device != self.device or x.layout != torch.strided:
            place = "the CPU" if self.device.type == "cpu" else self.device
            raise ValueError(f"expected a dense tensor on {place}, got {x.layout} on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "native backends are for inference; use torch.no_grad() or the reference modules"
            )
        self._check_kind(x, name)
        x = x.detach().resolve_neg()
        return x if x.dtype == torch.uint8 else x.permute(0, 2, 3, 1)

    def _new(self, batch: int, seen: tuple[int, int], labels: tuple[int, int] | None) -> Tensor:
        """A tensor for the result, ``[N, H, W, C]``."""
        if labels is not None:
            return torch.empty((batch, *labels, 1), dtype=torch.uint8, device=self.device)
        size = self.plan.size(self._output.buffer, *seen)
        dtype = self.precision.sums if self._of_network else self.precision.maps
        return torch.empty((batch, *size, self._output.channels), dtype=dtype, device=self.device)


def presented(output: Tensor, labels: bool) -> Tensor:
    """What :meth:`NativeExecutable._new` made, as ``[N, H, W]`` or ``[N, C, H, W]``."""
    return output[..., 0] if labels else output.permute(0, 3, 1, 2)


#: Kinds of op that native backends run: besides the fused ones, prologues that no convolution reads.
NATIVE = FUSED | {"scale", "add"}


def why_not_native(plan: Plan, levels: bool = False) -> str | None:
    """Why no native backend runs a plan, or None; some have reasons of their own besides.

    ``levels``: whether it runs plans of 8 bits.
    """
    if not levels and any(b.store in LEVELS for b in plan.buffers.values()):
        return "some of its maps are levels of 8 bits"
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
        if op.kind not in NATIVE | ({"quantise"} if levels else set()):
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
