"""The native CPU engine: a plan is one native object, an image one call."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stdc_fast import _native
from stdc_fast.backends import program
from stdc_fast.checkpoints import write_atomic
from stdc_fast.plan.ops import Upsample
from stdc_fast.plan.plan import Plan


def compile(
    plan: Plan,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    isa: str = "",
    poisoned: bool = False,
) -> Executable:
    """Pack a plan's weights for the engine.

    Args:
        plan: optimised.
        dtype: float32 or bfloat16: of maps and weights. Sums, biases, vectors and logits are float32.
        isa: instruction set, for tests; else STDC_FAST_CPU_ISA or the best.
        poisoned: fill the arena with NaN before each image, to prove that nothing dead is read.

    Raises ValueError for a plan, dtype or device that the engine does not run, UserError if the native
    module is missing or STDC_FAST_CPU_ISA names no instruction set of this machine.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"the native CPU engine does not run on {device}")
    return Executable(plan, dtype, isa, poisoned)


def save(plan: Plan, dtype: torch.dtype, path: str | Path) -> None:
    """Write an optimised plan with its weights for the engine's C++ API; see ``examples/cpp``.

    ValueError for what the engine does not run; UserError if it can not be written.
    """
    data = program.serialise(plan, dtype)
    write_atomic(path, lambda p: Path(p).write_bytes(data))


class Executable:
    """A plan with packed weights, for inputs of any size. Calls from several threads run one after the other.

    Threads are those of ``torch.get_num_threads()``; results do not depend on their number.
    """

    #: :meth:`labels` takes frames of another size than the network sees.
    resizes = True

    def __init__(self, plan: Plan, dtype: torch.dtype, isa: str = "", poisoned: bool = False):
        saved = program.serialise(plan, dtype)
        self.engine = _native.module().Engine(saved, _native.isa(isa))
        if poisoned:
            self.engine.poison(True)
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.plan = plan.bare()
        labelled = {op.output.buffer: op.input for op in plan.ops if isinstance(op, Upsample)}
        output = plan.outputs[0]
        self._output = labelled.get(output.buffer, output)
        self._frames = plan.buffers[plan.inputs[0]].store == "uint8"
        self._logits = plan.buffers[self._output.buffer].store == "float32"

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self.engine.isa

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of packed weights and of the arena, which is as large as the largest input so far needed."""
        return self.engine.memory

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The main output: logits ``[N, C, ceil(H/8), ceil(W/8)]`` in float32 of a network, the map
        ``[N, C, H, W]`` of a block, in the dtype of the engine; channels_last.

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
        # Named, so that they live until the engine returns.
        given = [self._checked(x, name) for x, name in zip(inputs, self.plan.inputs, strict=True)]
        sizes = {(len(x), *self._shape(x)) for x in inputs}
        if len(sizes) > 1 or 0 in next(iter(sizes))[1:]:
            raise ValueError(f"inputs of different or empty sizes: {[list(x.shape) for x in inputs]}")
        batch, height, width = next(iter(sizes))
        if seen is not None:
            height, width = seen
        if labels is not None:
            output = torch.empty((batch, *labels, 1), dtype=torch.uint8)
        else:
            size = self.plan.size(self._output.buffer, height, width)
            dtype = torch.float32 if self._logits else self.dtype
            output = torch.empty((batch, *size, self._output.channels), dtype=dtype)
        if batch:
            threads = max(1, min(torch.get_num_threads(), 256))
            self.engine.run([_spec(x) for x in given], _spec(output), height, width, threads, exact)
        return output[..., 0] if labels is not None else output.permute(0, 3, 1, 2)

    def _checked(self, x: Tensor, name: str) -> Tensor:
        """As ``[N, H, W, C]``: the contract, before any pointer is taken."""
        buffer = self.plan.buffers[name]
        if x.device.type != "cpu" or x.layout != torch.strided:
            raise ValueError(f"expected a dense tensor on the CPU, got {x.layout} on {x.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "the native engine is for inference; use torch.no_grad() or the reference modules"
            )
        x = x.detach().resolve_neg()
        if buffer.store == "uint8":
            if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[3] != buffer.channels:
                raise ValueError(f"expected uint8 frames [N, H, W, 3], got {x.dtype} {list(x.shape)}")
            dense = x.stride(3) == 1 and (x.stride(2) == 3 or x.shape[2] == 1)
            return x if dense and x.stride(1) > 0 else x.contiguous()
        if x.ndim != 4 or x.shape[1] != buffer.channels or not x.is_floating_point():
            raise ValueError(
                f"expected a float input [N, {buffer.channels}, H, W], got {x.dtype} {list(x.shape)}"
            )
        if x.dtype not in program.DTYPES:
            x = x.to(self.dtype)
        return x.permute(0, 2, 3, 1)


def _spec(x: Tensor) -> tuple:
    strides = list(x.stride())
    if x.shape[2] == 1 and x.dtype == torch.uint8:
        strides[2] = x.shape[3]  # of a single pixel: any
    dtype = str(x.dtype).removeprefix("torch.")
    return x.data_ptr(), dtype, tuple(x.shape), tuple(strides)
