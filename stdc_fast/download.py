"""Published weights on this machine: where they lie, checked before every use, fetched only when asked for.

A file of :mod:`stdc_fast.registry` lies at ``STDC_FAST_HOME/models/NAME/FILE``, whoever put it there. Where a
hash is published, that of the file must start with it. Else the first use writes ``FILE.sha256`` beside it,
in the form of sha256sum, and later ones must agree. A download in progress is ``FILE.part``;
``FILE.part.json`` says of which remote file, so that only the same one is gone on with.

The environment: STDC_FAST_HOME, STDC_FAST_MIRROR (addresses of copies of ``models``, tried first),
STDC_FAST_OFFLINE.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from stdc_fast import web
from stdc_fast.errors import UserError
from stdc_fast.files import cache_folder, write_atomic
from stdc_fast.registry import Record
from stdc_fast.web import Failed

log = logging.getLogger(__name__)

_SWITCH = {"": False, "0": False, "false": False, "no": False, "off": False,
           "1": True, "true": True, "yes": True, "on": True}  # fmt: skip


def place(record: Record) -> Path:
    """Where the file of a record is, or would be. UserError where there is no folder for it."""
    return cache_folder("STDC_FAST_HOME") / "models" / record.name / record.file


def known_place(record: Record) -> Path | None:
    """:func:`place`, None where there is no folder for it."""
    with contextlib.suppress(UserError):
        return place(record)
    return None


def status(record: Record) -> str:
    """ "cached", or how to come by the file: "download", "uncertain" (may be gone), "manual" (by hand)."""
    path = known_place(record)
    if path is not None and os.path.isfile(path):
        return "cached"
    return "manual" if not record.urls else "uncertain" if record.uncertain else "download"


def by_hand(record: Record) -> str:
    """Which file is to be put where, in words."""
    source = record.urls[0] if record.urls else f"{record.file} from {record.page}"
    return f"by hand: save {source} as {place(record)}"


def local(record: Record) -> Path | None:
    """The checked file of a record, None if it is not here. UserError if it is not the published one."""
    path = place(record)
    if not os.path.isfile(path):
        return None
    check(record, path)
    return path


def find(record: Record) -> Path:
    """The checked file of a record. UserError that says how to come by it, if it is not here."""
    path = local(record)
    if path is None:
        can = bool(record.urls or mirrors(record))
        ask = f'run "stdc-fast download {record.name}" or load it with download=True; ' if can else ""
        raise UserError(f"{record.name} is not on this machine; {ask}{by_hand(record)}")
    return path


def check(record: Record, path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits.

    UserError, with both hashes, unless it begins as published or, where nothing is published, is that of the
    first use.
    """
    try:
        found = _sha256(path)
    except OSError as error:
        raise UserError(f"{path}: can not be read ({error.strerror})") from None
    if (problem := _problem(record, path, found)) is not None:
        raise UserError(f"{path}: {problem}")
    return found


