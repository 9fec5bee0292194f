"""Pictures by http and https. What the server answers tells a picture from a video, not the address."""

from __future__ import annotations

import contextlib
import io
from email.message import Message

from PIL import Image

from stdc_fast import listing, web
from stdc_fast.errors import UserError

# How playlists of videos begin, which are text.
_PLAYLISTS = (b"#EXTM3U", b"<MPD", b"<?xml", b"<SmoothStreamingMedia", b"v=0")


def fetch(address: str, most: int) -> bytes | None:
    """The content of a picture, at most ``most`` bytes; None where the server answers with something else.

    That is a video, or what FFmpeg is to say is none. UserError, in one line, for an address that can not be
    reached or gives an error, a web page or other text; and for a picture that is too large, does not arrive
    whole, or takes longer than :data:`stdc_fast.web.PATIENCE`.
    """
    try:
        content = web.read(address, _is_picture, most)
    except web.Failed as failure:
        raise UserError(f"{web.shown(address)}: {failure}; check the address, or download it first") from None
    return None if content is None or _moves(content) else content


def _is_picture(headers: Message, head: bytes) -> bool:
    if not head:
        raise web.Failed("answers with 0 bytes")
    if known(head):
        return True
    kind = headers.get_content_type() if headers.get("Content-Type") else "application/octet-stream"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:14].lower() == b"<!doctype html" or start[:5].lower() == b"<html":
        raise web.Failed("answers with a web page instead of the file")
    texts = kind.startswith("text/") or kind.endswith(("json", "xml"))
    if texts and not start.startswith(_PLAYLISTS) and not any(b < 32 and b not in b"\t\r\n\f" for b in head):
        raise web.Failed(f"answers with text ({kind}), which is neither a picture nor a video")
    return kind.startswith("image/")


def known(head: bytes) -> bool:
    """Whether a file that begins so is a picture of a kind that folders give, by Pillow's own tests."""
    if head[4:8] == b"ftyp":
        listing.has_heif()
    Image.init()
    accepts = (Image.OPEN[kind][1] for kind in listing.FORMATS if kind in Image.OPEN)
    return any(accept is not None and accept(head[:16]) for accept in accepts)


def _moves(content: bytes) -> bool:
    """Whether it is a GIF of several frames, which is a video."""
    if content[:4] != b"GIF8":
        return False
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content)) as image:
        return image.is_animated
    return False
