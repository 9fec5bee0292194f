"""What a job writes: label PNGs, tars in WebDataset's layout, or Parquet files; the same bytes each time."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stdc_fast import encode, exchange
from stdc_fast.bulk import tables
from stdc_fast.bulk.frames import Frame
from stdc_fast.errors import UserError
from stdc_fast.files import atomic, ends_with

if TYPE_CHECKING:
    from stdc_fast.segmentation import Segmentation

#: Rows of a row group of a Parquet file, which are held in memory until they are written.
GROUP = 64
#: For a shard's file that is damaged though it has its size.
REMEDY = "delete it and run the command again"
#: Of every PNG: its last chunk.
PNG_END = b"IEND\xaeB`\x82"


class OutputError(UserError):
    """Results can not be written. It ends a job; what is done stays."""


class Result(NamedTuple):
    """The labels of a frame, ready to be written: a label PNG, and JSON values about it."""

    png: bytes
    about: dict[str, object]


@contextlib.contextmanager
def output_errors(path: str | Path) -> Iterator[None]:
    """Turn a failure to write into an :class:`OutputError`; of one result, for its name, into a UserError."""
    wrong: tuple[type[BaseException], ...] = (OSError,)
    with contextlib.suppress(UserError):
        wrong = (OSError, tables.pyarrow().ArrowException)
    try:
        yield
    except wrong as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise UserError(f"{path}: the name is too long for a file; rename its source") from None
        raise OutputError(
            f"{path}: can not be written ({getattr(error, 'strerror', None) or error})"
        ) from None


def put(path: Path, content: bytes, scratch: Path) -> None:
    """Write a file, whole or not at all. OutputError if that fails."""
    with output_errors(path), atomic(path, scratch) as temporary:
        temporary.write_bytes(content)


class Output:
    """Base of the kinds of output: a shard is a file of its own.

    Args:
        folder: for the results.
        scratch: a folder of the same file system, for files that are not whole yet.
        rle: add COCO's run-length encoded masks.
        label_ids: as for :func:`stdc_fast.encode.labels`.
    """

    suffix = ""

    def __init__(self, folder: Path, scratch: Path, rle: bool = False, label_ids: bool = False):
        self.folder, self.scratch, self.rle, self.label_ids = folder, scratch, rle, label_ids
        if rle:
            exchange.package("pycocotools", "pycocotools.mask")

    def name(self, shard: int) -> str:
        """Of a shard's file, in the folder."""
        return f"labels-{shard:06d}{self.suffix}"

    def finished(self, frame: Frame) -> bool:
        """Whether the frame's result is there, and whole, whatever became of its shard."""
        return False

    def result(self, frame: Frame, found: Segmentation) -> object:
        """For threads: what :meth:`open`'s ``add`` takes of a frame."""
        return Result(encode.labels(found, self.label_ids), self._about(frame, found))

    def _about(self, frame: Frame, found: Segmentation) -> dict[str, object]:
        height, width = found.labels.shape
        about: dict[str, object] = {"key": frame.key, "source": frame.name, "height": height, "width": width}
        about |= {k: v for k, v in found.to_dict().items() if k in ("input_height", "input_width", "classes")}
        if self.rle:
            about["annotations"] = found.to_coco_rle(frame.key)
        return about

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[Callable[[Frame, object], None]]:
        """A context that gives ``add(frame, result)``. The file appears when it ends without an error."""
        path = self.folder / self.name(shard)
        # One context for both would take a UserError of a frame for one of writing.
        with contextlib.ExitStack() as stack:
            with output_errors(path):
                temporary = stack.enter_context(atomic(path, self.scratch))
                add, close = self._writer(temporary)
            try:
                yield _checked(add, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    close()
                raise
            with output_errors(path):
                close()
                stack.close()

    def bytes_of(self, shard: int, frames: Iterable[Frame]) -> int | None:
        """Of a shard's results; None where one is not there. ``frames`` are those that have a result."""
        return _sizes([self.folder / self.name(shard)])

    def kept(self, shard: int) -> Iterator[object]:
        """The results in a shard's file, in order. UserError if it can not be read."""
        raise NotImplementedError

    def _writer(self, path: Path) -> tuple[Callable[[Frame, object], None], Callable[[], None]]:
        raise NotImplementedError


def _sizes(files: Iterable[Path]) -> int | None:
    """All bytes of files; None where one is not there."""
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None


def _checked(add: Callable, path: Path) -> Callable:
    def checked(frame: Frame, result: object) -> None:
        with output_errors(path):
            add(frame, result)

    return checked


class Png(Output):
    """KEY.png in a tree of folders; with ``rle`` KEY.json beside it. Each file is written by itself."""

    def _path(self, frame: Frame, suffix: str = ".png") -> Path:
        return self.folder / "labels" / (frame.key + suffix)

    def finished(self, frame: Frame) -> bool:
        try:
            return ends_with(self._path(frame), PNG_END) and (
                not self.rle or ends_with(self._path(frame, ".json"), b"}\n")
            )
        except OSError:
            return False

    def result(self, frame: Frame, found: Segmentation) -> object:
        if self.rle:  # first, for the PNG says that both are there
            put(self._path(frame, ".json"), _text(self._about(frame, found)), self.scratch)
        put(self._path(frame), encode.labels(found, self.label_ids), self.scratch)
        return None

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[Callable[[Frame, object], None]]:
        yield lambda frame, result: None

    def bytes_of(self, shard: int, frames: Iterable[Frame]) -> int | None:
        suffixes = (".png", ".json") if self.rle else (".png",)
        return _sizes(self._path(frame, suffix) for frame in frames for suffix in suffixes)


class WebDataset(Output):
    """A tar a shard: KEY.png and KEY.json for each frame."""

    suffix = ".tar"

    def _writer(self, path: Path) -> tuple[Callable[[Frame, object], None], Callable[[], None]]:
        tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115, closed by whom it is given to

        def add(frame: Frame, result: Result) -> None:
            for suffix, content in ((".png", result.png), (".json", _text(result.about))):
                member = tarfile.TarInfo(frame.key + suffix)  # its time and owner are 0
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
            tar.members.clear()

        return add, tar.close

    def kept(self, shard: int) -> Iterator[Result]:
        path = self.folder / self.name(shard)
        try:
            with tarfile.open(path, "r:") as tar:
                members = iter(tar)
                for member in members:
                    png = tar.extractfile(member).read()
                    yield Result(png, json.loads(tar.extractfile(next(members)).read()))
                    tar.members = []
        except (OSError, tarfile.TarError, ValueError, StopIteration, AttributeError) as error:
            raise UserError(f"{path}: can not be read ({error}); {REMEDY}") from None


class Parquet(Output):
    """A Parquet file a shard, a row a frame."""

    suffix = ".parquet"

    def _schema(self):
        arrow = tables.pyarrow()
        fields = [("name", arrow.string()), ("height", arrow.int32()), ("width", arrow.int32()),
                  ("png", arrow.binary())]  # fmt: skip
        if self.rle:
            counts = arrow.struct([("size", arrow.list_(arrow.int32())), ("counts", arrow.string())])
            annotation = [("category_id", arrow.int32()), ("segmentation", counts), ("area", arrow.int64()),
                          ("bbox", arrow.list_(arrow.float64())), ("iscrowd", arrow.int8())]  # fmt: skip
            fields.append(("coco", arrow.list_(arrow.struct(annotation))))
        return arrow.schema(fields)

    def _writer(self, path: Path) -> tuple[Callable[[Frame, object], None], Callable[[], None]]:
        arrow, schema, rows = tables.pyarrow(), self._schema(), []
        writer = tables.pyarrow("pyarrow.parquet").ParquetWriter(path, schema)

        def flush() -> None:
            writer.write_table(arrow.Table.from_pylist(rows, schema), row_group_size=GROUP)
            rows.clear()

        def add(frame: Frame, result: Result) -> None:
            about = result.about
            row = {
                "name": about["key"],
                "height": about["height"],
                "width": about["width"],
                "png": result.png,
            }
            rows.append(row | ({"coco": about["annotations"]} if self.rle else {}))
            if len(rows) == GROUP:
                flush()

        def close() -> None:
            try:
                if rows:
                    flush()
            finally:
                writer.close()

        return add, close

    def kept(self, shard: int) -> Iterator[Result]:
        with tables.opened(str(self.folder / self.name(shard)), REMEDY) as file:
            for batch in file.iter_batches(GROUP):
                for row in batch.to_pylist():
                    about = {"key": row["name"], "height": row["height"], "width": row["width"]}
                    yield Result(row["png"], about | {"annotations": row.get("coco")})


OUTPUTS: dict[str, type[Output]] = {"png": Png, "webdataset": WebDataset, "parquet": Parquet}


def _text(about: dict[str, object]) -> bytes:
    return (json.dumps(about) + "\n").encode()


def make(to: str, folder: Path, scratch: Path, rle: bool, label_ids: bool) -> Output:
    """UserError for an unknown kind, and where a package is missing."""
    if to not in OUTPUTS:
        raise UserError(f"--to must be one of {', '.join(OUTPUTS)}, not {to!r}")
    if to == "parquet":
        tables.pyarrow("pyarrow.parquet")
    os.makedirs(scratch, exist_ok=True)
    return OUTPUTS[to](folder, scratch, rle, label_ids)
