"""Whole networks, blocks and models through the CUDA kernels, in the emulator: numbers against float64."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from engines import (
    FULL,
    HALF,
    LOW,
    as_key,
    emulated,
    small_network,
    street,
    trained,
    trained_plan,
    truth,
    wrong_labels,
)
from hosted import Hosted, every_schedule, module, scheduled
from plans import VARIANTS, random_frames, random_images, random_network
from test_library import call, weights_of
from test_nn import BLOCKS, pair
from test_triton_network import SHAPES, change, exactly, some_of

import stdc_fast
from stdc_fast import backends, images, numerics
from stdc_fast.backends import cuda, eager
from stdc_fast.backends.base import unfit
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.plan import build, optimise
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

DTYPES = (HALF, LOW)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SIZES = {**SHAPES, "32x64": (1, 32, 64), "63x97": (1, 63, 97), "two of 32x45": (2, 32, 45)}


def both(executable, frames, **how):
    """Logits and labels, of one run."""
    labels = executable.labels(frames, **how)
    logits = executable.last.buffers[executable._output.buffer]
    n, height, width, classes = logits.shape
    return logits.view(n, classes, height, width).clone(), labels


# Networks with random weights: as near to the truth as the same plan run by torch, rounding alike.


@functools.cache
def random_case(variant):
    net = random_network(variant, count_include_pad=variant == "stdc1")
    return net, optimise(build(net))


def check_random(net, plan, dtype, frames):
    logits, labels = both(Hosted(plan, dtype), frames)
    exact, _ = truth(net, frames)
    expected = emulated(plan, dtype, frames)
    assert not numerics.failures(dtype, logits, exact, labels, emulated=expected, trained=False)
    assert wrong_labels(labels, logits) == 0
    assert len(labels.unique()) >= 5


@some_of(
    "variant, size, dtype",
    [(v, size, d) for v in VARIANTS for size in SIZES for d in DTYPES],
    [
        ("stdc1", "32x64", HALF), ("stdc1", "63x97", LOW), ("stdc1", "two of 32x45", HALF),
        ("stdc2", "32x64", LOW), ("stdc2", "33x71", HALF),
    ],
)  # fmt: skip
def test_random_weights(variant, size, dtype):
    net, plan = random_case(variant)
    check_random(net, plan, dtype, as_key(random_frames(*SIZES[size], seed=5)))


@every_dtype
def test_images_in_place_of_frames(dtype):
    net, _ = random_case("stdc1")
    plan = optimise(build(net, frames=False))
    x = random_images(1, 32, 48, seed=5)
    logits = Hosted(plan, dtype)(x)
    expected = emulated(plan, dtype, as_key(x))
    assert not numerics.failures(dtype, logits, net.logits8(x.double()), emulated=expected, trained=False)


@every_dtype
def test_a_small_network(dtype):
    """Each kind of op among few, where each rounds as torch does."""
    plan, frames = small_network(), random_frames(2, 40, 52)
    executable = Hosted(plan, dtype)
    logits = executable(frames)
    exact = eager.compile(plan, torch.float64)(frames)
    expected = emulated(plan, dtype, as_key(frames))
    assert not numerics.failures(dtype, logits, exact, emulated=expected, trained=False)
    assert wrong_labels(executable.labels(frames, (30, 61)), logits, (40, 52)) == 0
    assert torch.equal(executable(frames), logits)


@every_schedule
def test_every_order_gives_the_same_network(schedule):
    """Bit by bit, with races of threads and of blocks watched for; in one arena, too."""
    plan, frames = small_network(), random_frames(2, 33, 52)
    expected = both(Hosted(plan, HALF), frames)
    for apart in (True, False):
        executable = Hosted(plan, HALF, apart=apart)
        with scheduled(schedule, block_races=True):
            got = executable(frames), executable.labels(frames)
        assert all(map(torch.equal, got, expected)), apart


# Trained weights on a photo: the whole contract.


@some_of(
    "dtype, size", [(d, s) for d in DTYPES for s in ("96x128", "129x159")], [(d, "96x128") for d in DTYPES]
)
def test_trained_weights(dtype, size):
    frames = street(tuple(map(int, size.split("x"))))
    plan = trained_plan()
    exact, expected = truth(trained(), frames)
    assert len(expected.unique()) >= 5
    logits, labels = both(Hosted(plan, dtype), frames)
    rounded = emulated(plan, dtype, frames)
    assert not numerics.failures(dtype, logits, exact, labels, expected, emulated=rounded, trained=True)
    assert wrong_labels(labels, logits) == 0
    assert numerics.relative_error(logits, exact) > torch.finfo(dtype).eps / 8  # it ran in that dtype


def test_one_arena_for_all_buffers():
    """Memory is used again by later buffers, and nothing of that is seen."""
    frames = street((64, 96))
    expected = Hosted(trained_plan(), HALF)(frames)
    executable = Hosted(trained_plan(), HALF, apart=False)
    assert torch.equal(executable(frames), expected)
    lowered = executable.last
    total = sum(x.numel() * x.itemsize for n, x in lowered.buffers.items() if n not in lowered.inputs)
    assert lowered.arena.numel() < total


@pytest.mark.parametrize("variant", ["trained", pytest.param("stdc2", marks=pytest.mark.wide)])
def test_a_branch_runs_beside_others(variant):
    """In any order that two streams may have, in one arena: nothing of one is overwritten by the other."""
    plan = trained_plan() if variant == "trained" else random_case(variant)[1]
    executable = Hosted(plan, HALF, apart=False)
    expected = executable.labels(street((32, 64)))
    lowered = executable.last
    before, branch, others, after = lowered.parts()
    assert min(map(len, lowered.parts())) > 1
    turns = [step for two in itertools.zip_longest(branch, others) for step in two if step is not None]
    places = [others[:k] + branch + others[k:] for k in range(len(others))]  # the plan has others + branch
    logits = lowered.buffers[executable._output.buffer].clone()
    for middle in (turns, *places):
        lowered.poison()
        lowered.tell()
        lowered._run([*before, *middle, *after])
        assert torch.equal(lowered.buffers[executable._output.buffer], logits)
        assert torch.equal(lowered.result, expected)


@every_dtype
def test_a_photo_seen_at_another_size(dtype):
    """The official protocol: normalise, resize, logits to that size, then to the frame's."""
    frames, seen = street((96, 128)), (56, 75)
    image = upsample(images.normalise(frames, torch.float64), seen)
    logits = trained().logits8(image)
    expected = resize_argmax(upsample(logits, seen), (96, 128))[0]
    own, labels = both(Hosted(trained_plan(), dtype), frames, seen=seen)
    limit = numerics.tolerance(dtype)
    # Frames are resized in float32, as pixels, and then rounded.
    assert numerics.relative_error(own, logits) <= limit.logits
    assert numerics.label_agreement(labels, expected) >= limit.agreement
    assert wrong_labels(labels, own, seen) == 0


