"""Whole networks, blocks and models through Triton's kernels: numbers and labels against float64."""

import copy
import functools

import numpy as np
import pytest
import torch
from engines import (
    DEVICE,
    FULL,
    HALF,
    LOW,
    as_key,
    emulated,
    kernels,
    needs_triton,
    small_network,
    street,
    trained,
    trained_plan,
    truth,
    wrong_labels,
)
from plans import VARIANTS, random_frames, random_images, random_network
from test_library import call, weights_of
from test_nn import BLOCKS, convolution, every_block, norm, pair

import stdc_fast
from stdc_fast import images, numerics
from stdc_fast.backends import eager, triton
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.plan import build, optimise
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

pytestmark = needs_triton

DTYPES = (FULL, HALF, LOW)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def some_of(names, rows, chosen):
    """Parametrizes by ``rows``, of which by default only the chosen run."""
    ids = [", ".join(map(str, row)) for row in rows]
    assert all(row in rows for row in chosen)
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(*row, id=name, marks=() if row in chosen else pytest.mark.wide)
            for row, name in zip(rows, ids, strict=True)
        ],
    )


def both(executable, frames, **how):
    """Logits and labels, of the one run there was: the interpreter takes seconds for a network."""
    labels = executable.labels(frames.to(DEVICE), **how)
    (instance,) = executable._instances.values()
    logits = instance.lowered.buffers[executable._output.buffer]
    n, height, width, classes = logits.shape
    return logits.view(n, classes, height, width).cpu(), labels.cpu()


# Networks with random weights: as near to the truth as the same plan run by torch, rounding alike.


def check_random(net, plan, dtype, frames):
    executable = kernels(plan, dtype)
    logits, labels = both(executable, frames)
    exact, _ = truth(net, frames)
    expected = emulated(plan, dtype, frames)
    low = dtype != FULL
    assert not numerics.failures(
        dtype, logits, exact, labels, emulated=expected if low else None, trained=False
    )
    if not low:  # random weights drive torch's own error above 1e-5
        error = numerics.relative_error(logits, exact)
        assert error <= 3 * numerics.relative_error(expected, exact)
    assert wrong_labels(labels, logits) == 0
    assert len(labels.unique()) >= 5


@functools.cache
def random_case(variant):
    net = random_network(variant, count_include_pad=variant == "stdc1")
    return net, optimise(build(net))


SHAPES = {"64x128": (1, 64, 128), "33x71": (1, 33, 71), "two of 40x35": (2, 40, 35)}


@some_of(
    "variant, size, dtype",
    [(v, size, d) for v in VARIANTS for size in SHAPES for d in DTYPES],
    [("stdc1", "64x128", LOW), ("stdc1", "two of 40x35", FULL), ("stdc2", "33x71", HALF)],
)
def test_random_weights(variant, size, dtype):
    net, plan = random_case(variant)
    check_random(net, plan, dtype, random_frames(*SHAPES[size], seed=5))


def test_images_in_place_of_frames():
    net, _ = random_case("stdc1")
    plan = optimise(build(net, frames=False))
    x = random_images(1, 32, 48, seed=5)
    logits = kernels(plan, FULL)(x.to(DEVICE)).cpu()
    exact = net.logits8(x.double())
    expected = emulated(plan, FULL, as_key(x))
    assert numerics.relative_error(logits, exact) <= 3 * numerics.relative_error(expected, exact)


@every_dtype
def test_a_small_network(dtype):
    """Each kind of op among few, where each rounds as torch does."""
    plan, frames = small_network(), random_frames(2, 40, 52)
    executable = kernels(plan, dtype)
    given = frames.to(DEVICE)
    logits = executable(given).cpu()
    exact = eager.compile(plan, torch.float64)(frames)
    expected = None if dtype == FULL else emulated(plan, dtype, as_key(frames))
    assert not numerics.failures(dtype, logits, exact, emulated=expected, trained=dtype == FULL)
    labels = executable.labels(given, (30, 61)).cpu()
    assert wrong_labels(labels, logits, (40, 52)) == 0
    assert torch.equal(executable(given).cpu(), logits)


# Trained weights on a photo: the whole contract.


@some_of(
    "dtype, size", [(d, s) for d in DTYPES for s in ("96x128", "129x159")], [(d, "96x128") for d in DTYPES]
)
def test_trained_weights(dtype, size):
    frames = street(tuple(map(int, size.split("x"))))
    plan = trained_plan()
    exact, expected = truth(trained(), frames)
    assert len(expected.unique()) >= 5
    executable = kernels(plan, dtype)
    logits, labels = both(executable, frames)
    rounded = None if dtype == FULL else emulated(plan, dtype, frames)
    assert not numerics.failures(dtype, logits, exact, labels, expected, emulated=rounded, trained=True)
    if dtype != FULL:  # it must have run in that dtype
        assert numerics.relative_error(logits, exact) > torch.finfo(dtype).eps / 8


