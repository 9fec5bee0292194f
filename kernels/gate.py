"""Matrix-vector products of averages: attention, feature fusion, global context."""

import triton
import triton.language as tl
from stdc_fast.kernels.common import activate, begin


@triton.jit
def _layer(
    x,
    weight,
    bias,
    out,
    ROWS_BLOCK: tl.constexpr,
    rows,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``weight @ x + bias`` for the outputs ``out``, [BLOCK_N], where x is what ``rows`` rows add up to."""
    acc = tl.zeros((BLOCK_N,), tl.float32)
    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, ROWS_BLOCK)
    for start in tl.static_range(0, C, BLOCK_C):
        some = start + c < C
        v = tl.zeros((BLOCK_C,), tl.float32)
        for row in range(0, rows, ROWS_BLOCK):
            known = (row + r < rows)[:, None] & some[None, :]
            v += tl.sum(tl.load(x + (row + r)[:, None] * PITCH + (start + c)[None, :], known, 0), 0)
        mask = (out < N)[:, None] & some[None, :]
        w = tl.load(weight + out[:, None] * C + (start + c)[None, :], mask, 0).to(tl.float32)
        acc += tl.sum(w * v[None, :], 1)
    return acc + tl.load(bias + out, out < N, 0)


@triton.jit(do_not_specialize=["rows"])
def gate(
    x,
    weight,
    bias,
    weight2,
    bias2,
    y,
    rows,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    HIDDEN: tl.constexpr,
    N: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    ACT: tl.constexpr,
    ACT2: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """``y = act2(weight2 @ act(weight @ x + bias) + bias2)``; grid: blocks of outputs, images.

    Args:
        x: float32 [n, rows, C of PITCH]: what the tiles of a map add to its average.
        weight: [HIDDEN or N, C].
        weight2: [N, HIDDEN], where there is a second layer; each program computes all of the first.
        y: float32 [n, N of OUT_PITCH].
    """
    n = tl.program_id(1).to(tl.int64)
    begin(DEPENDENT)
    x += n * rows * PITCH
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if HIDDEN:
        h = tl.arange(0, BLOCK_H)
        hidden = _layer(x, weight, bias, h, BLOCK_R, rows, C, PITCH, HIDDEN, BLOCK_C, BLOCK_H)
        hidden = tl.where(h < HIDDEN, activate(hidden, ACT), 0)
        mask = (out < N)[:, None] & (h < HIDDEN)[None, :]
        w = tl.load(weight2 + out[:, None] * HIDDEN + h[None, :], mask, 0).to(tl.float32)
        result = tl.sum(w * hidden[None, :], 1)
        result += tl.load(bias2 + out, out < N, 0)
        result = activate(result, ACT2)
    else:
        result = _layer(x, weight, bias, out, BLOCK_R, rows, C, PITCH, N, BLOCK_C, BLOCK_N)
        result = activate(result, ACT)
    tl.store(y + n * OUT_PITCH + out, result, out < N)
