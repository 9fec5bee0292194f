"""Measures what the model of kernels' times assumes of a GPU; see gpu_constants.cu.

Its program, and that of bench.gpu_sanitize, come from ``PREBUILT``, as ``python -m bench.gpu_prebuilt`` made
them, else from nvcc.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from csrc.build_native import Missing, find_nvcc
from stdc_fast.backends.cuda import tiles as cuda_tiles
from stdc_fast.backends.gpu.model import DEPENDENT_NODE, LATENCY, NODE, Device
from stdc_fast.benchmark.table import aligned
from stdc_fast.errors import UserError

SOURCE = Path(__file__).with_name("gpu_constants.cu")


def nvcc() -> list[str]:
    """The compiler, as the build finds it; UserError if there is none."""
    try:
        return find_nvcc()
    except Missing as error:
        raise UserError(str(error)) from None


def prebuilt(source: Path) -> Path | None:
    """What ``bench.gpu_prebuilt`` made of a source, or None; it is in PREBUILT, as for bench/gpu.sh."""
    path = Path(os.environ.get("PREBUILT") or SOURCE.with_name("prebuilt"), source.stem).resolve()
    if path.is_file() and not os.access(path, os.X_OK):
        path.chmod(0o755)  # lost on the way
    return path if path.is_file() else None


def made(source: Path, target: Path, capability: tuple[int, int], *flags: str) -> Path:
    """The prebuilt one, or ``target``, which is built."""
    return prebuilt(source) or build(source, target, capability, *flags)


def build(source: Path, target: Path, capability: tuple[int, int], *flags: str) -> Path:
    """A program or library from one source, for one kind of GPU; UserError with nvcc's words if it fails."""
    number = f"{capability[0]}{capability[1]}"
    code = f"arch=compute_{number},code=sm_{number}"
    command = [*nvcc(), "-std=c++17", "-O3", "-gencode", code, *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise UserError(f"{source.name} does not compile: {done.stderr.strip()[-400:]}")
    return target


def measure(device: Device) -> dict[str, dict[str, float]]:
    """{"constants": as measured, "assumed": as the model has them}, of the first GPU."""
    with tempfile.TemporaryDirectory() as folder:
        program = made(SOURCE, Path(folder, "constants"), device.capability)
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise UserError(f"{SOURCE.name}: {done.stderr.strip()}")
    return {"constants": json.loads(done.stdout), "assumed": assumed(device)}


def assumed(device: Device) -> dict[str, float]:
    """What the model has of these: seconds, bytes a second and operations a second.

    A "chain" is a node whose kernel reads what the one before it wrote.
    """
    rate = device.products * (0.62 if device.wgmma else 0.85)
    found = {"node": NODE, "chain": NODE + LATENCY}
    if device.capability >= (9, 0):
        node = DEPENDENT_NODE
        found |= {"dependent_node": node, "dependent_chain": node + LATENCY}
    found |= {"cache": device.cache, "port": device.port}
    # Warps that do not fill the units: as the model of the CUDA kernels has it.
    found |= {f"mma_{n}_warps": rate * min(1, (n + 1) / 8) for n in (4, 8, 16)}
    return found | {"shared": 128 * cuda_tiles.CLOCK}


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """A line a constant."""
    cells = [("constant", "measured", "assumed", "ratio")]
    for name, value in found["constants"].items():
        guess = found["assumed"].get(name)
        ratio = "" if guess is None else f"{value / guess:.2f}"
        cells.append((name, f"{value:.4g}", "" if guess is None else f"{guess:.4g}", ratio))
    return aligned(cells)
