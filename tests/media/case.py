"""One kind of file that people bring: how a real tool makes it, and how well it is read."""

import dataclasses
import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table of :mod:`tests.media.table`.

    Attributes:
        name: what the file is, e.g. "JPEG with a Display P3 profile".
        tool: name of the program or package that writes it: "ffmpeg", "convert", "Pillow", "av".
        measure: writes the files into a folder, gives them to the library's public interface and says what
            came out: a share of equal labels from 0 to 1, or one line of text, such as a refusal.
        target: the least share, or text that must be in the line.
    """

    name: str
    tool: str
    measure: Callable[[Path], float | str]
    target: float | str

    def holds(self, outcome: float | str) -> bool:
        """Whether an outcome is what it must be."""
        if isinstance(self.target, str):
            return isinstance(outcome, str) and self.target in outcome
        return isinstance(outcome, float) and outcome >= self.target


#: Programs: the option that asks for the version, what the first line must have, and whose it is then.
PROGRAMS = {
    "ffmpeg": ("-version", r"^ffmpeg version", "FFmpeg"),
    "convert": ("-version", r"ImageMagick", "ImageMagick"),  # GraphicsMagick and others have that name, too
    "exiftool": ("-ver", r"^\d", "ExifTool"),
}


@functools.cache
def version(tool: str) -> str | None:
    """First line of a tool's version, or of a Python package's; None where there is none."""
    import importlib.metadata

    if tool in PROGRAMS:
        option, pattern, _ = PROGRAMS[tool]
        if shutil.which(tool) is None:
            return None
        done = subprocess.run([tool, option], capture_output=True, text=True)
        first = done.stdout.split("\n")[0].strip()
        if done.returncode or not re.search(pattern, first):
            return None
        return f"{tool} {first}" if tool == "exiftool" else first
    try:
        return f"{tool} {importlib.metadata.version(tool)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def why_not(tool: str) -> str | None:
    """Why there is nothing to write files with, or None."""
    if version(tool) is not None:
        return None
    if tool in PROGRAMS and shutil.which(tool):
        return f"{shutil.which(tool)} is not {PROGRAMS[tool][2]}'s {tool}"
    return f"no {tool}"
