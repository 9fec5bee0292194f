"""Which values a plan's maps take, by running it in float32; and what of them float16 can not hold."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from stdc_fast.backends import eager
from stdc_fast.backends.eager.rounding import Observer
from stdc_fast.plan.plan import Plan
from stdc_fast.precision import FLOAT32

#: Greatest magnitude that the range check lets pass: half of what fp16 can hold, for frames it has not seen.
FP16_LIMIT = torch.finfo(torch.float16).max / 2


def observe(
    plan: Plan, batches: Iterable[Tensor], device: torch.device | str = "cpu"
) -> dict[str, tuple[float, float]]:
    """Ranges of everything that the plan stores, but its inputs, in float32 over these inputs."""
    observer = Observer()
    executable = eager.compile(plan, FLOAT32, device, rounding=observer)
    for batch in batches:
        executable(batch)
    return {key: value for key, value in observer.ranges.items() if key not in plan.inputs}


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
