"""What this machine can do at most, measured: matrix products and copies, through torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch

from stdc_fast.benchmark.clock import Clock
from stdc_fast.hardware import cpu

#: Sizes of the square products; the fastest counts.
_CPU_SIZES = (1024, 2048)
_GPU_SIZES = (4096, 8192)
_COPY = 128 << 20


def measure(device: str, dtypes: list[str], threads: list[int]) -> list[dict[str, object]]:
    """Peak of the matrix units by dtype and memory bandwidth (a copy: bytes read plus written).

    Args:
        device: "cpu" or a CUDA device.
        dtypes: of "float32", "bfloat16", "float16" and "int8"; what torch can not multiply is left out.
            float32 on a GPU is true float32, without TF32.
        threads: numbers of threads, on a CPU.

    Returns dicts with what ("matrix" or "bandwidth"), dtype, threads, value and unit ("flop/s", also for
    integers, or "byte/s"): the best of several runs, since it is a limit.
    """
    found: list[dict[str, object]] = []
    before = torch.get_num_threads()
    for count in threads if device == "cpu" else [0]:
        if count:
            torch.set_num_threads(count)
        for dtype in dtypes:
            rate = _matrix(device, dtype)
            if rate is not None:
                found.append(_entry("matrix", dtype, count, rate, "flop/s"))
        found.append(_entry("bandwidth", None, count, _copy(device), "byte/s"))
    torch.set_num_threads(before)
    return found


def _entry(what: str, dtype: str | None, threads: int, value: float, unit: str) -> dict[str, object]:
    return {"what": what, "dtype": dtype, "threads": threads or None, "value": value, "unit": unit}


def merge(*measured: list[dict[str, object]]) -> list[dict[str, object]]:
    """The higher of what several measurements found, entry by entry."""
    best: dict[tuple, dict[str, object]] = {}
    for entry in (e for entries in measured for e in entries):
        key = entry["what"], entry["dtype"], entry["threads"]
        if key not in best or entry["value"] > best[key]["value"]:
            best[key] = entry
    return list(best.values())


def _matrix(device: str, dtype: str) -> float | None:
    # Without instructions for it torch takes minutes.
    if device == "cpu" and dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    if device == "cpu" and dtype == "float16" and "avx512_fp16" not in cpu()["features"]:
        return None
    best = 0.0
    for n in _CPU_SIZES if device == "cpu" else _GPU_SIZES:
        if dtype == "int8":
            multiply = torch._int_mm
            a, b = (torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
        else:
            multiply = torch.mm
            a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
        for second in (b, b.t()):  # kernels differ in which of the two they like better, or take at all
            with contextlib.suppress(RuntimeError):
                best = max(best, 2 * n**3 / _fastest(functools.partial(multiply, a, second), device))
    return best or None


def _copy(device: str) -> float:
    source = torch.randint(0, 255, (_COPY,), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * _COPY / _fastest(lambda: target.copy_(source), device)


def _fastest(call: Callable[[], object], device: str, repeats: int = 3) -> float:
    """Seconds of the fastest of a few calls."""
    return min(Clock(device).times(call, repeats + 1, host=False)[1:])
