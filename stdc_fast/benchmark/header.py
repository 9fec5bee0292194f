"""What a measurement says of the machine and of itself."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import torch

from stdc_fast import info
from stdc_fast.hardware import cpu, gpus

SCHEMA = 1
#: Distributions of the peers, whose versions matter to them alone.
_PEERS = (
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "ncnn",
    "pnnx",
    "MNN",
    "torchao",
)
_GPU_FIELDS = {
    "driver": "driver_version",
    "clock_mhz": "clocks.sm",
    "max_clock_mhz": "clocks.max.sm",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}


def identity() -> dict[str, object]:
    """Schema, id and time (UTC) of a record."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "schema": SCHEMA,
        "id": f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        "time": now.isoformat(timespec="seconds"),
    }


def header(device: str, threads: int) -> dict[str, object]:
    """Machine, versions, commit, threads, clocks, and the load there is before anything is timed."""
    versions = info.versions()
    for name in _PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    index = torch.device(device).index or 0
    found = [g | _smi(i) for i, g in enumerate(gpus())] if device != "cpu" else []
    return {
        "device": torch.device(device).type,
        "device_name": found[index]["name"] if found else cpu()["model"],
        "cpu": cpu(),
        "gpus": found,
        "versions": versions,
        "commit": info.commit(),
        "threads": threads,
        "clock_mhz": clocks(),
        "load": load(),
    }


def _smi(index: int) -> dict[str, object]:
    """Driver, clocks, power limit and temperature of a GPU, as far as nvidia-smi tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return dict.fromkeys(_GPU_FIELDS)
    query = ",".join(_GPU_FIELDS.values())
    command = [tool, f"--id={index}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(_GPU_FIELDS)
    values = [value.strip() for value in text.strip().split(",")]
    return {k: v if k == "driver" else _number(v) for k, v in zip(_GPU_FIELDS, values, strict=False)}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def clocks() -> list[float] | None:
    """MHz of each core now, or None where the system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("cpu MHz"):
                found.append(round(float(line.split(":")[1]), 1))
    return found or None


def load(seconds: float = 0.5) -> dict[str, object]:
    """What others do on this machine: load averages, and the busy and the stolen share of all cores' time.

    The shares are seen over ``seconds`` in which this process sleeps; None where the system does not tell.
    """
    average = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None:
        return {"average": average, "busy": None, "steal": None}
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = max(1, sum(spent))
    idle = spent[3] + spent[4]
    return {
        "average": average,
        "busy": round(1 - idle / total, 3),
        "steal": round(spent[7] / total, 3),
    }


def _ticks() -> list[int] | None:
    """user, nice, system, idle, iowait, irq, softirq, steal of all cores."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    return [int(x) for x in first[1:9]]
