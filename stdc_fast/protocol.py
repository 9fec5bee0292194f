"""How an image becomes labels that are scored: sizes, interpolation and views, as named code bases do it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from torch import Tensor

from stdc_fast.errors import UserError
from stdc_fast.images import MIN_SIZE, is_possible
from stdc_fast.input_size import InputSize, check_request

#: Scales of "ms+flip" in mmsegmentation's tables.
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

_LOGITS = "bilinear to the size seen, then to the labels' size; argmax"
_IMAGE = "bilinear, align_corners=True; below half the size averaged by a whole factor first"
#: How each code base resizes images and logits, in words.
PROTOCOLS = {
    "official": {"image": f"normalised image, {_IMAGE}", "logits": _LOGITS},
    "mmseg": {"image": "uint8 image, keeping its ratio, as cv2.INTER_LINEAR", "logits": _LOGITS},
}


@dataclasses.dataclass(frozen=True)
class View:
    """One look at an image: the (H, W) to which it is resized, mirrored left to right or not."""

    size: tuple[int, int]
    mirrored: bool = False


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How an image becomes labels. A figure of accuracy means nothing without it.

    "official" is the paper's own code: the normalised image is resized (bilinear, align_corners=True) to its
    sides times ``scale``, rounded down. Below a half, where that would skip pixels, the uint8 image is
    averaged by a whole factor first, see :func:`stdc_fast.reduction.reduced`. "mmseg" is mmsegmentation
    1.2.2: the uint8 image is resized as OpenCV does, keeping its ratio, and sides are rounded half up. In
    both the logits are resized to the size that the network saw and then to the labels', and the largest one
    wins. Several views are merged by the mean of their softmax, overlapping windows by the mean of their
    logits.

    Attributes:
        name: "official" or "mmseg".
        scale: size of the image for the network, relative to its own.
        size: or (H, W), or "native" for the image's own size. For "mmseg" the image keeps its ratio and fits
            within (H, W), turned as the image is. With neither, "official" takes the weights' own size, as
            ``predict`` does, and "mmseg" the image's.
        scales: the network sees the image at that size times each of these.
        flip: and each of them mirrored left to right, too.
        window: (H, W) of a sliding window; None for the whole image.
        stride: (H, W) from one window to the next; by default the window's. The last window of a row or
            column is shifted back into the image.

    UserError for what makes no sense.
    """

    name: str = "official"
    scale: float | None = None
    size: str | tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self):
        if self.name not in PROTOCOLS:
            raise UserError(f"unknown protocol {self.name!r}; use {' or '.join(PROTOCOLS)}")
        object.__setattr__(self, "size", check_request(self.scale, self.size))
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise UserError(f"scales must be different numbers, at least one, not {list(self.scales)}")
        for scale in self.scales:
            check_request(scale, None)
        if self.window is None:
            if self.stride is not None:
                raise UserError(f"stride {_text(self.stride)} is of a sliding window; give the window too")
            return
        if self.stride is None:
            object.__setattr__(self, "stride", self.window)
        if min(self.window) < MIN_SIZE:
            raise UserError(f"window {_text(self.window)}: both sides must be at least {MIN_SIZE}")
        if min(self.stride) < 1 or any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise UserError(
                f"stride {_text(self.stride)} must lie between 1x1 and the window, {_text(self.window)}; "
                "pixels between two windows would have no label"
            )

    def views(self, height: int, width: int, default: InputSize) -> list[View]:
        """The views of an image. UserError where one is too small or too large for the network.

        ``default`` is the weights' own size, which "official" takes unless told otherwise.
        """
        if self.name == "official":
            base = default.resolve(height, width, self.scale, self.size)
            sizes = [(int(base[0] * s), int(base[1] * s)) for s in self.scales]
        else:
            # As its Resize(scale_factor=...), which rounds twice.
            base, factor = (height, width), self.scale or 1.0
            if isinstance(self.size, tuple):
                base = self.size
            bounds = [[int(side * factor * s + 0.5) for side in base] for s in self.scales]
            fits = [min(max(b) / max(height, width), min(b) / min(height, width)) for b in bounds]
            sizes = [(int(height * f + 0.5), int(width * f + 0.5)) for f in fits]
        for size in sizes:
            if not is_possible(*size):
                InputSize().resolve(height, width, size=size)
        return [View(s, m) for s, m in itertools.product(sizes, (False, True)[: 1 + self.flip])]

    def to_dict(self) -> dict[str, object]:
        """All that is to be said of a figure by it, as plain Python values."""
        fields = dataclasses.asdict(self)
        merge = {"views": "mean of softmax"} if self.several else {}
        if self.window:
            merge["windows"] = "mean of logits; the last one is shifted back into the image"
        return fields | PROTOCOLS[self.name] | {"merge": merge}

    def __str__(self) -> str:
        """One line, for people."""
        words = PROTOCOLS[self.name]
        parts = [f"{self.name} protocol: {words['image']}", f"logits {words['logits']}"]
        if self.several:
            scales = ", ".join(f"{s:g}" for s in self.scales)
            flips = " and mirrored" if self.flip else ""
            parts.append(f"views at scale {scales}{flips}, mean of softmax")
        if self.window:
            parts.append(f"windows of {_text(self.window)} every {_text(self.stride)}, mean of logits")
        return "; ".join(parts)

    @property
    def several(self) -> bool:
        """Whether there are several views."""
        return self.flip or len(self.scales) > 1


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def resize_bytes(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 ``[N, h, w, C]`` to (H, W) ``size``, the bits of ``cv2.resize(..., interpolation=INTER_LINEAR)``.

    OpenCV's arithmetic: half-pixel centres, no averaging when images shrink, weights of 11 bits, and two
    truncations on the way. Rounding instead changes one value in eight by 1.
    """
    if tuple(frame.shape[1:3]) == size:
        return frame
    left, right, a, b = (t.to(frame.device) for t in _taps(frame.shape[2], size[1], inside=True))
    above, below, c, d = (t.to(frame.device) for t in _taps(frame.shape[1], size[0], inside=False))
    wide = frame.int()
    wide = (wide[:, :, left] * a.view(-1, 1) + wide[:, :, right] * b.view(-1, 1)) >> 4
    tall = (wide[:, above] * c.view(-1, 1, 1) >> 16) + (wide[:, below] * d.view(-1, 1, 1) >> 16)
    return ((tall + 2) >> 2).clamp_(0, 255).to(torch.uint8)


def _taps(source: int, target: int, inside: bool) -> tuple[Tensor, ...]:
    """Two indices and their weights, of 2048, for each element of a resized axis.

    ``inside`` moves positions beyond the first and last element onto them, as OpenCV does along rows. Along
    columns it takes the same element twice, whose truncated products may add up to one less.
    """
    where = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(where).astype(np.int64)
    part = where - first.astype(np.float32)
    if inside:
        part[(first < 0) | (first >= source - 1)] = 0
    weights = (np.rint(w * np.float32(2048)).astype(np.int32) for w in (1 - part, part))
    indices = (np.clip(i, 0, source - 1) for i in (first, first + 1))
    return tuple(torch.from_numpy(t) for t in (*indices, *weights))
