"""The CUDA backend on an NVIDIA GPU: who gets it and who gets Triton, each op, each compiled form.

Numbers of networks, graphs, streams and threads are in test_gpu_backends.py and test_gpu_graphs.py.
"""

import itertools

import pytest
import torch
from cases import (
    CONVS,
    DOWNS,
    FORMS,
    GATES,
    LOGITS,
    PROLOGUES,
    STEMS,
    SUBPIXEL,
    average_in_parts,
    down,
    labelled,
    prologue,
    stem,
    subpixel,
)
from engines import FULL, HALF, LOW, answers, check, plain, small_network, street, wrong_labels
from plans import random_frames
from test_gpu_backends import DEVICE, SMALL, frames_of, needs_cuda, on_a_gpu

import stdc_fast
from stdc_fast import backends
from stdc_fast.backends import cuda
from stdc_fast.backends.cuda.tiles import Tiles
from stdc_fast.backends.gpu.placed import Request

pytestmark = [*on_a_gpu, needs_cuda]

DTYPES = (HALF, LOW)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# (batch, height, width)
FEW = ((1, 1, 2), (3, 3, 5), (1, 17, 34))
MANY = ((3, 1, 1), (2, 2, 1), (1, 8, 6), (3, 9, 34), (1, 17, 33), (2, 40, 65), (1, 66, 130))
OPS = {
    f"{kind}, {name}": make
    for kind, found in {
        "conv": CONVS, "logits": LOGITS, "subpixel": SUBPIXEL, "stem": STEMS, "down": DOWNS, "gate": GATES,
        "prologue": PROLOGUES,
    }.items()
    for name, make in found.items()
}  # fmt: skip


def agrees(make, dtype, shapes, tiles=None, **options):
    """The plan's results are those of torch, rounding alike; all memory is NaN before each run."""
    plan = make()
    executable = cuda.compile(plan, dtype, DEVICE, tiles=tiles, poisoned=True, **options)
    for inputs, expected in answers(plan, dtype, shapes):
        given = [x.to(DEVICE) for x in inputs]
        for _ in range(2):  # launches, then the graph; counters are as they were
            got = executable(*given)
            assert got.device == given[0].device and got.dtype == (FULL if executable._logits else dtype)
            check(got.cpu(), expected, dtype, list(inputs[0].shape))
        assert all(torch.equal(x.cpu(), before) for x, before in zip(given, inputs, strict=True))
    return executable


# Who gets it.


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_it_is_chosen_by_itself(device):
    """Nobody asks for it: not the model, nor an op, nor a module."""
    status = next(s for s in backends.statuses() if s.name == "cuda")
    assert status.available and not status.by_name, status.reason
    model = stdc_fast.load("stdc1_camvid", device=device)
    assert model.backend == "cuda" and model.reason.startswith("cuda: nvcc ")
    with torch.inference_mode():
        executable = model._executable(frames_of(1, *SMALL))
    assert isinstance(executable, cuda.Executable)
    assert executable.dtype == model.dtype == HALF


def test_float32_goes_to_another_backend_with_the_reason():
    choice = backends.best(torch.device(DEVICE), FULL, small_network())
    assert choice.name == "triton", choice
    assert "cuda: it computes in float16 and bfloat16, not float32" in choice.reason
    model = stdc_fast.load("stdc1_camvid", device=DEVICE, dtype="float32")
    assert model.backend == "triton" and "cuda: it computes in float16" in model.reason


