"""Files are written whole or not at all; and the user's folder for what can be made or fetched again."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors

from stdc_fast.errors import UserError


@contextlib.contextmanager
def write_errors(path: str | Path):
    """Turn a failure to write ``path`` into a UserError that names it."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: can not be written ({reason}); choose another place") from None


def ends_with(path: str | Path, end: bytes) -> bool:
    """Whether a file ends with these bytes: one that was cut does not. OSError if it can not be read."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(end)))
        return file.read() == end


def _target(path: Path) -> Path:
    """The file itself where ``path`` is a link to it. OSError for what is no file, as a device."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder" if path.is_dir() else "it is a device or a pipe")
    return path


def writable(path: Path) -> bool:
    """Whether a file is there. UserError if it can not be written: better known before minutes of work."""
    with write_errors(path):
        path = _target(path)
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        if new:
            path.unlink()
    return not new


def write_atomic(path: str | Path, write: Callable[[Path], object], folder: str | Path | None = None) -> None:
    """Call ``write`` with a temporary path in the same folder, then rename it to ``path``.

    ``folder`` is another one, of the same file system, for the temporary file.

    Whatever happens, ``path`` is either the old file or the whole new one. Missing folders are made. The
    target of a link is replaced, not the link. UserError, naming ``path``, if the file system refuses, and
    for a device or a pipe.
    """
    with write_errors(path), atomic(Path(path), folder) as temporary:
        write(temporary)


def write_bytes(path: str | Path, content: bytes, folder: str | Path | None = None) -> None:
    """:func:`write_atomic` of bytes."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content), folder)


@contextlib.contextmanager
def atomic(path: Path, folder: str | Path | None = None):
    """:func:`write_atomic` as a context that gives the temporary path, with ``path``'s suffix; OSError."""
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of the stem a part: a name that just fits its folder must not be too long with what is added.
    name = f".{path.stem[:32]}.tmp{secrets.token_hex(4)}{path.suffix}"
    temporary = path.with_name(name) if folder is None else Path(folder, name)
    # The mode that a new file has: asking for the umask would change it for other threads meanwhile.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder(variable: str) -> Path:
    """The folder that an environment variable names, else stdc_fast in the platform's folder for caches.

    An absolute path; nothing is made. UserError if there is neither the variable nor a home directory.
    """
    try:
        if given := os.environ.get(variable):
            return Path(given).expanduser().absolute()
        if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
            return Path(local) / "stdc_fast"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "stdc_fast"
        # A relative path counts as none, says the XDG specification.
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (given if given.is_absolute() else Path.home() / ".cache") / "stdc_fast"
    except RuntimeError as error:
        raise UserError(f"no folder for caches ({error}); set {variable} to one") from None
