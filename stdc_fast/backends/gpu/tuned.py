"""What ``stdc-fast tune`` measured: one JSON file for each backend, device, driver and set of versions.

It lies in STDC_FAST_CACHE, else in the user's cache folder. Entries are by shape and dtype
(:attr:`stdc_fast.backends.gpu.model.Work.key`). A file that can not be read counts as none. Beside it
are, until all of a request was measured, the times so far, so that the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from stdc_fast.backends.gpu import tables
from stdc_fast.backends.gpu.tables import Tiles
from stdc_fast.errors import UserError
from stdc_fast.files import cache_folder, write_atomic
from stdc_fast.version import __version__

_log = logging.getLogger("stdc_fast")


def environment(device: torch.device, backend: str, versions: Mapping[str, str]) -> dict[str, str]:
    """What measured times depend on, for a backend with tiles whose kernels depend on ``versions``."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "backend": backend,
        "device": properties.name,
        "processors": str(properties.multi_processor_count),
        "driver": _driver(),
        "stdc_fast": __version__,
        **versions,
    }


def _driver() -> str:
    """Version of NVIDIA's kernel driver, "unknown" where it can not be had without asking a program."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else "unknown"


def folder() -> Path:
    """Where the files are."""
    return cache_folder("STDC_FAST_CACHE")


def path(about: Mapping[str, str], tiles: type[Tiles]) -> Path:
    """The file of an environment."""
    name = re.sub(r"[^a-z0-9]+", "_", about["device"].lower()).strip("_")
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()[:12]
    return folder() / f"{tiles.prefix}tiles_{name}_{digest}.json"


def load(about: Mapping[str, str], tiles: type[Tiles]) -> dict[str, Tiles]:
    """The tuned tiles of an environment; empty if nothing was tuned."""
    try:
        file = path(about, tiles)
    except UserError:
        return {}
    try:
        table = tables.read(file, tiles)
        if table["environment"] != dict(about):
            raise ValueError("it is of another environment")
        return table["tiles"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s is left aside, as it can not be read: %s; run stdc-fast tune", file, error)
        return {}


def save(about: Mapping[str, str], found: Mapping[str, Tiles], tiles: type[Tiles]) -> Path:
    """Adds entries to the environment's file, in place of older ones; UserError if it can not be written."""
    table = {"environment": dict(about), "tiles": load(about, tiles) | dict(found)}
    file = path(about, tiles)
    text = tables.dump(table)
    write_atomic(file, lambda p: Path(p).write_text(text))
    return file


class Times:
    """Seconds of kernels alone in an environment, kept as they are measured: JSON Lines beside its tiles."""

    def __init__(self, about: Mapping[str, str], tiles: type[Tiles]):
        self.file, self.tiles = path(about, tiles).with_suffix(".times.jsonl"), tiles

    def load(self) -> dict[str, dict[Tiles, float]]:
        """By :attr:`Work.key` and tiles; infinite for those that do not fit. Broken lines are none."""
        found: dict[str, dict[Tiles, float]] = {}
        try:
            lines = self.file.read_text().splitlines()
        except (OSError, ValueError):
            return {}
        for line in lines:
            try:
                key, numbers, seconds = json.loads(line)
                t, seconds = self.tiles.of(numbers), math.inf if seconds is None else float(seconds)
            except (ValueError, TypeError):  # a run was stopped in it
                continue
            if seconds > 0:
                found.setdefault(key, {})[t] = seconds
        return found

    def add(self, key: str, t: Tiles, seconds: float) -> None:
        """One more; UserError if it can not be written."""
        line = json.dumps([key, t.numbers, None if seconds == math.inf else seconds])
        try:
            with self.file.open("a+b") as file:
                if end := file.tell():
                    file.seek(end - 1)  # a run may have been stopped within its last line
                    line = line if file.read(1) == b"\n" else f"\n{line}"
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise UserError(f"{self.file} can not be written: {error.strerror}") from None

    def forget(self) -> None:
        """All was measured: the next run measures anew."""
        self.file.unlink(missing_ok=True)