CAUSES = {
    "not built": ("native", lambda: None, "not built"),
    "no code for it": ("unfit_device", lambda *_: "built for 86, none of which runs here", "built for 86"),
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


# Each op.


@every_dtype
@pytest.mark.parametrize("case", OPS)
def test_op(case, dtype):
    agrees(OPS[case], dtype, FEW)


@pytest.mark.wide
@every_dtype
@pytest.mark.parametrize("case", OPS)
def test_op_in_many_sizes(case, dtype):
    agrees(OPS[case], dtype, MANY)


SIZES = ((1, (17, 40), (33, 80)), (2, (16, 40), (15, 43)), (1, (9, 267), (11, 300)), (1, (1, 9), (4, 3)))


@every_dtype
@pytest.mark.parametrize("classes", [1, 11, 19, 150, 256])
def test_labels(classes, dtype):
    """Of the backend's own logits, straight and by way of the size that the network sees."""
    executable = cuda.compile(labelled(classes), dtype, DEVICE, poisoned=True)
    for i, (batch, size, out) in enumerate(SIZES):
        frames = random_frames(batch, *size, seed=i).to(DEVICE)
        logits = executable(frames).cpu()
        for _ in range(2):
            assert wrong_labels(executable.labels(frames).cpu(), logits) == 0
            assert wrong_labels(executable.labels(frames, out).cpu(), logits, size) == 0
            assert wrong_labels(executable.labels(frames, out, exact=False).cpu(), logits) == 0


# Each compiled form, whether or not the model would take it.


def cores(kind):
    """(pixels, channels) of each, of those that are built."""
    native = cuda.native()
    if native is None:
        return ["none"]
    return [(wm * m * 16, wn * n * 8) for wm, wn, m, n in native.forms()[kind]]


def forced(kind, core, height, width, chunk=16, split=1):
    """The same tiles for every op of a kind; others have theirs from the model."""
    usual = cuda.Chooser(cuda.native())

    def choose(work):
        if work.kind != kind:
            return usual(work)
        parts = 1 if kind != "conv" else min(split, sum(-(-c // chunk) for c in work.inputs))
        return Tiles(core, height, width, 16 if kind == "stem" else chunk, parts)

    return choose


CONVOLUTIONS = {
    **{f"34 to 150, {k}x{k} / {s}": plain(34, 150, k, s) for k, s in FORMS},
    "sub-pixel": subpixel(34, 70),
    "scale, add a map": prologue(64, 3, scale=True, add="map"),
    "average": average_in_parts,
    "logits": plain(70, 19, 1, 1, act="none", store="float32"),
}


@every_dtype
@pytest.mark.parametrize("core", cores("conv"), ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_cores_of_conv(case, core, dtype):
    pixels = core[0]
    for height, width, chunk, split in ((8, 8, 16, 1), (pixels // 16, 16, 32, 2), (3, pixels // 3, 48, 8)):
        choose = forced("conv", core, height, width, chunk, split)
        agrees(CONVOLUTIONS[case], dtype, [(2, 17, 34)], choose)


@every_dtype
@pytest.mark.parametrize("core", cores("stem"), ids=str)
def test_cores_of_stem(core, dtype):
    for (height, width), frames in itertools.product(((8, core[0] // 8), (5, 9)), (True, False)):
        choose = forced("stem", core, height, width)
        agrees(stem(34, frames), dtype, [(2, 33, 70)], choose)


@every_dtype
@pytest.mark.parametrize("core", cores("down"), ids=str)
def test_cores_of_down(core, dtype):
    """Tiles of the output; a block computes 2n + 1 of the input's pixels along each side."""
    for (height, width), chunk in itertools.product(((3, 3), (1, 4), (4, 4)), (16, 32)):
        if (2 * height + 1) * (2 * width + 1) <= core[0]:
            choose = forced("down", core, height, width, chunk)
            agrees(down(34, 70, True), dtype, [(2, 17, 34)], choose)
            agrees(down(34, 70, True, include=False), dtype, [(1, 18, 35)], choose)


def test_tiles_that_no_kernel_has_are_refused():
    with pytest.raises((ValueError, RuntimeError), match=r"64|tiles|kernel"):
        agrees(plain(6, 10, 3, 1), HALF, FEW, forced("conv", (64, 64), 9, 9))


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
