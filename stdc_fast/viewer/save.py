"""Writes figures: SVG or PNG, in the library's style, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Settings that must not be the user's.
FIXED = {
    "svg.hashsalt": "stdc-fast",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.parse_math": False,  # a file's name may hold dollars
}


def figure_format(path: str | Path) -> str:
    """By the suffix, "svg" or "png". UserError for another one, and without matplotlib."""
    kind = Path(path).suffix.lower()[1:]
    if kind not in ("svg", "png"):
        raise UserError(f"{path}: figures are written as .svg or .png; choose such a name")
    try:
        import matplotlib.style  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: figures need matplotlib; pip install matplotlib") from None
    return kind


def save_figure(path: str | Path, make: Callable[[], Figure]) -> None:
    """Write what ``make`` draws, in the library's style.

    UserError as of :func:`figure_format`, and where ``path`` can not be written.
    """
    path, kind = Path(path), figure_format(path)
    import matplotlib.style

    # Neither the day nor the version: a committed figure changes with what it shows only.
    metadata = {"Date": None, "Creator": "stdc-fast"} if kind == "svg" else {"Software": "stdc-fast"}
    with matplotlib.style.context(["default", FIXED]):
        drawn = make()
        write_atomic(path, lambda p: drawn.savefig(p, format=kind, dpi=130, metadata=metadata))
