"""What the models of kernels' time share: classes of GPUs, and an op's work."""

from __future__ import annotations

import dataclasses

from stdc_fast.backends.gpu.tables import Tiles


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
        eights: products of 8-bit integers in the time of one of 16 bits. Data sheets say 2 where float32 sums
            are at the full rate of 16 bits, as of 624 and 312 on an A100, and 4 on GeForce, where they are at
            half of it, as of 660.6 and 165.2 on an RTX 4090.
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
    eights: float = 2

    @property
    def node(self) -> float:
        """Seconds between dependent kernels."""
        return DEPENDENT_NODE if self.dependent else NODE

    @property
    def dependent(self) -> bool:
        """Whether kernels start before those before them are done."""
        return self.capability >= (9, 0)

    @property
    def key(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


DEVICES = {
    device.key: device
    for device in (
        Device("A100", (8, 0), 108, 250e12, 18e12, 4.0e12, 80e9, 1.4e12, 163 << 10),
        Device("RTX 3090", (8, 6), 82, 60e12, 30e12, 2.0e12, 90e9, 0.8e12, 99 << 10, eights=4),
        # Jetson AGX Orin 64 GB at 1.3 GHz, by NVIDIA's technical brief of that series: 16 processors, 4 MB of
        # L2, 204.8 GB/s. A processor's tensor cores have A100's rate, its share of L2 is the RTX 3090's.
        Device("Orin", (8, 7), 16, 34e12, 4.9e12, 0.3e12, 70e9, 0.18e12, 163 << 10),
        Device("RTX 4090", (8, 9), 128, 150e12, 70e12, 4.5e12, 130e9, 0.9e12, 99 << 10, eights=4),
        Device("H100", (9, 0), 132, 800e12, 55e12, 5.5e12, 110e9, 3.0e12, 227 << 10, True),
        Device("B200", (10, 0), 148, 1500e12, 70e12, 8.0e12, 110e9, 6.5e12, 227 << 10),
        Device("RTX 5090", (12, 0), 170, 200e12, 90e12, 6.0e12, 140e9, 1.5e12, 99 << 10, eights=4),
    )
}
#: Seconds between dependent kernels of a graph; and where one may start before the other ends (sm_90).
NODE, DEPENDENT_NODE = 1.5e-6, 0.7e-6
#: Seconds until a program's first operands have come.
LATENCY = 0.8e-6


def device_class(capability: tuple[int, int], processors: int | None = None) -> Device:
    """The class of a GPU: its own, or the last before it; with the number of processors that it has.

    What all processors do together is of as many as there are: an L4 has 58 of the RTX 4090's 128.
    """
    known = [d for d in DEVICES.values() if d.capability <= capability]
    device = max(known or DEVICES.values(), key=lambda d: d.capability if known else (0, 0))
    if processors in (None, device.processors):
        return device
    share = processors / device.processors
    rates = {name: getattr(device, name) * share for name in ("products", "fma", "cache")}
    return dataclasses.replace(device, processors=processors, **rates)


def like_its_class(device: Device) -> bool:
    """Whether it has about as many processors as its class, for which tables are: by half as many more."""
    return 2 / 3 <= device.processors / DEVICES[device.key].processors <= 1.5


@dataclasses.dataclass(frozen=True)
class Work:
    """What decides on an op's tiles.

    Attributes:
        kind: "stem", "conv" or "down".
        kernel, stride: of the convolution; kernel 2 is the sub-pixel form.
        inputs: channels of each input.
        outputs: channels.
        images, height, width: of the map that tiles cover: the output, or the sub-pixel form's small map.
        dtype: "float16", "bfloat16", "float32" or "tf32"; or "int8", levels by weights of 8 bits.
        prologue: whether inputs are changed as they are read.
        mapped: whether that adds a map, which takes memory.
        levels: whether the output is levels of 8 bits.
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
    levels: bool = False

    @property
    def key(self) -> str:
        """The name of this work in tables."""
        inputs = "+".join(map(str, self.inputs))
        changed = "m" if self.mapped else "p" if self.prologue else ""
        form = f"{self.kind}{self.kernel}s{self.stride}{changed}"
        size = f"{self.images}x{self.height}x{self.width}"
        return f"{form} {inputs}>{self.outputs} {size} {self.dtype}{'>levels' * self.levels}"

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is multiplied."""
        return {"int8": 1, "float16": 2, "bfloat16": 2}.get(self.dtype, 4)

    @property
    def written(self) -> int:
        """Bytes of a number of the output."""
        return 1 if self.levels else max(2, self.itemsize)

    @property
    def words(self) -> tuple[int, ...]:
        """What each pixel has of each input, in 16 bits: channels, or pairs of levels."""
        return tuple(-(-c // 2) for c in self.inputs) if self.itemsize == 1 else self.inputs

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


def predict_rest(
    programs: int, moved: float, lanes: float, device: Device, waits: int = 2, early: float = 0
) -> Prediction:
    """The model of kernels without matrix products: bytes from L2, and operations of single lanes.

    Args:
        waits: loads that wait for each other, one after the other.
        early: of the bytes those that are on their way before a dependent kernel waits; with those that
            others wait for first, where ``waits`` is more than one.
    """
    if early and device.dependent:
        moved, waits = moved - early, max(1, waits - 1)
    active = min(programs, device.processors)
    fetch = moved / min(device.cache, active * device.port)
    # An operation a lane where a fused multiply-add would be two.
    compute = lanes / (device.fma / 2) * device.processors / active
    return Prediction(device.node + waits * LATENCY + max(fetch, compute), compute, fetch, programs)


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
