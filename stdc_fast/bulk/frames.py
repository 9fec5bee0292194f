"""The listing of a job: every input once, in order, with the frames in it; a file, cut into shards."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from stdc_fast import listing, video
from stdc_fast.bulk import sources, tables
from stdc_fast.bulk.sources import PARQUET, PICTURE, TAR, VIDEO, Input
from stdc_fast.errors import UserError, announce
from stdc_fast.files import write_atomic


class Frame(NamedTuple):
    """One frame of a job.

    Attributes:
        key: what its result is called, different for each.
        kind, path, size, mtime_ns: of its input, see :class:`Input`.
        name: what messages call it.
        at: its number in a video, its row in a Parquet file, (offset, bytes) in a tar; else None.
        error: why there is no such frame, found when the frames were counted; else None.
    """

    key: str
    kind: str
    path: str
    size: int
    mtime_ns: int
    name: str
    at: int | tuple[int, int] | None = None
    error: str | None = None


class Entry(NamedTuple):
    """A line of a listing: an input with its frames.

    ``frames`` is their number in a video or Parquet file; ``members`` are those of a tar, as (name, key,
    offset, bytes); ``error`` stands for one more frame, which can not be had.
    """

    input: Input
    frames: int = 0
    members: tuple[tuple[str, str, int, int], ...] = ()
    error: str | None = None

    def __len__(self) -> int:
        return self.frames + len(self.members) + (self.error is not None)

    def line(self) -> str:
        return json.dumps([*self.input, self.frames, self.members, self.error], separators=(",", ":"))

    @staticmethod
    def of(line: str | bytes) -> Entry:
        *values, frames, members, error = json.loads(line)
        return Entry(Input(*values), frames, tuple(map(tuple, members)), error)

    def each(self) -> Iterator[Frame]:
        kind, path, size, mtime_ns, key = self.input
        base = kind, path, size, mtime_ns
        if kind == PICTURE and self.frames:
            yield Frame(key, *base, path)
        elif kind != PICTURE:
            for i in range(self.frames):
                yield Frame(sources.number_key(key, i), *base, f"{path}[{i}]", i)
        for name, own, offset, length in self.members:
            yield Frame(own, *base, f"{path}/{name}", (offset, length))
        if self.error is not None:
            own = key if kind == PICTURE else sources.join(key, "rest")
            yield Frame(own, *base, path, None, self.error)


def count(one: Input, dotless: bool, text_keys: bool) -> Entry:
    """The frames of an input, which is opened for that unless it is a picture.

    What is damaged has the frames that can be had, and an error. With ``text_keys`` keys must be UTF-8.
    UserError only for a package that is missing.
    """
    try:
        if text_keys:
            _check_text(one.key, one.path)
        if one.kind == PICTURE:
            if one.size < 0:
                return Entry(one, error=_no_picture(one))
            return Entry(one, frames=1)
        if one.kind == VIDEO:
            return _count_video(one)
        if one.kind == TAR:
            return _count_tar(one, dotless, text_keys)
        return Entry(one, frames=tables.count(one.path))
    except UserError as error:
        _check_packages(one.kind)
        return Entry(one, error=str(error))


def _no_picture(one: Input) -> str:
    return f"{one.path}: no such file" if one.path else f"{one.key}: the cell of its path is empty"


def _check_text(key: str, path: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r}: its name is no UTF-8 text; rename it, or use --to png") from None


def _check_packages(kind: str) -> None:
    if kind == VIDEO:
        video.reader.av()
    if kind == PARQUET:
        tables.pyarrow()


def _count_video(one: Input) -> Entry:
    found = 0
    with video.read(one.path) as reader:
        try:
            while reader.skip(1):
                found += 1
        except UserError as error:
            return Entry(one, frames=found, error=str(error))
    return Entry(one, frames=found)


def _count_tar(one: Input, dotless: bool, text_keys: bool) -> Entry:
    # "rest" is what the frames are called that a damaged tar does not give.
    members, taken, error, link = [], {"": {"rest"}}, None, None
    try:
        with tarfile.open(one.path, "r:") as tar:
            for member in tar:
                folder, name = os.path.split(os.path.normpath(member.name).replace(os.sep, "/"))
                if not listing.is_image(Path(name)) or not (
                    member.isfile() or member.islnk() or member.issym()
                ):
                    continue
                if not member.isfile():
                    link = link or member.name
                    continue
                if ".." in folder.split("/") or member.issparse():
                    raise UserError(
                        f"{one.path}: {member.name}: a member of this kind is refused; pack it anew"
                    )
                folder = folder.strip("/")  # "/a" and "a" are one folder below the key
                # WebDataset has all up to the first dot of the last part as key; here it is up to the last
                # one, for a sample may hold several pictures.
                stem = sources.free_stem(name, taken.setdefault(folder, set()), dotless)
                key = sources.join(one.key, sources.join(folder, stem))
                if text_keys:
                    _check_text(key, one.path)
                if member.offset_data + member.size > one.size:
                    raise tarfile.ReadError(f"{member.name} ends behind the end of the file")
                members.append((member.name, key, member.offset_data, member.size))
                tar.members = []  # it would keep all of them
            with open(one.path, "rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("its end is missing")
                while piece := file.read(1 << 20):
                    if piece.count(0) != len(piece):
                        raise UserError(
                            f"{one.path}: has more behind its end; unpack both, and pack them as one"
                        )
    except UserError as problem:
        error = str(problem)
    except (tarfile.TarError, OSError, EOFError) as problem:
        remedy = "unpack it" if _is_packed(one.path) else "copy it again"
        error = f"{one.path}: can not be read as a tar ({problem}); {remedy}"
    if link:
        announce(one.path, "links in it are not followed, as %s", link)
    elif not members and error is None:
        announce(one.path, "holds no pictures")
    return Entry(one, members=tuple(members), error=error)


def _is_packed(path: str) -> bool:
    """Whether a file is compressed, whatever its name says: by gzip, bzip2, xz, Zstandard or ZIP."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"))
    return False


