"""Reading what a user may pass to ``predict``: files, addresses, folders, arrays, tensors, PIL images."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from stdc_fast import addresses, web
from stdc_fast.colour import to_srgb
from stdc_fast.errors import UserError, announce
from stdc_fast.listing import HEIF_SUFFIXES, RAW_SUFFIXES, STDIN, VIDEO_SUFFIXES, expand, has_heif
from stdc_fast.pipeline import Workers
from stdc_fast.reference.networks import MEAN, MIN_SIZE, STD
from stdc_fast.reference.networks import normalise as normalise
from stdc_fast.samples import to_bytes

#: Images with more pixels are refused, so that a small file can not fill the memory.
MAX_PIXELS = 64_000_000
#: Of images and of what the network sees; the native engine's limit.
MAX_SIDE = 65_536
LIMITS = (
    f"both sides must be at least {MIN_SIZE} and at most {MAX_SIDE}, the pixels at most "
    f"{MAX_PIXELS // 10**6} million"
)
_NO_HEIF = "HEIC pictures need the package pillow-heif; install it, or convert them to JPEG"
#: More is not read from pipes and open files, which may have no end.
_MAX_BYTES = 512 << 20
#: By Pillow's names, for pictures of strangers: those that it decodes itself. EPS would start a program.
FROM_STRANGERS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "QOI")


def read_image(
    source: str | os.PathLike | bytes | BinaryIO,
    range: tuple[float, float] | None = None,
    name: str | None = None,
    formats: Sequence[str] | None = None,
) -> np.ndarray:
    """sRGB uint8 ``[H, W, 3]`` of an image file, turned as its EXIF orientation says.

    Args:
        source: a path, ``/dev/stdin`` included, an address (http or https), the file's bytes, or a file that
            is open for them. Such a file is read from its start if it can be, and stays open.
        range: values of black and white, see :func:`stdc_fast.samples.to_bytes`.
        name: of the image in messages; None takes the source's.
        formats: that are read, by Pillow's names, as :data:`FROM_STRANGERS`; None for all that it has.

    Raises UserError for a file that is missing, empty, truncated, no image, a camera's raw data, HDR, too
    small or too large, and where its black and white are not certain.
    """
    name = name or name_of(source)
    with decode_errors(name):
        if web.address(source) is not None:
            fetched = opened(source)
            if fetched is source:
                raise UserError(f"{name}: the server does not answer with a picture; videos go by themselves")
            source = fetched
        elif isinstance(source, (str, os.PathLike)):
            source = Path(source)
            if source != STDIN:
                check_file(source)
            if source.suffix.lower() in VIDEO_SUFFIXES:
                raise UserError(f"{name}: is a video; label it by itself, not as one of several images")
            if source.suffix.lower() in RAW_SUFFIXES:
                raise _raw(name)
        file = source if _on_disk(source) else io.BytesIO(_content(source, name))
        with open_image(file, name, formats) as image:
            return _rgb(image, name, range)


def open_image(file: Path | BinaryIO, name: str, formats: Sequence[str] | None = None) -> Image.Image:
    """``Image.open`` for :func:`read_image`: HEIC by its content, whatever its name says."""
    with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as start:
        head = start.read(12)
        start.seek(0)
    if head[4:8] == b"ftyp" and not has_heif() and head[8:12] in (b"heic", b"heix"):
        raise UserError(f"{name}: {_NO_HEIF}")
    if formats is not None:
        Image.init()
        formats = [one for one in formats if one in Image.OPEN]
    return Image.open(file, formats=formats)


def name_of(source: object) -> str:
    """A path as text, an address without password, "stdin", the name of an open file, or "bytes"."""
    if (address := web.address(source)) is not None:
        return web.shown(address)
    if isinstance(source, (str, os.PathLike)):
        return "stdin" if Path(source) == STDIN else os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "file" if hasattr(source, "read") else "bytes"


class _Fetched(io.BytesIO):
    """A picture of an address, which is its ``name``."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def opened(source: object) -> object:
    """The picture of an address (http or https) as an open file; all else as it is, videos by address too.

    The server is asked what it is. UserErrors are those of :func:`stdc_fast.addresses.fetch`.
    """
    address = web.address(source)
    content = None if address is None else addresses.fetch(address, _MAX_BYTES)
    return source if content is None else _Fetched(content, web.shown(address))


def waits(source: object) -> bool:
    """Whether reading may wait for somebody else: of addresses and of pipes."""
    if not isinstance(source, Path):
        return web.address(source) is not None
    with contextlib.suppress(OSError, ValueError):  # names that no file can have
        return source == STDIN or stat.S_ISFIFO(source.stat().st_mode)
    return False


