"""The CUDA backend on an NVIDIA GPU: who gets it and who gets Triton, and each compiled form.

Ops and networks are those of all engines; graphs, streams and threads those of both backends on GPUs.
"""

import itertools

import hosted
import pytest
import torch
from cases import FORMS, average_in_parts, down, prologue, stem, subpixel
from engines import GPU
from gpus import DEVICE, SMALL, frames_of, needs_cuda, on_a_gpu
from hosted import CORES
from oracle import HALF, LOW, street
from sketch import plain, small_network

import stdc_fast
from stdc_fast import backends
from stdc_fast.backends import cuda
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.precision import FLOAT32

pytestmark = [*on_a_gpu, needs_cuda]

DTYPES = (HALF, LOW)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
agrees = GPU.agrees


# Who gets it.


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_it_is_chosen_by_itself(device):
    """Nobody asks for it: not the model, nor an op, nor a module."""
    assert cuda.BACKEND.why_not_here() is None and cuda.BACKEND.why_not_by_default() is None
    model = stdc_fast.load("stdc1_camvid", device=device)
    assert model.backend == "cuda" and model.reason.startswith("cuda: nvcc ")
    with torch.inference_mode():
        executable = model._runs(frames_of(1, *SMALL))
    assert type(executable) is cuda.CudaExecutable
    assert executable.dtype == model.dtype == HALF


def test_float32_goes_to_another_backend_with_the_reason():
    decision = backends.select(small_network(), FLOAT32, DEVICE)
    assert decision.name == "triton", decision
    assert "cuda: it computes in float16 and bfloat16, not float32" in decision.reason
    model = stdc_fast.load("stdc1_camvid", device=DEVICE, dtype="float32")
    assert model.backend == "triton" and "cuda: it computes in float16" in model.reason


CAUSES = {
    "not built": ("native", lambda: None, "not built"),
    "no code for it": ("why_not_device", lambda *_: "built for 86, none of which runs here", "built for 86"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_without_its_kernels_another_labels_the_same(cause, monkeypatch):
    name, instead, reason = CAUSES[cause]
    frames = street((96, 128)).to(DEVICE)
    expected = stdc_fast.load("stdc1_camvid", device=DEVICE).label(frames, size="native")
    monkeypatch.setattr(cuda, name, instead)
    model = stdc_fast.load("stdc1_camvid", device=DEVICE)
    assert model.backend == "triton" and f"cuda: {reason}" in model.reason
    labels = model.label(frames, size="native")
    assert (labels == expected).float().mean() > 0.99
    with pytest.raises(stdc_fast.errors.UserError, match=reason):
        stdc_fast.load("stdc1_camvid", device=DEVICE, backend="cuda")


def test_the_driver_has_what_the_kernels_need():
    native = cuda.native()
    assert native.driver_version() // 1000 >= native.runtime_version() // 1000 >= 12


# Each compiled form, whether or not the model would take it.


def every_core(kind):
    return pytest.mark.parametrize("core", CORES[kind], ids=str)


def forced(kind, *tiles):
    return hosted.forced(*tiles, kind=kind, usual=cuda.BACKEND.chooser(torch.device(DEVICE)))


CONVOLUTIONS = {
    **{f"34 to 150, {k}x{k} / {s}": plain(34, 150, k, s) for k, s in FORMS},
    "sub-pixel": subpixel(34, 70),
    "scale, add a map": prologue(64, 3, scale=True, add="map"),
    "average": average_in_parts,
    "logits": plain(70, 19, 1, 1, act="none", store="float32"),
}


@every_dtype
@every_core("conv")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_cores_of_conv(case, core, dtype):
    pixels = core[0]
    for height, width, chunk, split in ((8, 8, 16, 1), (pixels // 16, 16, 32, 2), (3, pixels // 3, 48, 8)):
        choose = forced("conv", core, height, width, chunk, split)
        agrees(CONVOLUTIONS[case], dtype, [(2, 17, 34)], choose)


@every_dtype
@every_core("stem")
def test_cores_of_stem(core, dtype):
    for (height, width), frames in itertools.product(((8, core[0] // 8), (5, 9)), (True, False)):
        choose = forced("stem", core, height, width)
        agrees(stem(34, frames), dtype, [(2, 33, 70)], choose)


@every_dtype
@every_core("down")
def test_cores_of_down(core, dtype):
    """Tiles of the output; a block computes 2n + 1 of the input's pixels along each side."""
    for (height, width), chunk in itertools.product(((3, 3), (1, 4), (4, 4)), (16, 32)):
        if (2 * height + 1) * (2 * width + 1) <= core[0]:
            choose = forced("down", core, height, width, chunk)
            agrees(down(34, 70, True), dtype, [(2, 17, 34)], choose)
            agrees(down(34, 70, True, include=False), dtype, [(1, 18, 35)], choose)


def test_tiles_that_no_kernel_has_are_refused():
    with pytest.raises((ValueError, RuntimeError), match=r"64|tiles|kernel"):
        agrees(plain(6, 10, 3, 1), HALF, GPU.few, forced("conv", (64, 64, 4), 9, 9))


# Memory that is used by others in between.


@every_dtype
def test_launches_into_memory_of_their_own(dtype):
    """Each buffer with an allocation of its own gives the same bits as one arena."""
    executable, frames = cuda.compile(small_network(), dtype, DEVICE), frames_of(2, *SMALL)
    expected = executable.labels(frames)
    request = Request(2, SMALL, SMALL, SMALL)
    apart = executable.lower(request, apart=True)
    for x, place in zip((frames,), apart.inputs.values(), strict=True):
        place.copy_(x)
    apart.launch(first=True)
    assert torch.equal(apart.result, expected)


def test_a_kernel_that_can_not_be_launched_says_so_and_the_next_one_runs():
    executable, frames = cuda.compile(small_network(), HALF, DEVICE), frames_of(1, *SMALL)
    expected = executable(frames)
    lowered = executable.lower(Request(1, SMALL, SMALL, SMALL))
    launch = next(one for one in lowered.launches if one.op.kind == "upsample")
    launch.arguments.images = 1 << 20  # more than a grid's third dimension has
    stream = torch.cuda.current_stream().cuda_stream
    with pytest.raises(RuntimeError, match=r"upsample, grid .*: invalid"):
        lowered.native.run([launch.arguments], stream, False, 0)
    assert torch.equal(executable(frames), expected)
    torch.cuda.synchronize()
