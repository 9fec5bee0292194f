"""Which files a job's sources stand for, in an order that does not change, and how results are called."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stdc_fast import listing, video, web
from stdc_fast.bulk import tables
from stdc_fast.errors import UserError, announce

PICTURE, VIDEO, TAR, PARQUET = "picture", "video", "tar", "parquet"
_PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


class Input(NamedTuple):
    """One file of a job.

    Attributes:
        kind: :data:`PICTURE`, :data:`VIDEO`, :data:`TAR` or :data:`PARQUET`.
        path: absolute.
        size, mtime_ns: as the file system says, in bytes and nanoseconds; -1 for a file that is not there,
            to which a link leads, or which a Parquet file named.
        key: what results are called, a path with "/" and without a suffix; of frames in a container, their
            folder.
    """

    kind: str
    path: str
    size: int
    mtime_ns: int
    key: str


class Sources:
    """Files, folders and globs as a user names them; :meth:`inputs` gives the same each time.

    Keys are paths relative to the folder that all sources have in common. ``out`` is left out, so that
    results are no sources. With ``dotless`` the last part of a key has no dot, as keys of WebDataset must.
    UserError for what is no file, folder or glob, and for a source that lies in another one.
    """

    def __init__(self, sources: Sequence[str | os.PathLike], out: Path, dotless: bool = False):
        if isinstance(sources, (str, os.PathLike)):
            sources = [sources]
        if not sources:
            raise UserError("there are no sources; name files, folders or globs")
        self._out, self._dotless = os.path.realpath(out), dotless
        folders, files = set(), set()
        for source in sources:
            for path in _named(source):
                (folders if os.path.isdir(path) else files).add(os.path.abspath(path))
        files = {path for path in files if not self._is_result(path)}
        for path in itertools.chain(files, folders):
            if inside := next((str(p) for p in Path(path).parents if str(p) in folders), None):
                raise UserError(f"{path}: lies in {inside}, which is a source as well; name one of them")
        self._folders = sorted(folders, key=_order)
        self._files = sorted(files, key=_order)
        if not folders and not files:
            raise UserError(f"all sources lie in {out}, the folder of the results; choose another --out")
        try:
            self.root = os.path.commonpath([*folders, *(os.path.dirname(path) for path in files)])
        except ValueError as error:  # drives of Windows
            raise UserError(f"the sources have no folder in common ({error}); make a job of each") from None

    def _is_result(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._out)

    def inputs(self) -> Iterator[Input]:
        """All files, sorted by folder and name. UserError if there are none."""
        found = False
        for folder, names, chosen in self._groups():
            for one in self._of_folder(folder, names, chosen):
                found = True
                yield one
        if not found:
            raise UserError(
                f"{self.root}: holds no pictures, videos, tars or Parquet files; check the sources"
            )

    def _groups(self) -> Iterator[tuple[str, list[str], bool]]:
        """(folder, names of its files, whether a user named them)."""
        for folder, paths in itertools.groupby(self._files, os.path.dirname):
            yield folder, [os.path.basename(path) for path in paths], True
        for top in self._folders:
            for folder, inner, names in os.walk(top, onerror=_unreadable):
                seen = (n for n in inner if not n.startswith("."))
                own = (n for n in seen if not self._is_result(os.path.join(folder, n)))
                inner[:] = listing.without_jobs(folder, sorted(own))
                for name in inner:
                    if os.path.islink(os.path.join(folder, name)):
                        announce(f"{folder}/", "links to folders are not followed, as %s", name)
                yield folder, sorted(n for n in names if not n.startswith(".")), False

    def _of_folder(self, folder: str, names: list[str], chosen: bool) -> Iterator[Input]:
        paths = [Path(folder, name) for name in names]
        kinds = {path: _kind(path, chosen) for path in paths}
        if others := [path for path in paths if kinds[path] is None]:
            shown = ", ".join(path.name for path in others[:3]) + (", ..." if len(others) > 3 else "")
            announce(f"{folder}/", "files of it are not taken: %s", shown)
        taken: set[str] = set()
        prefix = os.path.relpath(folder, self.root).replace(os.sep, "/")
        for path in listing.without_results([path for path in paths if kinds[path] is not None]):
            kind, (size, mtime_ns) = kinds[path], stat_of(path)  # a link to nowhere is a failure of its own
            if size >= 0 and not path.is_file():
                raise UserError(f"{path}: is no file; jobs take files only")
            name = path.name if kind in (VIDEO, TAR, PARQUET) else free_stem(path.name, taken, self._dotless)
            one = Input(kind, str(path), size, mtime_ns, join(prefix, name))
            yield one
            if kind == PARQUET:
                yield from _pictures_of(one)


def free_stem(name: str, taken: set[str], dotless: bool) -> str:
    """A file's name without suffix; with its suffix or a number where that is taken. It is taken then."""
    stem, suffix = os.path.splitext(name)
    if dotless:
        stem = stem.replace(".", "_")
    numbered = (f"{stem}_{i}" for i in itertools.count(2))
    options = itertools.chain([stem, f"{stem}_{suffix.lstrip('.')}"], numbered)
    free = next(option for option in options if option not in taken)
    taken.add(free)
    return free


def join(folder: str, name: str) -> str:
    return name if folder in ("", ".") else f"{folder}/{name}"


def number_key(folder: str, number: int) -> str:
    """The key of a frame that has a number in its container."""
    return join(folder, f"{number:08d}")


def stat_of(path: str | Path) -> tuple[int, int]:
    """(size, mtime_ns), -1 for what is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # names that no file can have
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _order(path: str) -> tuple[str, str]:
    return os.path.split(path)


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: can not be read ({error.strerror}); mend that and try again"
    ) from None


def _named(source: str | os.PathLike) -> list[str]:
    """Paths of files and folders."""
    text = os.fspath(source)
    if not text:
        raise UserError("the source is an empty name; give a file, a folder or a glob")
    if os.path.exists(text):
        return [text]
    if web.address(text) is not None or video.is_url(text):
        raise UserError(f"{web.shown(text)}: jobs take files only; download it first")
    if glob.has_magic(text):
        found = listing.matches(text)
        # "**" gives the folders and all that is in them.
        found = [path for path in found if os.path.isfile(path) or "**" not in text]
        if not found:
            raise UserError(f"{text}: no file matches")
        return found
    if text == "-" or video.is_camera(text):
        raise UserError(f"{text}: jobs take files only; stdc-fast predict takes cameras and stdin")
    raise UserError(f"{text}: no such file")


def _kind(path: Path, chosen: bool) -> str | None:
    """The kind of a file by its name; None for what a folder does not give. UserError if it was named."""
    suffix = path.suffix.lower()
    if suffix != ".gif" and listing.is_image(path):  # by far most; a GIF may be a video
        return PICTURE
    if path.name.lower().endswith(_PACKED):
        if chosen:
            raise UserError(f"{path}: is compressed, so that frames in it can not be reached; unpack it")
        return None
    if suffix == ".tar":
        return TAR
    if suffix in _PARQUET_SUFFIXES:
        return PARQUET
    if video.is_video(path):
        return VIDEO
    return PICTURE if chosen or listing.is_image(path) else None


def _pictures_of(one: Input) -> Iterable[Input]:
    """The pictures that a Parquet file names; none where it holds them itself."""
    for row, name in enumerate(tables.paths(one.path)):
        path = "" if name is None else os.path.join(os.path.dirname(one.path), name)
        yield Input(PICTURE, path, *stat_of(path), number_key(one.key, row))