def held(source: object) -> object:
    """What :func:`waits` as an open file: pictures of addresses and of pipes are read now.

    All else as it is, videos by address too. UserErrors are those of :func:`opened` and :func:`read_image`.
    """
    if not (isinstance(source, Path) and waits(source)):
        return opened(source)
    name = name_of(source)
    with decode_errors(name):
        return _Fetched(_content(source, name), name)


def is_file(source: object) -> bool:
    """Whether this is the content of a file or a file that is open."""
    return isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "readable")


def _on_disk(source: object) -> bool:
    """Whether Pillow can go to and fro in it: not in pipes."""
    return isinstance(source, Path) and source != STDIN and source.is_file()


def _content(source: Path | bytes | BinaryIO, name: str) -> bytes:
    """All bytes of a source; UserError for none, and for more than an image of the largest size has."""
    if not isinstance(source, Path) and not hasattr(source, "read"):
        content = source
    elif source == STDIN:
        if sys.stdin.isatty():
            raise UserError("stdin is a terminal; send an image to it, as in: stdc-fast predict - < a.jpg")
        content = sys.stdin.buffer.read(_MAX_BYTES + 1)
    elif isinstance(source, Path):
        with source.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    else:
        with contextlib.suppress(OSError, AttributeError):  # pipes and responses have no start
            source.seek(0)
        if isinstance(source, io.TextIOBase):
            raise UserError(f'{name}: the file is open as text; open it with "rb"')
        content = source.read(_MAX_BYTES + 1)
        if not isinstance(content, bytes):
            raise UserError(f'{name}: the file gives {type(content).__name__}, not bytes; open it with "rb"')
    if not 0 < len(content) <= _MAX_BYTES:
        size = f"more than {_MAX_BYTES >> 20} MB" if content else "0 bytes"
        raise UserError(f"{name}: has {size}; send one image file")
    return content


def _rgb(image: Image.Image, name: str, range: tuple[float, float] | None) -> np.ndarray:
    """:func:`stdc_fast.colour.to_srgb` of an image that has just been opened."""
    check_size(image.height, image.width, name)
    # DNGVersion; and a first page that only is a small copy of another one, as in most raw formats.
    if image.format == "TIFF" and (50706 in image.tag_v2 or image.tag_v2.get(254, 0) & 1):
        raise _raw(name)
    if getattr(image, "is_animated", False) and image.format != "MPO" and image.tell() == 0:
        count = _pages(image)
        if count > 1:
            announce(name, "holds %d pictures; the first is taken", count)
    return to_srgb(image, name, range)


def _pages(image: Image.Image) -> int:
    """Number of pictures in a file, without masks and smaller copies of another (TIFF's NewSubfileType)."""
    if image.format != "TIFF":
        return image.n_frames
    count = 0
    with contextlib.suppress(Exception):  # a damaged page after it does not harm the first
        for page in range(image.n_frames):
            image.seek(page)
            count += not image.tag_v2.get(254, 0) & 5
    image.seek(0)
    return count


def _raw(name: str) -> UserError:
    return UserError(f"{name}: holds a camera's raw data, of which only a preview can be read here; "
                     "develop it to JPEG or PNG")  # fmt: skip


def check_file(path: Path) -> None:
    """UserError for a folder or an empty file, OSError for what can not be read."""
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder, not an image or video")
    if path.stat().st_size == 0 and path.is_file():  # pipes do not say
        raise UserError(f"{path}: is empty (0 bytes); copy it again")


