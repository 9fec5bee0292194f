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
UNIT = 16  # input channels of one product, or pairs of levels: mma.m16n8k32 multiplies the bytes of m16n8k16
CLOCK = 1.7e9  # hertz, of cycles, and for what shared memory gives: 128 bytes a cycle
#: Cycles of a block alone for a step, by kind, block and units of the step, and of a copy of pixels. They are
#: simulated from machine code; ``python -m bench.sass --ship`` writes them.
CYCLES = json.loads((FOLDER / "cuda_cycles.json").read_text())
EXTRA = 0.25e-6  # seconds for a pass over the pixels in shared memory
CONVERTED = 16  # conversions of a processor in a cycle, from sums to floats and from these to levels
REGISTERS = 65536  # of a processor
#: How many blocks a cluster may have, and the part of processors that clusters of so many can fill.
#: A cluster lies in one group of processors. A full group has 18 and most have 16, as the H100's data sheet
#: has 132 of 144; so of four at once those of whole fours in eight groups.
CLUSTERS = {1: 1.0, 2: 1.0, 4: 128 / 132}
#: Seconds that a cluster adds to the start of its blocks: two barriers among them, of some 200 cycles each as
#: published microbenchmarks of Hopper have them. That it is all they cost is assumed, and not measured.
CLUSTERED = 0.25e-6
#: Registers that a thread of each form takes at most, in eights; ``bench.ptxas`` holds the compiler to them.
THREAD = {
    "conv": {
        (128, 128): 208, (128, 64): 208, (128, 32): 160, (64, 16): 112, (144, 128): 168, (144, 64): 184,
        (144, 32): 128, (128, 32, 4): 216, (64, 64, 4): 216, (64, 32, 4): 216, (64, 16, 4): 168,
    },
    "wgmma": {
        (64, 64): 128, (64, 128): 208, (128, 64): 128, (128, 128): 208, (128, 256): 255,
    },
    "stem": {(256, 32): 128, (128, 16): 64},
    "stem_conv": {(128, 64): 104, (64, 64): 80},
    "down": {(160, 64): 208, (96, 64): 160, (96, 32, 2): 168, (160, 128): 208},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CudaTiles:
    """How one kernel is launched.

    Attributes:
        block: (pixels, channels) of a block of threads, or (pixels, channels, slices) where slices of its
            warps share input channels and taps.
        height, width: pixels of its tile, of the output; in the sub-pixel form of the small map.
        chunk: input channels, or pairs of levels, whose pixels are in shared memory at once.
        split: blocks that share a tile, each with some of the chunks.
        wgmma: 1 for the forms of convolutions on warp groups, else 0.
        cluster: blocks that share one stream of weights, of wgmma alone.

    ValueError for what no kernel can have.
    """

    block: tuple[int, ...]
    height: int
    width: int
    chunk: int = 16
    split: int = 1
    wgmma: int = 0
    cluster: int = 1
    prefix: ClassVar[str] = "cuda_"

    def __post_init__(self) -> None:
        whole = type(self.wgmma) is type(self.cluster) is int  # true and 1.0 count as 1 otherwise
        known = whole and self.wgmma in (0, 1) and self.cluster in CLUSTERS
        if not known or self.cluster > 1 > self.wgmma:
            raise ValueError(f"wgmma {self.wgmma!r}, clusters of {self.cluster!r}: no kernel has such")
        if not all(type(n) is int and 1 <= n <= 4096 for n in self.numbers):
            raise ValueError(f"tiles of {self.numbers}: no kernel has such")

    @property
    def numbers(self) -> tuple[int, ...]:
        """As a table has them: seven, an eighth for wgmma, and a ninth for clusters."""
        return (
            *self.block[:2], self.slices, self.height, self.width, self.chunk, self.split,
            *(1,) * self.wgmma, *(self.cluster,) * (self.cluster > 1),
        )  # fmt: skip

    def forms(self, work: Work) -> str:
        """Of which forms the block is: those of the work's kind, or "wgmma"."""
        return "wgmma" if self.wgmma else work.kind

    @classmethod
    def of(cls, numbers: list[int]) -> CudaTiles:
        pixels, channels, slices, height, width, chunk, split, *core = numbers
        return cls(block_of(pixels, channels, slices), height, width, chunk, split, *core)

    @property
    def slices(self) -> int:
        return (*self.block, 1)[2]

    def __str__(self) -> str:
        split = f"/{self.split}" if self.split > 1 else ""
        tile = f"{self.height}x{self.width}x{self.block[1]}{split}"
        core = " of wgmma" if self.wgmma else ""
        core += f" in clusters of {self.cluster}" if self.cluster > 1 else ""
        return f"{tile} in {name(self.block)}{core}, chunks of {self.chunk}"


def block_of(pixels: int, channels: int, slices: int = 1) -> tuple[int, ...]:
    """The name of a form: its slices only where it has several."""
    return (pixels, channels) if slices == 1 else (pixels, channels, slices)


def name(block: tuple[int, ...]) -> str:
    """Of a form, for people and in tables: "64x64", and "64x64/4" with slices."""
    return "x".join(map(str, block[:2])) + "".join(f"/{slices}" for slices in block[2:])


@dataclasses.dataclass(frozen=True)
class Form:
    """Of a kernel: warps along pixels and channels, blocks of 16 pixels and of 8 channels that each has,
    slices of as many warps that share input channels and taps, and the bytes of shared memory of a block.
    """

    warps_m: int
    warps_n: int
    m: int
    n: int
    slices: int
    shared: int

    @property
    def warps(self) -> int:
        return self.warps_m * self.warps_n * self.slices

    def depth(self, kernel: int) -> int:
        """Input channels of a step, in 16s: ``step_depth`` of ``csrc/cuda/tile_product.cuh``."""
        sliced = self.slices > 1
        return {1: (4, 8), 2: (1, 2), 3: (1, 4)}[kernel][sliced]


class CompiledForms:
    """The compiled kernels, as far as the choice of tiles goes.

    Args:
        native: the module.
        shared: bytes of shared memory that a block may have.
        wgmma: whether the device has it.
    """

    def __init__(self, native: ModuleType, shared: int = 1 << 30, wgmma: bool = True):
        self.native, self.shared = native, shared
        self.clusters = tuple(CLUSTERS)  # that there may be
        found = native.forms()
        found["wgmma"] = found["wgmma"] if wgmma else []
        #: By kind, or "wgmma" for those of convolutions, and block: index, and what of a :class:`Form` is
        #: known. Those of wgmma are numbered after the others of convolutions.
        self.by_block = {
            kind: {
                block_of(f[0] * f[2] * 16, f[1] * f[3] * 8, f[4]): (i, *f)
                for i, f in enumerate(forms, len(found["conv"]) if kind == "wgmma" else 0)
            }
            for kind, forms in found.items()
        }

    def form(self, work: Work, t: CudaTiles) -> Form | None:
        """What a block is, or None if there is no such kernel or not the memory for it."""
        chunks = sum(-(-c // t.chunk) for c in work.words) if work.kind == "conv" else 1
        known = self.by_block[t.forms(work)]
        if t.block not in known or t.split > chunks or (t.wgmma and not _on_warp_groups(work)):
            return None
        if not whole_clusters(work, t):
            return None
        made = getattr(self.native, f"{work.kind.title().replace('_', '')}Args")()
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
            "tiling": self.native.Tiling(index, height, width, t.chunk, t.split, t.cluster),
            "images": work.images,
            "outputs": work.outputs, "out_height": work.height, "out_width": work.width,
        }  # fmt: skip
        if work.kind != "stem":
            found["channels"] = work.words[0]
        if work.kind == "conv":
            found |= {"kernel": work.kernel, "stride": work.stride, "other_channels": sum(work.words[1:])}
            found["add_kind"] = ADDS["map"] if work.mapped else ADDS["none"]
            found["prologue"] = int(work.prologue)
        return found


def _on_warp_groups(work: Work) -> bool:
    """Whether there are forms of wgmma for it: for convolutions of numbers."""
    return work.kind == "conv" and work.dtype != "int8"


def tile_of_input(work: Work, t: CudaTiles) -> tuple[int, int]:
    """(height, width) of what a block computes first: of ``down`` all that its outputs read."""
    return (2 * t.height + 1, 2 * t.width + 1) if work.kind == "down" else (t.height, t.width)


def _units(work: Work) -> int:
    """Products of 16 input channels that a pixel needs, of all taps."""
    if work.kind == "stem":
        return 3
    return work.kernel**2 * sum(-(-c // UNIT) for c in work.words)


def _steps(work: Work, t: CudaTiles, form: Form) -> tuple[int, int, int]:
    """Whole steps of the pipeline, which start anew with each chunk, shorter ones, and the units of those."""
    depth = form.depth(work.kernel)
    parts = [min(t.chunk, c - start) for c in work.words for start in range(0, c, t.chunk)]
    units = [-(-c // UNIT) for c in parts]
    if t.wgmma:  # which multiplies zeros in shorter steps
        return sum(-(-n // depth) for n in units), 0, 0
    rest = [n % depth for n in units]
    return sum(n // depth for n in units), sum(map(bool, rest)), sum(rest) * work.kernel**2


def blocks(work: Work, t: CudaTiles) -> int:
    """Number of blocks of a launch."""
    tiles = work.images * work.sets * -(-work.height // t.height) * -(-work.width // t.width)
    return tiles * -(-work.outputs // t.block[1]) * t.split


def whole_clusters(work: Work, t: CudaTiles) -> bool:
    """Whether the tiles make up whole clusters, and all blocks of these read the same weights."""
    tiles = work.images * -(-work.height // t.height) * -(-work.width // t.width)
    return t.cluster == 1 or (work.kernel != 2 and tiles % t.cluster == 0)


def _fetched(work: Work, t: CudaTiles) -> tuple[int, int, int]:
    """(height, width) of the pixels that a block fetches, and the step between those of one tap."""
    height, width = tile_of_input(work, t)
    if work.kind == "stem_conv":  # of the image; columns that are two apart lie side by side between
        return 4 * height + 3, 4 * width + 2, 1
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
    pixels, channels = t.block[:2]
    warps = form.warps
    number = blocks(work, t)
    processors = int(device.processors * CLUSTERS[t.cluster])
    busy = min(number, processors)
    rounds = -(-number // processors)  # blocks that a processor runs in all
    room = device.shared // (form.shared + 1024), REGISTERS // (warps * 32 * THREAD[t.forms(work)][t.block])
    together = max(1, min(rounds, *room))
    units = -(-_units(work) // t.split)
    # mma.sync has 0.62 of what wgmma gives on Hopper.
    rate = device.products * (0.62 if device.wgmma and not t.wgmma else 0.85) / device.processors
    if work.dtype == "int8":
        rate *= device.eights / 2  # of pairs
    multiplied = 2 * pixels * channels * UNIT * units / rate
    height, width, step = _fetched(work, t)
    crowded = conflicts(*tile_of_input(work, t), width, step)
    # Of wgmma's weights a warp group reads once what with mma.sync each warp does.
    readers = form.warps_m * form.warps_n
    weighed = readers / 4 * form.m if t.wgmma else readers
    loaded = (readers * form.m * 512 * crowded + weighed * form.n * 256) * units / (128 * CLOCK)
    if work.kind == "stem_conv":
        # The map between with its halo: three units to 32 channels; written by all warps, then read by them.
        between = 16 * -(-(2 * t.height + 1) * (2 * t.width + 1) // 16)
        multiplied += 2 * between * 32 * 3 * UNIT / rate
        loaded += between * (3 * 32 + 2 * work.words[0]) / (128 * CLOCK)
    # Of one block alone: its steps, and before and among them its threads' copies of pixels.
    alone = 0.0
    if work.kind in ("conv", "down"):  # the others have neither
        vectors = height * width * sum(-(-c // 8) for c in work.words) * (1 + work.mapped) / t.split
        steps, short, rest = _steps(work, t, form)
        kind = t.forms(work) + ("_levels" if work.dtype == "int8" else "")
        cycles = CYCLES[kind].get(name(t.block), {})
        alone = steps * cycles.get(str(form.depth(work.kernel) * work.kernel**2), 0)
        alone += short * cycles.get("short", 0) + rest / form.slices * cycles.get("rest", 0)
        alone /= t.split
        alone += vectors / (warps * 32) * CYCLES["copy"]
    one = max(multiplied, loaded, alone / CLOCK / together)
    pixel = 3 if work.kind in ("stem", "stem_conv") else sum(work.words) * 2 / t.split
    pixel *= 1 + work.mapped
    # Of weights L2 gives a cluster one stream, and each processor's port takes all of it.
    patch, weights = height * width * pixel, units * channels * 32
    fetch = max((patch + weights / t.cluster) / (device.cache / busy), (patch + weights) / device.port)
    # Whoever runs alone on a processor has nobody to hide its start and its end.
    starts = -(-rounds // together)
    seconds = device.node + LATENCY * starts + rounds * max(one, fetch)
    seconds += CLUSTERED * starts * (t.cluster > 1)
    # The pixels of the first chunk come before the first product.
    share = min(1, t.chunk * t.split / sum(work.words)) if work.kind == "conv" else 1
    seconds += starts * share * height * width * pixel / min(device.cache / busy, device.port)
    written = work.images * work.sets * work.height * work.width * work.outputs * work.written
    seconds += written * (2 if work.kind == "down" else 1) / device.cache
    # Integers to floats, and floats to levels, are the slow instructions of an epilogue.
    conversions = (work.dtype == "int8") + work.levels
    seconds += rounds * conversions * pixels * channels / (CONVERTED * CLOCK)
    seconds += EXTRA * starts * (work.prologue + (work.kind in ("down", "stem_conv")))
    if t.split > 1:
        seconds += 2 * number * pixels * channels * 4 / device.cache + LATENCY
    return Prediction(seconds, rounds * one, rounds * fetch, number)


def _shapes(work: Work, block: tuple[int, ...]) -> list[tuple[int, int]]:
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
    deepest = -(-max(work.words) // UNIT) * UNIT
    chunks = sorted({min(c, deepest) for c in (32, 64, 128, 256, 512)})
    if work.kind in ("stem", "stem_conv"):
        chunks = [16]
    known = [(block, 0) for block in forms.by_block[work.kind]]
    known += [(block, 1) for block in forms.by_block["wgmma"] if _on_warp_groups(work)]
    narrowest = min(block[1] for block in forms.by_block[work.kind])
    for block, wgmma in known:
        widest = max(16, 1 << (work.outputs - 1).bit_length())
        if block[1] > widest and block[1] != narrowest:
            continue
        for height, width in _shapes(work, block):
            for chunk in chunks:
                total = sum(-(-c // chunk) for c in work.words)
                splits = [s for s in (1, 2, 4, 8) if s <= total] if work.kind == "conv" else [1]
                if work.kernel == 2:
                    splits = [1]
                for split in splits:
                    t = CudaTiles(block, height, width, chunk, split, wgmma)
                    if (form := forms.form(work, t)) is None:
                        continue
                    for cluster in forms.clusters if wgmma else (1,):
                        some = dataclasses.replace(t, cluster=cluster)
                        if whole_clusters(work, some):
                            yield some, form


def ranked(work: Work, device: Device, forms: CompiledForms) -> list[CudaTiles]:
    """All choices, the fastest by the model first."""

    def order(choice: tuple[CudaTiles, Form]):
        t, form = choice
        nanoseconds = round(predict(work, t, device, form).seconds * 1e9)
        squareness = abs(math.log2(t.height / t.width))
        return nanoseconds, t.cluster, t.split, -t.chunk, squareness, t.block, t.height, t.wgmma

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
        return tiles.block, tiles.split, tiles.wgmma, tiles.cluster
