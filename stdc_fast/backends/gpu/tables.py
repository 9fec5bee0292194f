"""Tables of tiles, by shape and dtype of a work, as JSON: as shipped and as tuned."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, ClassVar, Protocol

FOLDER = Path(__file__).resolve().parents[2] / "tables"


class Tiles(Protocol):
    """How one kernel cuts its work, as a backend has it.

    Attributes:
        height, width: pixels of a tile.
        numbers: all of it, as a table has it.
        prefix: of the names of table files.
    """

    prefix: ClassVar[str]

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def numbers(self) -> tuple[int, ...]: ...

    @classmethod
    def of(cls, numbers: list[int]) -> Tiles:
        """The tiles of :attr:`numbers`. ValueError or TypeError for what no kernel can have."""


def read(path: Path, tiles: type[Tiles]) -> dict[str, Any]:
    """A table from its file, with ``tiles`` as its entries."""
    table = json.loads(path.read_text())
    table["tiles"] = {key: tiles.of(numbers) for key, numbers in table["tiles"].items()}
    return table


@functools.cache
def shipped(key: str, tiles: type[Tiles]) -> dict[str, Tiles]:
    """The table of a device class, by ``Work.key``; empty if there is none."""
    path = FOLDER / f"{tiles.prefix}{key}.json"
    return read(path, tiles)["tiles"] if path.is_file() else {}


def dump(table: dict[str, Any]) -> str:
    """A table as the text of its file, a line an entry."""
    rest = {key: value for key, value in table.items() if key != "tiles"}
    head = json.dumps(rest, indent=1)[:-2]
    lines = [f"  {json.dumps(key)}: {json.dumps(t.numbers)}" for key, t in sorted(table["tiles"].items())]
    return head + ',\n "tiles": {\n' + ",\n".join(lines) + "\n }\n}\n"
