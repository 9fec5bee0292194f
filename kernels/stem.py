"""The first convolution, 3x3 stride 2, from raw frames of any size or from normalised images."""

import triton
import triton.language as tl
from stdc_fast.kernels.common import activate, begin, dot, rounded, stored, tile_at


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "frame_height", "frame_width"])
def stem(
    image,
    weight,
    bias,
    offset,
    y,
    inverse,
    height,
    width,
    out_height,
    out_width,
    frame_height,
    frame_width,
    scale_y,
    scale_x,
    N: tl.constexpr,
    NP: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    ACT: tl.constexpr,
    RESIZE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """``y = act(conv(image - offset) + bias)``, zero-padded after subtracting.

    Grid: tiles, blocks of channels.

    Args:
        image: uint8 or float32 [n, frame_height, frame_width, 3]; RESIZE: seen as height x width, bilinear,
            align_corners=True, with these scales (source over destination).
        weight: [32, NP], the rows taps by colours, of which the last five are zero.
        bias: float32 [N].
        offset: float32 [2, 3]: what is subtracted from pixels, which is exact for raw ones, and what stands
            for pixels outside of the image.
        y: [n, out_height, out_width, N of OUT_PITCH].
        inverse: None, or where y is levels one over their steps, float32 [N].
    """
    M: tl.constexpr = TILE_H * TILE_W
    n, _, _, rows, columns = tile_at(tl.program_id(0), out_height, out_width, 1, TILE_H, TILE_W)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)

    # Pixels: what is wanted of row and column, and the colour.
    k = tl.arange(0, 32)
    colour = k % 3
    r = (2 * rows - 1)[:, None] + (k // 9)[None, :]
    c = (2 * columns - 1)[:, None] + (k // 3 % 3)[None, :]
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width) & (k < 27)[None, :]
    begin(DEPENDENT)
    image += n * frame_height * frame_width * 3 + colour[None, :]
    if RESIZE:
        fr = r * scale_y
        fc = c * scale_x
        r0 = fr.to(tl.int32)
        c0 = fc.to(tl.int32)
        r1 = tl.minimum(r0 + 1, frame_height - 1)
        c1 = tl.minimum(c0 + 1, frame_width - 1)
        down = fr - r0
        right = fc - c0
        top = tl.load(image + (r0 * frame_width + c0) * 3, inside, 0).to(tl.float32) * (1 - right)
        top += tl.load(image + (r0 * frame_width + c1) * 3, inside, 0).to(tl.float32) * right
        low = tl.load(image + (r1 * frame_width + c0) * 3, inside, 0).to(tl.float32) * (1 - right)
        low += tl.load(image + (r1 * frame_width + c1) * 3, inside, 0).to(tl.float32) * right
        x = top * (1 - down) + low * down
    else:
        x = tl.load(image + (r * frame_width + c) * 3, inside, 0).to(tl.float32)
    x -= tl.load(offset + colour)[None, :]
    x = tl.where(inside, x, tl.load(offset + 3 + colour)[None, :])
    x = tl.where((k < 27)[None, :], x, 0)

    w = tl.load(weight + k[:, None] * NP + channels[None, :], (channels < NP)[None, :], 0)
    acc = dot(rounded(x, weight.dtype.element_ty), w, tl.zeros((M, BLOCK_N), tl.float32), PRECISION)
    acc = activate(acc + tl.load(bias + channels, channels < N, 0)[None, :], ACT)
    live = (rows < out_height) & (columns < out_width)
    places = (rows * out_width + columns)[:, None] * OUT_PITCH + channels[None, :]
    y += n * out_height * out_width * OUT_PITCH
    value = stored(acc, inverse, channels, N, y.dtype.element_ty)
    tl.store(y + places, value, live[:, None] & (channels < N)[None, :])
