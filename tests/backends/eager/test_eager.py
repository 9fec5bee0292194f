"""The eager backend: its numbers in every dtype, at any size, layout and thread; and emulated rounding."""

import copy
import functools
import itertools
import math
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from plans import VARIANTS, error, one_thread, outputs, random_frames, random_images, random_network

import stdc_fast
from stdc_fast import images
from stdc_fast.backends import eager
from stdc_fast.backends.eager.ranges import observe
from stdc_fast.backends.eager.rounding import Grid, Observer, Rounding
from stdc_fast.plan import build, optimise
from stdc_fast.plan.ops import Conv, Down
from stdc_fast.reference import FeatureFusion, SegHead, STDCModule
from stdc_fast.reference.networks import upsample

STREET = ROOT / "stdc_fast" / "assets" / "street.jpg"
SIZE = (192, 256)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LOW = (torch.bfloat16, torch.float16)
# Of the same numbers added up in another order, over a network of random weights.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def trained():
    """The embedded network in float64."""
    model = stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32")
    return copy.deepcopy(model.network).double().eval().requires_grad_(False)


@functools.cache
def street(size=SIZE):
    image = Image.fromarray(images.read_image(STREET)).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))[None]


@functools.lru_cache(maxsize=16)
def reference(net, frames):
    return net.logits8(images.normalise(frames, torch.float64))


def relative(plan, net, frames, **how):
    """Error of a plan's logits to the float64 network's; the plan reads what it was built for."""
    raw = plan.buffers[plan.inputs[0]].store == "uint8"
    x = frames if raw else images.normalise(frames, torch.float64)
    return error(eager.compile(plan, **how)(x), reference(net, frames))


def agreement(executable, net, frames):
    """Share of pixels with the label of the float64 network."""
    expected = upsample(reference(net, frames), frames.shape[1:3]).argmax(1)
    assert len(expected.unique()) >= 5
    return (executable.labels(frames) == expected).double().mean().item()


