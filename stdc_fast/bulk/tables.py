"""Parquet files, by pyarrow: the pictures in them or the paths of pictures, and results as rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

from stdc_fast import exchange
from stdc_fast.errors import UserError, announce

#: Columns that frames are looked for in, the preferred first. The first two hold encoded pictures.
COLUMNS = ("image", "bytes", "path")


def pyarrow(module: str = "pyarrow") -> ModuleType:
    """A module of pyarrow; UserError with the remedy where it is not installed."""
    return exchange.package("pyarrow", module, "bulk")


@contextlib.contextmanager
def errors(path: str) -> Iterator[None]:
    """Turn what pyarrow raises on a file into a UserError that names it."""
    wrapper = pyarrow()
    try:
        yield
    except (wrapper.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: can not be read as Parquet ({reason}); copy it again") from None


@contextlib.contextmanager
def opened(path: str) -> Iterator[object]:
    """``pyarrow.parquet.ParquetFile`` of a file."""
    parquet = pyarrow("pyarrow.parquet")
    with errors(path), parquet.ParquetFile(path) as file:
        yield file


def column(path: str, schema: object) -> str:
    """Which of :data:`COLUMNS` has the frames; UserError where there is none of a type that can."""
    types = pyarrow("pyarrow.types")
    found = [name for name in COLUMNS if name in schema.names]
    for name in found:
        kind = schema.field(name).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # as Hugging Face's datasets has it
            kind = kind.field("bytes").type
        text = types.is_string(kind) or types.is_large_string(kind)
        binary = types.is_binary(kind) or types.is_large_binary(kind)
        if (name == "path" and text) or (name != "path" and binary):
            if len(found) > 1:
                announce(path, "has columns %s; frames are those of %s", " and ".join(found), name)
            return name
    raise UserError(
        f"{path}: has columns {', '.join(schema.names)}; frames must be in a column path (text), image or "
        "bytes (encoded pictures)"
    )


def paths(path: str) -> Iterator[str | None]:
    """What a column "path" says, row by row; nothing where the file holds pictures or can not be read."""
    try:
        with opened(path) as file:
            if column(path, file.schema_arrow) == "path":
                for batch in file.iter_batches(columns=["path"]):
                    yield from batch.column(0).to_pylist()
    except UserError:
        pyarrow()  # a fault of the file is told of when its frames are counted


class Pictures:
    """Encoded pictures of a Parquet file by the number of their row; a row group is kept at a time."""

    def __init__(self, path: str):
        self._path = path
        self._close = contextlib.ExitStack()
        self._file = self._close.enter_context(opened(path))
        self._column = column(path, self._file.schema_arrow)
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._group, self._rows = -1, None

    def picture(self, row: int) -> bytes:
        """UserError for an empty cell."""
        group = next(g for g, start in enumerate(self._starts[1:]) if row < start)
        if group != self._group:
            with errors(self._path):
                self._rows = self._file.read_row_group(group, columns=[self._column]).column(0)
                self._group = group
        cell = self._rows[row - self._starts[group]].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise UserError(f"{self._path}[{row}]: the cell is empty")
        return content

    def close(self) -> None:
        self._close.close()


def count(path: str) -> int:
    """Pictures in a Parquet file, one a row; 0 where it has paths. UserError where it can not be read."""
    with opened(path) as file:
        return 0 if column(path, file.schema_arrow) == "path" else file.metadata.num_rows
