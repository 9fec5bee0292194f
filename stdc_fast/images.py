"""Reading what a user may pass to ``predict``: files, folders, globs, arrays, tensors, PIL images."""

from __future__ import annotations

import contextlib
import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stdc_fast.errors import UserError
from stdc_fast.reference.networks import MEAN, MIN_SIZE, STD
from stdc_fast.reference.networks import normalise as normalise

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".ogv",
                            ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".m2t", ".mjpeg", ".mjpg", ".y4m",
                            ".h264", ".264", ".h265", ".265", ".hevc", ".m1v", ".m2v", ".ivf", ".obu", ".mxf",
                            ".dv", ".vob", ".asf", ".f4v", ".3g2", ".nut", ".rm", ".rmvb",
                            ".ogm"})  # fmt: skip
#: Images with more pixels are refused, so that a small file can not fill the memory.
MAX_PIXELS = 64_000_000


def read_image(path: str | Path) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of an image file, turned as its EXIF orientation says.

    Raises UserError for a file that is missing, empty, truncated, no image, too small or too large.
    """
    path = Path(path)
    with decode_errors(path):
        check_file(path)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise UserError(f"{path}: is a video; label it by itself, not as one of several images")
        with Image.open(path) as image:
            check_size(image.height, image.width, str(path))
            return pil_to_rgb(image)


def check_file(path: Path) -> None:
    """UserError for a folder or an empty file, OSError for what can not be read."""
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder, not an image or video")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes); copy it again")


@contextlib.contextmanager
def decode_errors(name: object) -> Iterator[None]:
    """Turn whatever Pillow raises on a file into a UserError that names it; keep its warnings quiet."""
    try:
        with warnings.catch_warnings():
            # Of damaged EXIF data, transparent palettes, and of a size that check_size() refuses.
            warnings.filterwarnings("ignore", module="PIL")
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
        raise UserError(f"{name}: is not an image that Pillow can read; convert it to PNG or JPEG") from None
    except Exception as error:  # decoders raise many types on damaged files
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{name}: can not be decoded ({reason}); copy or convert it again") from None


@contextlib.contextmanager
def memory_errors(name: object) -> Iterator[None]:
    """Turn want of memory, the CPU's or a GPU's, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"{name}: not enough memory; use a smaller scale or size") from None


def pil_to_rgb(image: Image.Image) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a PIL image: EXIF orientation applied, 16 bits to 8, alpha dropped."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if image.mode != "F" and (values.max(initial=0) > 255 or image.mode.startswith("I;16")):
            values = values / 257
        grey = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def check_size(height: int, width: int, name: str) -> None:
    """UserError unless both sides are at least 32 and the pixels at most :data:`MAX_PIXELS`."""
    if min(height, width) < MIN_SIZE:
        raise UserError(
            f"{name}: {width}x{height} is too small; both sides must be at least {MIN_SIZE} pixels"
        )
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} has {height * width / 1e6:.1f} million pixels, more than the limit "
            f"of {MAX_PIXELS / 1e6:.0f}; scale it down"
        )


