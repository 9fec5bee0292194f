"""How the CUDA kernels cut their work: the choices there are, a model of their time, and tables.

The choice for an op is what the table of the device's class says (``stdc_fast/tiles/cuda_sm_*.json``, shipped),
else the least time by the model. Both are for the cores that were compiled: ``csrc/cuda/shapes.h``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from stdc_fast.backends.tiles import FOLDER, LATENCY, Device, Prediction, Work

UNIT = 16  # input channels of one product
UNITS, STAGES = 4, 4  # of a step, and steps on their way
CLOCK = 1.7e9  # hertz, for what shared memory gives: 128 bytes a cycle
STEP = 30e-9  # seconds that a step's barrier costs
BUBBLE = 0.5e-6  # seconds between two blocks on a processor that holds one at a time


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How one kernel is launched.

    Attributes:
        core: (pixels, channels) of a block.
        height, width: pixels of its tile, of the output; in the sub-pixel form of the small map.
        chunk: input channels whose pixels are in shared memory at once.
        split: blocks that share a tile, each with some of the chunks.
    """

    core: tuple[int, int]
    height: int
    width: int
    chunk: int = 16
    split: int = 1

    def __str__(self) -> str:
        split = f"/{self.split}" if self.split > 1 else ""
        pixels, channels = self.core
        return f"{self.height}x{self.width}x{channels}{split} in {pixels}x{channels}, chunks of {self.chunk}"


class Kernels:
    """The compiled kernels, as far as the choice of tiles goes.

    Args:
        native: the module.
        shared: bytes of shared memory that a block may have.
    """

    def __init__(self, native: ModuleType, shared: int):
        self.native, self.shared = native, shared
        self.cores = {
            kind: {(wm * m * 16, wn * n * 8): (wm, wn, m, n) for wm, wn, m, n in found}
            for kind, found in native.cores().items()
        }

    def fit(self, work: Work, t: Tiles) -> bool:
        """Whether there is such a kernel and a block has the memory that it needs."""
        if t.core not in self.cores[work.kind]:
            return False
        try:
            return self.native.shared_bytes(launched(self.native, work, t)) <= self.shared
        except RuntimeError:
            return False


def tile_of_input(work: Work, t: Tiles) -> tuple[int, int]:
    """(height, width) of what a block computes first: of ``down`` all that its outputs read."""
    return (2 * t.height + 1, 2 * t.width + 1) if work.kind == "down" else (t.height, t.width)


def arguments(native: ModuleType, work: Work, t: Tiles) -> dict[str, Any]:
    """The fields of a kernel's arguments that follow from sizes and tiles."""
    index = [(wm * m * 16, wn * n * 8) for wm, wn, m, n in native.cores()[work.kind]].index(t.core)
    height, width = tile_of_input(work, t)
    found = {
        "tiling": native.Tiling(index, height, width, t.chunk, t.split), "images": work.images,
        "outputs": work.outputs, "out_height": work.height, "out_width": work.width,
    }  # fmt: skip
    if work.kind != "stem":
        found["channels"] = work.inputs[0]
    if work.kind == "conv":
        found |= {"kernel": work.kernel, "stride": work.stride, "other_channels": sum(work.inputs[1:])}
    return found


def launched(native: ModuleType, work: Work, t: Tiles) -> Any:
    """Arguments without pointers, for what only sizes decide."""
    made = getattr(native, f"{work.kind.capitalize()}Args")()
    for name, value in arguments(native, work, t).items():
        setattr(made, name, value)
    return made


