"""Backends with kernels of their own on an NVIDIA GPU: their numbers, and their tuner."""

import copy

import pytest
import torch
from blocks import weights_of
from gpus import (
    DEVICE,
    ODD,
    SIZE,
    SMALL,
    each,
    emulated,
    every,
    frames_of,
    network_plan,
    on_a_gpu,
    photos,
    small,
    trained,
)
from oracle import FULL, HALF, LOW
from plans import VARIANTS, random_frames, random_network, randomise_norms
from sketch import small_network

from stdc_fast import backends, images, nn, tune
from stdc_fast.backends import eager, triton
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.backends.gpu import tuned
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.numerics import failures, label_agreement, relative_error, tolerance
from stdc_fast.plan import build, optimise
from stdc_fast.reference import layers

pytestmark = on_a_gpu


@pytest.fixture(autouse=True)
def float32():
    """Products of float32 in float32, whatever a test asks for."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # where a test failed between
    torch.set_float32_matmul_precision("highest")


# Numbers.


@pytest.mark.parametrize("size, batch", [(SIZE, 1), (SIZE, 3), (ODD, 3)], ids=str)
@every
def test_photos_keep_the_contract(backend, dtype, size, batch):
    """All memory is NaN before each image, so nothing dead is read."""
    frames, expected, expected_labels = photos(size, batch)
    executable = backend.compile(network_plan(), dtype, DEVICE, poisoned=True)
    given = frames.to(DEVICE)
    logits, labels = executable(given), executable.labels(given)
    assert logits.device == labels.device == given.device
    assert (logits.dtype, labels.dtype) == (torch.float32, torch.uint8)
    rounded = None if dtype == FULL else emulated(size, batch, dtype)
    broken = failures(dtype, logits.cpu(), expected, labels.cpu(), expected_labels, emulated=rounded)
    assert not broken, broken
    if dtype != FULL:  # it must have run in that dtype
        assert relative_error(logits, expected) > torch.finfo(dtype).eps / 8
    assert torch.equal(executable(given), logits) and torch.equal(executable.labels(given), labels)
    assert torch.equal(given.cpu(), frames)


@pytest.mark.parametrize("size, batch", [(SIZE, 1), (ODD, 3)], ids=str)
def test_triton_has_tf32_only_where_it_is_asked_for(size, batch):
    frames, expected, expected_labels = photos(size, batch)
    frames = frames.to(DEVICE)
    executable = triton.compile(network_plan(), FULL, DEVICE)
    exact = executable(frames)
    torch.set_float32_matmul_precision("high")
    fast, labels = executable(frames), executable.labels(frames)
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(executable(frames), exact)
    assert not torch.equal(fast, exact)
    # The newer setting, which torch does not let the older one be asked after.
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    same = executable(frames)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert torch.equal(same, fast) and torch.equal(executable(frames), exact)
    # As many bits as float16 has, but operands may be cut off instead of rounded: bfloat16's limits.
    assert relative_error(fast, expected) > 1e-5
    assert not failures(LOW, fast.cpu(), expected, labels.cpu(), expected_labels)


@every
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_weights(variant, backend, dtype):
    net, frames = random_network(variant), random_frames(2, 71, 103, seed=5)
    x = images.normalise(frames, torch.float64)
    expected, plan = net.logits8(x), optimise(build(net))
    executable = backend.compile(plan, dtype, DEVICE)
    logits, labels = executable(frames.to(DEVICE)).cpu(), executable.labels(frames.to(DEVICE)).cpu()
    if dtype == FULL:  # these weights drive torch itself above 1e-5
        own = copy.deepcopy(net).float().to(DEVICE).logits8(x.float().to(DEVICE))
        assert relative_error(logits, expected) <= 3 * relative_error(own, expected)
        rounded = None
    else:
        rounded = eager.compile(plan, rounding=Rounding(dtype))(frames)
    broken = failures(dtype, logits, expected, labels, emulated=rounded, trained=False)
    assert not broken, broken


@every
def test_normalised_images(backend, dtype):
    frames, expected, _ = photos(ODD, 3)
    executable = backend.compile(optimise(build(trained(), frames=False)), dtype, DEVICE)
    x = images.normalise(frames, torch.float64).to(DEVICE)
    logits = executable(x)
    assert not failures(dtype, logits.cpu(), expected)
    for other in (x.float(), x.float().contiguous(memory_format=torch.channels_last)):
        assert relative_error(executable(other), logits) <= tolerance(dtype).logits


# (module, its reference, constructor's arguments, shapes of the inputs)
BLOCKS = {
    "conv": ("ConvBNReLU", (64, 128), {}, [(2, 64, 33, 47)]),
    "conv, 1x1, stride 2": ("ConvBNReLU", (96, 70), {"kernel_size": 1, "stride": 2}, [(2, 96, 33, 47)]),
    "stdc": ("STDCModule", (128, 128), {}, [(2, 128, 33, 47)]),
    "stdc, stride 2": ("STDCModule", (64, 128), {"stride": 2}, [(2, 64, 33, 47)]),
    "attention": ("AttentionRefinement", (256, 128), {}, [(2, 256, 17, 24)]),
    "fusion": ("FeatureFusion", (192, 128), {}, [(2, 128, 33, 47), (2, 64, 33, 47)]),
    "head": ("SegHead", (128, 64, 19), {"bias": True}, [(2, 128, 33, 47)]),
}
OPS = {
    "conv": ("conv_bn_relu", ()),
    "conv, 1x1, stride 2": ("conv_bn_relu", (2,)),
    "stdc": ("stdc_module", ()),
    "stdc, stride 2": ("stdc_module", (2,)),
    "attention": ("attention_refinement", ()),
    "fusion": ("feature_fusion", ()),
    "head": ("seg_head", ()),
}


@every
@pytest.mark.parametrize("name", BLOCKS)
def test_modules_and_ops(name, backend, dtype, monkeypatch):
    """Against the float64 module; in 16 bits no further from it than half again as torch's own is."""
    monkeypatch.setenv(backends.ENVIRONMENT, backend.BACKEND.name)
    compiled, compile = [], backends.compile
    monkeypatch.setattr(backends, "compile", lambda *a: compiled.append(compile(*a)) or compiled[-1])
    kind, arguments, options, shapes = BLOCKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = getattr(layers, kind)(*arguments, **options)
        inputs = [torch.randn(shape) for shape in shapes]
    randomise_norms(plain, *inputs).requires_grad_(False)
    module = getattr(nn, kind)(*arguments, **options).eval().requires_grad_(False)
    module.load_state_dict(plain.state_dict())
    exact = copy.deepcopy(plain).double()(*(x.double() for x in inputs))
    plain, module = plain.to(DEVICE, dtype), module.to(DEVICE, dtype)
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    kept = [x.clone() for x in inputs]
    op, settings = OPS[name]
    for layout in (torch.contiguous_format, torch.channels_last):
        given = [x.contiguous(memory_format=layout) for x in inputs]
        allowed = tolerance(dtype).op
        if dtype != FULL:
            allowed = tolerance(dtype).emulation * relative_error(plain(*given), exact)
        own = getattr(torch.ops.stdc_fast, op)(*given, weights_of(plain), *settings)
        for got in (module(*given), own):
            assert got.device == given[0].device and got.dtype == dtype
            assert got.is_contiguous(memory_format=layout)
            assert relative_error(got, exact) <= allowed
    assert all(map(torch.equal, inputs, kept))
    used = type(small(backend, dtype))
    assert [type(one) for one in compiled] == [used] * 2


# Tuning.


@each
def test_tuned_tiles_are_used_and_give_the_same_labels(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("STDC_FAST_CACHE", str(tmp_path))
    device, frames = torch.device(DEVICE), frames_of(1, *SMALL)
    executable = backend.compile(small_network(), HALF, DEVICE)
    labels, logits = executable.labels(frames), executable(frames)
    request = Request(1, SMALL, SMALL, SMALL)
    clock, model = tune.GraphClock(repeats=16, rounds=3), backend.BACKEND.model(device)
    found = tune.Tuner(executable, request, model, clock, seconds=6).run(quiet=True)
    assert found.tiles and 0 < found.after <= found.before < 0.1
    path = tuned.save(backend.BACKEND.environment(device), found.tiles, backend.BACKEND.tiles)
    assert path.parent == tmp_path and "driver" in path.read_text()
    later = backend.compile(small_network(), HALF, DEVICE)
    launches = [launch for launch in later.lower(request).launches if launch.work is not None]
    used = {launch.work.key: launch.tiles for launch in launches}
    assert {key: used[key] for key in found.tiles} == found.tiles
    assert label_agreement(later.labels(frames), labels) > 0.999
    assert relative_error(later(frames), logits) <= tolerance(HALF).logits
