"""Where frames come from: files, numbered pictures, cameras and addresses of the network; opening them."""

from __future__ import annotations

import glob
import logging
import os
import re
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote

from stdc_fast import images, listing, web
from stdc_fast.errors import UserError
from stdc_fast.video.pyav import av, reason

log = logging.getLogger(__name__)

#: Frames per second where a file does not say.
USUAL_RATE = Fraction(25)
#: Seconds that an address has to answer, and then for each piece of data.
PATIENCE = 10.0
# FFmpeg's device of a Linux camera.
_CAMERA_FORMAT = "v4l2"
# Protocols of files that can be fetched at any speed, and of what is sent once. "Path" leaves one slash.
_FETCHED, _SENT = ("http", "https"), ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "srt")
_URL = re.compile(rf"({'|'.join(_FETCHED + _SENT)}):/{{1,2}}(?=[^/])(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"%(0\d)?d")


def camera(source: object) -> str | None:
    """The device file of 0, "0" or "/dev/video0"; None for what is no camera."""
    if isinstance(source, int) and not isinstance(source, bool):
        return f"/dev/video{source}"
    if not isinstance(source, (str, os.PathLike)):
        return None
    text = os.fspath(source)
    if re.fullmatch(r"[0-9]{1,4}", text) and not os.path.exists(text):
        return f"/dev/video{int(text)}"
    return text if re.fullmatch(r"/dev/video[0-9]+", text) else None


def is_camera(source: object) -> bool:
    """Whether this names a camera: its number, also as text if there is no such file, or ``/dev/videoN``."""
    return camera(source) is not None


def url(source: object) -> str | None:
    """An address that FFmpeg fetches from, such as rtsp://HOST/PATH; None for what is none."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    found = _URL.fullmatch(os.fspath(source))
    return f"{found[1].lower()}://{found[2]}" if found else None


def is_url(source: object) -> bool:
    """Whether this is an address of the network that videos come from: http, https, rtsp, rtmp, udp, ..."""
    return url(source) is not None


def is_live(source: object) -> bool:
    """Whether frames that are not fetched are lost, as of cameras."""
    address = url(source)
    return is_camera(source) or (address is not None and address.split(":")[0] in _SENT)


def is_server(source: object) -> bool:
    """Whether it is an address of a server that can be asked again for what is sent live."""
    address = url(source)
    return address is not None and address.split(":")[0] in set(_SENT) - {"udp", "rtp"}


def sequence(source: object) -> re.Pattern | None:
    """What the names of numbered pictures match, for frame_%04d.png; None for another kind of name."""
    if not isinstance(source, (str, os.PathLike)) or is_url(source) or os.path.exists(source):
        return None
    before, number, after = _split(os.path.basename(source))
    if not number or not listing.is_image(Path(f"x{after}")):
        return None
    digits = rf"\d{{{number[2]},}}" if number != "%d" else r"0|[1-9]\d*"
    return re.compile(f"{re.escape(before)}({digits}){re.escape(after)}")


def _split(name: str) -> tuple[str, str, str]:
    found = _NUMBER.search(name)
    return (name[: found.start()], found[0], name[found.end() :]) if found else (name, "", "")


def is_video(source: object) -> bool:
    """Whether this names a camera or an address, or, by its name, a video file, which need not exist.

    A GIF is a video if it has several frames; so are numbered pictures, ``frame_%04d.png``. Folders and globs
    are none.
    """
    if is_camera(source) or is_url(source) or sequence(source):
        return True
    if not isinstance(source, (str, os.PathLike)):
        return False
    text = os.fspath(source)
    suffix = os.path.splitext(text)[1].lower()
    if listing.is_animated_gif(text):
        return True
    if suffix not in listing.VIDEO_SUFFIXES or os.path.isdir(text):
        return False
    return os.path.exists(text) or not glob.has_magic(text)


def title(source: object) -> str:
    """What messages call a source; without the password of an address."""
    if is_camera(source):
        return f"camera {os.fspath(source) if isinstance(source, os.PathLike) else source}"
    address = url(source)
    return web.shown(address) if address else os.fspath(source)


def stem(source: str | os.PathLike) -> Path:
    """A file name for what is made of a source: of an address its last part, of numbered pictures theirs."""
    address = url(source)
    if address:
        host, *rest = re.split(r"[/?#]", address.split("://")[1])
        parts = [_safe(part) for part in rest if "." in part or part.isidentifier()]
        named = [part for part in parts if part]
        return Path(named[-1] if named else re.sub(r"\W+", "_", host.split("@")[-1]))
    if sequence(source):
        before, _, after = _split(os.path.basename(source))
        return Path(f"{before.rstrip('_-. ') or 'frames'}{after}")
    return Path(str(source).removeprefix("/dev/") if is_camera(source) else source)


def _safe(part: str) -> str:
    """A part of an address as a file's name: it may encode any characters, and be of any length."""
    return re.sub(r"[^\w.-]+", "_", unquote(part))[-100:].lstrip(".")


def _av_open(name: str, **options: object):
    """PyAV's container. Its default refuses files whose title or artist is no UTF-8 text."""
    return av().open(name, metadata_errors="replace", **options)


def open_source(source: object):
    """PyAV's container of a source; UserError, FFmpegError or OSError if that fails."""
    device, address, name = camera(source), url(source), title(source)
    if device is not None:
        return _open_camera(device, name)
    if address is not None:
        return _open_url(address, name)
    numbered = sequence(source)
    if numbered:
        first = _first_number(source, numbered)
        options = {"start_number": str(first), "framerate": str(USUAL_RATE)}
        return _av_open(f"file:{os.fspath(source)}", format="image2", options=options)
    with images.decode_errors(name):
        images.check_file(Path(name))
    # "file:", so that colons and percent signs in a name mean nothing.
    return _av_open(f"file:{name}")


def _first_number(source: str | os.PathLike, numbered: re.Pattern) -> int:
    folder = os.path.dirname(source) or "."
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{os.fspath(source)}: can not be read ({error.strerror})") from None
    numbers = sorted(int(found[1]) for found in map(numbered.fullmatch, names) if found)
    if not numbers:
        before, _, after = _split(os.path.basename(source))
        padded = re.compile(f"{re.escape(before)}(0\\d+){re.escape(after)}")
        widths = sorted({len(found[1]) for found in map(padded.fullmatch, names) if found})
        remedy = f"write {before}%0{widths[0]}d{after}" if widths else "give a folder or a video"
        raise UserError(f"{os.fspath(source)}: no picture has such a name; {remedy}")
    together = next((i for i, n in enumerate(numbers) if n != numbers[0] + i), len(numbers))
    if together < len(numbers):
        log.warning(
            "%s: number %d is missing, and the %d after it are left out",
            source, numbers[0] + together, len(numbers) - together,
        )  # fmt: skip
    return numbers[0]


def _open_url(address: str, name: str):
    kind = address.split(":")[0]
    options = {"rw_timeout": str(int(PATIENCE * 1e6))}
    if kind in _FETCHED:
        options |= {"reconnect": "1", "reconnect_streamed": "1", "reconnect_delay_max": "4"}
    if kind.startswith("rtsp"):
        options = {"rtsp_transport": "tcp", "timeout": options["rw_timeout"]}
    try:
        container = _av_open(address, options=options, timeout=PATIENCE)
    except (av().FFmpegError, OSError) as error:
        raise UserError(
            f"{name}: can not be opened ({reason(error)}); check the address, or download the video first"
        ) from None
    if re.search(r"_pipe$|^image2", container.format.name):
        container.close()
        raise UserError(f"{name}: is a picture; label it with predict()")
    return container


def _open_camera(device: str, name: str):
    try:
        av().ContainerFormat(_CAMERA_FORMAT, "r")
    except ValueError:
        raise UserError(
            f"{name}: this PyAV reads no cameras (that needs Linux); read the frames with OpenCV and give "
            "them to Segmenter.stream(frames, bgr=True, latest=True)"
        ) from None
    try:
        return _av_open(device, format=_CAMERA_FORMAT)
    except (av().FFmpegError, OSError) as error:
        found = ", ".join(sorted(glob.glob("/dev/video[0-9]*"))) or "none"
        raise UserError(
            f"{name}: {device} can not be opened ({reason(error)}); cameras found: {found}"
        ) from None
