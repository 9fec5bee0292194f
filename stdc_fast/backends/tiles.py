"""How Triton's kernels cut their work into tiles: the choices there are, a model of their time, and tables.

The choice for an op is, in this order, what ``stdc-fast tune`` measured on this device, what the table of the
device's class says (``stdc_fast/tiles/sm_*.json``, shipped), and the least time by the model.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "tiles"


@dataclasses.dataclass(frozen=True)
class Device:
    """A class of GPUs, as the model sees it.

    These numbers are assumptions, from data sheets and published microbenchmarks; they rank tiles and are
    no claims.

    Attributes:
        capability: major and minor.
        processors: streaming multiprocessors.
        products: 16-bit operations a second of large matrix products, float32 accumulation.
        fma: float32 operations a second without tensor cores.
        cache: bytes a second from L2 to all processors, and ``port``, to one.
        memory: bytes a second from and to device memory.
        shared: bytes of shared memory that a program may have.
        wgmma: whether products of at least 64 rows go to warp groups.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    products: float
    fma: float
    cache: float
    port: float
    memory: float
    shared: int
    wgmma: bool = False

    @property
    def node(self) -> float:
        """Seconds between dependent kernels."""
        return DEPENDENT_NODE if self.capability >= (9, 0) else NODE

    @property
    def key(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


DEVICES = {
    device.key: device
    for device in (
        Device("A100", (8, 0), 108, 250e12, 18e12, 4.0e12, 80e9, 1.4e12, 163 << 10),
        Device("RTX 3090", (8, 6), 82, 60e12, 30e12, 2.0e12, 90e9, 0.8e12, 99 << 10),
        Device("RTX 4090", (8, 9), 128, 150e12, 70e12, 4.5e12, 130e9, 0.9e12, 99 << 10),
        Device("H100", (9, 0), 132, 800e12, 55e12, 5.5e12, 110e9, 3.0e12, 227 << 10, True),
        Device("B200", (10, 0), 148, 1500e12, 70e12, 8.0e12, 110e9, 6.5e12, 227 << 10),
        Device("RTX 5090", (12, 0), 170, 200e12, 90e12, 6.0e12, 140e9, 1.5e12, 99 << 10),
    )
}
#: Seconds between dependent kernels of a graph; and where one may start before the other ends (sm_90).
NODE, DEPENDENT_NODE = 1.5e-6, 0.7e-6
#: Seconds until a program's first operands have come.
LATENCY = 0.8e-6


def device_class(capability: tuple[int, int], processors: int | None = None) -> Device:
    """The class of a GPU: its own, or the last before it; with the number of processors that it has."""
    known = [d for d in DEVICES.values() if d.capability <= capability]
    device = max(known or DEVICES.values(), key=lambda d: d.capability if known else (0, 0))
    return dataclasses.replace(device, processors=processors or device.processors)


@dataclasses.dataclass(frozen=True)
class Tiles:
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

    def __str__(self) -> str:
        split = f"/{self.split}" if self.split > 1 else ""
        shape = f"{self.height}x{self.width}x{self.channels}{split}"
        return f"{shape} by {self.depth}, {self.warps} warps, {self.stages} stages"


@dataclasses.dataclass(frozen=True)
class Work:
    """What decides on an op's tiles.

    Attributes:
        kind: "stem", "conv" or "down".
        kernel, stride: of the convolution; kernel 2 is the sub-pixel form.
        inputs: channels of each input.
        outputs: channels.
        images, height, width: of the map that tiles cover: the output, or the sub-pixel form's small map.
        dtype: "float16", "bfloat16", "float32" or "tf32".
        prologue: whether inputs are changed as they are read.
        mapped: whether that adds a map, which takes memory.
    """

    kind: str
    kernel: int
    stride: int
    inputs: tuple[int, ...]
    outputs: int
    images: int
    height: int
    width: int
    dtype: str
    prologue: bool = False
    mapped: bool = False

    @property
    def key(self) -> str:
        """The name of this work in tables."""
        inputs = "+".join(map(str, self.inputs))
        changed = "m" if self.mapped else "p" if self.prologue else ""
        form = f"{self.kind}{self.kernel}s{self.stride}{changed}"
        return f"{form} {inputs}>{self.outputs} {self.images}x{self.height}x{self.width} {self.dtype}"

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype in ("float16", "bfloat16") else 4

    @property
    def sets(self) -> int:
        """Convolutions in one: the parities of the sub-pixel form."""
        return 4 if self.kernel == 2 else 1

    def tiles(self, t: Tiles) -> int:
        """Number of tiles of pixels."""
        return self.images * self.sets * -(-self.height // t.height) * -(-self.width // t.width)

    def blocks(self, t: Tiles) -> int:
        return -(-self.outputs // t.channels)

    def steps(self, t: Tiles) -> int:
        """Products that a program (or those that share a tile) adds up."""
        if self.kind == "stem":
            return 1
        taps = 9 if self.kind == "down" else self.kernel**2
        return taps * sum(-(-c // t.depth) for c in self.inputs)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of one kernel in a graph, and what they are made of, each alone."""

    seconds: float
    products: float
    fetch: float
    programs: int


def shared_bytes(work: Work, t: Tiles) -> int:
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


def predict(work: Work, t: Tiles, device: Device) -> Prediction:
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
    written = work.images * work.sets * work.height * work.width * work.outputs * work.itemsize
    if work.kind == "down":
        written *= 2
    seconds += written / device.cache
    if t.split > 1:
        partial = work.tiles(t) * work.blocks(t) * t.split * t.pixels * t.channels * 4
        seconds += 2 * partial / device.cache + LATENCY
    return Prediction(seconds, products, fetch, programs)


def predict_rest(programs: int, moved: float, lanes: float, device: Device) -> Prediction:
    """The model of kernels without matrix products: bytes from L2, and operations of single lanes."""
    active = min(programs, device.processors)
    fetch = moved / min(device.cache, active * device.port)
    # An operation a lane where a fused multiply-add would be two.
    compute = lanes / (device.fma / 2) * device.processors / active
    return Prediction(device.node + 2 * LATENCY + max(fetch, compute), compute, fetch, programs)


def _rate(work: Work, t: Tiles, device: Device) -> float:
    """Operations a second of the whole device in tiles of this size."""
    if work.dtype == "float32":
        return device.fma * 0.5
    rate = device.products / (2 if work.dtype == "tf32" else 1)
    if device.wgmma:
        if t.pixels >= 64 * (t.warps // 4):
            return rate * {16: 0.2, 32: 0.4, 64: 0.6}.get(t.channels, 0.75)
        rate *= 0.62  # mma.sync on Hopper
    area = t.pixels * t.channels
    return rate * (0.75 if area >= 64 * 64 else 0.6 if area >= 64 * 32 else 0.4)


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


def shapes(height: int, width: int) -> Iterator[tuple[int, int]]:
    """(height, width) of tiles, for each number of pixels that with the least beyond the edges."""
    for pixels in (16, 32, 64, 128, 256):
        options = [(pixels >> i, 1 << i) for i in range(pixels.bit_length()) if pixels >> i <= 16]
        yield min(
            options, key=lambda s: (-(-height // s[0]) * -(-width // s[1]), abs(math.log2(s[0] / s[1])))
        )


def candidates(work: Work, device: Device) -> Iterator[Tiles]:
    """All choices that fit the device."""
    widest = max(16, min(256, power_of_two(work.outputs)))
    deepest = max(16, power_of_two(max(work.inputs)))
    for (height, width), channels in itertools.product(
        shapes(work.height, work.width), (16, 32, 64, 128, 256)
    ):
        area = height * width * channels
        if channels > widest:
            continue
        if work.kind == "stem":
            if 1024 <= area <= 4096:
                yield Tiles(height, width, channels, 32, 1, 4, 1)
            continue
        for warps, depth, stages in itertools.product((4, 8), (16, 32, 64, 128, 256, 512), (1, 2, 3, 4)):
            # Of sums, a thread; more than this leaves too few for the rest.
            registers = area / (32 * warps) * (3 if work.kind == "down" else 1)
            most = 96 if work.kind == "down" else 128 if device.wgmma and not work.prologue else 64
            if not 4 <= registers <= most:
                continue
            if (depth < 32 or work.dtype == "float32") and depth != min(deepest, 32):
                continue
            if depth > deepest or (work.kind == "conv" and (depth > 128 or stages == 1)):
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
                t = Tiles(height, width, channels, depth, split, warps, stages)
                if split > 1 and work.steps(t) < 4 * split:
                    continue
                if shared_bytes(work, t) <= device.shared:
                    yield t


def ranked(work: Work, device: Device) -> list[Tiles]:
    """All choices, the fastest by the model first."""
    key = lambda t: (predict(work, t, device).seconds, t.split, t.warps, t.stages, -t.depth)  # noqa: E731
    found = sorted(candidates(work, device), key=key)
    if not found:
        raise AssertionError(f"no tiles for {work.key} on {device.name}")
    return found


@functools.lru_cache(maxsize=4096)
def modelled(work: Work, device: Device) -> Tiles:
    """The best choice by the model."""
    return ranked(work, device)[0]


@functools.cache
def shipped(key: str) -> dict[str, Tiles]:
    """The table of a device class, by :attr:`Work.key`; empty if there is none."""
    path = FOLDER / f"{key}.json"
    return read(path)["tiles"] if path.is_file() else {}


def read(path: Path) -> dict:
    """A table from its file, with :class:`Tiles` as its entries."""
    table = json.loads(path.read_text())
    table["tiles"] = {key: Tiles(*numbers) for key, numbers in table["tiles"].items()}
    return table


def sane(t: Tiles) -> bool:
    """Whether tiles, from wherever they come, are worth compiling; Triton refuses tensors much larger."""
    return max(t.pixels * t.channels, t.pixels * t.depth, t.channels * t.depth) <= 1 << 17


def dump(table: dict) -> str:
    """A table as the text of its file, a line an entry."""
    rest = {key: value for key, value in table.items() if key != "tiles"}
    head = json.dumps(rest, indent=1)[:-2]
    lines = [f"  {json.dumps(key)}: {json.dumps(t.numbers)}" for key, t in sorted(table["tiles"].items())]
    return head + ',\n "tiles": {\n' + ",\n".join(lines) + "\n }\n}\n"
