"""What is timed: networks, input sizes, frames of a real photo, and the reference's answer to them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stdc_fast import checkpoints, images, zoo
from stdc_fast.errors import UserError
from stdc_fast.images import normalise
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.plan.cost import costs
from stdc_fast.reference.networks import STAGES, STDCSeg, upsample

#: Ours, MIT licence; see NOTICE.
PHOTO = Path(__file__).resolve().parent.parent / "assets" / "street.jpg"
#: (H, W) of the frames of scope "frame".
FRAME = (1024, 2048)
#: How many inputs peers are calibrated on.
SAMPLES = 8
SCOPES = {
    "logits": "normalised image at the network's size to logits at 1/8, on the device",
    "labels": "raw uint8 frame at the network's size to uint8 labels at that size, on the device",
    "frame": "raw uint8 frame of 1024x2048 to uint8 labels of 1024x2048, from and to the host's memory",
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What all runners do in turn.

    Attributes:
        model: name in the tables: of embedded weights or a file, or "stdc1" or "stdc2" for random weights.
        weights: checkpoint file that every runner reads.
        height, width: of the network's input.
        batch: images at once.
        photo: file that the frames are made of.
    """

    model: str
    weights: Path
    height: int
    width: int
    batch: int = 1
    photo: Path = PHOTO

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.model} {self.height}x{self.width}, batch {self.batch}"

    def network(self, dtype: torch.dtype = torch.float32) -> STDCSeg:
        """The reference network, frozen, in eval mode."""
        return checkpoints.read(self.weights).network(dtype).eval().requires_grad_(False)

    def frames(self, scope: str) -> Tensor:
        """Raw frames uint8 ``[N, H, W, 3]``: the photo, and for a batch also parts of it and their mirror."""
        height, width = FRAME if scope == "frame" else self.size
        return torch.from_numpy(_frames(str(self.photo), height, width, self.batch).copy())

    @property
    def mean(self) -> Sequence[float]:
        """By which the network expects its input to be normalised, RGB of values in 0..1."""
        return _said(str(self.weights))[0]

    @property
    def std(self) -> Sequence[float]:
        """Likewise."""
        return _said(str(self.weights))[1]

    @property
    def align_corners(self) -> bool:
        """How its logits are interpolated."""
        return _said(str(self.weights))[2]

    def normalised(self, frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Raw frames as the network reads them, ``[N, 3, H, W]``."""
        return normalise(frames, dtype, self.mean, self.std)

    def image(self) -> Tensor:
        """Normalised float32 ``[N, 3, H, W]`` of scope "logits"."""
        return self.normalised(self.frames("logits")).contiguous()

    def input(self, scope: str) -> Tensor:
        return self.image() if scope == "logits" else self.frames(scope)

    def samples(self, scope: str) -> list[Tensor]:
        """What peers choose the ranges of 8 bits by: the scope's input, turned around itself."""
        x, axis = self.input(scope), 3 if scope == "logits" else 2
        return [torch.roll(x, step * x.shape[axis] // SAMPLES, axis) for step in range(SAMPLES)]

    def plan(self) -> Plan:
        """From raw frames to labels, as optimised."""
        return _plan(str(self.weights))

    def work(self) -> tuple[int, int]:
        """(floating-point operations, bytes that can not be saved) of one call.

        The operations are those of the plan as optimised, two a multiply-add; the bytes are the image's, the
        labels', and the weights' at two bytes each. All runners are held against the same figures.
        """
        plan = self.plan()
        flop = 2 * sum(cost.macs for cost in costs(plan, self.batch, *self.size, 2))
        moved = self.batch * self.height * self.width * 4 + weight_bytes(plan, 2)
        return flop, moved


def weight_bytes(plan: Plan, itemsize: int) -> int:
    """Bytes of a plan's packed weights; vectors (biases) have at least 4 a number."""
    whole = {op.weight for op in plan.ops if getattr(op, "multipliers", None)}  # of 8 bits
    return sum(
        w.numel() * (1 if name in whole else itemsize if w.ndim > 1 else max(4, itemsize))
        for name, w in plan.weights.items()
    )


@functools.lru_cache(4)
def _plan(weights: str) -> Plan:
    return optimise(build(checkpoints.read(weights).network()))


@functools.lru_cache(4)
def _said(weights: str) -> tuple[Sequence[float], Sequence[float], bool]:
    network = checkpoints.read(weights).network()
    return network.mean, network.std, network.align_corners


@functools.lru_cache(2)
def _frames(photo: str, height: int, width: int, batch: int) -> np.ndarray:
    with Image.open(photo) as image:
        whole = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    first = np.asarray(whole)
    rows = []
    for i in range(batch):
        # Turned around itself, so that every frame has all the classes, at other places.
        frame = np.roll(first, i * width // batch, axis=1)
        rows.append(frame[:, ::-1] if i % 2 else frame)
    return np.stack(rows)


def resolve(model: str, folder: Path) -> Path:
    """The weights file of a model's name; random weights are written into ``folder``.

    "stdc1" and "stdc2" have 19 classes and the weights that a new network has, from a fixed seed. They keep
    the limits that trained ones have. UserError for an unknown name.
    """
    if model not in STAGES:
        try:
            return zoo.find(model)
        except UserError as error:
            raise UserError(f"{error}; {' and '.join(STAGES)} are random weights") from None
    path = folder / f"{model}.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = STDCSeg(model)
        checkpoints.save(checkpoints.inference_state(network), path, {"variant": model})
    return path


@dataclasses.dataclass(frozen=True)
class Expected:
    """The float64 reference's answer for the first and the last image of a batch.

    Attributes:
        logits: ``[n, C, h, w]`` at 1/8.
        labels: uint8 ``[n, H, W]`` by scope, "labels" and "frame".
        align_corners: how labels come of logits.
    """

    logits: Tensor
    labels: dict[str, Tensor]
    align_corners: bool = True


def ends(x: Tensor) -> Tensor:
    """The first and the last image of a batch: what the parity check looks at."""
    return x if len(x) == 1 else x[[0, -1]]


@torch.inference_mode()
def expected(workload: Workload, scopes: list[str]) -> Expected:
    """Run the reference, by the official protocol: the normalised image is resized, then the logits."""
    network, corners = workload.network(torch.float64), workload.align_corners
    logits = network.logits8(workload.normalised(ends(workload.frames("logits")), torch.float64))
    labels = {"labels": argmax(logits, workload.size, corners)}
    if "frame" in scopes:
        frames = workload.normalised(ends(workload.frames("frame")), torch.float64)
        resized = network.logits8(upsample(frames, workload.size))
        labels["frame"] = argmax(upsample(resized, workload.size, corners), FRAME, corners)
    return Expected(logits, labels, corners)


def argmax(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Labels uint8 ``[n, H, W]`` of logits, one image at a time."""
    return torch.cat([upsample(one[None], size, align_corners).argmax(1).to(torch.uint8) for one in logits])


def check_photo(photo: Path) -> None:
    """UserError if the photo can not be read."""
    images.read_image(photo)
