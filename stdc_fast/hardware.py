"""What processor and GPUs there are."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

_CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8",
)  # fmt: skip


@functools.cache
def _cpu_model() -> tuple[str, list[str]]:
    """Name and instruction sets of the processor, as the system tells them."""
    model, flags = platform.processor() or platform.machine(), []
    path = Path("/proc/cpuinfo")
    if path.is_file():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in path.read_text().splitlines()
            if ":" in line
        )
        model = fields.get("model name", model)
        present = fields.get("flags", "").split()
        flags = [f for f in _CPU_FLAGS if f in present]
    return model, flags


def cpu() -> dict[str, object]:
    """Model, cores, threads and instruction sets of the processor."""
    model, flags = _cpu_model()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": model,
        "machine": platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "features": list(flags),
    }


def gpus() -> list[dict[str, object]]:
    """Name, compute capability, processors and memory of each GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    found = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found.append(
            {
                "name": p.name,
                "capability": f"{p.major}.{p.minor}",
                "processors": p.multi_processor_count,
                "memory_gib": round(p.total_memory / 2**30, 1),
            }
        )
    return found
