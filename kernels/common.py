"""What kernels share: products, activations, where a tile lies."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

#: Whether kernels run in Triton's interpreter, which decides when they are defined.
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """To be called before a kernel touches memory.

    NOTE: a dependent launch (sm_90 and later) starts while the kernel before it still runs, which hides
    what a launch costs. It waits here until that one is done, and so all before it, and lets the next start.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def tile_at(number, height, width, sets, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Where tile ``number`` of all images lies, of ``sets`` times a map of height x width each.

    Returns the image (int64), the tile's number in it, which of the sets, and rows and columns of its pixels,
    [TILE_H * TILE_W], some of which may be beyond the map's end.
    """
    tiles_x = tl.cdiv(width, TILE_W)
    tiles = tiles_x * tl.cdiv(height, TILE_H)
    image = (number // (tiles * sets)).to(tl.int64)
    inner = number % (tiles * sets)
    spot = inner % tiles
    m = tl.arange(0, TILE_H * TILE_W)
    rows = spot // tiles_x * TILE_H + m // TILE_W
    columns = spot % tiles_x * TILE_W + m % TILE_W
    return image, inner, inner // tiles, rows, columns


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32; float32 operands as ``PRECISION`` says, "ieee" or "tf32"."""
    if INTERPRETED:
        # The interpreter multiplies the bits of bfloat16; float32 holds products of 16-bit numbers exactly.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def dot_levels(a, b, acc):
    """``acc + a @ b`` in whole numbers: levels as they are kept, and weights of 8 bits."""
    a = a.to(tl.int8, bitcast=True)
    if INTERPRETED:
        # Products of up to 512 levels add up exactly in float32, which NumPy multiplies far faster.
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32)).to(tl.int32)
    return tl.dot(a, b, acc, out_dtype=tl.int32)


@triton.jit
def levels(x, inverse, DTYPE: tl.constexpr):
    """float32 as levels: ``round(x * inverse)``, to nearest even, clipped; NaN is the least.

    NOTE: products of 8 bits are of signed numbers. So the bytes of both kinds are, and levels of uint8, which
    go from 0 to 255, are kept less 128.
    """
    LOW: tl.constexpr = 0.0 if DTYPE == tl.uint8 else -127.0  # noqa: SIM300
    HIGH: tl.constexpr = 255.0 if DTYPE == tl.uint8 else 127.0  # noqa: SIM300
    LESS: tl.constexpr = 128 if DTYPE == tl.uint8 else 0  # noqa: SIM300
    x = x * inverse
    x = tl.where(x > LOW, x, LOW)
    x = tl.where(x < HIGH, x, HIGH)
    # The last bit of float32 near this is worth one: adding it rounds, and leaves a whole number below.
    whole = (x + 12582912.0).to(tl.int32, bitcast=True) - (0x4B400000 + LESS)
    return whole.to(tl.int8).to(DTYPE, bitcast=True)


@triton.jit
def stored(x, inverse, channels, N: tl.constexpr, DTYPE: tl.constexpr):
    """float32 of these channels as a map keeps it: rounded, or as levels where ``inverse`` is not None.

    ``inverse``: float32 [N], one over the step of each channel.
    """
    if inverse is None:
        x = rounded(x, DTYPE)
    else:
        x = levels(x, tl.load(inverse + channels, channels < N, 0)[None, :], DTYPE)
    return x


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation of that name, see :data:`stdc_fast.plan.ops.ACTIVATIONS`."""
    if ACT == "relu":
        # NaN stays NaN, as in torch.
        x = tl.where(x < 0, 0.0, x)
    if ACT == "sigmoid":
        x = tl.sigmoid(x)
    if ACT == "sigmoid+1":
        x = 1 + tl.sigmoid(x)
    return x


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 to a dtype, to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300 - a dtype is no constant to compare with
        # The interpreter cuts off the lower bits, and casts subnormals wrong. So this adds half a unit, less
        # one for ties to even, and takes the upper bits. NaN stays.
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        x = (bits >> 16).to(tl.int16)
        return x.to(DTYPE, bitcast=True)
    return x.to(DTYPE)
