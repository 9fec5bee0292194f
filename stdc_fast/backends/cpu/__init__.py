"""The native CPU engine: a plan is one native object, an image one call."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stdc_fast import _native, forks
from stdc_fast.backends.base import Backend, NativeExecutable, presented
from stdc_fast.backends.cpu import program
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic
from stdc_fast.plan.ops import Conv, Upsample
from stdc_fast.plan.plan import Plan
from stdc_fast.plan.quantise import candidates, mixed
from stdc_fast.precision import FLOAT32, Like, Precision, precision_of


class Cpu(Backend):
    """The engine, on x86 processors and in portable code on others."""

    name = "cpu"

    def why_not_here(self) -> str | None:
        return _native.why_not()

    def about(self) -> str:
        return _native.about()

    def why_not(self, plan: Plan | None, precision: Precision, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it does not run on {device}"
        reason = program.why_not(plan, precision)
        if reason is None:
            _native.isa()  # a mistake in STDC_FAST_CPU_ISA is said, not passed over
        return reason

    def memory(self, small: bool) -> str | None:
        if small:
            return "large weights as they are, Winograd's tiles at 1/8 and above"
        return "Winograd's tiles, with four times the weights of a 3x3, wherever they are faster"

    def levels(self, plan: Plan, precision: Precision, small: bool) -> list[str]:
        return levels(plan, precision, small)

    def compile(
        self, plan: Plan, precision: Precision, device: torch.device, small: bool = False
    ) -> CpuExecutable:
        return compile(plan, precision, device, small=small)


BACKEND = Cpu()

#: The image for which the engine chooses forms.
TYPICAL = 512, 1024


def levels(plan: Plan, precision: Precision, small: bool = False, isa: str = "") -> list[str]:
    """Names of the ops that an instruction set does clearly faster on levels of 8 bits.

    The engine's model of costs says so, for a 512x1024 image. With ``small`` Winograd's tiles are no
    alternative below 1/8.
    """
    found, known = [], set(candidates(plan))
    isa, maps = _native.isa(isa), str(precision.maps).removeprefix("torch.")
    for op in plan.ops:
        if op.name not in known or mixed(plan, op):  # one kernel has levels of one kind
            continue
        inputs = op.inputs if isinstance(op, Conv) else (op.input,)
        # Of an entry of a stage what counts is its 1x1, at the input's size.
        kernel, stride, output = (
            (op.kernel, op.stride, op.output) if isinstance(op, Conv) else (1, 1, op.input)
        )
        deep = plan.buffers[op.output.buffer].stride > 8
        tiles = stride == 1 and kernel > 1 and len(inputs) == 1 and not (small and deep)
        size = plan.size(output.buffer, *TYPICAL)
        shape = (kernel, stride, sum(v.channels for v in inputs), op.output.channels, *size)
        if _native.module().levels_pay(isa, maps, tiles, shape):
            found.append(op.name)
    return found


def compile(
    plan: Plan,
    precision: Like = FLOAT32,
    device: torch.device | str = "cpu",
    *,
    isa: str = "",
    small: bool = False,
    poisoned: bool = False,
) -> CpuExecutable:
    """Pack a plan's weights for the engine.

    Args:
        plan: optimised.
        precision: one of :data:`stdc_fast.backends.cpu.program.PRECISIONS`.
        isa: instruction set, for tests; else STDC_FAST_CPU_ISA or the best.
        small: rather slower than with several times the weights.
        poisoned: fill the arena with NaN before each image, to prove that nothing dead is read.

    Raises ValueError for a plan, precision or device that the engine does not run, UserError if the native
    module is missing or STDC_FAST_CPU_ISA names no instruction set of this machine.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"the native CPU engine does not run on {device}")
    return CpuExecutable(plan, precision_of(precision), isa, small, poisoned)


def save(plan: Plan, precision: Like, path: str | Path) -> None:
    """Write an optimised plan with its weights for the engine's C++ API; see ``examples/cpp``.

    ValueError for what the engine does not run; UserError if it can not be written, or if its logits are not
    interpolated with align_corners=True, which only Python does.
    """
    if any(isinstance(op, Upsample) and not op.align_corners for op in plan.ops):
        raise UserError(
            f"{path}: saved plans interpolate logits with align_corners=True, this network does not"
        )
    data = program.serialise(plan, precision_of(precision))
    write_atomic(path, lambda p: Path(p).write_bytes(data))


#: Of float inputs, which the engine turns into maps itself.
_GIVEN = tuple(p.maps for p in program.PRECISIONS)


class CpuExecutable(NativeExecutable):
    """A plan with packed weights, for inputs of any size. Calls from several threads run one after the other.

    Threads are those of ``torch.get_num_threads()``; results do not depend on their number. They are
    channels_last.
    """

    def __init__(
        self, plan: Plan, precision: Precision, isa: str = "", small: bool = False, poisoned: bool = False
    ):
        saved = program.serialise(plan, precision)
        self.engine = _native.module().Engine(saved, _native.isa(isa), small)
        if poisoned:
            self.engine.poison(True)
        super().__init__(plan, precision, "cpu")

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self.engine.isa

    @property
    def forms(self) -> dict[str, str]:
        """How each convolution of the plan is computed, by name: "direct", "int8" on levels, or by Winograd's
        "F(4x4, 3x3)" or "F(4x4, 2x2)".
        """
        found = {name: form for name, kind, form in self.engine.forms if kind == "conv"}
        return {op.name: found[program.word(op.name)] for op in self.plan.ops if isinstance(op, Conv)}

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of packed weights and of the arena, which is as large as the largest input so far needed."""
        return self.engine.memory

    def _compute(self, inputs, batch, seen, labels, exact) -> Tensor:
        output = self._new(batch, seen, labels)
        if batch:
            threads = min(forks.threads(), 256)
            self.engine.run([_spec(x) for x in inputs], _spec(output), *seen, threads, exact)
        return presented(output, labels is not None)

    def _take(self, x: Tensor, name: str) -> Tensor:
        x = super()._take(x, name)
        if x.dtype == torch.uint8:
            dense = x.stride(3) == 1 and (x.stride(2) == 3 or x.shape[2] == 1)
            return x if dense and x.stride(1) > 0 else x.contiguous()
        return x if x.dtype in _GIVEN else x.to(self.dtype)


def _spec(x: Tensor) -> tuple:
    strides = list(x.stride())
    if x.shape[2] == 1 and x.dtype == torch.uint8:
        strides[2] = x.shape[3]  # of a single pixel: any
    dtype = str(x.dtype).removeprefix("torch.")
    return x.data_ptr(), dtype, tuple(x.shape), tuple(strides)
