"""Running other people's converters: without their output, and with an error where they write nothing."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and progress lines of exporters, which would tear tables and spoil ``--json``."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without what libraries print past Python, which would tear tables and spoil ``--json``."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        # Into a pipe C keeps its lines until later; they must go while they go nowhere.
        with contextlib.suppress(OSError, TypeError, AttributeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def convert(name: str, command: list[str], file: Path) -> None:
    """Have a converter write ``file``, in its folder; RuntimeError with its last line if it does not."""
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    if done.returncode or not file.exists():
        said = (done.stdout + done.stderr).strip().split("\n")
        raise RuntimeError(f"{name} can not convert the network: {said[-1]}")
