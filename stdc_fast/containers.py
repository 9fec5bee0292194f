"""What image files say of their colours and Pillow does not: chunks of PNG, boxes of HEIF and JP2."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image


@contextlib.contextmanager
def opened(image: Image.Image) -> Iterator[BinaryIO | None]:
    """The file of an image that Pillow has opened, None where it is gone; it is left where it was."""
    file = getattr(image, "fp", None)
    try:
        place = file.tell()
    except (AttributeError, OSError, ValueError):
        try:
            file = open(image.filename, "rb")  # noqa: SIM115
        except (AttributeError, OSError, ValueError):
            yield None
            return
        with file:
            yield file
        return
    try:
        yield file
    finally:
        file.seek(place)


def png_chunks(file: BinaryIO, wanted: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """Chunks before the pixels by their names, of a file whose check sums Pillow has seen."""
    found = {}
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind in wanted:
            found[kind] = file.read(length)
            length = 0
        file.seek(length + 4, 1)
    return found


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of the content of each box of ISO 14496-12 in a part of a file."""
    while start + 8 <= end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        head = 8
        if length == 1:
            length, head = int.from_bytes(file.read(8), "big"), 16
        elif length == 0:
            length = end - start
        if length < head:
            return
        yield kind, start + head, min(start + length, end)
        start += length


def _inside(file: BinaryIO, path: tuple[bytes, ...], start: int, end: int) -> tuple[int, int] | None:
    """Where the content of a box of boxes is; "meta" has four bytes before its own."""
    for kind, first, last in _boxes(file, start, end):
        if kind == path[0]:
            first += 4 * (kind == b"meta")
            return _inside(file, path[1:], first, last) if len(path) > 1 else (first, last)
    return None


def _content(file: BinaryIO, span: tuple[int, int] | None) -> bytes:
    if span is None:
        return b""
    file.seek(span[0])
    return file.read(span[1] - span[0])


def heif_codes(file: BinaryIO) -> tuple[int, int] | None:
    """H.273's codes of primaries and transfer of the main picture of an AVIF or HEIC file."""
    size = file.seek(0, 2)
    properties = _inside(file, (b"meta", b"iprp", b"ipco"), 0, size)
    if properties is None:
        return None
    # "colr" boxes by their place in the list; the main item names its own.
    codes = {}
    for place, (kind, first, last) in enumerate(_boxes(file, *properties), 1):
        if kind == b"colr" and (body := _content(file, (first, min(last, first + 11))))[:4] == b"nclx":
            codes[place] = struct.unpack(">HH", body[4:8])
    main = _content(file, _inside(file, (b"meta", b"pitm"), 0, size))
    links = _content(file, _inside(file, (b"meta", b"iprp", b"ipma"), 0, size))
    if not codes or not main or len(links) < 8:
        return None
    item, wide = int.from_bytes(main[4:], "big"), 2 if links[0] == 0 else 4
    step, at = (2 if links[3] & 1 else 1), 8
    while at + wide < len(links):
        owner, count = int.from_bytes(links[at : at + wide], "big"), links[at + wide]
        at += wide + 1
        for _ in range(count):
            place = int.from_bytes(links[at : at + step], "big") & (0x7FFF if step == 2 else 0x7F)
            at += step
            if owner == item and place in codes:
                return codes[place]
    return None


def jp2_profile(file: BinaryIO) -> bytes | None:
    """The ICC profile of a JP2 file."""
    body = _content(file, _inside(file, (b"jp2h", b"colr"), 0, file.seek(0, 2)))
    return body[3:] if body[:1] == b"\2" else None