class Listing:
    """A listing in a file.

    Attributes:
        path: of the file, a line an :class:`Entry`.
        shards: for each shard where it starts: the offset of a line, and frames of it to leave out.
        frames: number of them.
        size: frames of a shard; the last one may have fewer.
    """

    def __init__(self, path: Path, shards: list[tuple[int, int]], frames: int, size: int):
        self.path, self.shards, self.frames, self.size = path, shards, frames, size

    def frames_of(self, shard: int) -> Iterator[Frame]:
        """The frames of a shard, in order."""
        offset, left_out = self.shards[shard]
        with open(self.path, "rb") as file:
            file.seek(offset)
            entries = (Entry.of(line) for line in file)
            frames = itertools.chain.from_iterable(entry.each() for entry in entries)
            yield from itertools.islice(frames, left_out, left_out + self.length(shard))

    def length(self, shard: int) -> int:
        """Number of frames in a shard."""
        return min(self.size, self.frames - shard * self.size)

    def entries(self) -> Iterator[Entry]:
        with open(self.path, "rb") as file:
            for line in file:
                yield Entry.of(line)


def write(path: Path, entries: Iterable[Entry], size: int) -> tuple[Listing, str]:
    """Write a listing with shards of ``size`` frames, whole or not at all; it and its inputs' digest."""
    shards, frames, digest = [], 0, hashlib.sha256()

    def fill(temporary: Path) -> None:
        nonlocal frames
        offset = 0
        with open(temporary, "wb") as file:
            for entry in entries:
                line = entry.line().encode() + b"\n"
                first = -frames % size  # of this entry's frames the first that begins a shard
                shards.extend((offset, i) for i in range(first, len(entry), size))
                frames += len(entry)
                digest.update(json.dumps(entry.input).encode())
                file.write(line)
                offset += len(line)

    write_atomic(path, fill)
    return Listing(path, shards, frames, size), digest.hexdigest()


def difference(kept: Listing, found: Iterable[Input], changed: set[str] = frozenset()) -> str | None:
    """How the inputs are others than those of a listing, in words; None where they are the same.

    Pictures of which the path is in ``changed`` may have another size and time.
    """
    for entry, now in itertools.zip_longest(kept.entries(), found):
        before = None if entry is None else entry.input
        if before == now:
            continue
        if before is None:
            return f"{now.path} is new"
        if now is None or before.path != now.path:
            there = os.path.exists(before.path) and now is not None
            return f"{now.path} is new" if there else f"{before.path} is gone"
        if before.key != now.key:
            return f"the result of {now.path} would be called {now.key}, not {before.key}"
        if now.kind == PICTURE and now.path in changed:
            continue
        return f"{now.path} has {_stated(now, before)}"
    return None


def _stated(now: Input, before: Input) -> str:
    if now.size != before.size:
        return f"{now.size} bytes, not {before.size}"
    return "the same size but another time of its last change"
