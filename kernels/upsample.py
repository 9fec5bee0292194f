"""Labels straight from the logits at 1/8: bilinear interpolation and argmax, without logits at full size."""

import triton
import triton.language as tl
from stdc_fast.kernels.common import begin


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "pieces"])
def upsample(
    logits,
    row_base,
    row_weight,
    column_start,
    column_weight,
    labels,
    height,
    width,
    out_height,
    out_width,
    pieces,
    CLASSES: tl.constexpr,
    TAPS: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """The best class of each pixel, the lowest of equals; grid: rows, cells in pieces, images.

    A cell is what lies between two columns of the logits: its pixels read the same columns, so these are
    interpolated between rows once for all of them. NOTE: cells run along the lanes of a warp and a cell's
    pixels along its registers, so that loads of the (planar) logits are coalesced and serve up to ``BLOCK``
    pixels; wider cells are in ``pieces``.

    Args:
        logits: float32 [n, CLASSES, height, width].
        row_base: int32 [out_height], the first of TAPS rows that a row of labels reads; and their weights.
        row_weight: float32 [out_height, TAPS].
        column_start: int32 [width + 1], the first column of labels of each cell.
        column_weight: float32 [out_width, TAPS]; a column of cell j reads columns j, j + 1, ...
        labels: uint8 [n, out_height, out_width].
    """
    row = tl.program_id(0)
    cell = tl.program_id(1) // pieces * CELLS + tl.arange(0, CELLS)
    first = tl.program_id(1) % pieces * BLOCK
    image = tl.program_id(2).to(tl.int64)
    begin(DEPENDENT)
    start = tl.load(column_start + cell, cell < width, 0)
    end = tl.load(column_start + cell + 1, cell < width, 0)
    column = start[None, :] + first + tl.arange(0, BLOCK)[:, None]
    live = column < end[None, :]

    base = tl.load(row_base + row)
    area = height * width
    top = tl.minimum(base, height - 1) * width
    middle = tl.minimum(base + 1, height - 1) * width
    bottom = tl.minimum(base + 2, height - 1) * width
    a = tl.load(row_weight + row * TAPS)
    b = tl.load(row_weight + row * TAPS + 1)
    c = tl.load(row_weight + row * TAPS + 2) if TAPS == 3 else 0.0
    left = tl.minimum(cell, width - 1)
    centre = tl.minimum(cell + 1, width - 1)
    right = tl.minimum(cell + 2, width - 1)
    u = tl.load(column_weight + column * TAPS, live, 0)
    v = tl.load(column_weight + column * TAPS + 1, live, 0)
    w = tl.load(column_weight + column * TAPS + 2, live, 0) if TAPS == 3 else u

    best = tl.full((BLOCK, CELLS), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK, CELLS), tl.int32)
    logits += image * CLASSES * area
    for i in range(CLASSES):
        p = a * tl.load(logits + top + left) + b * tl.load(logits + middle + left)
        q = a * tl.load(logits + top + centre) + b * tl.load(logits + middle + centre)
        if TAPS == 3:
            p += c * tl.load(logits + bottom + left)
            q += c * tl.load(logits + bottom + centre)
        value = u * p[None, :] + v * q[None, :]
        if TAPS == 3:
            r = a * tl.load(logits + top + right) + b * tl.load(logits + middle + right)
            r += c * tl.load(logits + bottom + right)
            value += w * r[None, :]
        better = value > best
        best = tl.where(better, value, best)
        label = tl.where(better, i, label)
        logits += area
    place = (image * out_height + row) * out_width + column
    tl.store(labels + place, label.to(tl.uint8), live)