def _units(work: Work) -> int:
    """Products of 16 input channels that a pixel needs, of all taps."""
    if work.kind == "stem":
        return 3
    return work.kernel**2 * sum(-(-c // UNIT) for c in work.inputs)


def blocks(work: Work, t: Tiles) -> int:
    """Number of blocks of a launch."""
    tiles = work.images * work.sets * -(-work.height // t.height) * -(-work.width // t.width)
    return tiles * -(-work.outputs // t.core[1]) * t.split


def predict(
    work: Work, t: Tiles, device: Device, core: tuple[int, int, int, int] | None = None
) -> Prediction:
    """The model: waves of blocks, each bound by its products, by shared memory, or by what it fetches from L2.

    Args:
        core: warps along pixels and channels, and blocks of 16 pixels and 8 channels of each; by default as
            most cores of that size.
    """
    pixels, channels = t.core
    warps_m, warps_n, m, n = core or _usual(t.core)
    warps = warps_m * warps_n
    number = blocks(work, t)
    active = min(number, device.processors)
    waves = -(-number // device.processors)
    height, width = tile_of_input(work, t)
    halo = (
        (height - 1) * (work.stride if work.kind == "conv" else 1)
        + (work.kernel if work.kind == "conv" else 1)
    ) * (
        (width - 1) * (work.stride if work.kind == "conv" else 1)
        + (work.kernel if work.kind == "conv" else 1)
    )
    units = -(-_units(work) // t.split)
    if work.kind == "stem":
        fetched = (2 * height + 1) * (2 * width + 1) * 3 + units * channels * 32
    else:
        fetched = halo * sum(work.inputs) * 2 / t.split + units * channels * 32
    steps = -(-units // UNITS)
    padded = steps * UNITS
    # mma.sync has 0.62 of what wgmma gives on Hopper; fewer than eight warps do not fill the units.
    rate = device.products * (0.62 if device.wgmma else 0.85) / device.processors * min(1, (warps + 1) / 8)
    products = 2 * pixels * channels * UNIT * padded / rate
    shared = warps * (m * 512 + n * 256) * padded / (128 * CLOCK)
    one = max(products, shared) + steps * STEP
    bandwidth = min(device.cache / active, device.port)
    fetch = fetched / bandwidth
    seconds = (
        device.node + LATENCY + waves * max(one, fetch) + (waves - 1) * BUBBLE * (1 if waves < 4 else 0.25)
    )
    written = work.images * work.sets * work.height * work.width * work.outputs * work.itemsize
    seconds += written * (2 if work.kind == "down" else 1) / device.cache
    if work.prologue:
        seconds += 0.2e-6
    if work.kind == "down":
        seconds += waves * 0.3e-6
    if t.split > 1:
        partial = number * pixels * channels * 4
        seconds += 2 * partial / device.cache + LATENCY
    return Prediction(seconds, waves * one, waves * fetch, number)


def _usual(core: tuple[int, int]) -> tuple[int, int, int, int]:
    pixels, channels = core
    n = min(4, channels // 8)
    m = next(m for m in (4, 3, 2, 1) if (pixels % (16 * m) == 0 and pixels // (16 * m) <= 4) or m == 1)
    return pixels // (16 * m), channels // (8 * n), m, n


def _shapes(height: int, width: int, pixels: int, odd: bool) -> Iterator[tuple[int, int]]:
    """(height, width) of tiles that a block of so many pixels computes; ``odd``: each is doubled, plus one."""
    found = set()
    for h in range(1, 33):
        rows = 2 * h + 1 if odd else h
        if rows > pixels:
            break
        w = pixels // rows
        if odd:
            w = (w - 1) // 2
        if w < 1:
            continue
        h, w = min(h, height), min(w, width)
        found.add((h, w))
        # No wider than even shares of the map need.
        found.add((h, -(-width // -(-width // w))))
    yield from sorted(found)


def candidates(work: Work, kernels: Kernels) -> Iterator[Tiles]:
    """All choices that fit."""
    deepest = -(-max(work.inputs) // UNIT) * UNIT
    chunks = [16] if work.kind == "stem" else sorted({min(c, deepest) for c in (32, 64, 128, 256, 512)})
    for core in kernels.cores[work.kind]:
        widest = max(16, 1 << (work.outputs - 1).bit_length())
        if core[1] > widest and core[1] != min(c for _, c in kernels.cores[work.kind]):
            continue
        for height, width in _shapes(work.height, work.width, core[0], work.kind == "down"):
            for chunk in chunks:
                total = sum(-(-c // chunk) for c in work.inputs)
                splits = [s for s in (1, 2, 4, 8) if s <= total] if work.kind == "conv" else [1]
                if work.kernel == 2:
                    splits = [1]
                for split in splits:
                    t = Tiles(core, height, width, chunk, split)
                    if kernels.fit(work, t):
                        yield t


def ranked(work: Work, device: Device, kernels: Kernels) -> list[Tiles]:
    """All choices, the fastest by the model first."""

    def order(t: Tiles):
        seconds = predict(work, t, device, kernels.cores[work.kind][t.core]).seconds
        return round(seconds * 1e9), t.split, -t.chunk, abs(math.log2(t.height / t.width)), t.core, t.height

    found = sorted(candidates(work, kernels), key=order)
    if not found:
        raise AssertionError(f"no tiles for {work.key} on {device.name}")
    return found


@functools.cache
def shipped(key: str) -> dict[str, Tiles]:
    """The table of a device class, by :attr:`Work.key`; empty if there is none."""
    path = FOLDER / f"cuda_{key}.json"
    return read(path)["tiles"] if path.is_file() else {}


def read(path: Path) -> dict:
    """A table from its file, with :class:`Tiles` as its entries."""
    table = json.loads(path.read_text())
    table["tiles"] = {key: Tiles((p, n), *rest) for key, (p, n, *rest) in table["tiles"].items()}
    return table