# Against the reference.


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "normalised"])
@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_trained_weights_in_float32(trained, optimised, frames):
    plan = build(trained, frames=frames)
    plan = optimise(plan) if optimised else plan
    for size in (SIZE, (129, 159)):
        assert relative(plan, trained, street(size)) <= 1e-5
    assert relative(plan, trained, street(size), precision=torch.float64) <= 1e-10
    if frames:
        assert agreement(eager.compile(plan), trained, street()) >= 0.9999


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("module", ["cat", "add"])
def test_random_weights_in_float32(variant, module):
    """Not much worse than the network itself in float32, which these weights drive above 1e-5."""
    net, frames = random_network(variant, module), random_frames(1, 71, 103, seed=5)
    own = error(copy.deepcopy(net).float().logits8(images.normalise(frames)), reference(net, frames))
    for plan in (build(net, frames=False), optimise(build(net))):
        assert relative(plan, net, frames) <= 3 * own


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("frames", [True, False], ids=["frames", "normalised"])
def test_low_precision_against_its_emulation(trained, dtype, frames):
    """At most 1.5 times the emulation's error, of the trained weights within the absolute limits too."""
    absolute = {torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    random, noise = random_network("stdc2"), random_frames(1, 71, 103, seed=5)
    for plan, net, image, limit in (
        (build(trained, frames=frames), trained, street(), absolute),
        (optimise(build(trained, frames=frames)), trained, street(), absolute),
        (optimise(build(random, frames=frames)), random, noise, math.inf),
    ):
        real = relative(plan, net, image, precision=dtype)
        emulated = relative(plan, net, image, rounding=Rounding(dtype))
        assert torch.finfo(dtype).eps / 8 < real <= min(limit, 1.5 * emulated)


def test_labels_in_low_precision(trained):
    plan = optimise(build(trained))
    for dtype, least in ((torch.float16, 0.998), (torch.bfloat16, 0.990)):
        assert agreement(eager.compile(plan, dtype), trained, street()) >= least
        assert agreement(eager.compile(plan, rounding=Rounding(dtype)), trained, street()) >= least


@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_are_normalised_images(variant):
    """Raw frames give what the normalised image does: in float64 to 1e-10, at borders and odd sizes too."""
    net = random_network(variant)
    for rewrite, size in ((lambda p: p, (1, 64, 96)), (optimise, (2, 65, 97)), (optimise, (1, 40, 71))):
        raw, normalised = (rewrite(build(net, frames=frames)) for frames in (True, False))
        image = random_frames(*size, seed=9)
        x = images.normalise(image, torch.float64)
        executable = eager.compile(raw, torch.float64)
        assert error(executable(image), eager.compile(normalised, torch.float64)(x)) <= 1e-10
        # Black and white: all that differs is at the border.
        flat = torch.stack([torch.zeros_like(image[0]), torch.full_like(image[0], 255)])
        assert error(executable(flat), net.logits8(images.normalise(flat, torch.float64))) <= 1e-10


def test_trained_frames_are_normalised_images(trained):
    raw, normalised = (optimise(build(trained, frames=frames)) for frames in (True, False))
    x = images.normalise(street(), torch.float64)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        assert error(eager.compile(raw, dtype)(street()), eager.compile(normalised, dtype)(x)) <= limit


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_rounding_costs_frames_no_more(trained, dtype):
    """The stem of raw frames is nearer to the truth than that of a rounded image. The logits are as near: for
    single weights either may be, by luck of rounding, so this is the mean over several.
    """
    nets = [
        (trained, street()),
        *((random_network("stdc1", seed=s), random_frames(1, 64, 96)) for s in range(3)),
    ]
    ratios = []
    for net, image in nets:
        errors = []
        for frames in (True, False):
            plan = optimise(build(net, frames=frames))
            (stem,) = (op for op in plan.ops if op.kind == "stem")
            plan = plan.replace(outputs=(plan.outputs[0], stem.output))
            x = image if frames else images.normalise(image, torch.float64)
            exact, got = (eager.compile(plan, d).run(x) for d in (torch.float64, dtype))
            errors.append([error(*pair) for pair in zip(got, exact, strict=True)])
        (logits, stem), (other_logits, other_stem) = errors
        assert stem <= other_stem
        ratios.append(logits / other_logits)
    assert statistics.geometric_mean(ratios) <= 1.2, ratios


# Calls.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_and_batches_change_between_calls(dtype):
    plan = optimise(build(random_network("stdc1")))
    executable = eager.compile(plan, dtype)
    first = random_frames(1, 64, 96)
    before = executable(first).clone()
    for size in ((2, 65, 97), (1, 32, 32), (3, 40, 64), (1, 97, 160)):
        frames = random_frames(*size)
        got = executable(frames)
        assert got.shape == (size[0], 11, -(-size[1] // 8), -(-size[2] // 8))
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert error(got, eager.compile(plan, dtype)(frames)) <= CLOSE[dtype]
        # Each image of a batch is as if alone.
        for i in range(size[0]):
            assert error(got[i : i + 1], executable(frames[i : i + 1])) <= CLOSE[dtype]
    assert torch.equal(executable(first), before)
    assert executable(first[:0]).shape == (0, 11, 8, 12)


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_threads_share_an_executable(optimised):
    """From the very first call, when weights are packed, with different sizes at a time."""
    plan = build(random_network("stdc1"))
    plan = optimise(plan) if optimised else plan
    cases = [random_frames(1, 32 + 8 * i, 96 - 9 * i, seed=i) for i in range(6)] * 3
    expected = [eager.compile(plan)(x) for x in cases[:6]] * 3
    for _ in range(2):
        executable = eager.compile(plan)
        with ThreadPoolExecutor(6) as pool:
            for got, e in zip(pool.map(executable, cases), expected, strict=True):
                assert error(got, e) <= 1e-5


def test_inputs_stay_and_outputs_are_fresh():
    """Whatever the dtype and layout: an input that needs no conversion must not be written to either."""
    net = random_network("stdc1", training_heads=True)
    block = STDCModule(6, 16, stride=2).double().eval().requires_grad_(False)
    head = SegHead(6, 8, 3).double().eval().requires_grad_(False)
    cases = [(build(net), random_frames(1, 32, 40))]
    for dtype, layout in itertools.product(DTYPES, (torch.contiguous_format, torch.channels_last)):
        x = torch.randn(2, 6, 9, 8, dtype=dtype).contiguous(memory_format=layout)
        cases += [(build(block), x), (build(head), x)]
    for dtype in (torch.float64, torch.bfloat16):
        cases.append((build(net, frames=False), random_images(1, 32, 40, dtype=dtype)))
    for plan, x in cases:
        dtype = x.dtype if x.is_floating_point() else torch.float32
        before, version = x.clone(), x._version
        for p in (plan, optimise(plan)):
            executable = eager.compile(p, dtype)
            found = executable.run(x) + executable.run(x)
            places = [y.untyped_storage().data_ptr() for y in (x, *found)]
            assert len(set(places)) == len(places)
            kept = [y.clone() for y in found]
            for y in found:
                y.fill_(float("nan"))
            again = executable.run(x)
            assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=False))
            assert not any(y.requires_grad for y in again)
        assert x._version == version and torch.equal(x, before)


def test_strided_inputs():
    net = random_network("stdc1")
    frames = random_frames(2, 70, 100)
    raw, normalised = (eager.compile(optimise(build(net, frames=f)), torch.float64) for f in (True, False))
    planes = frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for strided in (frames[:, ::2, ::2], planes, frames[:1].expand(3, -1, -1, -1), frames.transpose(1, 2)):
        assert not strided.is_contiguous()
        x = images.normalise(strided, torch.float64)
        expected = net.logits8(x.contiguous())
        assert error(raw(strided), expected) <= 1e-10
        assert error(normalised(x), expected) <= 1e-10
        assert error(normalised(x.contiguous()), expected) <= 1e-10
    x = random_images(1, 40, 150, dtype=torch.float64)
    assert error(normalised(x[..., ::3]), net.logits8(x[..., ::3].contiguous())) <= 1e-10


def test_labels():
    net, frames = random_network("stdc1"), random_frames(2, 65, 97)
    x = images.normalise(frames, torch.float64)
    for plan, given in ((optimise(build(net)), frames), (build(net, frames=False), x)):
        executable = eager.compile(plan, torch.float64)
        for size in (None, (130, 50)):
            got = executable.labels(given, size)
            expected = upsample(net.logits8(x), size or (65, 97)).argmax(1)
            assert got.dtype == torch.uint8 and got.shape == expected.shape
            assert (got == expected).double().mean() >= 0.9999


@functools.cache
def executable_of(frames):
    return eager.compile(optimise(build(random_network("stdc1"), frames=frames)))


def wrong(frames, *inputs):
    return lambda: executable_of(frames).run(*inputs)


def fusion(*inputs):
    return lambda: eager.compile(build(FeatureFusion(9, 8).eval(), channels=(4, 5))).run(*inputs)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            wrong(True, torch.zeros(1, 3, 64, 96)),
            r"uint8 frames \[N, H, W, 3\], got torch.float32 \[1, 3, 64, 96\]",
        ),
        (wrong(True, random_frames(1, 64, 96)[0]), r"got torch.uint8 \[64, 96, 3\]"),
        (wrong(True, random_frames(1, 64, 96).permute(0, 3, 1, 2)), r"got torch.uint8 \[1, 3, 64, 96\]"),
        (wrong(True, torch.zeros(1, 64, 96, 4, dtype=torch.uint8)), r"got torch.uint8 \[1, 64, 96, 4\]"),
        (wrong(True, torch.zeros(1, 64, 96, 3, dtype=torch.int64)), "got torch.int64"),
        (
            wrong(False, random_frames(1, 64, 96)),
            r"float input \[N, 3, H, W\], got torch.uint8 \[1, 64, 96, 3\]",
        ),
        (wrong(False, torch.zeros(3, 64, 96)), r"got torch.float32 \[3, 64, 96\]"),
        (wrong(False, torch.zeros(1, 64, 96, 3)), r"got torch.float32 \[1, 64, 96, 3\]"),
        (wrong(False, torch.zeros(1, 3, 64, 96, dtype=torch.int32)), "got torch.int32"),
        (fusion(torch.zeros(1, 4, 6, 7), torch.zeros(1, 5, 6, 8)), r"\[\[1, 4, 6, 7\], \[1, 5, 6, 8\]\]"),
        (fusion(torch.zeros(1, 4, 6, 7), torch.zeros(2, 5, 6, 7)), r"\[\[1, 4, 6, 7\], \[2, 5, 6, 7\]\]"),
        (fusion(torch.zeros(1, 5, 6, 7), torch.zeros(1, 4, 6, 7)), r"\[N, 4, H, W\], got .*\[1, 5, 6, 7\]"),
        pytest.param(fusion(torch.zeros(1, 4, 6, 7)), "^(?!zip)"),
        pytest.param(wrong(False, *[torch.zeros(1, 3, 64, 96)] * 2), "^(?!zip)"),
        pytest.param(wrong(False), "^(?!zip)"),
        pytest.param(wrong(False, torch.zeros(1, 3, 0, 96)), r"\[1, 3, 0, 96\]"),
        pytest.param(wrong(True, random_frames(1, 64, 96)[:, :0]), r"\[1, 0, 96, 3\]"),
    ],
)
def test_wrong_inputs(run, message):
    with pytest.raises(ValueError, match=message):
        run()


