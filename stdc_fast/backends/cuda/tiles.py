"""How the CUDA kernels cut their work: the choices there are, a model of their time, and tables.

The choice for an op is what the table of the device's class says (``stdc_fast/tables/cuda_sm_*.json``), else
the least time by the model. Both are for the forms that were compiled: ``csrc/cuda/forms.h``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Hashable, Iterator
from types import ModuleType
from typing import Any, ClassVar

from stdc_fast.backends.gpu.chooser import TileModel
from stdc_fast.backends.gpu.model import DEVICES, LATENCY, Device, Prediction, Work
from stdc_fast.backends.gpu.tables import FOLDER

ADDS = {"none": 0, "vector": 1, "map": 2}  # as in csrc/include/gpu.h
SHAPES = 6  # of tiles that are looked at for each block
UNIT = 16  # input channels of one product
CLOCK = 1.7e9  # hertz, of cycles, and for what shared memory gives: 128 bytes a cycle
#: Cycles of a block alone for a step, by kind, block and units of the step, and of a copy of pixels. They are
#: simulated from machine code; ``python -m bench.sass --ship`` writes them.
CYCLES = json.loads((FOLDER / "cuda_cycles.json").read_text())
EXTRA = 0.25e-6  # seconds for a pass over the pixels in shared memory
REGISTERS = 65536  # of a processor
#: Registers that a thread of each form takes at most, in eights; ``bench.ptxas`` holds the compiler to them.
THREAD = {
    "conv": {
        (128, 128): 208, (128, 64): 208, (128, 32): 160, (128, 16): 128, (64, 64): 160,
        (64, 32): 128, (64, 16): 112, (144, 128): 168, (144, 64): 184, (144, 32): 128,
    },
    "wgmma": {
        (64, 64): 128, (64, 128): 168, (64, 256): 255, (128, 64): 128, (128, 128): 168, (128, 256): 255,
    },
    "stem": {(256, 32): 128, (128, 16): 64},
    "down": {(160, 64): 168, (96, 64): 136, (96, 32): 128, (160, 128): 168},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CudaTiles:
    """How one kernel is launched.

    Attributes:
        block: (pixels, channels) of a block of threads.
        height, width: pixels of its tile, of the output; in the sub-pixel form of the small map.
        chunk: input channels whose pixels are in shared memory at once.
        split: blocks that share a tile, each with some of the chunks.
        wgmma: 1 for the forms of convolutions on warp groups, else 0.

    ValueError for what no kernel can have.
    """

    block: tuple[int, int]
    height: int
    width: int
    chunk: int = 16
    split: int = 1
    wgmma: int = 0
    prefix: ClassVar[str] = "cuda_"

    def __post_init__(self) -> None:
        if self.wgmma not in (0, 1) or not all(type(n) is int and 1 <= n <= 4096 for n in self.numbers):
            raise ValueError(f"tiles of {self.numbers}: no kernel has such")

    @property
    def numbers(self) -> tuple[int, ...]:
        """As a table has them: six, and a seventh for wgmma."""
        return (*self.block, self.height, self.width, self.chunk, self.split, *(1,) * self.wgmma)

    def forms(self, work: Work) -> str:
        """Of which forms the block is: those of the work's kind, or "wgmma"."""
        return "wgmma" if self.wgmma else work.kind

    @classmethod
    def of(cls, numbers: list[int]) -> CudaTiles:
        pixels, channels, *rest = numbers
        return cls((pixels, channels), *rest)

    def __str__(self) -> str:
        split = f"/{self.split}" if self.split > 1 else ""
        pixels, channels = self.block
        core = " of wgmma" if self.wgmma else ""
        block = f"{pixels}x{channels}{core}"
        return f"{self.height}x{self.width}x{channels}{split} in {block}, chunks of {self.chunk}"