def test_a_photo_seen_at_another_size():
    """The official protocol: normalise, resize, logits to that size, then to the frame's."""
    frames, seen = street((96, 128)), (56, 75)
    image = upsample(images.normalise(frames, torch.float64), seen)
    logits = trained().logits8(image)
    expected = resize_argmax(upsample(logits, seen), (96, 128))[0]
    executable = kernels(trained_plan(), FULL)
    own, labels = both(executable, frames, seen=seen)
    assert numerics.relative_error(own, logits) <= numerics.tolerance(FULL).logits
    assert numerics.label_agreement(labels, expected) >= numerics.tolerance(FULL).agreement


# Blocks and ops: what users call, with the backend forced.


@pytest.fixture
def forced(monkeypatch):
    """Number of plans that the backend compiled."""
    monkeypatch.setenv("STDC_FAST_BACKEND", "triton")
    plans, compile = [], triton.compile

    def counting(plan, *arguments, **options):
        plans.append(plan)
        return compile(plan, *arguments, **options)

    monkeypatch.setattr(triton, "compile", counting)
    return plans


def exactly(reference, inputs):
    return copy.deepcopy(reference).cpu().double()(*(x.cpu().double() for x in inputs))


def check_block(got, reference, inputs, dtype):
    """``reference`` and ``inputs`` are in that dtype, so that all weights are what was given."""
    exact = exactly(reference, inputs)
    assert (got.dtype, got.device.type) == (dtype, DEVICE)
    if dtype == FULL:
        assert numerics.relative_error(got, exact) <= numerics.tolerance(FULL).logits
        return
    channels = [x.shape[1] for x in inputs]
    plan = optimise(build(copy.deepcopy(reference).cpu().double(), channels=channels))
    expected = eager.compile(plan, FULL, rounding=Rounding(dtype))(*(x.cpu().float() for x in inputs))
    assert not numerics.failures(dtype, got.cpu(), exact, emulated=expected.to(dtype), trained=False)


@torch.no_grad()
def change(name, module):
    convolution(name, module).weight.mul_(1.5)
    norm(name, module).running_mean.add_(0.5)


BLOCK_ROWS = [(name, dtype) for name in BLOCKS for dtype in DTYPES]
some_blocks = some_of(
    "name, dtype", BLOCK_ROWS, [(name, DTYPES[i % 3]) for i, name in enumerate(BLOCKS)]
)  # fmt: skip


@some_blocks
def test_blocks_notice_changed_weights(name, dtype, forced):
    module, reference, inputs = pair(name)
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    for m in (module, reference):
        m.to(DEVICE, dtype)
    first = module(*inputs)
    check_block(first, reference, inputs, dtype)
    kept = first.clone()
    for m in (module, reference):
        change(name, m)
    second = module(*inputs)
    check_block(second, reference, inputs, dtype)
    assert not torch.allclose(second, kept, rtol=0.1) and torch.equal(first, kept)
    assert len(forced) == 2


@some_blocks
def test_ops_notice_changed_weights(name, dtype, forced):
    _, reference, inputs = pair(name)
    reference.to(DEVICE, dtype)
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    for _ in range(2):
        got = call(name, inputs, weights_of(reference))
        check_block(got, reference, inputs, dtype)
        change(name, reference)
    assert len(forced) == 2


@every_block
def test_blocks_in_float32(name, forced):
    """Each of them, in batches, and memory formats as they came."""
    module, reference, inputs = pair(name)
    module.to(DEVICE)
    for given in (inputs, [x[:1].contiguous(memory_format=torch.channels_last) for x in inputs]):
        got = module(*(x.to(DEVICE) for x in given))
        check_block(got, reference, given, FULL)
        assert got.stride() == reference(*given).stride()
    assert len(forced) == 1


# The model as users hold it.


@pytest.fixture(scope="module")
def model(tiny_weights):
    return stdc_fast.load(tiny_weights, device=DEVICE, dtype="float32", backend="triton")


def test_a_model_labels_frames_and_photos(model, model64, photo):
    assert model.backend == "triton"
    picture = photo(40, 52)
    frames = torch.from_numpy(picture)[None]
    labels = model.label(frames)
    assert labels.device.type == DEVICE and labels.shape == (1, 40, 52) and labels.dtype == torch.uint8
    agreement = numerics.label_agreement(labels, model64.label(frames))
    assert agreement >= numerics.tolerance(FULL).agreement - 1 / labels.numel()
    result = model.predict(picture)
    assert np.array_equal(result.labels, labels[0].cpu().numpy())
    assert len(labels.unique()) > 1


def test_a_model_is_a_module(model, model64):
    x = random_images(1, 32, 40)
    logits, expected = model(x.to(DEVICE)), model64(x.double())
    assert logits.dtype == FULL and logits.shape == expected.shape == (1, model.num_classes, 32, 40)
    assert numerics.relative_error(logits, expected) <= numerics.tolerance(FULL).logits
