"""What backends are compared with: the eager backend, in float64 or rounding where they round; a photo."""

import copy
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plans import one_thread, random_frames
from torch import Tensor

import stdc_fast
from stdc_fast import images
from stdc_fast.backends import eager
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.numerics import relative_error, tolerance
from stdc_fast.plan import build, optimise
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

LOW, HALF, FULL = torch.bfloat16, torch.float16, torch.float32
#: Greatest difference at one place, over the greatest value: a unit or two in the last place of that.
LARGEST = {FULL: 1e-5, HALF: 2.0**-9, LOW: 2.0**-6}


def given(plan, dtype, *shape, seed=0):
    """Random inputs of a plan, in its dtype."""
    found = []
    for i, name in enumerate(plan.inputs):
        buffer = plan.buffers[name]
        if buffer.store == "uint8":
            found.append(random_frames(*shape, seed=seed + i))
            continue
        generator = torch.Generator().manual_seed(seed + i)
        x = torch.randn(shape[0], buffer.channels, *shape[1:], generator=generator)
        found.append((x + 0.25).to(dtype))
    return found


def oracle(plan, dtype, tiles=()):
    """Runs the plan as exactly as the engine should: in float64, or rounding where it rounds.

    ``tiles``: names of the convolutions that it computes by Winograd's tiles.
    """
    if dtype == FULL:
        return eager.compile(plan, torch.float64)
    return eager.compile(plan, torch.float32, rounding=Rounding(dtype, tiles))


def answers(
    plan, dtype, shapes: Iterable[tuple[int, int, int]], tiles=()
) -> list[tuple[list[Tensor], Tensor]]:
    """For each (batch, height, width): inputs, and what must come out."""
    exact, found = oracle(plan, dtype, tiles), []
    for i, shape in enumerate(shapes):
        inputs = given(plan, dtype, *shape, seed=i)
        found.append((inputs, exact(*(x if x.dtype == torch.uint8 else x.to(exact.dtype) for x in inputs))))
    return found


def check(got, expected, dtype, what=""):
    """All of it by the table of tolerances, and no single number far off."""
    assert got.shape == expected.shape
    error = relative_error(got, expected)
    assert error <= tolerance(dtype).op, f"{what}: {error:.2e}"
    largest = ((got.double() - expected.double()).abs().max() / expected.abs().max()).item()
    assert largest <= LARGEST[dtype], f"{what}: {largest:.2e} at one place"


def wrong_labels(labels: Tensor, logits: Tensor, between=None) -> int:
    """Pixels whose label is not the best of the logits as torch interpolates them, where that is no matter
    of rounding; ``between``: interpolate to that size first.
    """
    if between is not None:
        logits = upsample(logits.double(), between)
    size = tuple(labels.shape[1:])
    expected = resize_argmax(logits, size)[0]
    if torch.equal(labels, expected):
        return 0
    values = upsample(logits.double(), size)
    short = values.amax(1) - values.gather(1, labels.long()[:, None])[:, 0]
    return int((~(short <= 1e-5 * logits.abs().max())).sum())


# The embedded network and a photo.

STREET = Path(stdc_fast.__file__).parent / "assets" / "street.jpg"


@functools.cache
def trained():
    """The embedded network in float64."""
    model = stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32", backend="eager")
    return copy.deepcopy(model.network).double().eval().requires_grad_(False)


@functools.cache
def trained_plan(frames=True):
    return optimise(build(trained(), frames=frames))


@functools.cache
def street(size):
    """The photo's middle, small enough that the network sees what it was trained on."""
    image = Image.fromarray(images.read_image(STREET))
    height = round(256 * image.height / image.width)
    image = np.array(image.resize((256, height), Image.Resampling.BILINEAR))
    top, left = max(0, (height - size[0]) // 2), (256 - size[1]) // 2
    crop = image[top : top + size[0], left : left + size[1]]
    if crop.shape[:2] != size:
        crop = np.array(Image.fromarray(crop).resize(size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(crop.copy())[None]


@functools.lru_cache(maxsize=16)
def truth(net, frames):
    """Logits and labels of the float64 network."""
    with one_thread():
        logits = net.logits8(images.normalise(frames, torch.float64))
    return logits, resize_argmax(logits, tuple(frames.shape[1:3]))[0]


@functools.lru_cache(maxsize=16)
def emulated(plan, dtype, image, tiles=frozenset()):
    how = {} if dtype == FULL else {"rounding": Rounding(dtype, tiles)}
    return eager.compile(plan, FULL, **how)(image)


_KEYS = {}


def as_key(x):
    """One tensor for all of the same numbers, so that it can be a key of a cache."""
    return _KEYS.setdefault((x.shape, x.numpy().tobytes()), x)
