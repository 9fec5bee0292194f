"""Checks of a data set before work begins: pairs, sizes and label values, in a sample or in all files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from stdc_fast.datasets.coding import UnknownValues, refuse_lossy, summary
from stdc_fast.datasets.folder import SegmentationFolder
from stdc_fast.errors import UserError
from stdc_fast.images import check_file, check_size, decode_errors
from stdc_fast.reference.losses import IGNORE

log = logging.getLogger(__name__)

#: Label files whose values are counted where not all are.
SAMPLE = 32
_ORIENTATION = 0x0112


def check(
    folder: SegmentationFolder, *, everything: bool = False, seed: int = 0, shares: bool = True
) -> np.ndarray:
    """Check all headers and the values of a drawn sample of the labels; or all files, images too.

    Warns in one line each as :func:`warn_of_shares`, and where images are turned by their EXIF data.

    Args:
        folder: the split.
        everything: read every image and label.
        seed: draws the sample.
        shares: warn as :func:`warn_of_shares`; :func:`stdc_fast.evaluate` does so of all labels.

    Returns what :func:`histograms` does of every label file that was read.
    Raises UserError for files that can not be read, for images and labels of different sizes, for lossy
    labels, and for values that are neither a class nor ignored, with counts over the files read.
    """
    pixels = _inspect(folder, everything, seed)
    if shares:
        warn_of_shares(folder, pixels)
    return pixels


def check_training(
    folder: SegmentationFolder, val: SegmentationFolder | None, *, everything: bool = False, seed: int = 0
) -> np.ndarray:
    """:func:`check` of what to train on and to validate on; all labels to train on are read.

    Returns the pixels of every class in every image to train on, int64 ``[images, classes]``. UserError as
    :func:`check`, where fewer than two classes have pixels, and where none has in ``val``.
    """
    _inspect(folder, everything, seed)
    val_pixels = None if val is None else _inspect(val, everything, seed)
    pixels = histograms(folder)
    classes = np.flatnonzero(pixels[:, :-1].any(0))
    if len(classes) < 2:
        only = f"only {folder.classes.names[classes[0]]} has pixels" if len(classes) else "none has a pixel"
        raise UserError(
            f"{folder.labels[0].parent}: of {len(folder.classes)} classes {only} in {len(pixels)} files; "
            "name the values of the others in classes.txt or data.yaml, 255 too if it is one"
        )
    if val is not None and not val_pixels[:, :-1].any() and not histograms(val)[:, :-1].any():
        raise UserError(f"{val.labels[0].parent}: no pixel is of a class; check the labels")
    warn_of_shares(folder, pixels)
    if val is not None:
        warn_of_shares(val, val_pixels)
    return pixels[:, :-1]


def histograms(folder: SegmentationFolder, indices: Iterable[int] | None = None) -> np.ndarray:
    """Pixels of every class in label files, and last of what does not count, int64 ``[files, classes + 1]``.

    UserError as :func:`check` for values that are neither.
    """
    indices = list(range(len(folder)) if indices is None else indices)

    def count(index: int) -> np.ndarray | UnknownValues:
        try:
            found = np.bincount(folder.load_labels(index).ravel(), minlength=IGNORE + 1)
        except UnknownValues as error:
            return error
        return np.append(found[: len(folder.classes)], found[IGNORE])

    counts = _each(count, indices)
    strange = [found for found in counts if isinstance(found, UnknownValues)]
    if strange:
        raise summary(strange, len(indices))
    return np.stack(counts)


def warn_of_shares(folder: SegmentationFolder, pixels: np.ndarray) -> None:
    """Warn of classes without a pixel, and of images of which more than half does not count.

    ``pixels`` is as of :func:`histograms`; of classes it tells only if it is of all label files.
    """
    where, read = folder.labels[0].parent, len(pixels)
    absent = [name for name, n in zip(folder.classes.names, pixels.sum(0), strict=False) if not n]
    if absent and read == len(folder):
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning(
            "%s: %d of %d classes have no pixel in %d label files: %s", where, len(absent),
            len(folder.classes), read, shown,
        )  # fmt: skip
    shares = pixels[:, -1] / pixels.sum(1)
    if (shares > 0.5).any():
        log.warning(
            "%s: in %d of %d label files more than half of the pixels do not count, %.0f %% in all; name "
            "their values in data.yaml if they are of classes",
            where, (shares > 0.5).sum(), read, 100 * pixels[:, -1].sum() / pixels.sum(),
        )  # fmt: skip


def _inspect(folder: SegmentationFolder, everything: bool, seed: int) -> np.ndarray:
    """:func:`check` without warnings of what does not count."""
    headers = _each(lambda i: _headers(folder.images[i], folder.labels[i]), range(len(folder)))
    turned = [i for i, (is_turned, _) in enumerate(headers) if is_turned]
    if turned:
        log.warning(
            "%s: %d of %d images are turned as their EXIF data says, and labels are not; look at one pair",
            folder.images[turned[0]], len(turned), len(folder),
        )  # fmt: skip
    if not folder.coding.colours:
        _compare_palettes(folder, [palette for _, palette in headers])
    chosen = np.arange(len(folder))
    if len(folder) > SAMPLE and not everything:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(folder))[:SAMPLE])
    pixels = histograms(folder, chosen)
    if everything:
        _each(lambda i: folder.load_image(i).shape, chosen)
    return pixels


def _headers(image: Path, labels: Path) -> tuple[bool, bytes | None]:
    """Whether an image is turned by its EXIF data; its labels' palette. UserError where they do not fit."""
    sizes = []
    for path in (image, labels):
        with decode_errors(path):
            check_file(path)
            with Image.open(path) as opened:
                # Where a PNG has none before its pixels, Pillow would decode all of it.
                known = opened.format != "PNG" or "exif" in opened.info
                turn = opened.getexif().get(_ORIENTATION, 1) if known else 1
                sizes.append(opened.size[::-1] if turn in (5, 6, 7, 8) else opened.size)
                if path == image:
                    turned = turn in range(2, 9)
                    check_size(*sizes[0][::-1], str(path))
                else:
                    refuse_lossy(opened, path)
                    palette = bytes(opened.getpalette("RGB")) if opened.mode == "P" else None
    if sizes[0] != sizes[1]:
        raise UserError(f"{labels} is {sizes[1][0]}x{sizes[1][1]}, its image {sizes[0][0]}x{sizes[0][1]}")
    return turned, palette


def _compare_palettes(folder: SegmentationFolder, palettes: list[bytes | None]) -> None:
    """Warn where label files give a value different colours: a program may have numbered them anew."""
    first: tuple[Path, bytes] | None = None
    for path, palette in zip(folder.labels, palettes, strict=True):
        if palette is None:
            continue
        first = first or (path, palette)
        shared = min(len(palette), len(first[1]))
        if palette[:shared] != first[1][:shared]:
            value = next(i for i in range(shared) if palette[i] != first[1][i]) // 3
            log.warning(
                "%s: has another colour for value %d than %s; if the colours are the classes, write them as "
                "palette into data.yaml",
                path, value, first[0].name,
            )  # fmt: skip
            return


def _each(work: Callable, items: Iterable) -> list:
    """Results in order, by threads: decoders let others run."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "stdc_fast-check") as pool:
        try:
            return list(pool.map(work, items))
        finally:
            pool.shutdown(cancel_futures=True)
