"""A picture in a request's body: its media type, its bytes within limits, its size before it is decoded."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Mapping

import anyio
import numpy as np
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from stdc_fast import images
from stdc_fast.errors import UserError, remarks
from stdc_fast.serve.settings import Settings

#: A multipart body has its boundaries and headers beside the file.
_AROUND = 64 << 10
_HOW = 'curl -H "Content-Type: image/jpeg" --data-binary @photo.jpg, or curl -F file=@photo.jpg'


class Refusal(Exception):
    """An answer other than a result: a status, one line, and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def check_head(request: Request, settings: Settings) -> bool:
    """Whether a request is a form; Refusal for what needs no body to be refused."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Refusal(415, "a body with Content-Encoding is not taken; send the picture as it is")
    form = kind == "multipart/form-data"
    if not form and not kind.startswith("image/"):
        raise Refusal(
            415, f"the media type {kind or '(none)'} is neither image/* nor multipart/form-data; {_HOW}"
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_bytes + _AROUND * form:
        raise _too_large(settings)
    return form


async def read(request: Request, settings: Settings, form: bool) -> tuple[bytes, str]:
    """The picture's bytes and its name. Refusal for a body as soon as it is too large or too slow."""
    try:
        with anyio.fail_after(settings.read_timeout):
            if form:
                return await _from_form(request, settings)
            content = bytearray()
            async for chunk in _within(request.stream(), settings.max_bytes, settings):
                content += chunk
            return bytes(content), "picture"
    except TimeoutError:
        raise Refusal(
            408, f"the body did not arrive within {settings.read_timeout:g} seconds; send a smaller picture",
            {"Connection": "close"},
        ) from None  # fmt: skip


async def _within(chunks: AsyncIterator[bytes], most: int, settings: Settings) -> AsyncIterator[bytes]:
    count = 0
    async for chunk in chunks:
        count += len(chunk)
        if count > most:
            raise _too_large(settings)
        yield chunk


class _InMemory(MultiPartParser):
    """Without temporary files: the body is bounded already."""

    spool_max_size = 0


async def _from_form(request: Request, settings: Settings) -> tuple[bytes, str]:
    stream = _within(request.stream(), settings.max_bytes + _AROUND, settings)
    try:
        form = await _InMemory(request.headers, stream, max_files=1, max_fields=0).parse()
    except MultiPartException as error:
        raise Refusal(
            400,
            f"the form can not be read ({error.message}); send one file, as curl -F file=@photo.jpg",
        ) from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(422, "the form has no file named file; send it as curl -F file=@photo.jpg")
        content = await file.read()
        if len(content) > settings.max_bytes:
            raise _too_large(settings)
        return content, _plain(file.filename)
    finally:
        await form.close()


def _plain(name: str | None) -> str:
    """A client's file name for messages: no folders, and nothing that a terminal or a log would obey."""
    name = os.path.basename((name or "").replace("\\", "/"))
    return "".join(c for c in name if c.isprintable())[-80:] or "picture"


def _too_large(settings: Settings) -> Refusal:
    return Refusal(
        413,
        f"the body has more than {settings.max_bytes} bytes, the limit here; send a smaller picture",
        {"Connection": "close"},
    )


def decode(content: bytes, name: str, settings: Settings) -> tuple[np.ndarray, list[str]]:
    """RGB uint8 ``[H, W, 3]`` of a picture, and lines on what was taken for granted.

    Refusal for one that says more pixels than the limit, before it is decoded. UserError as
    :func:`stdc_fast.images.read_image`.
    """
    if not content:
        raise UserError(f"{name}: has 0 bytes; send one image file")
    limit = f"more than the limit of {settings.max_pixels / 1e6:g} here; scale it down"
    bomb = False
    with images.decode_errors(name):
        try:
            with images.open_image(io.BytesIO(content), name, images.FROM_STRANGERS) as image:
                width, height = image.size
        except Image.DecompressionBombError:  # Pillow's own limit is higher than ours
            bomb = True
    if bomb:
        raise Refusal(413, f"{name}: has hundreds of millions of pixels, {limit}")
    if height * width > settings.max_pixels:
        raise Refusal(413, f"{name}: {width}x{height} has {height * width / 1e6:.1f} million pixels, {limit}")
    with remarks() as said:
        return images.read_image(content, name=name, formats=images.FROM_STRANGERS), said
