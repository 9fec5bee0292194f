"""Which files are pictures, and those of a path, folder or glob."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from stdc_fast.encode import FORMATS as WRITTEN
from stdc_fast.encode import made_here
from stdc_fast.errors import UserError, announce

#: Formats of pictures, by Pillow's names; HEIF and JXL are those of its plugins. Folders give what has their
#: suffixes. Pillow opens documents, icons and scientific data as well.
FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PCX", "PNG",
                      "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"})  # fmt: skip
RAW_SUFFIXES = frozenset({".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc",
                           ".mef", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2",
                           ".srf", ".srw", ".x3f"})  # fmt: skip
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".ogv",
                            ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".m2t", ".mjpeg", ".mjpg", ".y4m",
                            ".h264", ".264", ".h265", ".265", ".hevc", ".m1v", ".m2v", ".ivf", ".obu", ".mxf",
                            ".dv", ".vob", ".asf", ".f4v", ".3g2", ".nut", ".rm", ".rmvb",
                            ".ogm"})  # fmt: skip
#: The name of standard input, also where there is no such file; the command line has "-" for it.
STDIN = Path("/dev/stdin")


@functools.cache
def has_heif() -> bool:
    """Whether the package pillow-heif is there; it is made known to Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image (folders skip the others)."""
    if path.name.startswith("."):
        return False
    suffix = path.suffix.lower()
    if suffix in HEIF_SUFFIXES:
        has_heif()
    return Image.registered_extensions().get(suffix) in FORMATS


def is_animated_gif(path: str | Path) -> bool:
    """Whether a file is a GIF of several frames, which is a video."""
    if os.path.splitext(path)[1].lower() == ".gif":
        with contextlib.suppress(Exception), Image.open(path) as image:
            return image.is_animated
    return False


def expand(source: str | os.PathLike, recursive: bool = False) -> tuple[list[Path], bool]:
    """Image files of a path, folder or glob, and whether it stands for several; "-" is :data:`STDIN`.

    A folder gives its image files in order of name, and a line names the other files, but hidden ones. With
    ``recursive`` those of its sub-folders follow, in order of name too, but hidden ones; a folder that links
    lead to again comes once, also where a glob has ``**``. UserError if there are none.
    """
    text = os.fspath(source)
    if not text:
        raise UserError("the source is an empty name; give a file, a folder or a glob")
    if text == "-" and not os.path.exists(text):
        return [STDIN], False
    path = Path(text)
    try:
        # os.path, unlike Path on Python < 3.14, answers False where the file system objects.
        if os.path.isdir(path):
            entries = [entry for folder in _folders(path, recursive) for entry in _entries(folder)]
            files = [p for p in entries if is_image(p) and p.is_file() and not is_animated_gif(p)]
            if not files:
                raise UserError(f"{text}: the folder holds no image files; videos go by their own names")
            others = sorted(set(entries).difference(files), key=lambda p: (_rank(p), p.name))
            if others:
                more = "" if len(others) <= 3 else ", ..."
                were = "1 file is not taken" if len(others) == 1 else f"{len(others)} files are not taken"
                named = ", ".join(p.name + _WHY.get(_rank(p), "") for p in others[:3])
                announce(f"{path}/", "%s: %s", were, named + more)
            return without_results(files), True
        if not os.path.exists(path) and glob.has_magic(text):
            files = sorted(Path(p) for p in matches(text) if os.path.isfile(p))
            if not files:
                raise UserError(f"{text}: no file matches")
            return without_results(files), True
    except OSError as error:
        raise UserError(f"{text}: can not be read ({error.strerror})") from None
    return [path], False


def matches(pattern: str) -> list[str]:
    """What a glob matches. ``**`` is each folder once, as those of :func:`expand`; Python's follows links for
    ever.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    found: dict[str, None] = {}
    for top in filter(os.path.isdir, glob.glob(os.path.join(".", *parts[:at]))):
        for folder in _folders(Path(top), True):
            found |= dict.fromkeys(matches(os.path.join(glob.escape(str(folder)), *parts[at + 1 :] or "*")))
    return list(found)


def _entries(folder: Path) -> list[Path]:
    """What is no folder and not hidden, in order of name."""
    return sorted(p for p in folder.iterdir() if not (p.name.startswith(".") or os.path.isdir(p)))


def _folders(top: Path, recursive: bool) -> Iterator[Path]:
    """A folder and, with ``recursive``, those below it, but hidden ones; each once, wherever links lead."""
    if not recursive:
        yield top
        return

    def refuse(error: OSError) -> None:
        if error.filename == os.fspath(top):
            raise error
        announce(error.filename, "can not be read (%s); the folder is left out", error.strerror)

    seen = set()
    for folder, names, _ in os.walk(top, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = without_jobs(folder, sorted(name for name in names if not name.startswith(".")))
        yield Path(folder)


def without_jobs(folder: str, names: list[str]) -> list[str]:
    """Names of sub-folders, but those with the results of a job of ``stdc-fast label``; a line says so."""

    def is_job(name: str) -> bool:
        path = os.path.join(folder, name)
        marked = any(os.path.isfile(os.path.join(path, mark)) for mark in ("job.json", "job/lock"))
        return marked and os.path.isdir(os.path.join(path, "job", "shards"))

    jobs = [name for name in names if is_job(name)]
    for name in jobs:
        announce(f"{os.path.join(folder, name)}/", "holds the results of a job and is left out")
    return [name for name in names if name not in jobs]


#: Why a folder's file is not taken, by :func:`_rank`.
_WHY = {0: " (needs pillow-heif)", 1: " (a camera's raw data)", 2: " (a video, which goes by its own name)"}


def _rank(path: Path) -> int:
    """Of files that a folder does not give: what people miss comes first."""
    suffix = path.suffix.lower()
    if suffix in HEIF_SUFFIXES:
        return 0
    if suffix in RAW_SUFFIXES:
        return 1
    return 2 if suffix in VIDEO_SUFFIXES or suffix == ".gif" else 3


def without_results(files: list) -> list:
    """Paths without results that an earlier run wrote of others of them; a line says so. Others stay."""
    paths = [path for path in files if isinstance(path, Path)]
    names = {name for p in paths for name in (p.stem, f"{p.stem}_{p.suffix.lstrip('.')}")}

    def is_result(path: Path) -> bool:
        base, _, kind = path.stem.rpartition("_")
        written = kind in ("overlay", "labels") and path.suffix[1:] in WRITTEN
        own = base in names or base.rpartition("_")[0] in names  # numbered where names are taken
        return written and own and made_here(path)

    if results := {path for path in paths if is_result(path)}:
        first = sorted(results)[:3]
        announce(f"{first[0].parent}/", "results of an earlier run are left out: %d, with %s",
                 len(results), ", ".join(path.name for path in first))  # fmt: skip
    return [path for path in files if path not in results]
