"""Which tiles a kernel gets: as tuned on this device, as shipped for its class, else the best by a model."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence

import torch

from stdc_fast.backends.base import Backend
from stdc_fast.backends.gpu import tables, tuned
from stdc_fast.backends.gpu.model import Device, Work, like_its_class
from stdc_fast.backends.gpu.tables import Tiles


class TileModel:
    """What is known of a backend's tiles on a class of GPUs. Hashable.

    Attributes:
        device: the class.
        tiles: the type of tiles.
        shapes, variants: how many shapes of tiles the tuner times for each kernel, and variants of the best
            of them.
    """

    device: Device
    tiles: type[Tiles]
    shapes: int
    variants: int

    def fits(self, work: Work, tiles: Tiles) -> bool:
        """Whether there is a kernel with these tiles, as far as is known; they come from a table."""
        raise NotImplementedError

    def ranked(self, work: Work) -> list[Tiles]:
        """All choices, the fastest by the model first."""
        raise NotImplementedError

    def shape(self, tiles: Tiles) -> Hashable:
        """What variants of tiles have in common."""
        raise NotImplementedError

    def too_large(self, error: Exception) -> bool:
        """Whether an error says that tiles do not fit, where what they need is only estimated."""
        return False


class Chooser:
    """Picks the tiles of a work.

    Args:
        model: ranks them.
        tables: those to look into, the first first; by default what is shipped for the model's device.
    """

    def __init__(self, model: TileModel, tables: Sequence[Mapping[str, Tiles]] | None = None):
        self.model = model
        self.tables = (_shipped(model),) if tables is None else tables
        self._refused: dict[str, set[Tiles]] = {}

    def __call__(self, work: Work) -> Tiles:
        refused = self._refused.get(work.key, ())
        for table in self.tables:
            found = table.get(work.key)
            if found is not None and found not in refused and self.model.fits(work, found):
                return found
        if not refused:
            return best(self.model, work)
        return next(t for t in self.model.ranked(work) if t not in refused)

    def refuse(self, work: Work, tiles: Tiles) -> None:
        """Take others from now on: the compiler or the device did not take these."""
        self._refused.setdefault(work.key, set()).add(tiles)


@functools.lru_cache(maxsize=4096)
def best(model: TileModel, work: Work) -> Tiles:
    """The fastest choice by the model."""
    return model.ranked(work)[0]


def _shipped(model: TileModel) -> Mapping[str, Tiles]:
    """The table of the class, but on a GPU of far fewer or more processors, whose tiles the model chooses."""
    device = model.device
    return tables.shipped(device.key, model.tiles) if like_its_class(device) else {}


class GpuBackend(Backend):
    """A backend whose kernels have tiles, which ``stdc-fast tune`` can measure.

    Attributes:
        tiles: the type of its tiles.
    """

    tiles: type[Tiles]

    def model(self, device: torch.device) -> TileModel:
        """The model of a device's class."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """What times depend on, besides the device and its driver."""
        raise NotImplementedError

    def environment(self, device: torch.device) -> dict[str, str]:
        """What the times of tiles that are measured on a device depend on."""
        return tuned.environment(device, self.name, self.versions())

    def chooser(self, device: torch.device) -> Chooser:
        """What picks the tiles on a device."""
        model = self.model(device)
        return Chooser(model, (tuned.load(self.environment(device), self.tiles), _shipped(model)))