def fetch(record: Record, quiet: bool | None = None) -> Path:
    """The checked file of a record, downloaded if it is not here.

    Mirrors go first, then the published addresses. Of several processes and threads one downloads and the
    others wait for it.

    Args:
        record: whose file to fetch.
        quiet: no progress bar; None for one on terminals only.

    Raises UserError, in one line that says which file to put where by hand, if no address gives the file, if
    there is none, under STDC_FAST_OFFLINE, and if the folder can not be written or is too small.
    """
    if (path := local(record)) is not None:
        return path
    path = place(record)
    addresses = [*mirrors(record), *record.urls]
    if offline():
        raise UserError(f"{record.name}: STDC_FAST_OFFLINE forbids the download; {by_hand(record)}")
    if not addresses:
        raise UserError(f"{record.name} has no address that a program can fetch; {by_hand(record)}")
    with _written(record, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(record, path):
            if local(record) is None:
                _first_of(addresses, record, path, quiet)
    return path


def offline() -> bool:
    """Whether STDC_FAST_OFFLINE forbids downloads; UserError if it is neither yes nor no."""
    given = os.environ.get("STDC_FAST_OFFLINE", "")
    if given.strip().lower() not in _SWITCH:
        raise UserError(f"STDC_FAST_OFFLINE must be 1 or 0, not {given!r}")
    return _SWITCH[given.strip().lower()]


def mirrors(record: Record) -> list[str]:
    """Addresses of the file by STDC_FAST_MIRROR, which holds base addresses with spaces between."""
    found = []
    for base in os.environ.get("STDC_FAST_MIRROR", "").split():
        try:
            parts = urlsplit(base)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            valid = valid and base.isascii() and parts.username is None
        except ValueError:  # a port that is no number, an IPv6 address that does not end
            valid = False
        if not valid:
            raise UserError(
                f"STDC_FAST_MIRROR must hold http or https addresses in ASCII, without a user, not {base!r}"
            )
        found.append(f"{base.rstrip('/')}/{quote(record.name)}/{quote(record.file)}")
    return found


def _first_of(addresses: list[str], record: Record, path: Path, quiet: bool | None) -> None:
    """Put the file at ``path`` from the first address that has it."""
    part, failures = _beside(path, ".part"), []
    for url in addresses:
        try:
            _receive(url, part, record, quiet)
            if (problem := _problem(record, path, _sha256(part))) is not None:
                part.unlink()
                raise Failed(f"gives a wrong file, which was removed: {problem}")
        except Failed as failure:
            failures.append(f"{url} {failure}")
            if url != addresses[-1]:
                log.warning("%s: %s; the next address is tried", record.name, failures[-1])
            continue
        os.replace(part, path)
        _identity_file(part).unlink(missing_ok=True)
        return
    kept = part.stat().st_size if part.is_file() else 0
    again = f"; {kept / 1e6:.1f} MB are kept, so try again" if kept else ""
    raise UserError(f"{record.name}: {'; '.join(failures)}{again}; {by_hand(record)}")


def _receive(url: str, part: Path, record: Record, quiet: bool | None) -> None:
    """The whole remote file into ``part``, going on with what is there of the same one."""
    known = _identity(part)
    start = part.stat().st_size if known is not None and known["url"] == url else 0
    with web.request(url, start) as response:
        remote = _remote(url, response)
        if response.status != 206:
            start = 0
        elif known is None or remote != known | {"start": start}:
            response.close()
            if not start:
                raise Failed("answers with a part of the file")
            part.unlink()
            return _receive(url, part, record, quiet)
        size = remote["size"]
        if size is None and record.sha256 is None:
            raise Failed("does not say how large the file is, and no hash of it is published")
        free, needed = shutil.disk_usage(part.parent).free, (size or 0) - start
        if needed > free:
            raise UserError(
                f"{record.name}: {needed / 1e6:.1f} MB do not fit into {part.parent}, which has "
                f"{free / 1e6:.1f} MB; make room, or set STDC_FAST_HOME to another folder; {by_hand(record)}"
            )
        with open(part, "ab" if start else "wb") as file:
            if not start:  # only now that the old one is empty
                _identity_file(part).write_text(json.dumps(remote))
            bar = tqdm(desc=record.file, total=size, initial=start, disable=quiet or None,
                       unit="B", unit_scale=True, delay=0.2)  # fmt: skip
            with bar:
                while block := web.block(response):
                    file.write(block)
                    bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
            received = file.tell()
    if size is not None and received != size:
        raise Failed(f"ended after {received} of {size} bytes")
    return None


def _remote(url: str, response: http.client.HTTPResponse) -> dict[str, object]:
    """What tells one remote file from another, and at which of its bytes the response starts."""
    headers = response.headers
    start, size = 0, headers.get("Content-Length")
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        start, size = (int(found[1]), found[2]) if found else (None, None)
    return {
        "url": url,
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "size": int(size) if size and size.isdigit() else None,
        "start": start,
    }


def _identity(part: Path) -> dict[str, object] | None:
    """Of which remote file ``part`` is; None if there is none or nothing would tell that it changed."""
    try:
        known = json.loads(_identity_file(part).read_text())
        certain = known["url"] and (known["etag"] or known["last_modified"])
        return known if certain and part.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _alone(record: Record, path: Path) -> Iterator[None]:
    """Wait until no other thread or process downloads this file. The lock ends with its process."""
    from filelock import FileLock, Timeout

    lock = FileLock(_beside(path, ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: waiting for another download of it", record.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _written(record: Record, folder: Path) -> Iterator[None]:
    """Say of a failure to write into ``folder`` what to do instead."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{record.name}: {folder} can not be written ({error.strerror or error}); set STDC_FAST_HOME to "
            f"another folder; {by_hand(record)}"
        ) from None


def _problem(record: Record, path: Path, found: str) -> str | None:
    """What is wrong with a file for ``path`` of this sha256, None for nothing; a first one is recorded."""
    if record.sha256 is not None:
        if found.startswith(record.sha256):
            return None
        return f"its sha256 is {found}, the published one starts with {record.sha256}; get it again"
    note = _beside(path, ".sha256")
    try:
        first = note.read_text().split()[0]
    except FileNotFoundError:
        _record(note, path, found)
        return None
    except (OSError, ValueError, IndexError):
        return f"the hash of its first use can not be read; remove {note}"
    if first == found:
        return None
    return f"its sha256 is {found}, at the first use it was {first}; get it again, or remove {note.name}"


def _record(note: Path, path: Path, found: str) -> None:
    """Write down the hash of a first use; in a folder that can not be written it is only said."""
    try:
        write_atomic(note, lambda p: p.write_text(f"{found}  {path.name}\n"))
        where = f"recorded in {note}"
    except UserError:
        where = "not recorded, as the folder can not be written"
    log.warning("%s: no hash is published; sha256 %s, %s", path, found, where)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _identity_file(part: Path) -> Path:
    return _beside(part, ".json")
