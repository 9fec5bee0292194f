"""Memory of this process as Linux counts it; None or no effect elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def resident() -> int | None:
    """Bytes in memory now."""
    return _status("VmRSS")


def peak() -> int | None:
    """The most bytes in memory since :func:`reset_peak`, or since the process began."""
    return _status("VmHWM")


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def trim() -> None:
    """Give freed memory back to the system, which glibc else keeps."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def available() -> int | None:
    """Bytes that new processes can have without swapping, under the container's limit too."""
    found = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    return min(found, default=None)
