"""Which frames a calibration takes, and each as the network sees it."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.reduction import reduced
from stdc_fast.samples import check_normalised, check_range

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
        bgr, range: as of :meth:`stdc_fast.Segmenter.predict`.
    """

    items: tuple[tuple[str, object], ...]
    source: str
    bgr: bool = False
    range: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def opened(self) -> Iterator[tuple[str, np.ndarray | Tensor]]:
        """Each as (name, uint8 ``[H, W, 3]`` or normalised ``[3, H, W]``). UserError for one that is none."""
        for name, item in self.items:
            with images.memory_errors(name):
                yield name, images.open_item(item, name, self.bgr, self.range)

    def shown_to(self, model: Segmenter) -> Iterator[Shown]:
        """Each as the network gets it. UserError, naming it, for one that can not be read."""
        for name, image in self.opened():
            with images.memory_errors(name):
                yield _shown(name, image, model)


def choose(
    source: object, count: int, seed: int, bgr: bool = False, range: tuple[float, float] | None = None
) -> Frames:
    """At most ``count`` of all that :meth:`stdc_fast.Segmenter.predict` takes as pictures, drawn by the seed.

    What an iterator gives is copied, as it may use its memory again; no more than ``count`` are held.
    UserError for a folder without pictures, and where there are none at all.
    """
    if type(count) is not int or count < 1:
        raise UserError(f"count must be a number of frames from 1 on, not {count!r}")
    if type(seed) is not int:
        raise UserError(f"seed must be a whole number, not {seed!r}")
    range = None if range is None else check_range(range)
    pairs, draw = images.iterate(source, bgr, range)[0], random.Random(seed)
    if _passes(source):
        found = _drawn(pairs, count, draw, bgr, range)
    elif len(found := list(pairs)) > count:
        found = _in_order(draw.sample(list(enumerate(found)), count))
    if not found:
        raise UserError("there are no frames to calibrate on; give a folder, paths or arrays of pictures")
    return Frames(tuple(found), _words(source), bgr, range)


def split(frames: Frames, flat: Sequence[bool], seed: int) -> tuple[Frames, Frames]:
    """(Those whose values are looked at, those by which methods are compared): of the latter a quarter, at
    most :data:`HELD`, and none that is ``flat``. Where all others are flat, one is both.

    UserError if all are flat.
    """
    places = [i for i, one in enumerate(flat) if not one]
    if not places:
        raise UserError(
            f"all frames of {frames.source} are of one flat colour, which says nothing of a network's maps; "
            "give pictures like those to be labelled"
        )
    if len(places) == 1:
        return frames, dataclasses.replace(frames, items=(frames.items[places[0]],))
    count = min(HELD, max(1, len(frames) // 4), len(places) - 1)
    held = set(random.Random(seed + 1).sample(places, count))
    parts = ([item for i, item in enumerate(frames.items) if (i in held) == wanted] for wanted in (0, 1))
    return tuple(dataclasses.replace(frames, items=tuple(part)) for part in parts)


def _passes(source: object) -> bool:
    """Whether pictures come of an iterator, which may use a picture's memory for the next one."""
    return isinstance(source, Iterator) or (isinstance(source, (list, tuple)) and any(map(_passes, source)))


def _drawn(pairs: Iterable, count: int, draw: random.Random, *how: object) -> list[tuple[str, object]]:
    """``count`` of those that pass, each with the same chance, in memory of their own."""
    kept: dict[int, tuple[int, tuple[str, object]]] = {}
    for i, (name, item) in enumerate(pairs):
        place = i if i < count else draw.randrange(i + 1)
        if place < count:
            with images.memory_errors(name):
                kept[place] = i, (name, images.kept(item, name, *how))
    return _in_order(kept.values())


def _in_order(numbered: Iterable[tuple[int, tuple[str, object]]]) -> list[tuple[str, object]]:
    return [one for _, one in sorted(numbered, key=lambda pair: pair[0])]


def _words(source: object) -> str:
    """A folder with the one it is in: where the machine has them is nobody's business."""
    if isinstance(source, (str, os.PathLike)):
        return "/".join(Path(os.path.abspath(source)).parts[-2:])
    return "arrays" if isinstance(source, (np.ndarray, Tensor)) else "a list"


def _shown(name: str, image: np.ndarray | Tensor, model: Segmenter) -> Shown:
    network = model.network
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
