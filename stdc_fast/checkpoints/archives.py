"""torch's two file formats and bare pickles, read without torch's own unpickler.

A zip archive (torch 1.6 and later) holds ``data.pkl`` and one uncompressed record a storage, with check sums
that torch itself does not look at. The older format is a row of pickles with the storages' bytes behind them.
PaddlePaddle writes one pickle with its arrays inside.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from stdc_fast.checkpoints.pickles import BrokenPickle, Machine, Opaque
from stdc_fast.checkpoints.rebuild import MAKERS, Storage, storage_dtype
from stdc_fast.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # what torch's older files begin with
# Bytes that compressed records of an archive may have when unpacked: pickles, and all of them. torch
# compresses none, so that somebody else has packed them again.
_MOST_PICKLE, _MOST_UNPACKED = 1 << 25, 1 << 29
_LOCAL = struct.Struct(
    "<4s22xHH"
)  # a zip's local header: its mark, the lengths of the name and the extra field


def damaged(why: object) -> UserError:
    return UserError(f"damaged ({why}); download or copy it again")


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[object]:
    """What a zip archive of torch's holds; its storages can be read until the context ends. UserError."""
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
            raise damaged(f"not a whole zip archive: {error}") from None
        with archive:
            yield _open_zip(file, archive)


def _open_zip(file: BinaryIO, archive: zipfile.ZipFile) -> object:
    records = {i.filename: i for i in archive.infolist()}
    if len(records) != len(archive.infolist()):
        raise damaged("a record of its zip archive is there twice")
    if sum(i.compress_size for i in records.values()) > os.fstat(file.fileno()).st_size:
        raise damaged("records of its zip archive lie in each other")
    packed = [i for i in records.values() if i.compress_type != zipfile.ZIP_STORED]
    pickles = [i.file_size for i in packed if i.filename.endswith(".pkl")]
    if sum(i.file_size for i in packed) > _MOST_UNPACKED or sum(pickles) > _MOST_PICKLE:
        raise UserError("is compressed, and too large unpacked; unpack it, and pack it without compression")
    names = {n.partition("/")[2] for n in records}
    pickled = next((n for n in records if n.endswith("/data.pkl") and n.count("/") == 1), None)
    if "constants.pkl" in names:
        raise UserError("is a TorchScript archive, which is a program; give the state dict it was made from")
    if any(
        n.startswith("models/") or n in ("serialized_exported_program.json", "archive_format") for n in names
    ):
        raise UserError("is a program of torch.export; give the state dict it was made from")
    if pickled is None:
        raise UserError(_what_zip(list(records)))
    folder = pickled.removesuffix("data.pkl")
    checked = any(i.CRC for i in records.values())  # torch can be told to write none

    def record(info: zipfile.ZipInfo) -> Tensor:
        return _bytes_of(file, archive, info, checked)

    order = records.get(f"{folder}byteorder")
    swapped = order is not None and bytes(record(order).numpy()) == b"big"
    stored: dict[str, Storage] = {}

    def persistent(identity: object) -> Storage | Opaque:
        dtype, key, count = _identity(identity)
        if dtype is None:
            return Opaque("a storage of another kind")
        if key not in stored:
            info = records.get(f"{folder}data/{key}")
            if info is None or info.file_size != count * dtype.itemsize:
                raise damaged(f"storage {key} is missing or of another size")
            stored[key] = Storage(
                dtype, count, lambda: _native(record(info), dtype) if swapped else record(info)
            )
        return stored[key]

    try:
        return Machine(memoryview(record(records[pickled]).numpy()), 0, MAKERS, persistent).run()
    except BrokenPickle as error:
        raise damaged(f"broken pickle: it {error}") from None


def _what_zip(names: list[str]) -> str:
    """What a zip archive is that torch has not written."""
    if names and all(n.endswith(".npy") for n in names):
        return f"is NumPy arrays, not a torch checkpoint; it holds {', '.join(names[:3])}"
    inside = [n for n in names if n.endswith((".pth", ".pt", ".tar", ".ckpt", ".pdparams", ".safetensors"))]
    if inside:
        return f"is a zip archive with {inside[0]} in it; unpack it and give that"
    return f"is a zip archive, not a torch checkpoint; it holds {', '.join(names[:3]) or 'nothing'}"