class _Quiet:
    """Keeps Pillow's warnings quiet: of damaged EXIF data, palettes, and sizes that check_size() refuses.

    Filters are the process's, so threads that are in here at once share one change of them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._filters = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module="PIL")
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()


@contextlib.contextmanager
def decode_errors(name: object) -> Iterator[None]:
    """Turn whatever Pillow raises on a file into a UserError that names it; keep its warnings quiet."""
    try:
        with _quiet:
            yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except PermissionError:
        raise UserError(f"{name}: can not be read (permission denied)") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{name}: has more than {MAX_PIXELS / 1e6:.0f} million pixels; scale it down"
        ) from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: {_unidentified(os.path.splitext(str(name))[1].lower())}") from None
    except Exception as error:  # decoders raise many types on damaged files
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if re.search(r"not (available|installed)", reason):
            remedy = "this Pillow was built without its decoder; install Pillow from its wheels"
        elif re.search(r"truncated|broken|corrupt|CRC|checksum", reason, re.I):
            remedy = "copy or convert it again"
        else:
            remedy = "it is damaged, or of a kind that Pillow does not decode; convert it to PNG or JPEG"
        raise UserError(f"{name}: can not be decoded ({reason}); {remedy}") from None


def _unidentified(suffix: str) -> str:
    """Why Pillow does not know a file with this suffix, and what to do."""
    if suffix in HEIF_SUFFIXES and not has_heif():
        return _NO_HEIF
    codec = suffix.lstrip(".")
    if codec in ("avif", "webp") and not features.check(codec):
        return f"this Pillow was built without a decoder of {codec.upper()}; install Pillow from its wheels"
    return "is not an image that Pillow can read; convert it to PNG or JPEG"


@contextlib.contextmanager
def memory_errors(name: object) -> Iterator[None]:
    """Turn want of memory, the CPU's or a GPU's, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"{name}: not enough memory; use a smaller scale or size") from None


def is_possible(height: int, width: int) -> bool:
    """Whether an image, or what the network sees, can have this size; :data:`LIMITS` says so in words."""
    return MIN_SIZE <= min(height, width) <= max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS


def check_size(height: int, width: int, name: str) -> None:
    """UserError unless :func:`is_possible`."""
    if min(height, width) < MIN_SIZE:
        raise UserError(
            f"{name}: {width}x{height} is too small; both sides must be at least {MIN_SIZE} pixels"
        )
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} has {height * width / 1e6:.1f} million pixels, more than the limit "
            f"of {MAX_PIXELS / 1e6:.0f}; scale it down"
        )
    if not is_possible(height, width):
        raise UserError(f"{name}: {width}x{height}: a side has at most {MAX_SIDE} pixels; cut or scale it")


def check_array(
    array: np.ndarray, name: str, bgr: bool = False, range: tuple[float, float] | None = None
) -> np.ndarray:
    """An image array ``[H, W, 3]``, or grey ``[H, W]``, as RGB uint8 ``[H, W, 3]``.

    ``range`` and what is taken without it: see :func:`stdc_fast.samples.to_bytes`. UserError with dtype and
    shape for other arrays.
    """
    if not (array.ndim == 2 or array.shape[2:] == (3,)) or array.dtype.kind not in "buif":
        raise UserError(
            f"{name}: expected a uint8 array of shape [H, W, 3] or [H, W], got {array.dtype} "
            f"{list(array.shape)}"
        )
    check_size(array.shape[0], array.shape[1], name)
    array = to_bytes(array, name, range)
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    return array[:, :, ::-1] if bgr else array


def tensor_images(
    tensor: Tensor, bgr: bool = False, range: tuple[float, float] | None = None
) -> list[np.ndarray | Tensor]:
    """The images of a tensor, one by one.

    uint8 ``[H, W, 3]``, ``[3, H, W]`` or a batch ``[N, ...]`` of either is raw RGB and comes back as
    arrays ``[H, W, 3]``; so do floats, if ``range`` has their values of black and white. Without it float
    ``[3, H, W]`` or ``[N, 3, H, W]`` is already normalised and comes back as tensors ``[3, H, W]``.
    UserError for anything else.
    """
    batch = tensor[None] if tensor.ndim == 3 else tensor
    shape = list(tensor.shape)
    raw = tensor.dtype == torch.uint8 or (tensor.is_floating_point() and range is not None)
    if raw and batch.ndim == 4 and 3 in (batch.shape[1], batch.shape[3]):
        if batch.shape[3] != 3:
            batch = batch.permute(0, 2, 3, 1)
        if tensor.is_floating_point():
            batch = batch.detach().float()  # NumPy has no bfloat16
        return [check_array(a, f"tensor {shape}", bgr, range) for a in batch.cpu().numpy()]
    if tensor.is_floating_point() and batch.ndim == 4 and batch.shape[1] == 3:
        if bgr:
            raise UserError("bgr=True is for uint8 input; float tensors are already normalised RGB")
        check_size(batch.shape[2], batch.shape[3], f"tensor {shape}")
        return list(batch)
    raise UserError(
        "expected a uint8 tensor [H, W, 3], [3, H, W] or [N, ...] of raw RGB, or a normalised float tensor "
        f"[3, H, W] or [N, 3, H, W]; got {tensor.dtype} {shape}"
    )


