"""What machine and versions this runs on; for ``stdc-fast info`` and for headers of measurements."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from stdc_fast import _native, backends, checkpoints, zoo
from stdc_fast.backends import cuda
from stdc_fast.backends.gpu.model import device_class, like_its_class
from stdc_fast.errors import UserError
from stdc_fast.hardware import cpu, gpus
from stdc_fast.plan import build, optimise
from stdc_fast.precision import choose
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


def _default() -> tuple[str, str, str, str, str | None]:
    """(backend, the times that chose it, dtype, why this dtype, what it does for speed) that "auto" means for
    the default weights.

    Instead of the backend, why it would fail: this is where one looks when it does.
    """
    device = backends.resolve_device()
    precision, why = choose("auto", device)
    try:
        plan = optimise(build(checkpoints.read(zoo.find(zoo.DEFAULT)).network()))
        decision = backends.select(plan, precision, device)
        backend = decision.backend
        return backend.name, decision.choice, precision.name, why, backend.memory(small=False)
    except UserError as error:
        return f"none: {error}", "", precision.name, why, None


def commit() -> str:
    """Commit of the source tree this runs from, or "unknown" outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "unknown"


def _gpus() -> list[dict[str, object]]:
    """As :func:`stdc_fast.hardware.gpus`; with "class", whose numbers and tables are used, and "cuda", the
    code that it runs or why there is none."""
    found = gpus()
    for gpu in found:
        capability = tuple(map(int, gpu["capability"].split(".")))
        of = device_class(capability, gpu["processors"])
        tables = "its tables" if like_its_class(of) else "no table, as it has other numbers of processors"
        gpu["class"] = f"{of.key}, as {of.name}; {tables}"
        targets = _native.cuda_info().get("targets", [])
        if targets:
            gpu["cuda"] = cuda.why_not_device(capability) or f"code for {cuda.code(capability, targets)}"
    return found


def _status(backend: backends.Backend) -> dict[str, object]:
    why_not = backend.why_not_here()
    return {"name": backend.name, "available": why_not is None, "reason": why_not or backend.about()}


def collect() -> dict[str, object]:
    """All of the above, the native module, the backends with their reasons, and the embedded models."""
    backend, choice, dtype, why, memory = _default()
    missing = _native.why_not()
    models = []
    for name in zoo.list_models(status="embedded"):
        meta = zoo.model_info(name)
        models.append({"name": name, **{k: meta.get(k) for k in ("variant", "miou", "miou_split", "terms")}})
    return {
        "versions": versions(),
        "cpu": cpu(),
        "gpus": _gpus(),
        "native": {
            "available": missing is None,
            "reason": missing or _native.about(),
            "build": _native.build_info(),
        },
        "backends": [_status(b) for b in backends.BACKENDS],
        "default_backend": backend,
        "default_choice": choice,
        "default_dtype": {"name": dtype, "reason": why},
        "default_memory": {"name": "fast", "reason": memory},
        "models": models,
    }