def _native(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes of the other order, in this machine's."""
    size = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    return torch.from_numpy(data.numpy().view(f"u{size}").byteswap().view("u1"))


def _identity(identity: object) -> tuple[torch.dtype | None, str, int]:
    """Element type, key and number of elements of the storage that a persistent id names.

    The type is None for elements that are no plain numbers, such as quantised ones.
    """
    if type(identity) is not tuple or len(identity) < 5 or identity[0] != "storage":
        raise BrokenPickle("refers to no storage")
    dtype, key, count = storage_dtype(identity[1]), identity[2], identity[4]
    if type(key) is not str or type(count) is not int or count < 0:
        raise BrokenPickle("refers to no known storage")
    return dtype, key, count


def _bytes_of(file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo, checked: bool) -> Tensor:
    """A record's bytes; where they are stored as they are, read straight into the tensor."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        try:
            data = archive.read(info)
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            NotImplementedError,
            RuntimeError,
            zlib.error,
        ) as error:
            raise damaged(error) from None
        return torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: info.file_size]
    header = bytearray(_LOCAL.size)
    if not _fill(file, info.header_offset, memoryview(header)) or header[:4] != b"PK\x03\x04":
        raise damaged(f"no record {info.filename}")
    _, name, extra = _LOCAL.unpack(header)
    start = info.header_offset + _LOCAL.size + name + extra
    return _read(file, start, info.file_size, info.CRC if checked else None, info.filename)


def _read(file: BinaryIO, start: int, size: int, check: int | None, what: str) -> Tensor:
    if start + size > os.fstat(file.fileno()).st_size:
        raise damaged(f"ends within {what}")
    data = torch.empty(size, dtype=torch.uint8)
    view = memoryview(data.numpy())
    if not _fill(file, start, view):
        raise damaged(f"ends within {what}")
    if check is not None and zlib.crc32(view) != check:
        raise damaged(f"{what} is not what was written: its check sum differs")
    return data


_SEEKING = threading.Lock()


def _fill(file: BinaryIO, start: int, view: memoryview) -> bool:
    """Fill ``view`` from the file; False where it ends first. Several threads may."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            got = os.preadv(file.fileno(), [view[done:]], start + done)
        else:
            with _SEEKING:
                file.seek(start + done)
                got = file.readinto(view[done:])
        if not got:
            return False
        done += got
    return True


@contextlib.contextmanager
def open_pickle(path: Path) -> Iterator[object]:
    """What a bare pickle, or a file of torch before 1.6, holds, as :func:`open_archive`."""
    with open(path, "rb") as file:
        size, part = os.fstat(file.fileno()).st_size, 1 << 20
        while True:
            # The pickles come first and are small; what lies behind them is read when it is wanted.
            data = memoryview(bytearray(min(part, size)))
            if not _fill(file, 0, data):
                raise damaged("it became shorter while it was read")
            try:
                content = _open_legacy(file, data)
                break
            except BrokenPickle as error:
                if part >= size:
                    raise damaged(f"broken pickle: it {error}") from None
                part *= 8
        yield content


def _open_legacy(file: BinaryIO, data: memoryview) -> object:
    machine = Machine(data, 0, MAKERS)
    if (first := machine.run()) != _MAGIC:
        return first
    stored: dict[str, Storage] = {}
    places: dict[str, int] = {}

    def persistent(identity: object) -> object:
        if type(identity) is tuple and identity[:1] == ("module",):
            return identity[1]  # a class with its source, of models that were pickled whole
        dtype, key, count = _identity(identity)
        if dtype is None:
            raise UserError("holds storages of another kind than plain numbers, such as quantised ones")
        if len(identity) > 5 and identity[5] is not None:
            raise UserError("holds views of storages as torch before 0.4 wrote them; load and save it there")
        if key not in stored:
            size = count * dtype.itemsize
            stored[key] = Storage(
                dtype, count, lambda: _read(file, places[key], size, None, f"storage {key}")
            )
        return stored[key]

    parts = []
    for _ in range(4):  # protocol, system, content, keys
        machine = Machine(data, machine.at, MAKERS, persistent)
        parts.append(machine.run())
    _, system, content, keys = parts
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError("was written on a big-endian machine; save it there as safetensors")
    if type(keys) is not list or not all(isinstance(k, str) for k in keys) or set(keys) != set(stored):
        raise damaged("its list of storages is not what it holds")
    at, end = machine.at, os.fstat(file.fileno()).st_size
    for key in keys:
        file.seek(at)
        count, places[key] = file.read(8), at + 8
        at += 8 + stored[key].count * stored[key].dtype.itemsize
        if at > end or int.from_bytes(count, "little", signed=True) != stored[key].count:
            raise damaged(f"ends within storage {key}, or it has another size")
    return content
