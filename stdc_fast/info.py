"""What machine and versions this runs on; for ``stdc-fast info`` and for headers of measurements."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from stdc_fast import _native, backends, zoo
from stdc_fast.backends import precision
from stdc_fast.errors import UserError
from stdc_fast.hardware import cpu, gpus
from stdc_fast.version import __version__


def versions() -> dict[str, str | None]:
    """Versions of what matters here; None for what is not installed."""
    result: dict[str, str | None] = {
        "stdc_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
    }
    for name in ("triton", "numpy", "pillow", "safetensors"):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = None
    return result


def _default_backend() -> str:
    """What "auto" would take, or why it would fail: this is where one looks when it does."""
    try:
        return backends.choose().name
    except UserError as error:
        return f"none: {error}"


def commit() -> str:
    """Commit of the source tree this runs from, or "unknown" outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


def collect() -> dict[str, object]:
    """All of the above, the native module, the backends with their reasons, and the embedded models."""
    default = precision.choose("auto", backends.resolve_device())
    loads, reason = _native.available()
    models = []
    for name in zoo.list_models():
        meta = zoo.model_info(name)
        models.append({"name": name, **{k: meta.get(k) for k in ("variant", "miou", "miou_split", "terms")}})
    return {
        "versions": versions(),
        "cpu": cpu(),
        "gpus": gpus(),
        "native": {"available": loads, "reason": reason, "build": _native.build_info()},
        "backends": [
            {"name": s.name, "available": s.available, "reason": s.reason} for s in backends.statuses()
        ],
        "default_backend": _default_backend(),
        "default_dtype": {"name": default.name, "reason": default.reason},
        "models": models,
    }
