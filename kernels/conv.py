"""Convolutions as implicit matrix products: 1x1, 3x3 and sub-pixel 2x2, with all that stands around them.

A program computes a tile of ``TILE_H x TILE_W`` pixels by ``BLOCK_N`` channels, in steps of one tap and
``BLOCK_K`` channels of the input.

NOTE: each step fetches its pixels anew, from L2: Triton's asynchronous copies pass by L1, and its programs
can not shift what they hold in shared memory. So tiles as large as the grid allows are the fastest.
"""

import triton
import triton.language as tl
from stdc_fast.kernels.common import activate, begin, dot, dot_levels, rounded, stored, tile_at


@triton.jit
def _products(
    acc,
    x,
    weight,
    scale,
    add,
    rows,
    columns,
    channels,
    height,
    width,
    first,
    last,
    parity_y,
    parity_x,
    KERNEL: tl.constexpr,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    NP: tl.constexpr,
    SCALE: tl.constexpr,
    ADD: tl.constexpr,
    ADD_PITCH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the products of steps ``first`` to ``last``: channels outside, taps inside.

    Args:
        rows, columns: [M] of the input pixel below the centre tap (sub-pixel: below the second).
        channels: [BLOCK_N] of the output.
        weight: [taps, C, NP]; of levels, int8 [taps, NP, C].
    """
    TAPS: tl.constexpr = KERNEL * KERNEL
    k = tl.arange(0, BLOCK_K)
    centre = rows * width + columns
    a_offsets = centre[:, None] * PITCH + k[None, :]
    LEVELS: tl.constexpr = x.dtype.element_ty.primitive_bitwidth == 8
    b_offsets = k[:, None] + channels[None, :] * C if LEVELS else k[:, None] * NP + channels[None, :]
    for step in range(first, last):
        c = step // TAPS * BLOCK_K
        tap = step % TAPS
        if KERNEL == 2:
            dy = tap // 2 - 1 + parity_y
            dx = tap % 2 - 1 + parity_x
        else:
            dy = tap // KERNEL - KERNEL // 2
            dx = tap % KERNEL - KERNEL // 2
        y = rows + dy
        z = columns + dx
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        a_mask = inside[:, None]
        w = weight + (tap * NP * C + c if LEVELS else (tap * C + c) * NP)
        if C % BLOCK_K == 0:
            b = (
                tl.load(w + b_offsets)
                if NP % BLOCK_N == 0
                else tl.load(w + b_offsets, channels[None, :] < NP, 0)
            )
        else:
            a_mask = a_mask & (c + k < C)[None, :]
            b = tl.load(w + b_offsets, (c + k < C)[:, None] & (channels < NP)[None, :], 0)
        a = tl.load(x + (a_offsets + ((dy * width + dx) * PITCH + c)), a_mask, 0)
        if SCALE or ADD != "none":
            wide = a.to(tl.float32)
            if SCALE:
                wide *= tl.load(scale + c + k, c + k < C, 0)[None, :]
            if ADD == "vector":
                wide += tl.load(add + c + k, c + k < C, 0)[None, :]
            if ADD == "map":
                place = (centre + dy * width + dx)[:, None] * ADD_PITCH + k[None, :] + c
                wide += tl.load(add + place, a_mask, 0).to(tl.float32)
            a = rounded(tl.where(a_mask, wide, 0), a.dtype)
        acc = dot_levels(a, b, acc) if LEVELS else dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def _start(
    acc,
    x,
    start,
    rows,
    columns,
    channels,
    height,
    width,
    parity_y,
    parity_x,
    KERNEL: tl.constexpr,
    N: tl.constexpr,
):
    """Adds what levels that are kept less 128 lack, of each tap inside of the map: outside they are zero.

    ``start``: int32 [taps + 1, N], 128 times the sum of a tap's weights, and of all taps.
    """
    if x.dtype.element_ty == tl.uint8:
        TAPS: tl.constexpr = KERNEL * KERNEL
        # Rows and columns of the first tap, and of the last one.
        top = rows - 1 + parity_y if KERNEL == 2 else rows - KERNEL // 2
        left = columns - 1 + parity_x if KERNEL == 2 else columns - KERNEL // 2
        inside = (top >= 0) & (top + KERNEL <= height) & (left >= 0) & (left + KERNEL <= width)
        if tl.min(inside.to(tl.int32), 0) > 0:
            acc += tl.load(start + TAPS * N + channels, channels < N, 0)[None, :]
        else:
            for tap in range(TAPS):
                y = top + tap // KERNEL
                z = left + tap % KERNEL
                inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
                lack = tl.load(start + tap * N + channels, channels < N, 0)[None, :]
                acc += tl.where(inside[:, None], lack, 0)
    return acc


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "sums_rows"])
def conv(
    x,
    other,
    weight,
    bias,
    y,
    scale,
    add,
    sums,
    workspace,
    arrivals,
    start,
    multipliers,
    inverse,
    height,
    width,
    out_height,
    out_width,
    sums_rows,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    OTHER_C: tl.constexpr,
    OTHER_PITCH: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    PLANAR: tl.constexpr,
    ACT: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_PITCH: tl.constexpr,
    ADD: tl.constexpr,
    ADD_PITCH: tl.constexpr,
    SUMS: tl.constexpr,
    SUMS_PITCH: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """``y = act(conv(x * scale + add) + bias)``; grid: tiles of all images, blocks of channels, splits.

    Args:
        x: [n, height, width, C of PITCH].
        other: second input, [n, height, width, OTHER_C of OTHER_PITCH], where OTHER_C is not 0.
        weight: [taps, C, NP], then [taps, OTHER_C, NP]; for kernel 2 [3, 3, 4, C, NP], of the sets of rows
            and columns (even, odd, last of an odd size).
        bias: float32 [N].
        y: [n, out_height, out_width, N of OUT_PITCH]; PLANAR: float32 [n, OUT_PITCH, out_height, out_width].
        scale: float32 [n, C of SCALE_PITCH].
        add: vector, float32 [n, C of ADD_PITCH], or map like x.
        sums: float32 [n, sums_rows, N of SUMS_PITCH]: what each tile adds to the average of the image.
        workspace, arrivals: where SPLIT programs share a tile, float32 [tiles, blocks, SPLIT, M, BLOCK_N] and
            int32 [tiles, blocks], zero before and after.
        start, multipliers: None, or where x (and other) are levels int32 [taps + 1, N] of each input, one
            after the other, for kernel 2 of each set, and float32 [N]. Weights are [taps, NP, C] there, and
            the workspace is int32.
        inverse: None, or where y is levels one over their steps, float32 [N].
    """
    TAPS: tl.constexpr = KERNEL * KERNEL
    M: tl.constexpr = TILE_H * TILE_W
    tile = tl.program_id(0)
    block = tl.program_id(1)
    split = tl.program_id(2)

    # Where the tile lies. Sub-pixel: on the small map, for one of its sets of rows and columns.
    parity_y = 0
    parity_x = 0
    sets_y = 1
    sets_x = 1
    grid_h = out_height
    grid_w = out_width
    if KERNEL == 2:
        sets_y = 2 + out_height % 2
        sets_x = 2 + out_width % 2
        grid_h = height
        grid_w = width
    image, inner, chosen, rows, columns = tile_at(tile, grid_h, grid_w, sets_y * sets_x, TILE_H, TILE_W)
    live = (rows < grid_h) & (columns < grid_w)
    steps = tl.cdiv(C, BLOCK_K) * TAPS
    out_rows = rows
    out_columns = columns
    in_rows = rows * STRIDE
    in_columns = columns * STRIDE
    if KERNEL == 2:
        set_y = chosen // sets_x
        set_x = chosen % sets_x
        parity_y = set_y % 2
        parity_x = set_x % 2
        # The last row of an odd height belongs to the third set and to no other; columns alike.
        last_y = rows == height - 1
        last_x = columns == width - 1
        if sets_y == 3:
            live = live & (last_y == (set_y == 2))
        if sets_x == 3:
            live = live & (last_x == (set_x == 2))
        out_rows = 2 * rows + parity_y
        out_columns = 2 * columns + parity_x
        weight += (set_y * 3 + set_x) * (TAPS * C * NP)
        if start is not None:
            start += (set_y * 3 + set_x) * ((TAPS + 1) * N)
        # Tiles of the third set that do not touch that row or column have nothing to do.
        steps = tl.where(tl.max(live.to(tl.int32), 0) > 0, steps, 0)

    channels = block * BLOCK_N + tl.arange(0, BLOCK_N)
    first = 0
    last = steps
    if SPLIT > 1:
        share = tl.cdiv(steps, SPLIT)
        first = tl.minimum(split * share, steps)
        last = tl.minimum(first + share, steps)
    begin(DEPENDENT)
    acc = tl.zeros((M, BLOCK_N), tl.float32 if multipliers is None else tl.int32)
    acc = _products(
        acc, x + image * (height * width) * PITCH, weight, scale + image * SCALE_PITCH,
        add + image * (height * width * ADD_PITCH if ADD == "map" else ADD_PITCH),
        in_rows, in_columns, channels, height, width, first, last, parity_y, parity_x,
        KERNEL, C, PITCH, NP, SCALE, ADD, ADD_PITCH, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    if OTHER_C:
        others = tl.cdiv(OTHER_C, BLOCK_K) * TAPS
        if SPLIT > 1:  # the first of those that share a tile
            others = tl.where(split == 0, others, 0)
        acc = _products(
            acc, other + image * (height * width) * OTHER_PITCH, weight + TAPS * C * NP, scale, add,
            in_rows, in_columns, channels, height, width, 0, others, 0, 0,
            KERNEL, OTHER_C, OTHER_PITCH, NP, False, "none", 0, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip

    done = True
    if SPLIT > 1:
        # Each leaves its sum; who comes last adds all of them up in order, whatever that of arrival was.
        shared = tile * tl.num_programs(1) + block
        place = tl.arange(0, M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        own = workspace + (shared * SPLIT).to(tl.int64) * (M * BLOCK_N) + place
        tl.store(own + split * (M * BLOCK_N), acc)
        tl.debug_barrier()  # the whole program's stores before the one arrival that tells of them
        done = tl.atomic_add(arrivals + shared, 1, sem="acq_rel") == SPLIT - 1
        if done:
            acc = tl.load(own)
            for i in tl.static_range(1, SPLIT):
                acc += tl.load(own + i * (M * BLOCK_N))
            tl.store(arrivals + shared, 0)  # ready for the next frame
    if multipliers is not None:  # not within the branch, in which no name can get another type
        acc = _start(
            acc, x, start, in_rows, in_columns, channels, height, width, parity_y, parity_x, KERNEL, N
        )
        if OTHER_C:
            start += (TAPS + 1) * N
            acc = _start(acc, other, start, in_rows, in_columns, channels, height, width, 0, 0, KERNEL, N)
        acc = acc.to(tl.float32) * tl.load(multipliers + channels, channels < N, 0)[None, :]
    if done:
        acc = activate(acc + tl.load(bias + channels, channels < N, 0)[None, :], ACT)
        if SUMS:
            total = tl.sum(tl.where(live[:, None], acc, 0), 0) / (out_height * out_width)
            row = image * sums_rows + inner
            tl.store(sums + row * SUMS_PITCH + channels, total, channels < N)
        mask = live[:, None] & (channels < N)[None, :]
        pixels = out_rows * out_width + out_columns
        area = (out_height * out_width).to(tl.int64)
        if PLANAR:
            places = pixels[:, None] + (channels * area)[None, :]
            tl.store(y + image * area * OUT_PITCH + places, acc, mask)
        else:
            places = pixels[:, None] * OUT_PITCH + channels[None, :]
            tl.store(
                y + image * area * OUT_PITCH + places,
                stored(acc, inverse, channels, N, y.dtype.element_ty),
                mask,
            )
