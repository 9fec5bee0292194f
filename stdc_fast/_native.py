"""The native module ``stdc_fast._C``, or the reason why there is none and what to do about it."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from stdc_fast.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def module() -> ModuleType:
    """``stdc_fast._C``, imported at the first call; UserError with cause and remedy if that fails."""
    found = _load()
    if isinstance(found, str):
        raise UserError(found)
    return found


def why_not() -> str | None:
    """Why :func:`module` fails, or None."""
    found = _load()
    return found if isinstance(found, str) else None


def about() -> str:
    """What the module was built with, and which instruction set runs here."""
    info = build_info()
    sets = ", ".join(info.get("sets", [])) or "unknown"
    try:
        best = f"; {module().best_isa()} runs here"
    except RuntimeError as error:  # STDC_FAST_CPU_ISA asks for another
        best = f"; but {error}"
    return f"built with {info.get('compiler', 'an unknown compiler')}, sets {sets}{best}"


def isa(wanted: str = "") -> str:
    """The instruction set that runs here, "" without the module; UserError for a wrong STDC_FAST_CPU_ISA
    or another that is wanted and not there.
    """
    found = _load()
    try:
        return "" if isinstance(found, str) else found.best_isa(wanted)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def build_info() -> dict[str, object]:
    """What the build of this installation wrote down: built, compiler, sets, skipped, or the reason.

    Empty if nothing was built here, as in a source tree that was never installed.
    """
    return _read_info(PACKAGE)


def cuda_info() -> dict[str, object]:
    """What :func:`build_info` says of CUDA: built, compiler, targets, options, or why it was not built."""
    info = build_info()
    reason = "the native module was never built here" if not info else "it was built before there were any"
    return info.get("cuda") or {"built": False, "reason": info.get("reason", reason)}


def _read_info(package: Path) -> dict[str, object]:
    try:
        return json.loads((package / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


@functools.cache
def _load() -> ModuleType | str:
    """The module, or one line that says why it is missing."""
    if _file(PACKAGE) is None:  # the finder of an editable install would give another clone's module
        return _diagnosis(PACKAGE)
    try:
        return importlib.import_module("stdc_fast._C")
    except ImportError as error:
        return _diagnosis(PACKAGE, error)


def _file(package: Path) -> Path | None:
    """The module's file in a package, for this Python."""
    files = (package / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _origin() -> str:
    """What was installed, as pip wrote it down: an address or a folder, else the package's name."""
    try:
        text = importlib.metadata.distribution("stdc-fast").read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        found = {}
    url, kind = found.get("url"), found.get("vcs_info", {}).get("vcs")
    return f"{kind}+{url}" if kind and url else url or "stdc-fast"


def _diagnosis(package: Path, error: ImportError | None = None) -> str:
    info, root = _read_info(package), package.parent
    source = (root / "setup.py").is_file() and (root / "csrc").is_dir()
    again = f"pip install --force-reinstall --no-deps --no-cache-dir {_origin()}"
    if source:
        again = f"pip install -e {root}"
    if (file := _file(package)) is not None:
        return f"the native module {file} does not load ({error}); build it again: {again}"
    if source:
        for entry in map(Path, sys.path):
            other = (entry / "stdc_fast").resolve()
            if other != package and _file(other) is not None:
                return (
                    f"the source tree {root} hides the installed {other}, which has the native module; "
                    f"run from another folder, or {again}"
                )
    if not info:
        return f"the native module was never built in {package}; {again}"
    if info.get("built"):
        return f"the native module in {package} is {info.get('module')}, not for this Python; {again}"
    return f"the native module was not built: {info.get('reason')}; then {again}"
