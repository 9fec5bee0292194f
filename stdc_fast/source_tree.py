"""Finds ``stdc_fast.kernels`` in a source tree, where the folder kernels/ lies beside the package.

So a tree also runs by PYTHONPATH, without an installation. An installed package holds its kernels itself.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).resolve().parent.parent


class KernelsFinder:
    """A meta path finder for this one name; the kernels' own modules are then found through their package."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "stdc_fast.kernels":
            return None
        folder = _ROOT / "kernels"
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def register() -> None:
    """Let imports find the kernels of this source tree; nothing where this is none."""
    if all((_ROOT / file).is_file() for file in ("setup.py", "kernels/__init__.py")):
        # First, as the finder of an editable installation of another tree would give that tree's kernels.
        sys.meta_path.insert(0, KernelsFinder)
