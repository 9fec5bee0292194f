"""From a plan to launches of Triton's kernels: for each size, what runs where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stdc_fast import kernels
from stdc_fast.backends.interpolation import cells
from stdc_fast.backends.tiles import Device, Prediction, Tiles, Work, power_of_two, predict, predict_rest
from stdc_fast.plan.arena import layout
from stdc_fast.plan.ops import Add, Conv, Down, Gate, Op, Scale, Stem, Upsample, View
from stdc_fast.plan.plan import Plan


@dataclasses.dataclass
class Launch:
    """One kernel with all of its arguments.

    ``work`` and ``tiles`` are of those that multiply matrices; of the others there are the bytes that they
    move and the operations of all lanes, each a guess.
    """

    op: Op
    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    warps: int
    stages: int
    work: Work | None = None
    tiles: Tiles | None = None
    moved: int = 0
    lanes: float = 0

    def __call__(self) -> None:
        options = {"num_warps": self.warps, "num_stages": self.stages}
        if self.arguments["DEPENDENT"]:
            options["launch_pdl"] = True
        self.kernel[self.grid](**self.arguments, **options)

    def predicted(self, device: Device) -> Prediction:
        """Its time in a graph on such a device, by the model."""
        if self.work is not None:
            return predict(self.work, self.tiles, device)
        return predict_rest(math.prod(self.grid), self.moved, self.lanes, device)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a plan, which decides all sizes.

    Attributes:
        batch: number of images.
        given: (H, W) of the images.
        seen: (H, W) at which the network sees them; other than ``given`` for raw frames only.
        labels: (H, W) of the labels, or None for logits or a block's map.
        exact: interpolate the logits to ``seen`` before they are to ``labels``.
    """

    batch: int
    given: tuple[int, int]
    seen: tuple[int, int]
    labels: tuple[int, int] | None = None
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.batch}x{self.seen[0]}x{self.seen[1]}"


