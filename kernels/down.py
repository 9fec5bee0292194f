"""1x1 convolution and ReLU, and both that read it, depthwise 3x3 and average pool 3x3, each with stride 2.

The map between, four times as large, is nowhere: a program computes the nine pixels that an output needs, one
after the other. That is 2.25 times the products, of a layer that has few.
"""

import triton
import triton.language as tl
from stdc_fast.kernels.common import activate, begin, dot, dot_levels, rounded, stored, tile_at


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width"])
def down(
    x,
    weight,
    bias,
    depthwise,
    depthwise_bias,
    y,
    pooled,
    start,
    multipliers,
    inverse,
    pooled_inverse,
    height,
    width,
    out_height,
    out_width,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    POOLED: tl.constexpr,
    POOLED_PITCH: tl.constexpr,
    COUNT_PAD: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    MAPS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Grid: tiles of all images, blocks of channels.

    Args:
        x: [n, height, width, C of PITCH].
        weight: [C, NP].
        bias, depthwise_bias: float32 [N].
        depthwise: float32 [9, N].
        y: depthwise convolution, [n, out_height, out_width, N of OUT_PITCH].
        pooled: average, [n, out_height, out_width, N of POOLED_PITCH], where POOLED. COUNT_PAD: it divides by
            nine everywhere, else by the pixels inside of the image.
        start, multipliers: None, or where x is levels int32 [N] and float32 [N], as of :func:`conv`; weights
            are int8 [NP, C] there.
        inverse, pooled_inverse: None, or where y and pooled are levels one over their steps, float32 [N].
        MAPS: what the map between is rounded to, as if it were stored; None for the dtype of x.
    """
    M: tl.constexpr = TILE_H * TILE_W
    n, _, _, rows, columns = tile_at(tl.program_id(0), out_height, out_width, 1, TILE_H, TILE_W)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    some = channels < N
    k = tl.arange(0, BLOCK_K)
    begin(DEPENDENT)
    x += n * height * width * PITCH
    if multipliers is None:
        b_offsets = k[:, None] * NP + channels[None, :]
    else:
        b_offsets = k[:, None] + channels[None, :] * C
    b_mask = (k < C)[:, None] & (channels < NP)[None, :]
    b = tl.load(weight + b_offsets, b_mask, 0)  # stays where it is, if it is all
    first_bias = tl.load(bias + channels, some, 0)[None, :]
    if multipliers is not None:
        multiplier = tl.load(multipliers + channels, some, 0)[None, :]
        lack = tl.load(start + channels, some, 0)[None, :]

    total = tl.zeros((M, BLOCK_N), tl.float32)
    sums = tl.zeros((M, BLOCK_N), tl.float32)
    for tap in range(9):
        r = 2 * rows + (tap // 3 - 1)
        c = 2 * columns + (tap % 3 - 1)
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        a_offsets = ((r * width + c) * PITCH)[:, None] + k[None, :]
        acc = tl.zeros((M, BLOCK_N), tl.float32 if multipliers is None else tl.int32)
        for first in tl.static_range(0, C, BLOCK_K):
            a_mask = inside[:, None]
            if C % BLOCK_K:
                a_mask = a_mask & (first + k < C)[None, :]
            a = tl.load(x + a_offsets + first, a_mask, 0)
            if BLOCK_K < C:
                mask = (first + k < C)[:, None] & (channels < NP)[None, :]
                b = tl.load(weight + (first * NP if multipliers is None else first) + b_offsets, mask, 0)
            acc = dot(a, b, acc, PRECISION) if multipliers is None else dot_levels(a, b, acc)
        if multipliers is not None:
            acc = (acc + lack).to(tl.float32) * multiplier
        inner = tl.where(inside[:, None], activate(acc + first_bias, "relu"), 0)
        # As it would be stored.
        inner = rounded(inner, x.dtype.element_ty if MAPS is None else MAPS).to(tl.float32)
        total += inner * tl.load(depthwise + tap * N + channels, some, 0)[None, :]
        sums += inner

    total += tl.load(depthwise_bias + channels, some, 0)[None, :]
    pixels = (rows * out_width + columns)[:, None]
    mask = ((rows < out_height) & (columns < out_width))[:, None] & some[None, :]
    area = n * out_height * out_width
    tl.store(
        y + area * OUT_PITCH + pixels * OUT_PITCH + channels[None, :],
        stored(total, inverse, channels, N, y.dtype.element_ty),
        mask,
    )
    if POOLED:
        if COUNT_PAD:
            sums /= 9
        else:
            # Row -1 is outside for the first row, row `height` for the last of an odd height.
            high = 3 - (rows == 0).to(tl.int32) - (2 * rows + 1 >= height).to(tl.int32)
            wide = 3 - (columns == 0).to(tl.int32) - (2 * columns + 1 >= width).to(tl.int32)
            sums /= tl.maximum(high * wide, 1).to(tl.float32)[:, None]
        places = pooled + area * POOLED_PITCH + pixels * POOLED_PITCH + channels[None, :]
        tl.store(places, stored(sums, pooled_inverse, channels, N, pooled.dtype.element_ty), mask)
