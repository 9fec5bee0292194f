"""A map times a vector plus a vector or a map, where no convolution does it: ends of blocks, and levels."""

import triton
import triton.language as tl
from stdc_fast.kernels.common import begin, stored


@triton.jit(do_not_specialize=["area"])
def prologue(
    x,
    scale,
    add,
    y,
    inverse,
    area,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_PITCH: tl.constexpr,
    ADD: tl.constexpr,
    ADD_PITCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """``y = x * scale + add``; grid: blocks of pixels, blocks of channels, images.

    Args:
        x: [n, area, C of PITCH].
        scale: float32 [n, C of SCALE_PITCH], where SCALE.
        add: "vector", float32 [n, C of ADD_PITCH]; "map", like x; or "none".
        y: [n, area, C of OUT_PITCH].
        inverse: None, or where y is levels one over their steps, float32 [C].
    """
    n = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    some = c < C
    begin(DEPENDENT)
    mask = (m < area)[:, None] & some[None, :]
    value = tl.load(x + n * area * PITCH + m[:, None] * PITCH + c[None, :], mask, 0).to(tl.float32)
    if SCALE:
        value *= tl.load(scale + n * SCALE_PITCH + c, some, 0)[None, :]
    if ADD == "vector":
        value += tl.load(add + n * ADD_PITCH + c, some, 0)[None, :]
    if ADD == "map":
        place = n * area * ADD_PITCH + m[:, None] * ADD_PITCH + c[None, :]
        value += tl.load(add + place, mask, 0).to(tl.float32)
    place = n * area * OUT_PITCH + m[:, None] * OUT_PITCH + c[None, :]
    tl.store(y + place, stored(value, inverse, c, C, y.dtype.element_ty), mask)
