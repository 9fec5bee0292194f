"""Records of measurements: one JSON object a line, appended to a file.

A record has ``schema`` (1), ``id``, ``time`` (UTC), ``kind`` ("latency", "scaling", "kernels" or "roofline"),
``header`` (machine, versions, commit, threads, clocks, load), ``limits``
(:func:`stdc_fast.benchmark.limits.measure`), ``rows`` (:func:`stdc_fast.benchmark.run.rows`, of a roofline
with ``ops``) and, of scaling, ``fits``. Those of kernels are as ``bench/gpu_kernels.py`` has them.
``python -m bench.report`` reads latency and scaling.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from stdc_fast.errors import UserError
from stdc_fast.files import writable, write_atomic, write_errors


def check(path: Path) -> None:
    """UserError if nothing can be appended to a file: better known before minutes of measuring."""
    if writable(path) and (not path.is_file() or path.read_bytes()[:1] not in (b"", b"{")):
        raise UserError(f"{path}: is no file of records, nothing is appended to it; choose another --out")


def append(record: dict[str, object], path: Path) -> None:
    """Add a record to a file, which is whole before and after. UserError if it can not be written."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    path = path.resolve()  # a link stays one
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            old = path.read_bytes() if path.exists() else b""
            if old and not old.endswith(b"\n"):
                old += b"\n"
            write_atomic(path, lambda p: p.write_bytes(old + line))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands that append to one file wait for each other, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