@dataclasses.dataclass(frozen=True)
class Form:
    """Of a kernel: warps along pixels and channels, blocks of 16 pixels and of 8 channels that each has, and
    the bytes of shared memory that a block takes.
    """

    warps_m: int
    warps_n: int
    m: int
    n: int
    shared: int


class CompiledForms:
    """The compiled kernels, as far as the choice of tiles goes.

    Args:
        native: the module.
        shared: bytes of shared memory that a block may have.
        wgmma: whether the device has it.
    """

    def __init__(self, native: ModuleType, shared: int = 1 << 30, wgmma: bool = True):
        self.native, self.shared = native, shared
        found = native.forms()
        found["wgmma"] = found["wgmma"] if wgmma else []
        #: By kind, or "wgmma" for those of convolutions, and (pixels, channels): index, and what of a
        #: :class:`Form` is known. Those of wgmma are numbered after the others of convolutions.
        self.by_block = {
            kind: {
                (wm * m * 16, wn * n * 8): (i, wm, wn, m, n)
                for i, (wm, wn, m, n) in enumerate(forms, len(found["conv"]) if kind == "wgmma" else 0)
            }
            for kind, forms in found.items()
        }

    def form(self, work: Work, t: CudaTiles) -> Form | None:
        """What a block is, or None if there is no such kernel or not the memory for it."""
        chunks = sum(-(-c // t.chunk) for c in work.inputs) if work.kind == "conv" else 1
        known = self.by_block[t.forms(work)]
        if t.block not in known or t.split > chunks or (t.wgmma and work.kind != "conv"):
            return None
        made = getattr(self.native, f"{work.kind.capitalize()}Args")()
        for name, value in self.sized(work, t).items():
            setattr(made, name, value)
        try:
            shared = self.native.shared_bytes(made)
        except RuntimeError:
            return None
        return Form(*known[t.block][1:], shared) if shared <= self.shared else None

    def sized(self, work: Work, t: CudaTiles) -> dict[str, Any]:
        """The fields of a kernel's arguments that follow from sizes and tiles."""
        height, width = tile_of_input(work, t)
        index = self.by_block[t.forms(work)][t.block][0]
        found = {
            "tiling": self.native.Tiling(index, height, width, t.chunk, t.split), "images": work.images,
            "outputs": work.outputs, "out_height": work.height, "out_width": work.width,
        }  # fmt: skip
        if work.kind != "stem":
            found["channels"] = work.inputs[0]
        if work.kind == "conv":
            found |= {"kernel": work.kernel, "stride": work.stride, "other_channels": sum(work.inputs[1:])}
            found["add_kind"] = ADDS["map"] if work.mapped else ADDS["none"]
        return found


def tile_of_input(work: Work, t: CudaTiles) -> tuple[int, int]:
    """(height, width) of what a block computes first: of ``down`` all that its outputs read."""
    return (2 * t.height + 1, 2 * t.width + 1) if work.kind == "down" else (t.height, t.width)


def _units(work: Work) -> int:
    """Products of 16 input channels that a pixel needs, of all taps."""
    if work.kind == "stem":
        return 3
    return work.kernel**2 * sum(-(-c // UNIT) for c in work.inputs)


def _step(work: Work) -> int:
    """Units of a step of the pipeline: all taps of 16 input channels, or four of 1x1."""
    return 4 if work.kernel == 1 else work.kernel**2


def _steps(work: Work, t: CudaTiles) -> int:
    """Steps of the pipeline, which start anew with each chunk."""
    if work.kind == "stem":
        return 1
    parts = [min(t.chunk, c - start) for c in work.inputs for start in range(0, c, t.chunk)]
    depth = 4 if work.kernel == 1 else 1  # times 16 input channels
    return sum(-(-c // (UNIT * depth)) for c in parts)


def blocks(work: Work, t: CudaTiles) -> int:
    """Number of blocks of a launch."""
    tiles = work.images * work.sets * -(-work.height // t.height) * -(-work.width // t.width)
    return tiles * -(-work.outputs // t.block[1]) * t.split


def _fetched(work: Work, t: CudaTiles) -> tuple[int, int, int]:
    """(height, width) of the pixels that a block fetches, and the step between those of one tap."""
    height, width = tile_of_input(work, t)
    if work.kind != "conv":
        return height, width, 1
    return (height - 1) * work.stride + work.kernel, (width - 1) * work.stride + work.kernel, work.stride


@functools.cache
def conflicts(height: int, width: int, row: int, step: int) -> float:
    """How many times longer than it might ``ldmatrix`` takes for the pixels of a tile, on the average.

    Pixels are an odd multiple of 16 bytes apart, so eight of them are in different banks if their numbers are
    different modulo eight: always where eight side by side are in one row of the tile.

    Args:
        row: pixels that are fetched of each row.
        step: from one pixel that a tap reads to the next.
    """
    banks = [(y * row + x) * step % 8 for y in range(height) for x in range(width)]
    groups = [banks[i : i + 8] for i in range(0, len(banks), 8)]
    return sum(max(map(group.count, group)) for group in groups) / len(groups)


def predict(work: Work, t: CudaTiles, device: Device, form: Form) -> Prediction:
    """The model: blocks of one processor share its tensor cores, its shared memory and its way to L2."""
    pixels, channels = t.block
    warps = form.warps_m * form.warps_n
    number = blocks(work, t)
    busy = min(number, device.processors)
    rounds = -(-number // device.processors)  # blocks that a processor runs in all
    room = device.shared // (form.shared + 1024), REGISTERS // (warps * 32 * THREAD[t.forms(work)][t.block])
    together = max(1, min(rounds, *room))
    units = -(-_units(work) // t.split)
    steps = -(-_steps(work, t) // t.split)
    # mma.sync has 0.62 of what wgmma gives on Hopper; fewer than eight warps do not fill the units.
    rate = device.products * (0.62 if device.wgmma and not t.wgmma else 0.85) / device.processors
    rate *= 1 if t.wgmma else min(1, (warps * together + 1) / 8)
    taken = _units(work) if work.kind == "stem" else steps * _step(work)
    multiplied = 2 * pixels * channels * UNIT * taken / rate
    height, width, step = _fetched(work, t)
    crowded = conflicts(*tile_of_input(work, t), width, step)
    # Of wgmma's weights a warp group reads once what with mma.sync each warp does.
    readers = warps / 4 if t.wgmma else warps
    loaded = (warps * form.m * 512 * crowded + readers * form.m**t.wgmma * form.n * 256) * taken
    loaded /= 128 * CLOCK
    # Of one block alone: its steps, and before and among them its threads' copies of pixels.
    alone = 0.0
    if work.kind != "stem":  # which has neither
        vectors = height * width * sum(-(-c // 8) for c in work.inputs) * (1 + work.mapped) / t.split
        alone = steps * CYCLES[t.forms(work)].get(f"{pixels}x{channels}", {}).get(str(_step(work)), 0)
        alone += vectors / (warps * 32) * CYCLES["copy"]
    one = max(multiplied, loaded, alone / CLOCK / together)
    pixel = 3 if work.kind == "stem" else sum(work.inputs) * 2 / t.split
    pixel *= 1 + work.mapped
    fetched = height * width * pixel + units * channels * 32
    fetch = fetched / min(device.cache / busy, device.port)
    # Whoever runs alone on a processor has nobody to hide its start and its end.
    starts = -(-rounds // together)
    seconds = device.node + LATENCY * starts + rounds * max(one, fetch)
    # The pixels of the first chunk come before the first product.
    share = min(1, t.chunk * t.split / sum(work.inputs)) if work.kind == "conv" else 1
    seconds += starts * share * height * width * pixel / min(device.cache / busy, device.port)
    written = work.images * work.sets * work.height * work.width * work.outputs * work.itemsize
    seconds += written * (2 if work.kind == "down" else 1) / device.cache
    seconds += EXTRA * starts * (work.prologue + (work.kind == "down"))
    if t.split > 1:
        seconds += 2 * number * pixels * channels * 4 / device.cache + LATENCY
    return Prediction(seconds, rounds * one, rounds * fetch, number)


def _shapes(work: Work, block: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of tiles that a block's pixels are enough for: the best of each number of rows."""
    found = {}
    for rows in range(1, 33):
        one = CudaTiles(block, min(rows, work.height), 1)
        high, _ = tile_of_input(work, one)
        width = block[0] // high
        if work.kind == "down":
            width = (width - 1) // 2
        if width < 1:
            break
        width = min(width, work.width)
        for w in {width, -(-work.width // -(-work.width // width))}:  # no wider than even shares need
            t = dataclasses.replace(one, width=w)
            h, v, step = _fetched(work, t)
            crowded = conflicts(*tile_of_input(work, t), v, step)
            found[t.height, w] = blocks(work, t), h * v * crowded
    return sorted(found, key=lambda shape: (found[shape], shape))[:SHAPES]


def candidates(work: Work, forms: CompiledForms) -> Iterator[tuple[CudaTiles, Form]]:
    """All choices that fit."""
    deepest = -(-max(work.inputs) // UNIT) * UNIT
    chunks = [16] if work.kind == "stem" else sorted({min(c, deepest) for c in (32, 64, 128, 256, 512)})
    known = [(block, 0) for block in forms.by_block[work.kind]]
    known += [(block, 1) for block in forms.by_block["wgmma"] if work.kind == "conv"]
    narrowest = min(c for _, c in forms.by_block[work.kind])
    for block, wgmma in known:
        widest = max(16, 1 << (work.outputs - 1).bit_length())
        if block[1] > widest and block[1] != narrowest:
            continue
        for height, width in _shapes(work, block):
            for chunk in chunks:
                total = sum(-(-c // chunk) for c in work.inputs)
                splits = [s for s in (1, 2, 4, 8) if s <= total] if work.kind == "conv" else [1]
                if work.kernel == 2:
                    splits = [1]
                for split in splits:
                    t = CudaTiles(block, height, width, chunk, split, wgmma)
                    if (form := forms.form(work, t)) is not None:
                        yield t, form


def ranked(work: Work, device: Device, forms: CompiledForms) -> list[CudaTiles]:
    """All choices, the fastest by the model first."""

    def order(choice: tuple[CudaTiles, Form]):
        t, form = choice
        nanoseconds = round(predict(work, t, device, form).seconds * 1e9)
        squareness = abs(math.log2(t.height / t.width))
        return nanoseconds, t.split, -t.chunk, squareness, t.block, t.height, t.wgmma

    found = sorted(candidates(work, forms), key=order)
    if not found:
        raise AssertionError(f"no tiles for {work.key} on {device.name}")
    return [t for t, _ in found]


@dataclasses.dataclass(frozen=True)
class CudaModel(TileModel):
    """The model of the CUDA kernels' tiles. All forms are compiled, and what they need is known.

    Args:
        native: the module with the kernels.
        device: the class.
        shared: bytes of shared memory that a block may have, by default what the class has.
    """

    native: ModuleType
    device: Device = DEVICES["sm_90"]
    shared: int | None = None
    tiles = CudaTiles
    shapes, variants = 24, 16

    @functools.cached_property
    def forms(self) -> CompiledForms:
        shared = min(self.shared or self.device.shared, self.device.shared)
        return CompiledForms(self.native, shared, self.device.wgmma)

    def fits(self, work: Work, tiles: CudaTiles) -> bool:
        return self.forms.form(work, tiles) is not None

    def ranked(self, work: Work) -> list[CudaTiles]:
        return ranked(work, self.device, self.forms)

    def shape(self, tiles: CudaTiles) -> Hashable:
        return tiles.block, tiles.split, tiles.wgmma