class Lowered:
    """A plan for one :class:`Request`: its memory, and the launches that run it once, in order.

    Args:
        choose: the tiles of a :class:`Work`.
        products: dtype of products in :class:`Work`: that of the maps, or "tf32".
        dependent: whether kernels start before the one before them is done; needs sm_90.

    Attributes:
        inputs: what to fill: frames ``[N, H, W, 3]``, images and maps ``[N, H, W, C]``, by name.
        arena: bytes of all maps between.
        result: labels ``[N, H, W]``, logits ``[N, C, h, w]`` or a block's map ``[N, H, W, C]``.
        launches: in the plan's order.
    """

    def __init__(
        self,
        plan: Plan,
        packed: Mapping[str, SimpleNamespace],
        request: Request,
        dtype: torch.dtype,
        device: torch.device,
        choose,
        products: str | None = None,
        dependent: bool = False,
    ):
        self.plan, self.packed, self.request = plan, packed, request
        self.dtype, self.device, self.choose = dtype, device, choose
        self.products = products or str(dtype).removeprefix("torch.")
        self.precision = "tf32" if self.products == "tf32" else "ieee"
        self.dependent = dependent
        self.launches: list[Launch] = []
        arena = layout(plan, request.batch, *request.seen, dtype.itemsize)
        self.arena = torch.empty(arena.size, dtype=torch.uint8, device=device)
        self.buffers: dict[str, Tensor] = {}
        for name in plan.buffers:
            if name in arena.spans:
                taken = self.arena[arena.spans[name]]
                taken = taken[: arena.shapes[name].numel() * self._dtype(name).itemsize]
                self.buffers[name] = taken.view(self._dtype(name)).view(arena.shapes[name])
            elif name in plan.inputs:
                self.buffers[name] = self._empty(name, *request.given)
            elif plan.buffers[name].store != "uint8":  # labels have a size of their own
                self.buffers[name] = self._empty(name, *plan.size(name, *request.seen))
        self.inputs = {name: self.buffers[name] for name in plan.inputs}
        for name, x in self.buffers.items():
            # NOTE: offsets within an image are 32 bits; a tile may reach some rows beyond its end.
            if x[:1].numel() + 64 * x[0, :1].numel() >= 1 << 31:
                raise ValueError(f"{name} is too large for the kernels: {list(x.shape)}; use smaller images")
        self._averages: dict[str, Tensor] = {}
        self._sums_rows: dict[str, int] = {}
        for op in plan.ops:
            if isinstance(op, Conv) and op.mean:
                rows = self._sets_and_tiles(op)
                self._sums_rows[op.mean.buffer] = max(rows, self._sums_rows.get(op.mean.buffer, 0))
        self.result = self._none = torch.empty(0, device=device)
        self._lower()

    def _dtype(self, buffer: str) -> torch.dtype:
        stores = {"act": self.dtype, "float32": torch.float32, "uint8": torch.uint8}
        return stores[self.plan.buffers[buffer].store]

    def _empty(self, buffer: str, height: int, width: int) -> Tensor:
        shape = (self.request.batch, height, width, self.plan.buffers[buffer].channels)
        return torch.empty(shape, dtype=self._dtype(buffer), device=self.device)

    def _lower(self) -> None:
        plan = self.plan
        ends = {op.output.buffer: op.input for op in plan.ops if isinstance(op, Upsample)}
        output = ends.get(plan.outputs[0].buffer, plan.outputs[0])
        self._planar = {output.buffer} if plan.buffers[output.buffer].store == "float32" else set()
        whole = self.buffers[output.buffer]
        if self._planar:
            n, height, width, channels = whole.shape
            self.result = whole.view(n, channels, height, width)
        else:
            self.result = self._view(output)
        for op in plan.ops:
            if isinstance(op, Upsample):
                if self.request.labels is not None:
                    self._upsample(op)
            else:
                getattr(self, f"_{op.kind}")(op)

    def _view(self, view: View) -> Tensor:
        return self.buffers[view.buffer][..., view.offset : view.offset + view.channels]

    def _emit(self, op, kernel, grid, arguments, warps=4, stages=1, **about) -> None:
        grid = (*grid, *(1,) * (3 - len(grid)))
        arguments["DEPENDENT"] = self.dependent
        self.launches.append(Launch(op, kernel, grid, arguments, warps, stages, **about))

    def _work(self, op: Op, kind: str, view: View, **fields) -> tuple[Work, Tiles]:
        height, width = self.plan.size(view.buffer, *self.request.seen)
        work = Work(
            kind=kind, outputs=op.output.channels, images=self.request.batch, height=height, width=width,
            dtype=self.products, **fields,
        )  # fmt: skip
        return work, self.choose(work)

    def _conv_work(self, op: Conv) -> tuple[Work, Tiles]:
        small = op.inputs[0] if op.kernel == 2 else op.output
        inputs = tuple(view.channels for view in op.inputs)
        changed = op.scale is not None or op.add is not None
        return self._work(
            op, "conv", small, kernel=op.kernel, stride=op.stride, inputs=inputs, prologue=changed
        )

    def _sets_and_tiles(self, op: Conv) -> int:
        """Number of tiles of one image, of all sets of the sub-pixel form."""
        _, t = self._conv_work(op)
        height, width = self.plan.size(op.output.buffer, *self.request.seen)
        sets = 1
        if op.kernel == 2:
            sets = (2 + height % 2) * (2 + width % 2)
            height, width = self.plan.size(op.inputs[0].buffer, *self.request.seen)
        return sets * -(-height // t.height) * -(-width // t.width)

    def _vector_or_map(self, view: View | None) -> tuple[Tensor, str, int]:
        """(tensor, kind, pitch) of what a prologue adds."""
        if view is None:
            return self._none, "none", 0
        kind = "map" if self.plan.buffers[view.buffer].stride else "vector"
        return self._view(view), kind, self.plan.buffers[view.buffer].channels

    def _prologue_arguments(self, scale: View | None, add: View | None) -> dict[str, Any]:
        added, kind, pitch = self._vector_or_map(add)
        return {
            "scale": self._none if scale is None else self._view(scale),
            "SCALE": scale is not None,
            "SCALE_PITCH": 0 if scale is None else self.plan.buffers[scale.buffer].channels,
            "add": added,
            "ADD": kind,
            "ADD_PITCH": pitch,
        }

    def tensors(self) -> Iterator[Tensor]:
        """All memory that the launches use, weights too."""
        yield self.arena
        for launch in self.launches:
            yield from (value for value in launch.arguments.values() if isinstance(value, Tensor))

    # One a kind.

    def _stem(self, op: Stem) -> None:
        packed, r = self.packed[op.name], self.request
        work, t = self._work(op, "stem", op.output, kernel=3, stride=2, inputs=(3,))
        y = self.buffers[op.output.buffer]
        scales = [(a - 1) / (b - 1) if b > 1 else 0.0 for a, b in zip(r.given, r.seen, strict=True)]
        arguments = {
            "image": self.buffers[op.input.buffer], "weight": packed.weight, "bias": packed.bias,
            "offset": packed.offset, "y": self._view(op.output), "height": r.seen[0], "width": r.seen[1],
            "out_height": y.shape[1], "out_width": y.shape[2], "frame_height": r.given[0],
            "frame_width": r.given[1], "scale_y": scales[0], "scale_x": scales[1],
            "N": op.output.channels, "NP": packed.weight.shape[-1], "OUT_PITCH": y.shape[3], "ACT": op.act,
            "RESIZE": r.given != r.seen, "TILE_H": t.height, "TILE_W": t.width, "BLOCK_N": t.channels,
            "PRECISION": self.precision,
        }  # fmt: skip
        grid = (work.tiles(t), work.blocks(t))
        self._emit(op, kernels.stem, grid, arguments, t.warps, t.stages, work=work, tiles=t)

    def _conv(self, op: Conv) -> None:
        packed = self.packed[op.name]
        work, t = self._conv_work(op)
        first = op.inputs[0]
        second = op.inputs[1] if len(op.inputs) > 1 else None
        x, y = self.buffers[first.buffer], self.buffers[op.output.buffer]
        tiles = self.request.batch * self._sets_and_tiles(op)
        workspace = arrivals = sums = self._none
        if t.split > 1:
            shared = tiles * work.blocks(t)
            size = shared * t.split * t.pixels * t.channels
            workspace = torch.empty(size, dtype=torch.float32, device=self.device)
            arrivals = torch.zeros(shared, dtype=torch.int32, device=self.device)
        rows = width = 0
        if op.mean:
            sums = self._sums(op.mean)
            rows, width = sums.shape[1:]
            sums = sums[..., op.mean.offset :]
        arguments = {
            "x": self._view(first), "other": self._view(second or first), "weight": packed.weight,
            "bias": packed.bias, "y": self._view(op.output), "sums": sums, "workspace": workspace,
            "arrivals": arrivals, "height": x.shape[1], "width": x.shape[2], "out_height": y.shape[1],
            "out_width": y.shape[2], "sums_rows": rows, "KERNEL": op.kernel, "STRIDE": op.stride,
            "C": first.channels, "PITCH": x.shape[3], "OTHER_C": second.channels if second else 0,
            "OTHER_PITCH": self.buffers[second.buffer].shape[3] if second else 0, "N": op.output.channels,
            "NP": packed.weight.shape[-1], "OUT_PITCH": y.shape[3],
            "PLANAR": op.output.buffer in self._planar, "ACT": op.act, "SUMS": op.mean is not None,
            "SUMS_PITCH": width, "TILE_H": t.height, "TILE_W": t.width, "BLOCK_N": t.channels,
            "BLOCK_K": t.depth, "SPLIT": t.split, "PRECISION": self.precision,
            **self._prologue_arguments(op.scale, op.add),
        }  # fmt: skip
        self._emit(
            op,
            kernels.conv,
            (tiles, work.blocks(t), t.split),
            arguments,
            t.warps,
            t.stages,
            work=work,
            tiles=t,
        )

    def _sums(self, mean: View) -> Tensor:
        """Float32 ``[N, rows, C]`` of an average's buffer; rows that an op does not write stay zero."""
        if mean.buffer not in self._averages:
            rows, channels = self._sums_rows[mean.buffer], self.plan.buffers[mean.buffer].channels
            sums = torch.zeros(self.request.batch, rows, channels, device=self.device)
            self._averages[mean.buffer] = sums
        return self._averages[mean.buffer]

    def _down(self, op: Down) -> None:
        packed = self.packed[op.name]
        work, t = self._work(op, "down", op.output, kernel=1, stride=2, inputs=(op.input.channels,))
        x, y = self.buffers[op.input.buffer], self.buffers[op.output.buffer]
        pooled = op.pooled
        arguments = {
            "x": self._view(op.input), "weight": packed.weight, "bias": packed.bias,
            "depthwise": packed.depthwise, "depthwise_bias": packed.depthwise_bias,
            "y": self._view(op.output), "pooled": self._view(pooled) if pooled else self._none,
            "height": x.shape[1], "width": x.shape[2], "out_height": y.shape[1], "out_width": y.shape[2],
            "C": op.input.channels, "PITCH": x.shape[3], "N": op.output.channels,
            "NP": packed.weight.shape[-1], "OUT_PITCH": y.shape[3], "POOLED": pooled is not None,
            "POOLED_PITCH": self.buffers[pooled.buffer].shape[3] if pooled else 0,
            "COUNT_PAD": op.count_include_pad, "TILE_H": t.height, "TILE_W": t.width,
            "BLOCK_N": t.channels, "BLOCK_K": t.depth, "PRECISION": self.precision,
        }  # fmt: skip
        self._emit(
            op,
            kernels.down,
            (work.tiles(t), work.blocks(t)),
            arguments,
            t.warps,
            t.stages,
            work=work,
            tiles=t,
        )

    def _gate(self, op: Gate) -> None:
        packed = self.packed[op.name]
        channels, view = op.input.channels, op.input
        if view.buffer in self._averages:
            x = self._averages[view.buffer]
            rows, pitch = x.shape[1:]
            x = x[..., view.offset :]
        else:
            x, rows = self._view(view), 1
            pitch = self.buffers[view.buffer].shape[3]
        two = len(op.layers) == 2
        hidden = len(packed.weights[0]) if two else 0
        outputs = op.output.channels
        block = 16 if two else 8
        arguments = {
            "x": x, "weight": packed.weights[0], "bias": packed.biases[0], "weight2": packed.weights[-1],
            "bias2": packed.biases[-1], "y": self._view(op.output), "rows": rows,
            "C": channels, "PITCH": pitch, "HIDDEN": hidden, "N": outputs,
            "OUT_PITCH": self.buffers[op.output.buffer].shape[3], "ACT": op.acts[0], "ACT2": op.acts[-1],
            "BLOCK_R": min(32, power_of_two(rows)), "BLOCK_C": min(256, power_of_two(channels)),
            "BLOCK_H": power_of_two(hidden or 1), "BLOCK_N": block,
        }  # fmt: skip
        grid = (-(-outputs // block), self.request.batch)
        weights = sum(w.numel() * w.itemsize for w in packed.weights)
        moved = grid[0] * x.numel() * 4 + weights * self.request.batch
        self._emit(op, kernels.gate, grid, arguments, 8, moved=moved)

    def _scale(self, op: Scale) -> None:
        self._map(op, op.scale, None)

    def _add(self, op: Add) -> None:
        self._map(op, None, op.other)

    def _map(self, op: Scale | Add, scale: View | None, add: View | None) -> None:
        x = self.buffers[op.input.buffer]
        n, height, width, pitch = x.shape
        channels = op.input.channels
        block = min(128, power_of_two(channels))
        pixels = max(1, 2048 // block)
        arguments = {
            "x": self._view(op.input), "y": self._view(op.output), "area": height * width, "C": channels,
            "PITCH": pitch, "OUT_PITCH": self.buffers[op.output.buffer].shape[3], "BLOCK_M": pixels,
            "BLOCK_C": block, **self._prologue_arguments(scale, add),
        }  # fmt: skip
        grid = (-(-height * width // pixels), -(-channels // block), n)
        moved = 2 * x.shape[:3].numel() * channels * x.itemsize
        self._emit(op, kernels.prologue, grid, arguments, moved=moved)

    def _upsample(self, op: Upsample) -> None:
        r = self.request
        n, channels, height, width = self.result.shape
        between = r.seen if r.exact and r.labels != r.seen else None
        tables, most = cells((height, width), r.labels, between, self.device)
        taps = 3 if between else 2
        block = min(16, max(2, power_of_two(most)))
        pieces = -(-most // block)
        labels = torch.empty((n, *r.labels), dtype=torch.uint8, device=self.device)
        arguments = {
            "logits": self.result, **tables, "labels": labels, "height": height, "width": width,
            "out_height": r.labels[0], "out_width": r.labels[1], "pieces": pieces,
            "CLASSES": channels, "TAPS": taps, "CELLS": 32, "BLOCK": block,
        }  # fmt: skip
        self.result = labels
        grid = (r.labels[0], -(-width // 32) * pieces, n)
        # Interpolate, compare and select twice, and a third tap; some lanes of a cell are beyond its end.
        lanes = math.prod(grid) * 32 * block * channels * (taps + 3)
        warps = max(1, min(8, block // 8))
        self._emit(op, kernels.upsample, grid, arguments, warps, moved=labels.numel(), lanes=lanes)
