"""Which dtype to run in, with its reason, and whether a checkpoint fits into fp16."""

from __future__ import annotations

import dataclasses
import math
import os

import torch
from torch import Tensor

from stdc_fast.backends.eager.rounding import observe
from stdc_fast.errors import UserError
from stdc_fast.hardware import cpu
from stdc_fast.plan import Plan

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
#: Greatest magnitude that the range check lets pass: half of what fp16 can hold, for frames it has not seen.
FP16_LIMIT = torch.finfo(torch.float16).max / 2


@dataclasses.dataclass(frozen=True)
class Precision:
    """What a network runs in, and why."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose(dtype: str | torch.dtype = "auto", device: torch.device | str = "cpu") -> Precision:
    """The dtype of a request; "auto" is what the device multiplies fastest with labels as good.

    On a GPU with tensor cores float16; on a CPU with AMX-BF16 or AVX512-BF16 bfloat16; else float32.
    UserError for an unknown dtype.
    """
    if dtype == "auto":
        return _fastest(torch.device(device))
    if isinstance(dtype, str) and dtype in _DTYPES:
        return Precision(_DTYPES[dtype], "asked for")
    if dtype in _DTYPES.values():
        return Precision(dtype, "asked for")
    raise UserError(f"unknown dtype {dtype!r}; use auto, {', '.join(_DTYPES)}")


def _fastest(device: torch.device) -> Precision:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (7, 0):
            return Precision(torch.float16, "GPU with tensor cores")
        return Precision(torch.float32, f"GPU without tensor cores (compute {capability[0]}.{capability[1]})")
    features = cpu()["features"]
    forced = os.environ.get("STDC_FAST_CPU_ISA")
    if forced and not forced.lower().endswith("_bf16"):
        return Precision(torch.float32, f"STDC_FAST_CPU_ISA={forced} has no bfloat16 instructions")
    for feature, name in (("amx_bf16", "AMX-BF16"), ("avx512_bf16", "AVX512-BF16")):
        if feature in features and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return Precision(torch.bfloat16, f"CPU with {name}")
    return Precision(torch.float32, "CPU without bfloat16 instructions")


def fp16_overflow(plan: Plan, device: torch.device | str = "cpu") -> str | None:
    """What of a plan does not fit into fp16, or None: its weights, and its maps on a few frames.

    The frames are black, white, noise and coarse saturated colours, which drive maps further than photos do.

    Args:
        plan: an optimised network that reads raw frames.
        device: where to run the frames, in float32.
    """
    for name, weight in sorted(plan.weights.items()):
        largest = weight.abs().max().item()
        # Biases stay float32.
        if not (largest <= FP16_LIMIT if weight.ndim > 1 else math.isfinite(largest)):
            return f"weights of {name} reach {largest:.3g}"
    for key, (low, high) in observe(plan, [_frames().to(device)], device).items():
        largest = max(-low, high)
        if not largest <= FP16_LIMIT:  # also NaN
            return f"values of {key} reach {largest:.3g}"
    return None


def _frames(height: int = 96, width: int = 192) -> Tensor:
    """uint8 ``[4, H, W, 3]``, the same every time."""
    generator = torch.Generator().manual_seed(0)
    flat = [torch.full((height, width, 3), value) for value in (0, 255)]
    noise = torch.randint(0, 256, (height, width, 3), generator=generator)
    coarse = 255 * torch.randint(0, 2, (height // 24, width // 24, 3), generator=generator)
    coarse = coarse.repeat_interleave(24, 0).repeat_interleave(24, 1)
    return torch.stack([*flat, noise, coarse]).to(torch.uint8)
