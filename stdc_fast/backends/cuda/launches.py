"""From a plan to launches of the CUDA kernels: for each size the arguments of each, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stdc_fast.backends.cuda import fusion
from stdc_fast.backends.cuda.fragments import core_matrices
from stdc_fast.backends.cuda.fusion import Fusion, Part
from stdc_fast.backends.cuda.tiles import ADDS, CompiledForms, CudaTiles, Form, predict
from stdc_fast.backends.gpu.model import Device, Prediction, Work
from stdc_fast.backends.gpu.placed import Labelling, Launch, Lowered, Request
from stdc_fast.plan.ops import ACTIVATIONS, Add, Conv, Down, Gate, Op, Quantise, Scale, Stem, Upsample, View
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision

#: As in csrc/include/gpu.h.
ACTS = {name: i for i, name in enumerate(ACTIVATIONS)}
# What a block does, for predictions.
ROWS, COLUMNS = 4, 9  # as kWarps and kColumns in csrc/cuda/upsample.cu


@dataclasses.dataclass(kw_only=True)
class CudaLaunch(Launch):
    """One of the CUDA kernels with its struct of arguments.

    ``form`` is of those that multiply matrices, ``blocks`` of the others; ``parts`` are computed on the way.
    """

    arguments: Any
    form: Form | None = None
    blocks: int = 1
    parts: tuple[Part, ...] = ()

    @property
    def programs(self) -> int:
        return self.blocks

    def _predicted(self, device: Device) -> Prediction:
        alone = predict(self.work, self.tiles, device, self.form)
        added = sum(part.seconds(alone, self.form, device) for part in self.parts)
        return dataclasses.replace(alone, seconds=alone.seconds + added)


class CudaLowered(Lowered):
    """A plan for one :class:`Request`: its memory, and the launches that run it once.

    Args:
        native: the module with the kernels, ``stdc_fast._C.gpu`` or what stands for it in tests.
        dependent: whether kernels start before the one before them is done; sm_90 and later.
        fused: ops whose kernels are left out since others compute them; or the class of GPUs for which the
            model chooses them.

    Attributes:
        launches: in the plan's order.
        fused: as above, chosen.
    """

    def __init__(
        self,
        plan: Plan,
        packed: Mapping[str, SimpleNamespace],
        request: Request,
        precision: Precision,
        device: torch.device,
        choose: Callable[[Work], CudaTiles],
        native: ModuleType,
        dependent: bool = False,
        apart: bool = False,
        fused: Sequence[Fusion] | Device = (),
    ):
        self._wanted = fused
        super().__init__(plan, packed, request, precision, device, choose, apart=apart, branches=True)
        self.native, self.dependent = native, dependent
        self._forms = CompiledForms(native)
        self.launches: list[CudaLaunch] = []
        self._type = getattr(native.Type, str(precision.maps).removeprefix("torch."))
        self._lower()
        if isinstance(fused, Device):
            fused = fusion.chosen(self, lambda launches: self._time(launches, fused))
        self.fused = fusion.together(fused)
        self.launches = fusion.fuse(self, self.fused)

    def _prolong(self, lives: dict[str, tuple[int, int]]) -> None:
        if self._wanted != ():
            fusion.prolong(self.plan, lives)

    def launch(self, first: bool = False, side: torch.cuda.Stream | None = None) -> None:
        if side is None or self.branch is None:
            self._run([launch.arguments for launch in self.launches])
            return
        before, branch, others, after = self.parts()
        direct = self.direct and self.request.labels is not None
        self.nodes = []
        # NOTE: each part starts with a kernel that waits for whole kernels before it, on both streams.
        main = torch.cuda.current_stream(self.device)
        self._run(before, {0} if direct else ())
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self._run(branch)
        self._run(others)
        main.wait_stream(side)
        self._run(after, {len(after) - 1} if direct else ())

    def parts(self) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Arguments of the kernels before the branch, of the branch, beside it, and after both."""
        return tuple([launch.arguments for launch in part] for part in self._parts(self.launches))

    def _parts(self, launches: list[CudaLaunch]) -> tuple[list[CudaLaunch], ...]:
        if self.branch is None:
            return [], [], [], launches
        fork, first, last = self.branch.fork, self.branch.first, self.branch.last
        found: tuple[list[CudaLaunch], ...] = [], [], [], []
        for launch in launches:
            i = self.plan.ops.index(launch.op)
            found[0 if i < fork else 2 if i < first else 1 if i <= last else 3].append(launch)
        return found

    def predicted(self, device: Device) -> float:
        """Seconds of a replay by the model, in which branches do not slow each other."""
        return self._time(self.launches, device)

    def _time(self, launches: list[CudaLaunch], device: Device) -> float:
        before, branch, others, after = (
            sum(launch.predicted(device).seconds for launch in part) for part in self._parts(launches)
        )
        return before + max(branch, others) + after

    def _run(self, steps: list[Any], kept: Collection[int] = ()) -> None:
        """Launch kernels in order; in a capture, with the nodes of those that are ``kept``."""
        stream, device = 0, -1
        if self.device.type == "cuda":
            stream, device = torch.cuda.current_stream(self.device).cuda_stream, self.device.index
        try:
            if kept:
                for i, step in enumerate(steps):
                    how = stream, self.dependent and i > 0, device
                    if i in kept:
                        self.nodes.append(self.native.run_captured(step, *how))
                    else:
                        self.native.run([step], *how)
                return
            self.native.run(steps[:1], stream, False, device)
            self.native.run(steps[1:], stream, self.dependent, device)
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.plan.name}: {error}; STDC_FAST_BACKEND=triton or eager runs it"
            ) from error

    def _emit(self, op: Op, kind: str, about: dict[str, Any] | None = None, **fields) -> None:
        made = getattr(self.native, kind)()
        for name, value in fields.items():
            setattr(made, name, value.data_ptr() if isinstance(value, Tensor) else value)
        self.launches.append(CudaLaunch(op=op, arguments=made, **(about or {})))

    def _pitch(self, view: View) -> int:
        return self.plan.buffers[view.buffer].channels

    def _signed(self, view: View | None) -> int:
        """Whether levels may be negative."""
        return int(view is not None and self.plan.buffers[view.buffer].store == "s8")

    def _levels(self, op: Op) -> dict[str, Any]:
        """Fields of an op that writes levels, or may."""
        inverse = getattr(self.packed.get(op.name), "inverse", None)
        return {
            "inverse": self._none if inverse is None else inverse,
            "out_negative": self._signed(op.output),
        }

    def _multiplied(self, op: Conv | Down, first: View) -> dict[str, Any]:
        """Fields of an op that multiplies levels, or may."""
        if not op.multipliers:
            return {"pitch": self._pitch(first)}
        multipliers = self.packed[op.name].multipliers
        return {
            "multipliers": multipliers, "negative": self._signed(first), "pitch": self._pitch(first) // 2,
        }  # fmt: skip

    def shared_tiles(self, tiles: int, numbers: int) -> tuple[int, int]:
        """Addresses of memory for what blocks that share tiles have, and of the tiles' counters."""
        made = self._extra(numbers), self._extra(tiles, dtype=torch.int32, zero=True)
        return made[0].data_ptr(), made[1].data_ptr()

    def _products(self, op: Stem | Conv | Down) -> tuple[dict[str, Any], dict[str, Any], CudaTiles]:
        return self.cut(op, self._work(op))

    def cut(self, op: Op, work: Work) -> tuple[dict[str, Any], dict[str, Any], CudaTiles]:
        """(what is known of a launch, fields that sizes and tiles decide, tiles)."""
        t = self.choose(work)
        form = self._forms.form(work, t)
        if form is None:
            raise ValueError(f"{op.name}: there is no kernel for tiles of {t}")
        return {"work": work, "tiles": t, "form": form}, self._forms.sized(work, t), t

    @staticmethod
    def _matrices(packed: SimpleNamespace) -> Tensor:
        """The weights for wgmma, in that order when they are first wanted; they stay with the packed ones."""
        if not hasattr(packed, "matrices"):
            vars(packed).setdefault("matrices", core_matrices(packed.weight))  # of two threads one wins
        return packed.matrices

    def _stem(self, op: Stem) -> None:
        packed, r = self.packed[op.name], self.request
        about, sized, _ = self._products(op)
        image = self.buffers[op.input.buffer]
        scale_y, scale_x = self._pixel_scales()
        sized |= {"height": r.seen[0], "width": r.seen[1]}
        self._emit(
            op, "StemArgs", about, type=self._type, image=image, is_float=int(image.dtype != torch.uint8),
            weight=packed.weight, bias=packed.bias, offset=packed.offset[0],
            outside=packed.offset[1],
            y=self._view(op.output), frame_height=r.given[0], frame_width=r.given[1],
            out_pitch=self._pitch(op.output), act=ACTS[op.act], scale_y=scale_y, scale_x=scale_x,
            **self._levels(op), **sized,
        )  # fmt: skip

    def _conv(self, op: Conv) -> None:
        packed = self.packed[op.name]
        about, sized, t = self._products(op)
        first, second = (*op.inputs, None)[:2]
        x, y = self.buffers[first.buffer], self.buffers[op.output.buffer]
        added, kind, add_pitch = self._vector_or_map(op.add)
        sized |= {
            "height": x.shape[1], "width": x.shape[2], "out_height": y.shape[1], "out_width": y.shape[2],
            "add_kind": ADDS[kind],
        }  # fmt: skip
        workspace = arrivals = self._none
        if t.split > 1:
            shared = self.request.batch * self._tiles_of_image(op) * -(-op.output.channels // t.block[1])
            workspace, arrivals = self.shared_tiles(shared, shared * t.split * t.block[0] * t.block[1])
        sums, rows, pitch = self._sums(op.mean)
        self._emit(
            op, "ConvArgs", about, type=self._type, x=self._view(first),
            other=self._none if second is None else self._view(second),
            weight=self._matrices(packed) if t.wgmma else packed.weight,
            bias=packed.bias, y=self._view(op.output),
            scale=self._none if op.scale is None else self._view(op.scale), add=added, sums=sums,
            workspace=workspace, arrivals=arrivals, other_negative=self._signed(second),
            other_pitch=0 if second is None else self._pitch(second) // (2 if op.multipliers else 1),
            out_pitch=self._pitch(op.output),
            act=ACTS[op.act], planar=int(op.output.buffer in self._planar),
            scale_pitch=0 if op.scale is None else self._pitch(op.scale), add_pitch=add_pitch,
            sums_rows=rows, sums_pitch=pitch, **self._multiplied(op, first), **self._levels(op), **sized,
        )  # fmt: skip

    def _down(self, op: Down) -> None:
        packed, pooled = self.packed[op.name], op.pooled
        about, sized, _ = self._products(op)
        x = self.buffers[op.input.buffer]
        sized |= {"height": x.shape[1], "width": x.shape[2]}
        self._emit(
            op, "DownArgs", about, type=self._type, x=self._view(op.input), weight=packed.weight,
            bias=packed.bias, depthwise=packed.depthwise, depthwise_bias=packed.depthwise_bias,
            y=self._view(op.output), pooled=self._none if pooled is None else self._view(pooled),
            out_pitch=self._pitch(op.output), pooled_pitch=0 if pooled is None else self._pitch(pooled),
            pooled_inverse=getattr(packed, "pooled_inverse", self._none),
            pooled_negative=self._signed(pooled), count_pad=int(op.count_include_pad),
            **self._multiplied(op, op.input), **self._levels(op), **sized,
        )  # fmt: skip

    def _gate(self, op: Gate) -> None:
        packed = self.packed[op.name]
        x, rows, pitch = self._vector(op.input)
        two = len(op.layers) == 2
        outputs, images = op.output.channels, self.request.batch
        blocks = images * -(-outputs // fusion.OUTPUTS)
        # The last layer once, all else by each block. Weights and averages are fetched at once.
        *all_of_it, shared = [w.numel() * w.itemsize for w in packed.weights]
        early = images * shared + blocks * sum(all_of_it)
        about = {"blocks": blocks, "moved": early + blocks * rows * op.input.channels * 4}
        self._emit(
            op, "GateArgs", about | {"early": early, "waits": 1}, type=self._type, x=x,
            weight=packed.weights[0], bias=packed.biases[0], weight2=packed.weights[-1],
            bias2=packed.biases[-1], y=self._view(op.output), images=images, rows=rows,
            channels=op.input.channels, pitch=pitch, hidden=len(packed.weights[0]) if two else 0,
            outputs=outputs, out_pitch=self._pitch(op.output), act=ACTS[op.acts[0]], act2=ACTS[op.acts[-1]],
        )  # fmt: skip

    def _map(self, op: Scale | Add | Quantise, scale: View | None, add: View | None) -> None:
        n, height, width, pitch = self.buffers[op.input.buffer].shape
        added, kind, add_pitch = self._vector_or_map(add)
        moved = 2 * n * height * width * op.input.channels * self.precision.maps.itemsize
        self._emit(
            op, "PrologueArgs", {"blocks": -(-moved // 8192), "moved": moved}, type=self._type,
            x=self._view(op.input), scale=self._none if scale is None else self._view(scale), add=added,
            y=self._view(op.output), images=n, area=height * width, channels=op.input.channels, pitch=pitch,
            out_pitch=self._pitch(op.output), scale_pitch=0 if scale is None else self._pitch(scale),
            add_kind=ADDS[kind], add_pitch=add_pitch, **self._levels(op),
        )  # fmt: skip

    def _upsample(self, op: Upsample, labelling: Labelling) -> None:
        n, classes, height, width = labelling.logits.shape
        _, out_height, out_width = labelling.labels.shape
        pieces = -(-labelling.widest // COLUMNS) * COLUMNS
        lanes = n * out_height * -(-width // 32) * 32 * pieces * classes * (labelling.taps + 2)
        blocks = n * -(-out_height // ROWS) * -(-width // 32)
        tables = sum(table.numel() * table.itemsize for table in labelling.tables.values())
        about = {"blocks": blocks, "moved": labelling.labels.numel() + tables, "lanes": lanes}
        self._emit(
            op, "UpsampleArgs", about | {"early": tables},
            logits=labelling.logits, **labelling.tables, labels=labelling.labels, images=n, classes=classes,
            height=height, width=width, out_height=out_height, out_width=out_width, taps=labelling.taps,
        )  # fmt: skip