# Rounding.


class Recorded(Rounding):
    """Rounding that counts what passes."""

    def __init__(self, dtype):
        super().__init__(dtype)
        self.keys, self.names = Counter(), Counter()

    def tensor(self, key, x, offset=0):
        self.keys[key] += 1
        return super().tensor(key, x, offset)

    def weight(self, op, name, weight):
        self.names[name] += 1
        return super().weight(op, name, weight)


def all_maps(plan):
    """The plan with every map that it stores as a further output."""
    seen = [plan.whole(name) for name, b in plan.buffers.items() if b.store == "act"]
    return plan.replace(outputs=(*plan.outputs, *seen))


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
@pytest.mark.parametrize("frames", [True, False], ids=["frames", "normalised"])
def test_what_is_rounded(optimised, frames):
    """Every view written to a map passes once, a prologue's result and the inside of a "down" too; logits and
    vectors never; every weight of more than one dimension once. What is then stored is of the dtype.
    """
    net, image = random_network("stdc1"), random_frames(1, 64, 96)
    plan = build(net, frames=frames)
    plan = optimise(plan) if optimised else plan
    expected = Counter(
        v.buffer for op in plan.ops for v in op.writes if plan.buffers[v.buffer].store == "act"
    )
    expected.update(() if frames else plan.inputs)
    expected.update(f"{op.name}:inner" for op in plan.ops if isinstance(op, Down))
    expected.update(f"{op.name}:input" for op in plan.ops if isinstance(op, Conv) and (op.scale or op.add))
    assert sum(expected.values()) > 30 and sum(":" in key for key in expected) == (6 if optimised else 0)
    for dtype in LOW:
        rounding = Recorded(dtype)
        executable = eager.compile(all_maps(plan), rounding=rounding)
        _, *maps = executable.run(image if frames else images.normalise(image))
        assert rounding.keys == expected
        assert rounding.names == Counter(name for name, w in plan.weights.items() if w.ndim > 1)
        assert len(maps) > 15
        for x in maps:
            assert x.dtype == torch.float32 and torch.equal(x, x.to(dtype).float()) and x.std() > 0


