"""The tests on an NVIDIA GPU: who runs them, networks and photos with the float64 answer from the CPU."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import GPU, TRITON
from oracle import HALF
from PIL import Image
from plans import random_frames
from sketch import small_network

import stdc_fast
from stdc_fast import images
from stdc_fast.backends import cuda, eager, triton
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.backends.gpu.model import Work
from stdc_fast.backends.triton.tiles import TritonTiles
from stdc_fast.plan import build, optimise
from stdc_fast.reference.networks import upsample

STREET = Path(stdc_fast.__file__).parent / "assets" / "street.jpg"
DEVICE = "cuda:0"
SEEN = torch.cuda.is_available()
OLD = SEEN and torch.cuda.get_device_capability(0) < triton.TENSOR_CORES
on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not SEEN, reason="torch sees no NVIDIA GPU"),
    pytest.mark.skipif(OLD, reason="cuda:0 is older than sm_80"),
    pytest.mark.skipif(triton.interpreted(), reason="TRITON_INTERPRET=1: Triton's kernels run on the CPU"),
]
WHY_NOT = cuda.BACKEND.why_not_here()
needs_cuda = pytest.mark.skipif(WHY_NOT is not None, reason=f"needs the CUDA backend: {WHY_NOT}")
OF_CUDA = {f"cuda-{dtype}": pytest.param(cuda, dtype, marks=needs_cuda) for dtype in GPU.dtypes}
OF_TRITON = {f"triton-{dtype}": pytest.param(triton, dtype) for dtype in TRITON.dtypes}
EVERY = OF_CUDA | OF_TRITON
every = pytest.mark.parametrize("backend, dtype", EVERY.values(), ids=EVERY.keys())
each = pytest.mark.parametrize(
    "backend", [pytest.param(cuda, marks=needs_cuda), triton], ids=["cuda", "triton"]
)
SIZE, ODD = (512, 1024), (251, 509)
SMALL = (72, 104)


@functools.cache
def street(size):
    """The photo as one frame, on the CPU."""
    image = Image.fromarray(images.read_image(STREET)).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))[None]


@functools.cache
def trained():
    """The embedded network in float64 on the CPU, which never leaves it."""
    return stdc_fast.load("stdc1_camvid", device="cpu", dtype="float64").network


def reference(frames):
    """(logits at 1/8, labels) of the float64 network, on the CPU."""
    logits = trained().logits8(images.normalise(frames, torch.float64))
    labels = upsample(logits, frames.shape[1:3]).argmax(1).to(torch.uint8)
    assert len(labels.unique()) >= 5
    return logits, labels


def same_tiles(work: Work) -> TritonTiles:
    """One choice for all sizes, so that a test compiles each of Triton's kernels once."""
    if work.kind == "conv":
        return TritonTiles(8, 8, 64, 32, warps=4, stages=3)
    return TritonTiles(8, 8, 32, 32, warps=4, stages=1 if work.kind == "stem" else 2)


def small(backend, dtype=HALF, **options):
    """An executable of a network of few ops, of each kind."""
    usual = {"tiles": same_tiles} if backend is triton else {}
    return backend.compile(small_network(), dtype, DEVICE, **usual | options)


def frames_of(*shape, seed=0):
    return random_frames(*shape, seed=seed).to(DEVICE)


@functools.cache
def network_plan():
    return optimise(build(trained()))


@functools.cache
def photos(size, batch):
    """The photo, its mirror and a brighter one, on the CPU; and the float64 network's answer."""
    first = street(size)
    frames = torch.cat([first, first.flip(2), 255 - (255 - first) // 2])[:batch]
    return frames, *reference(frames)


@functools.cache
def emulated(size, batch, dtype):
    return eager.compile(network_plan(), rounding=Rounding(dtype))(photos(size, batch)[0])
