"""From a plan to launches of Triton's kernels: for each size, what runs where."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from tqdm import tqdm
from triton.runtime.errors import OutOfResources, PTXASError

from stdc_fast import kernels
from stdc_fast.backends.gpu.model import Device, Prediction, Work, power_of_two
from stdc_fast.backends.gpu.placed import Labelling, Launch, Lowered, Refused, Request
from stdc_fast.backends.triton.tiles import TritonTiles, predict
from stdc_fast.plan.ops import Add, Conv, Down, Gate, Quantise, Scale, Stem, Upsample, View
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import Precision

_log = logging.getLogger("stdc_fast")


@dataclasses.dataclass(kw_only=True)
class TritonLaunch(Launch):
    """One of Triton's kernels with its grid, arguments and options."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    warps: int
    stages: int

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    def __call__(self) -> None:
        options = {"num_warps": self.warps, "num_stages": self.stages}
        if self.arguments["DEPENDENT"]:
            options["launch_pdl"] = True
        self.kernel[self.grid](**self.arguments, **options)

    def _predicted(self, device: Device) -> Prediction:
        return predict(self.work, self.tiles, device)


class TritonLowered(Lowered):
    """A plan for one :class:`Request`: its memory, and the launches that run it once.

    Args:
        choose, products: as of :class:`Lowered`.
        dependent: whether kernels start before the one before them is done; needs sm_90.

    Attributes:
        launches: in the plan's order.
    """

    def __init__(
        self,
        plan: Plan,
        packed: Mapping[str, SimpleNamespace],
        request: Request,
        precision: Precision,
        device: torch.device,
        choose: Callable[[Work], TritonTiles],
        products: str | None = None,
        dependent: bool = False,
    ):
        super().__init__(plan, packed, request, precision, device, choose, products)
        self.input_precision = "tf32" if self.products == "tf32" else "ieee"
        self.dependent = dependent
        self.launches: list[TritonLaunch] = []
        self._lower()

    def launch(self, first: bool = False, side: torch.cuda.Stream | None = None) -> None:
        launches = self.launches
        if first and self.device.type == "cuda":
            _log.info(
                "preparing Triton kernels for %s at %s in %s", self.plan.name, self.request, self.precision
            )
            # Shown on a terminal only, and only where there was something to compile.
            text = f"stdc_fast: compiling kernels for {self.request}, once"
            launches = tqdm(launches, text, leave=False, disable=None, delay=1)
        for launch in launches:
            try:
                launch()
            except (OutOfResources, PTXASError) as error:
                raise Refused(launch.op, launch.work, launch.tiles, error) from error

    def _emit(self, op, kernel, grid, arguments, warps=4, stages=1, **about) -> None:
        grid = (*grid, *(1,) * (3 - len(grid)))
        arguments["DEPENDENT"] = self.dependent
        self.launches.append(
            TritonLaunch(
                op=op, kernel=kernel, grid=grid, arguments=arguments, warps=warps, stages=stages, **about
            )
        )

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

    def _levels(self, op: Conv | Down) -> dict[str, Any]:
        """Of products: the padded outputs, and what those of levels need."""
        packed = self.packed[op.name]
        return {
            "NP": -(-op.output.channels // 16) * 16, "start": getattr(packed, "start", None),
            "multipliers": getattr(packed, "multipliers", None), "inverse": getattr(packed, "inverse", None),
        }  # fmt: skip

    # One a kind.

    def _stem(self, op: Stem) -> None:
        packed, r = self.packed[op.name], self.request
        work = self._work(op)
        t = self.choose(work)
        y = self.buffers[op.output.buffer]
        scale_y, scale_x = self._pixel_scales()
        arguments = {
            "image": self.buffers[op.input.buffer], "weight": packed.weight, "bias": packed.bias,
            "offset": packed.offset, "y": self._view(op.output), "height": r.seen[0], "width": r.seen[1],
            "out_height": y.shape[1], "out_width": y.shape[2], "frame_height": r.given[0],
            "frame_width": r.given[1], "scale_y": scale_y, "scale_x": scale_x,
            "N": op.output.channels, "NP": packed.weight.shape[-1], "OUT_PITCH": y.shape[3], "ACT": op.act,
            "RESIZE": r.given != r.seen, "TILE_H": t.height, "TILE_W": t.width, "BLOCK_N": t.channels,
            "PRECISION": self.input_precision, "inverse": getattr(packed, "inverse", None),
        }  # fmt: skip
        grid = (work.tiles(t), work.blocks(t))
        self._emit(op, kernels.stem, grid, arguments, t.warps, t.stages, work=work, tiles=t)

    def _conv(self, op: Conv) -> None:
        packed = self.packed[op.name]
        work = self._work(op)
        t = self.choose(work)
        first = op.inputs[0]
        second = op.inputs[1] if len(op.inputs) > 1 else None
        x, y = self.buffers[first.buffer], self.buffers[op.output.buffer]
        tiles = self.request.batch * self._tiles_of_image(op)
        workspace = arrivals = self._none
        if t.split > 1:
            shared = tiles * work.blocks(t)
            size = shared * t.split * t.pixels * t.channels
            workspace = self._extra(size, dtype=torch.int32 if op.multipliers else torch.float32)
            arrivals = self._extra(shared, dtype=torch.int32, zero=True)
        sums, rows, width = self._sums(op.mean)
        arguments = {
            "x": self._view(first), "other": self._view(second or first), "weight": packed.weight,
            "bias": packed.bias, "y": self._view(op.output), "sums": sums, "workspace": workspace,
            "arrivals": arrivals, "height": x.shape[1], "width": x.shape[2], "out_height": y.shape[1],
            "out_width": y.shape[2], "sums_rows": rows, "KERNEL": op.kernel, "STRIDE": op.stride,
            "C": first.channels, "PITCH": x.shape[3], "OTHER_C": second.channels if second else 0,
            "OTHER_PITCH": self.buffers[second.buffer].shape[3] if second else 0, "N": op.output.channels,
            "OUT_PITCH": y.shape[3],
            "PLANAR": op.output.buffer in self._planar, "ACT": op.act, "SUMS": op.mean is not None,
            "SUMS_PITCH": width, "TILE_H": t.height, "TILE_W": t.width, "BLOCK_N": t.channels,
            "BLOCK_K": t.depth, "SPLIT": t.split, "PRECISION": self.input_precision,
            **self._prologue_arguments(op.scale, op.add), **self._levels(op),
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

    def _down(self, op: Down) -> None:
        packed = self.packed[op.name]
        work = self._work(op)
        t = self.choose(work)
        x, y = self.buffers[op.input.buffer], self.buffers[op.output.buffer]
        pooled = op.pooled
        arguments = {
            "x": self._view(op.input), "weight": packed.weight, "bias": packed.bias,
            "depthwise": packed.depthwise, "depthwise_bias": packed.depthwise_bias,
            "y": self._view(op.output), "pooled": self._view(pooled) if pooled else self._none,
            "height": x.shape[1], "width": x.shape[2], "out_height": y.shape[1], "out_width": y.shape[2],
            "C": op.input.channels, "PITCH": x.shape[3], "N": op.output.channels,
            "OUT_PITCH": y.shape[3], "POOLED": pooled is not None,
            "POOLED_PITCH": self.buffers[pooled.buffer].shape[3] if pooled else 0,
            "COUNT_PAD": op.count_include_pad, "TILE_H": t.height, "TILE_W": t.width,
            "BLOCK_N": t.channels, "BLOCK_K": t.depth, "PRECISION": self.input_precision,
            "MAPS": getattr(tl, str(self.precision.maps).removeprefix("torch.")) if op.multipliers else None,
            "pooled_inverse": getattr(packed, "pooled_inverse", None), **self._levels(op),
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
        channels = op.input.channels
        x, rows, pitch = self._vector(op.input)
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

    def _map(self, op: Scale | Add | Quantise, scale: View | None, add: View | None) -> None:
        x = self.buffers[op.input.buffer]
        n, height, width, pitch = x.shape
        channels = op.input.channels
        block = min(128, power_of_two(channels))
        pixels = max(1, 2048 // block)
        arguments = {
            "x": self._view(op.input), "y": self._view(op.output), "area": height * width, "C": channels,
            "PITCH": pitch, "OUT_PITCH": self.buffers[op.output.buffer].shape[3], "BLOCK_M": pixels,
            "BLOCK_C": block, "inverse": getattr(self.packed.get(op.name), "inverse", None),
            **self._prologue_arguments(scale, add),
        }  # fmt: skip
        grid = (-(-height * width // pixels), -(-channels // block), n)
        moved = 2 * x.shape[:3].numel() * channels * x.itemsize
        self._emit(op, kernels.prologue, grid, arguments, moved=moved)

    def _upsample(self, op: Upsample, given: Labelling) -> None:
        n, channels, height, width = given.logits.shape
        out_height, out_width = given.labels.shape[1:]
        block = min(16, max(2, power_of_two(given.widest)))
        pieces = -(-given.widest // block)
        arguments = {
            "logits": given.logits, **given.tables, "labels": given.labels, "height": height,
            "width": width, "out_height": out_height, "out_width": out_width, "pieces": pieces,
            "CLASSES": channels, "TAPS": given.taps, "CELLS": 32, "BLOCK": block,
        }  # fmt: skip
        grid = (out_height, -(-width // 32) * pieces, n)
        # Interpolate, compare and select twice, and a third tap; some lanes of a cell are beyond its end.
        lanes = math.prod(grid) * 32 * block * channels * (given.taps + 3)
        warps = max(1, min(8, block // 8))
        self._emit(op, kernels.upsample, grid, arguments, warps, moved=given.labels.numel(), lanes=lanes)
