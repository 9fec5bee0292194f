"""Which frames a calibration takes, and each as the network sees it."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.reduction import reduced
from stdc_fast.samples import check_normalised

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter

#: Frames at most, by which methods are compared.
HELD = 8
#: Each frame is looked at once more with its sides so many times smaller, and no smaller than this. What a
#: network knows of the whole image reaches further in small ones.
SMALLER, SMALLEST = 8, 32


@dataclasses.dataclass(frozen=True)
class Shown:
    """A frame as a network gets it.

    Attributes:
        image: uint8 ``[1, h, w, 3]``, or normalised ``[1, 3, h, w]``.
        seen: (H, W) to which it is resized.
        flat: whether it is of one colour.
    """

    image: Tensor
    seen: tuple[int, int]
    flat: bool

    @property
    def raw(self) -> bool:
        return self.image.dtype == torch.uint8

    def sizes(self) -> tuple[Shown, Shown]:
        """The frame at the size at which the network sees it, and much smaller."""
        small = tuple(max(min(SMALLEST, side), side // SMALLER) for side in self.seen)
        return self, dataclasses.replace(self, seen=small)


@dataclasses.dataclass(frozen=True)
class Frames:
    """Pictures that are opened when they are needed.

    Attributes:
        items: (name, picture or where it is), as of :func:`stdc_fast.images.iterate`.
        source: where they come from, in words.
    """

    items: tuple[tuple[str, object], ...]
    source: str

    def __len__(self) -> int:
        return len(self.items)

    def shown_to(self, model: Segmenter, items: object = None) -> Iterator[Shown]:
        """Each, or those of ``items``. UserError, naming it, for one that can not be read."""
        for name, item in self.items if items is None else items:
            with images.memory_errors(name):
                yield _shown(name, item, model)


def choose(source: object, count: int, seed: int) -> Frames:
    """At most ``count`` of all that :meth:`stdc_fast.Segmenter.predict` takes as pictures, drawn by the seed.

    UserError for a folder without pictures, and where there are none at all.
    """
    if type(count) is not int or count < 1:
        raise UserError(f"count must be a number of frames from 1 on, not {count!r}")
    found = list(images.iterate(source)[0])
    if not found:
        raise UserError("there are no frames to calibrate on; give a folder, paths or arrays of pictures")
    if len(found) > count:
        found = [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), count))]
    return Frames(tuple(found), _words(source))


def split(frames: Frames, seed: int) -> tuple[Frames, Frames]:
    """(Those whose values are looked at, those by which methods are compared): a quarter, at most
    :data:`HELD`. One frame alone is both.
    """
    count = min(HELD, max(1, len(frames) // 4))
    if len(frames) == 1:
        return frames, frames
    held = set(random.Random(seed + 1).sample(range(len(frames)), count))
    parts = ([item for i, item in enumerate(frames.items) if (i in held) == wanted] for wanted in (0, 1))
    return tuple(dataclasses.replace(frames, items=tuple(part)) for part in parts)


def _words(source: object) -> str:
    """A folder with the one it is in: where the machine has them is nobody's business."""
    if isinstance(source, (str, os.PathLike)):
        return "/".join(Path(os.path.abspath(source)).parts[-2:])
    return "arrays" if isinstance(source, (np.ndarray, Tensor)) else "a list"


def _shown(name: str, item: object, model: Segmenter) -> Shown:
    network, image = model.network, images.open_item(item, name)
    raw = isinstance(image, np.ndarray)
    if raw:
        height, width = image.shape[:2]
        image = torch.from_numpy(np.ascontiguousarray(image))[None]
        pixels = image.flatten(1, 2)[0]
    else:
        height, width = image.shape[1:]
        check_normalised(image, name, network.mean, network.std)
        image = image.detach()[None].float()
        pixels = image[0].flatten(1).T
    try:
        seen = model.input_size.resolve(height, width)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    flat = bool((pixels == pixels[0]).all())
    return Shown(reduced(image, seen).to(model.device), seen, flat)
