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
def errors(path: str, remedy: str = "copy it again") -> Iterator[None]:
    """Turn what pyarrow raises on a file into a UserError that names it."""
    wrapper = pyarrow()
    try:
        yield
    except (wrapper.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one of a cell's text
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: can not be read as Parquet ({reason}); {remedy}") from None


@contextlib.contextmanager
def opened(path: str, remedy: str = "copy it again") -> Iterator[object]:
    """``pyarrow.parquet.ParquetFile`` of a file."""
    parquet = pyarrow("pyarrow.parquet")
    with errors(path, remedy), parquet.ParquetFile(path) as file:
        yield file


def column(path: str, schema: object) -> str:
    """Which of :data:`COLUMNS` has the frames; UserError where there is none of a type that can."""
    types = pyarrow("pyarrow.types")
    found = [name for name in COLUMNS if name in schema.names]
    for name in found:
        if schema.names.count(name) > 1:
            raise UserError(f"{path}: has several columns called {name}; leave one")
        kind = schema.field(name).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # as Hugging Face's datasets has it
            kind = kind.field("bytes").type
        if types.is_dictionary(kind):  # as pandas' categories
            kind = kind.value_type
        wanted = ("string", "binary")[name != "path"]
        if str(kind) in (wanted, f"large_{wanted}", f"{wanted}_view"):
            if len(found) > 1:
                announce(path, "has columns %s; frames are those of %s", " and ".join(found), name)
            return name
    raise UserError(
        f"{path}: has columns {', '.join(schema.names)}; frames must be in a column path (text), image or "
        "bytes (encoded pictures)"
    )


def paths(path: str) -> Iterator[str | None]:
    """What a column "path" says, row by row, as far as it can be read; nothing where there are pictures."""
    try:
        with opened(path) as file:
            if column(path, file.schema_arrow) == "path":
                yield from _texts(file)
    except UserError:
        pyarrow()  # a fault of the file is told of when its frames are counted


def _texts(file) -> Iterator[str | None]:
    for group in range(file.num_row_groups):  # not iter_batches: a damaged one would cost those before it
        yield from file.read_row_group(group, columns=["path"]).column(0).to_pylist()


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
    """Pictures in a Parquet file, one a row; 0 where it has paths. UserError where these can not be read."""
    with opened(path) as file:
        rows = file.metadata.num_rows
        if not rows:
            announce(path, "holds no rows")
        if column(path, file.schema_arrow) != "path":
            return rows
        for _ in _texts(file):
            pass
        return 0