def denormalise(image: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of one float image ``[3, H, W]`` that was normalised with these."""
    x = image.detach().double().cpu().numpy().transpose(1, 2, 0)
    x = (x * np.array(std) + np.array(mean)) * 255
    return np.clip(np.round(np.nan_to_num(x)), 0, 255).astype(np.uint8)


def iterate(
    source: object, bgr: bool = False, range: tuple[float, float] | None = None
) -> tuple[Iterator[tuple[str, object]], bool]:
    """(name, image or path) pairs of anything ``predict`` takes, and whether it is a batch.

    Files are not opened here, so that one bad file does not stop the others.
    """
    if web.address(source) is not None:
        return iter([(name_of(source), source)]), False
    if isinstance(source, (str, os.PathLike)):
        files, several = expand(source)
        return ((name_of(f), f) for f in files), several
    if is_file(source):
        return iter([(name_of(source), source)]), False
    if isinstance(source, Image.Image):
        return iter([(getattr(source, "filename", "") or "image", source)]), False
    if isinstance(source, np.ndarray):
        several = source.ndim == 4
        arrays = list(source) if several else [source]
        names = [f"array[{i}]" for i, _ in enumerate(arrays)] if several else ["array"]
        return iter(zip(names, arrays, strict=True)), several
    if isinstance(source, Tensor):
        images = tensor_images(source, bgr, range)
        several = source.ndim == 4
        names = [f"tensor[{i}]" for i, _ in enumerate(images)] if several else ["tensor"]
        # Raw tensors are already RGB now; mark them so that bgr is not applied twice.
        pairs = [
            (n, _Ready(i) if isinstance(i, np.ndarray) else i) for n, i in zip(names, images, strict=True)
        ]
        return iter(pairs), several
    if isinstance(source, (list, tuple, Iterator)):
        return _chain(source, bgr, range), True
    raise UserError(
        "expected a path, address, PIL image, array, tensor, an image file's bytes, an open file, or a list "
        "of these, got " + type(source).__name__
    )


def _chain(sources, bgr: bool, range) -> Iterator[tuple[str, object]]:
    for i, item in enumerate(sources):
        try:
            pairs, _ = iterate(item, bgr, range)
        except UserError as error:
            yield f"item {i}", error
            continue
        for name, image in pairs:
            yield (name if isinstance(item, (str, os.PathLike)) else f"item {i}"), image


class _Ready:
    """A checked RGB array; of a file that was read ahead it is nobody else's, and took ``seconds``."""

    def __init__(self, array: np.ndarray, seconds: float | None = None):
        self.array, self.seconds = array, seconds


def ahead(
    source: object, items: Iterator[tuple[str, object]], range: tuple[float, float] | None
) -> Iterator[tuple[str, object]]:
    """The pairs of :func:`iterate`; where all are paths, threads read the files before they are asked for.

    Nothing else is looked at early: an iterator may depend on what came of its last item, and arrays may be
    written to until then.
    """
    listed = source if isinstance(source, (list, tuple)) else [source]
    if not all(isinstance(one, (str, os.PathLike)) for one in listed):
        yield from items
        return

    def opened(named: tuple[str, object]) -> object:
        start = time.perf_counter()
        with memory_errors(named[0]):
            return _Ready(open_item(named[1], named[0], range=range), time.perf_counter() - start)

    with Workers() as workers:
        for (name, _), item in workers.map(opened, items):
            yield name, item


def seconds_of(item: object) -> float:
    """That reading it ahead took."""
    return (item.seconds or 0.0) if isinstance(item, _Ready) else 0.0


def open_item(
    item: object, name: str, bgr: bool = False, range: tuple[float, float] | None = None
) -> np.ndarray | Tensor:
    """What :func:`iterate` gave, as RGB uint8 ``[H, W, 3]`` or normalised float ``[3, H, W]``."""
    if isinstance(item, UserError):
        raise item
    if isinstance(item, (str, Path)) or is_file(item):
        return read_image(item, range, name)
    if isinstance(item, Image.Image):
        with decode_errors(name):
            return _rgb(item, name, range)
    # Copies, for callers use their buffers again while they hold results.
    if isinstance(item, _Ready):
        return item.array.copy() if item.seconds is None else item.array
    if isinstance(item, np.ndarray):
        return check_array(item, name, bgr, range).copy()
    return item


def kept(item: object, name: str, bgr: bool = False, range: tuple[float, float] | None = None) -> object:
    """What :func:`iterate` gave, for :func:`open_item` later: in memory that nobody uses again."""
    if isinstance(item, (str, Path)):
        return item
    image = open_item(item, name, bgr, range)
    return image.clone() if isinstance(image, Tensor) else _Ready(image)