# Blocks, ops and the model: what users call, with the backend put in place of the one on GPUs.


@pytest.fixture
def forced(monkeypatch):
    """Plans that the backend compiled."""
    module()
    plans = []

    def refusal(device, dtype, plan):
        return "another dtype" if dtype not in (None, *DTYPES) else None if plan is None else unfit(plan)

    def compile(plan, dtype, device):
        plans.append(plan)
        return Hosted(plan, dtype)

    monkeypatch.setattr(cuda, "available", lambda: (True, "emulated"))
    monkeypatch.setattr(cuda, "refusal", refusal)
    monkeypatch.setattr(cuda, "compile", compile)
    monkeypatch.setenv("STDC_FAST_BACKEND", "cuda")
    return plans


def check_block(got, reference, inputs, dtype):
    """``reference`` and ``inputs`` are in that dtype, so that all weights are what was given."""
    assert got.dtype == dtype
    channels = [x.shape[1] for x in inputs]
    plan = optimise(build(copy.deepcopy(reference).double(), channels=channels))
    expected = eager.compile(plan, FULL, rounding=Rounding(dtype))(*(x.float() for x in inputs))
    exact = exactly(reference, inputs)
    assert not numerics.failures(dtype, got, exact, emulated=expected.to(dtype), trained=False)


@pytest.mark.parametrize("name, dtype", [(name, DTYPES[i % 2]) for i, name in enumerate(BLOCKS)])
def test_blocks_notice_changed_weights(name, dtype, forced):
    module, reference, inputs = pair(name)
    inputs = [x.to(dtype) for x in inputs]
    for m in (module, reference):
        m.to(dtype)
    first = module(*inputs)
    check_block(first, reference, inputs, dtype)
    kept = first.clone()
    for m in (module, reference):
        change(name, m)
    second = module(*inputs)
    check_block(second, reference, inputs, dtype)
    assert not torch.allclose(second, kept, rtol=0.1) and torch.equal(first, kept)
    few = [x[:1].contiguous(memory_format=torch.channels_last) for x in inputs]
    third = module(*few)
    assert third.stride() == reference(*few).stride() and len(forced) == 2


@pytest.mark.parametrize("name, dtype", [(name, DTYPES[1 - i % 2]) for i, name in enumerate(BLOCKS)])
def test_ops_notice_changed_weights(name, dtype, forced):
    _, reference, inputs = pair(name)
    reference.to(dtype)
    inputs = [x.to(dtype) for x in inputs]
    for _ in range(2):
        got = call(name, inputs, weights_of(reference))
        check_block(got, reference, inputs, dtype)
        change(name, reference)
    assert len(forced) == 2


def test_a_model_labels_frames_and_photos(forced, tiny_weights, model64, photo):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="bfloat16", backend="cuda")
    assert model.backend == "cuda"
    picture = photo(40, 52)
    frames = torch.from_numpy(picture)[None]
    labels = model.label(frames)
    assert labels.shape == (1, 40, 52) and labels.dtype == torch.uint8 and len(labels.unique()) > 1
    assert np.array_equal(model.predict(picture).labels, labels[0].numpy())
    x = images.normalise(frames, torch.float32)
    logits, expected = model(x), model64(x.double())
    assert logits.shape == expected.shape == (1, model.num_classes, 40, 52)
    # Random weights: what bfloat16 costs is not known, but most labels stay.
    assert numerics.relative_error(logits, expected) <= 0.05
    assert numerics.label_agreement(labels, model64.label(frames)) >= 0.9
    assert forced


def test_float32_goes_to_another_backend(forced, monkeypatch, tiny_weights):
    monkeypatch.delenv("STDC_FAST_BACKEND")
    choice = backends.best(torch.device("cpu"), FULL)
    assert choice.name != "cuda" and "cuda: another dtype" in choice.reason
    assert backends.best(torch.device("cpu"), HALF).name == "cuda"