def test_rounding_to_more_digits_changes_nothing():
    built, frames = build(random_network("stdc1")), random_frames(1, 65, 97)
    for plan, dtype in itertools.product((built, optimise(built)), (torch.float32, torch.float64)):
        got = eager.compile(plan, dtype, rounding=Rounding(torch.float64))(frames)
        assert torch.equal(got, eager.compile(plan, dtype)(frames))


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_observer(optimised):
    """Exactly the least and greatest value of each map over all calls, and numbers that are not changed."""
    plan = build(random_network("stdc1"))
    plan = optimise(plan) if optimised else plan
    batches = [random_frames(1, 64, 96, seed=1), random_frames(2, 33, 71, seed=2) // 4]
    observer = Observer()
    executable = eager.compile(plan, rounding=observer)
    for batch in batches:
        assert torch.equal(executable(batch), eager.compile(plan)(batch))
    runs = [eager.compile(all_maps(plan)).run(batch)[1:] for batch in batches]
    names = [view.buffer for view in all_maps(plan).outputs[1:]]
    for name, *values in zip(names, *runs, strict=True):
        low, high = min(v.min().item() for v in values), max(v.max().item() for v in values)
        assert observer.ranges[name] == (low, high) and low < high
    assert observe(plan, batches) == observer.ranges
    inside = {key for key in observer.ranges if ":" in key}
    assert set(observer.ranges) - inside == set(names) and len(inside) == (6 if optimised else 0)


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_grid(trained, optimised):
    """Each map has at most 256 values, all whole steps of one size, for an image it has not seen too."""
    plan = build(trained)
    plan = all_maps(optimise(plan) if optimised else plan)
    ranges = observe(plan, [street()])
    executable = eager.compile(plan, rounding=Grid(ranges))
    for image in (street(), random_frames(1, 64, 96)):
        for x, view in zip(executable.run(image)[1:], plan.outputs[1:], strict=True):
            low, high = ranges[view.buffer]
            step = high / 255 if low >= 0 else max(-low, high) / 127
            steps = x.double() / step
            assert (steps - steps.round()).abs().max() < 1e-3, view
            assert len(x.unique()) <= (256 if low >= 0 else 255)
            assert (steps.round().min(), steps.round().max()) >= ((0,) if low >= 0 else (-127,))
            assert steps.round().max() <= (255 if low >= 0 else 127)


def test_grid_keeps_the_labels(trained):
    """Calibrated on the same photo smaller: 98 % of the labels."""
    plan = optimise(build(trained))
    executable = eager.compile(plan, rounding=Grid(observe(plan, [street((128, 256)), street((160, 224))])))
    assert agreement(executable, trained, street()) >= 0.98
    # It does round: by much more than bfloat16.
    assert 3e-3 < relative(plan, trained, street(), rounding=executable.rounding) < 3e-2


def test_training_heads_in_all_dtypes():
    """All outputs, each in float32 or more."""
    net, frames = random_network("stdc1", training_heads=True), random_frames(1, 64, 96)
    expected = outputs(net, images.normalise(frames, torch.float64))
    for dtype in DTYPES:
        for got, e in zip(eager.compile(build(net), dtype).run(frames), expected, strict=True):
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert error(got, e) <= CLOSE[dtype]