def check_array(array: np.ndarray, name: str, bgr: bool = False) -> np.ndarray:
    """A uint8 image array ``[H, W, 3]`` as RGB, or UserError with its dtype and shape."""
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise UserError(
            f"{name}: expected a uint8 array of shape [H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    check_size(array.shape[0], array.shape[1], name)
    return array[:, :, ::-1] if bgr else array


def tensor_images(tensor: Tensor, bgr: bool = False) -> list[np.ndarray | Tensor]:
    """The images of a tensor, one by one.

    uint8 ``[H, W, 3]``, ``[3, H, W]`` or a batch ``[N, ...]`` of either is raw RGB and comes back as
    arrays ``[H, W, 3]``; float ``[3, H, W]`` or ``[N, 3, H, W]`` is already normalised and comes back
    as tensors ``[3, H, W]``. UserError for anything else.
    """
    batch = tensor[None] if tensor.ndim == 3 else tensor
    shape = list(tensor.shape)
    if tensor.dtype == torch.uint8 and batch.ndim == 4 and 3 in (batch.shape[1], batch.shape[3]):
        if batch.shape[3] != 3:
            batch = batch.permute(0, 2, 3, 1)
        arrays = batch.cpu().numpy()
        return [check_array(a, f"tensor {shape}", bgr) for a in arrays]
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


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image (folders skip the others)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def expand(source: str | os.PathLike) -> tuple[list[Path], bool]:
    """Image files of a path, folder or glob, and whether it stands for several.

    A folder gives its image files in order of name (not those of its sub-folders); a glob gives what
    matches, ``**`` included. UserError if there are none.
    """
    text = os.fspath(source)
    if not text:
        raise UserError("the source is an empty name; give a file, a folder or a glob")
    path = Path(text)
    try:
        # os.path, unlike Path on Python < 3.14, answers False where the file system objects.
        if os.path.isdir(path):
            files = sorted(p for p in path.iterdir() if is_image(p) and p.is_file())
            if not files:
                raise UserError(f"{text}: the folder holds no image files; videos go by their own names")
            return files, True
        if not os.path.exists(path) and glob.has_magic(text):
            files = sorted(Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
            if not files:
                raise UserError(f"{text}: no file matches")
            return files, True
    except OSError as error:
        raise UserError(f"{text}: can not be read ({error.strerror})") from None
    return [path], False


def iterate(source: object, bgr: bool = False) -> tuple[Iterator[tuple[str, object]], bool]:
    """(name, image or path) pairs of anything ``predict`` takes, and whether it is a batch.

    Files are not opened here, so that one bad file does not stop the others.
    """
    if isinstance(source, (str, os.PathLike)):
        files, several = expand(source)
        return ((str(f), f) for f in files), several
    if isinstance(source, Image.Image):
        return iter([(getattr(source, "filename", "") or "image", source)]), False
    if isinstance(source, np.ndarray):
        several = source.ndim == 4
        arrays = list(source) if several else [source]
        names = [f"array[{i}]" for i in range(len(arrays))] if several else ["array"]
        return iter(zip(names, arrays, strict=True)), several
    if isinstance(source, Tensor):
        images = tensor_images(source, bgr)
        several = source.ndim == 4
        names = [f"tensor[{i}]" for i in range(len(images))] if several else ["tensor"]
        # Raw tensors are already RGB now; mark them so that bgr is not applied twice.
        pairs = [
            (n, _Ready(i) if isinstance(i, np.ndarray) else i) for n, i in zip(names, images, strict=True)
        ]
        return iter(pairs), several
    if isinstance(source, (list, tuple)):
        return _chain(source, bgr), True
    if isinstance(source, Iterator):
        return _chain(source, bgr), True
    raise UserError(
        "expected a path, PIL image, uint8 array, tensor, or a list of these, got " + type(source).__name__
    )


def _chain(sources, bgr: bool) -> Iterator[tuple[str, object]]:
    for i, item in enumerate(sources):
        try:
            pairs, _ = iterate(item, bgr)
        except UserError as error:
            yield f"item {i}", error
            continue
        for name, image in pairs:
            yield (name if isinstance(item, (str, os.PathLike)) else f"item {i}"), image


class _Ready:
    """A checked RGB array."""

    def __init__(self, array: np.ndarray):
        self.array = array


def open_item(item: object, name: str, bgr: bool = False) -> np.ndarray | Tensor:
    """What :func:`iterate` gave, as RGB uint8 ``[H, W, 3]`` or normalised float ``[3, H, W]``."""
    if isinstance(item, UserError):
        raise item
    if isinstance(item, Path):
        return read_image(item)
    if isinstance(item, Image.Image):
        with decode_errors(name):
            check_size(item.height, item.width, name)
            return pil_to_rgb(item)
    # Copies, for callers use their buffers again while they hold results.
    if isinstance(item, _Ready):
        return item.array.copy()
    if isinstance(item, np.ndarray):
        return check_array(item, name, bgr).copy()
    return item


def open_frame(frame: object, name: str, bgr: bool = False) -> np.ndarray | Tensor:
    """One frame of a stream, in memory of its own, as :func:`open_item` gives it.

    ``frame`` is a uint8 array or tensor ``[H, W, 3]``, a uint8 tensor ``[3, H, W]``, a normalised float
    tensor ``[3, H, W]``, a PIL image or an image's path. UserErrors start with ``name``.
    """
    if isinstance(frame, Tensor):
        if frame.ndim != 3:
            raise UserError(f"{name}: expected one image, a tensor of 3 dimensions, got {list(frame.shape)}")
        try:
            (image,) = tensor_images(frame, bgr)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return image.clone() if isinstance(image, Tensor) else image.copy()
    if isinstance(frame, (str, os.PathLike)):
        try:
            return read_image(frame)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    if isinstance(frame, (np.ndarray, Image.Image)):
        return open_item(frame, name, bgr)
    raise UserError(
        f"{name}: expected a uint8 array [H, W, 3], PIL image, tensor or path, got " + type(frame).__name__
    )
