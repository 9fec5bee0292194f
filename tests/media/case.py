"""One kind of file that people bring: how a real tool makes it, and how well it is read."""

import dataclasses
import functools
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


@functools.cache
def version(tool: str) -> str | None:
    """First line of a tool's version, or of a Python package's; None where there is none."""
    import importlib.metadata

    if shutil.which(tool):
        option = "-ver" if tool == "exiftool" else "-version"
        done = subprocess.run([tool, option], capture_output=True, text=True)
        first = (done.stdout or done.stderr).split("\n")[0].strip()
        return f"{tool} {first}" if tool == "exiftool" else first
    try:
        return f"{tool} {importlib.metadata.version(tool)}"
    except importlib.metadata.PackageNotFoundError:
        return None
