"""Changes to files as bad disks, cut transfers and odd programs make them, and worse ones."""

import zlib

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"

#: Numbers at which sums and sizes go wrong.
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """``data`` with one to six changes, mostly near its begin, where headers are; ``other`` gives parts."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 7)):
        if not data:
            break
        length = len(data) if rng.random() < 0.4 else min(len(data), 600)
        at, count = int(rng.integers(length)), int(2 ** rng.uniform(0, 7))
        kind = rng.integers(8)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            width = int(rng.choice([1, 2, 4]))
            number = int(rng.choice(EXTREMES)) % 256**width
            data[at : at + width] = number.to_bytes(width, str(rng.choice(["little", "big"])))
        elif kind == 3:
            del data[at : at + count]
        elif kind == 4:
            start = int(rng.integers(len(data)))
            data[at:at] = data[start : start + count]
        elif kind == 5:
            start = int(rng.integers(max(len(other), 1)))
            data[at : at + count] = other[start : start + count]
        elif kind == 6:
            data[at : at + count] = bytes(len(data[at : at + count]))
        elif rng.random() < 0.3:
            del data[int(rng.integers(len(data))) :]
    return _summed(bytes(data)) if data[:8] == PNG and rng.random() < 0.7 else bytes(data)


def _summed(data: bytes) -> bytes:
    """A PNG with the right sum after each chunk, as far as its lengths lead."""
    made, at = bytearray(data), len(PNG)
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)
