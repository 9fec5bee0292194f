"""How Triton's kernels cut their work into tiles: the choices there are, a model of their time, and tables.

The choice for an op is, in this order, what ``stdc-fast tune`` measured on this device, what the table of the
device's class says (``stdc_fast/tables/sm_*.json``, shipped), and the least time by the model.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator
from typing import ClassVar

from stdc_fast.backends.gpu.chooser import TileModel
from stdc_fast.backends.gpu.model import LATENCY, Device, Prediction, Work, power_of_two


@dataclasses.dataclass(frozen=True)
class TritonTiles:
    """How one kernel is launched.

    Attributes:
        height, width: pixels of a program's tile; their product is at least 16.
        channels: of the output, in a program; at least 16.
        depth: input channels in a step; at least 16.
        split: programs that share a tile.
        warps, stages: Triton's options.

    All but the stages are powers of two. ValueError for what no kernel can have.
    """

    height: int
    width: int
    channels: int
    depth: int
    split: int = 1
    warps: int = 4
    stages: int = 3
    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        numbers = dataclasses.astuple(self)
        whole = all(type(n) is int and 1 <= n <= 1024 for n in numbers)
        if not whole or any(n & (n - 1) for n in numbers[:-1]):
            raise ValueError(f"tiles of {numbers}: they must be powers of two")
        if min(self.pixels, self.channels, self.depth) < 16 or self.warps > 32 or self.stages > 8:
            raise ValueError(f"tiles of {numbers}: no kernel has such")

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def numbers(self) -> tuple[int, ...]:
        """As a table has them."""
        return dataclasses.astuple(self)

    @classmethod
    def of(cls, numbers: list[int]) -> TritonTiles:
        return cls(*numbers)

    def __str__(self) -> str:
        split = f"/{self.split}" if self.split > 1 else ""
        shape = f"{self.height}x{self.width}x{self.channels}{split}"
        return f"{shape} by {self.depth}, {self.warps} warps, {self.stages} stages"


def shared_bytes(work: Work, t: TritonTiles) -> int:
    """Shared memory that a program needs, at most."""
    step = (t.pixels + t.channels) * t.depth * work.itemsize
    if work.kind == "stem":
        return step
    if work.kind == "down" and t.depth >= work.inputs[0]:
        # The weights once; nine sets of pixels.
        step = t.pixels * t.depth * work.itemsize
        return t.stages * step + t.channels * t.depth * work.itemsize
    chunks = -(-work.inputs[0] // t.depth) if work.kind == "down" else 1
    if work.kind == "down" and t.stages == 1:
        # The compiler moves the weights, which are the same for all nine pixels, out of the loop; and when
        # sums are stored they may go through shared memory.
        weights = chunks * t.depth * t.channels
        return (weights + t.pixels * t.depth) * work.itemsize + t.pixels * t.channels * 4
    # The steps of a pixel of `down` are one stage of the pipeline.
    return max(t.stages * step * chunks, t.pixels * t.channels * 4)


def predict(work: Work, t: TritonTiles, device: Device) -> Prediction:
    """The model: waves of programs, each bound by its products or by what it fetches from L2."""
    programs = work.tiles(t) * work.blocks(t) * t.split
    active = min(programs, device.processors)
    waves = -(-programs // device.processors)
    steps = -(-work.steps(t) // t.split)
    operations = 2 * t.pixels * t.channels * t.depth * steps
    rate = _rate(work, t, device) / device.processors
    fetched = (t.pixels + t.channels) * t.depth * work.itemsize
    total = fetched * steps
    if work.kind == "down" and t.depth >= work.inputs[0]:
        total = (9 * t.pixels + t.channels) * t.depth * work.itemsize
    together = max(1, min(waves, device.shared // max(1, shared_bytes(work, t)), 32 // t.warps))
    in_flight = together * max(0.5, t.stages - 1) * fetched
    bandwidth = min(device.cache / active, device.port, in_flight / LATENCY)
    products, fetch = waves * operations / rate, waves * total / bandwidth
    seconds = device.node + LATENCY + max(products, fetch)
    # What is written, and what other programs' sums cost.
    written = work.images * work.sets * work.height * work.width * work.outputs * work.written
    if work.kind == "down":
        written *= 2
    seconds += written / device.cache
    if t.split > 1:
        partial = work.tiles(t) * work.blocks(t) * t.split * t.pixels * t.channels * 4
        seconds += 2 * partial / device.cache + LATENCY
    return Prediction(seconds, products, fetch, programs)


def _rate(work: Work, t: TritonTiles, device: Device) -> float:
    """Operations a second of the whole device in tiles of this size."""
    if work.dtype == "float32":
        return device.fma * 0.5
    rate = device.products * {"tf32": 0.5, "int8": device.eights}.get(work.dtype, 1)
    if device.wgmma:
        if t.pixels >= 64 * (t.warps // 4):
            return rate * {16: 0.2, 32: 0.4, 64: 0.6}.get(t.channels, 0.75)
        rate *= 0.62  # mma.sync on Hopper
    area = t.pixels * t.channels
    return rate * (0.75 if area >= 64 * 64 else 0.6 if area >= 64 * 32 else 0.4)


def shapes(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(height, width) of tiles, for each number of pixels that with the least beyond the edges."""
    for pixels in (16, 32, 64, 128, 256):
        options = [(pixels >> i, 1 << i) for i in range(pixels.bit_length()) if pixels >> i <= 16]
        yield min(
            options, key=lambda s: (-(-height // s[0]) * -(-width // s[1]), abs(math.log2(s[0] / s[1])))
        )


def candidates(work: Work, device: Device) -> Iterator[TritonTiles]:
    """All choices that fit the device."""
    widest = max(16, min(256, power_of_two(work.outputs)))
    # Products of 8 bits are of 32 channels at least.
    least, most_of_conv = (32, 256) if work.dtype == "int8" else (16, 128)
    deepest = max(least, power_of_two(max(work.inputs)))
    for (height, width), channels in itertools.product(
        shapes(work.height, work.width), (16, 32, 64, 128, 256)
    ):
        area = height * width * channels
        if channels > widest:
            continue
        if work.kind == "stem":
            if 1024 <= area <= 4096:
                yield TritonTiles(height, width, channels, 32, 1, 4, 1)
            continue
        for warps, depth, stages in itertools.product((4, 8), (16, 32, 64, 128, 256, 512), (1, 2, 3, 4)):
            # Of sums, a thread; more than this leaves too few for the rest.
            registers = area / (32 * warps) * (3 if work.kind == "down" else 1)
            most = 96 if work.kind == "down" else 128 if device.wgmma and not work.prologue else 64
            if work.dtype == "int8" and work.kind == "conv":  # more spill beside conversions
                most = 64
            if not 4 <= registers <= most:
                continue
            if (depth < 32 or work.dtype == "float32") and depth != min(deepest, 32):
                continue
            if depth > deepest or (work.kind == "conv" and (depth > most_of_conv or stages == 1)):
                continue
            if work.dtype == "float32" and (area > 4096 or stages > 2):
                continue
            if height * width * depth > 1 << 15 or channels * depth > 1 << 15:
                continue
            for split in (1, 2, 4, 8):
                if split > 1 and (work.kind != "conv" or len(work.inputs) > 1 or work.kernel == 2):
                    continue
                if split > 1 and registers > 64:  # the others' sums come to those of one's own
                    continue
                t = TritonTiles(height, width, channels, depth, split, warps, stages)
                if split > 1 and work.steps(t) < 4 * split:
                    continue
                # One step has no next one to fetch beside it; in 16 bits none of the networks' would.
                if work.dtype == "int8" and work.kind == "conv" and work.steps(t) == 1 and depth > least:
                    continue
                if shared_bytes(work, t) <= device.shared:
                    yield t


def ranked(work: Work, device: Device) -> list[TritonTiles]:
    """All choices, the fastest by the model first."""
    key = lambda t: (predict(work, t, device).seconds, t.split, t.warps, t.stages, -t.depth)  # noqa: E731
    found = sorted(candidates(work, device), key=key)
    if not found:
        raise AssertionError(f"no tiles for {work.key} on {device.name}")
    return found


def interpreted(work: Work) -> TritonTiles:
    """Tiles no larger than they must be: the interpreter's time goes by the programs, then by their size."""
    shapes = [(n >> i, 1 << i) for n in (16, 32, 64, 128, 256) for i in range(n.bit_length())]
    height, width = min(
        shapes,
        key=lambda s: (
            -(-work.height // s[0]) * -(-work.width // s[1]),
            s[0] * s[1],
            abs(s[0] - s[1]),
        ),
    )
    channels = min(128, power_of_two(max(16, work.outputs)))
    least = 32 if work.kind == "stem" or work.dtype == "int8" else 16
    depth = least if work.kind == "stem" else min(128, power_of_two(max(least, *work.inputs)))
    return TritonTiles(height, width, channels, depth, stages=1)


@dataclasses.dataclass(frozen=True)
class TritonModel(TileModel):
    """The model of Triton's tiles. What the compiler makes of them is only estimated."""

    device: Device
    tiles = TritonTiles
    shapes, variants = 6, 4

    def fits(self, work: Work, tiles: TritonTiles) -> bool:
        """Triton refuses tensors much larger."""
        pairs = itertools.combinations((tiles.pixels, tiles.channels, tiles.depth), 2)
        return max(a * b for a, b in pairs) <= 1 << 17

    def ranked(self, work: Work) -> list[TritonTiles]:
        return ranked(work, self.device)

    def shape(self, tiles: TritonTiles) -> Hashable:
        return tiles.pixels, tiles.channels, tiles.split

    def too_large(self, error: Exception) -> bool:
        from triton.runtime.errors import OutOfResources, PTXASError

        return isinstance(error, (OutOfResources, PTXASError))
