"""Requests by http and https: what :mod:`stdc_fast.download` and pictures by address have in common.

Addresses are fetched as they are given, whatever network they lead to: a program that takes them from others
must check them before.
"""

from __future__ import annotations

import base64
import http.client
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from stdc_fast.version import __version__

#: Seconds that a server may send nothing.
TIMEOUT = 30.0
#: Seconds that all of one answer may take, from the look-up of the host to the last byte; of :func:`read`.
PATIENCE = 120.0
#: Redirections that are followed.
REDIRECTS = 5
#: Bytes by which :func:`read` asks whether to go on.
HEAD = 512
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1")
_BLOCK = 1 << 18


_ADDRESS = re.compile(r"(https?):/{1,2}(?=[^/])(.+)", re.IGNORECASE | re.DOTALL)


class Failed(Exception):
    """Why one address gave nothing, without the address."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS

    def http_error_302(self, req, fp, code, msg, headers):
        target = urljoin(req.full_url, headers.get("Location", ""))
        if urlsplit(target).scheme not in ("http", "https"):
            fp.close()
            raise Failed(f"leads to another kind of address ({target})")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def address(source: object) -> str | None:
    """An address that begins with http or https; None for what is none. Paths, which lose a slash, count."""
    found = _ADDRESS.fullmatch(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else None
    return f"{found[1].lower()}://{found[2]}" if found else None


def shown(url: str) -> str:
    """An address of any protocol without its password."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", url)


def request(url: str, start: int = 0) -> http.client.HTTPResponse:
    """The answer of an address, from byte ``start`` on if it can.

    Raises Failed if it can not be reached, answers with an error or a web page, and if it leads to another
    protocol or away from https.
    """
    headers = {"User-Agent": f"stdc_fast/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        plain, login = _plain(url)
        asked = urllib.request.Request(plain, headers=headers)
        if login:  # for this host only
            asked.add_unredirected_header("Authorization", login)
        # No proxy reaches what is on this machine.
        here = _LOOPBACK.fullmatch(urlsplit(plain).hostname or "")
        proxies = [urllib.request.ProxyHandler({})] * bool(here)
        response = urllib.request.build_opener(_Redirects, *proxies).open(asked, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing after these bytes: not the file that they are of
            return request(url, 0)
        if error.code in (301, 302, 303, 307, 308):
            raise Failed(f"redirects more than {REDIRECTS} times, or to itself") from None
        raise Failed(f"answers {error.code} ({error.reason})") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(why("can not be reached", error)) from None
    final = urlsplit(response.geturl()).scheme
    if url.lower().startswith("https:") and final != "https":
        response.close()
        raise Failed(f"leads to an unprotected address ({response.geturl()})")
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise Failed("answers with a web page instead of the file")
    return response


def read(url: str, wanted: Callable[[Message, bytes], bool], most: int) -> bytes | None:
    """All bytes of an answer, at most ``most``; None if it is not ``wanted``, by headers and first bytes.

    Raises Failed as :func:`request` does, for an answer that is larger, ends early, or does not end in
    :data:`PATIENCE` seconds.
    """
    done: queue.SimpleQueue = queue.SimpleQueue()
    end = time.monotonic() + PATIENCE

    def fetch() -> None:
        try:
            done.put(_read(url, wanted, most, end))
        except Exception as error:
            done.put(error)

    # In a thread, since neither the look-up of a host nor an answer of single bytes keeps to a time limit.
    threading.Thread(target=fetch, name="stdc_fast web", daemon=True).start()
    try:
        found = done.get(timeout=PATIENCE)
    except queue.Empty:
        raise _too_slow() from None
    if isinstance(found, Exception):
        raise found
    return found


def _read(url: str, wanted: Callable[[Message, bytes], bool], most: int, end: float) -> bytes | None:
    with request(url) as response:
        coding = response.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            raise Failed(f"answers in an encoding that was not asked for ({coding})")
        length = response.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        received, asked = bytearray(), False
        while True:
            part = block(response)
            received += part
            if not asked and (len(received) >= HEAD or not part):
                asked = True
                if not wanted(response.headers, bytes(received[:HEAD])):
                    return None
                if size is not None and size > most:
                    raise Failed(f"has {size / 1e6:.0f} MB, more than the limit of {most >> 20} MiB")
            if not part:
                break
            if len(received) > most:
                raise Failed(f"sends more than the limit of {most >> 20} MiB")
            if time.monotonic() > end:
                raise _too_slow()
    if size is not None and len(received) != size:
        raise Failed(f"ended after {len(received)} of {size} bytes")
    return bytes(received)


def _too_slow() -> Failed:
    return Failed(f"took more than {PATIENCE:g} s; download it first")


def block(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of an answer, none at its end. Raises Failed if it breaks off."""
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(why("broke off", error)) from None


def why(what: str, error: Exception) -> str:
    """What an exception of a request means, in one line."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"sent nothing for {TIMEOUT:g} s"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"has no valid certificate ({reason.verify_message})"
    text = (getattr(reason, "strerror", None) or str(reason)).strip() or type(reason).__name__
    return f"{what} ({' '.join(text.split())})"


def _plain(url: str) -> tuple[str, str | None]:
    """An address in ASCII and without user and password, and the header that has these."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
    port = "" if parts.port is None else f":{parts.port}"
    path, query = (quote(text, safe="%/:=&?~+!$,;'@()*[]") for text in (parts.path or "/", parts.query))
    login = None
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = f"Basic {base64.b64encode(words.encode()).decode()}"
    return urlunsplit((parts.scheme, host + port, path, query, "")), login
