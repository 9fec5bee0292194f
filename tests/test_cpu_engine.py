"""Whole networks on the native CPU engine: numbers and labels, whatever the threads, sizes and callers."""

import contextlib
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engines import (
    FULL,
    ISAS,
    LOW,
    as_key,
    emulated,
    in_both_dtypes,
    needs_native,
    on_every_isa,
    small_network,
    street,
    trained,
    trained_plan,
    truth,
    wrong_labels,
)
from plans import VARIANTS, random_frames, random_images, random_network

from stdc_fast import images, numerics
from stdc_fast.backends import cpu
from stdc_fast.plan import build, optimise
from stdc_fast.postprocess import resize_argmax
from stdc_fast.reference.networks import upsample

pytestmark = needs_native

SIZES = ((160, 256), (129, 159), (97, 33), (32, 32))
THREADS = (1, 2, 3, 5, 16)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


# Numbers.


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("frames", [True, False], ids=["frames", "images"])
def test_trained_weights(frames, dtype, isa):
    """The whole contract: logits, labels, and against the emulation of the same plan."""
    plan = trained_plan(frames)
    executable = cpu.compile(plan, dtype, isa=isa, poisoned=True)
    for size in SIZES if frames else SIZES[1:3]:
        given = street(size)
        logits, labels = truth(trained(), given)
        image = given if frames else images.normalise(given)
        emulation = None if dtype == FULL else emulated(plan, dtype, as_key(image))
        got = executable(image)
        problems = numerics.failures(
            dtype, got, logits, executable.labels(image), labels, emulated=emulation, trained=True
        )
        assert not problems, (size, problems)


@functools.cache
def random_case(variant):
    net = random_network(variant, count_include_pad=variant == "stdc1")
    return net, optimise(build(net)), [random_frames(1, 71, 103, seed=5), random_frames(2, 33, 40, seed=6)]


@on_every_isa
@in_both_dtypes
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_weights(variant, dtype, isa):
    """As near to the truth as the same plan run by torch, which rounds where the engine does."""
    net, plan, batches = random_case(variant)
    executable = cpu.compile(plan, dtype, isa=isa, poisoned=True)
    for frames in batches:
        exact, _ = truth(net, frames)
        got, labels = executable(frames), executable.labels(frames)
        expected = emulated(plan, dtype, frames)
        problems = numerics.failures(
            dtype, got, exact, labels, emulated=None if dtype == FULL else expected, trained=False
        )
        assert not problems
        if dtype == FULL:  # random weights drive torch's own error above 1e-5
            assert numerics.relative_error(got, exact) <= 3 * numerics.relative_error(expected, exact)
        assert wrong_labels(labels, got) == 0


# Labels.


@on_every_isa
@in_both_dtypes
def test_labels_are_those_of_the_logits(dtype, isa):
    executable = cpu.compile(trained_plan(), dtype, isa=isa, poisoned=True)
    for size, others in (((129, 159), ((200, 333), (70, 159))), ((32, 33), ((1, 1), (32, 90), (7, 500)))):
        frames = street(size)
        logits, labels = executable(frames), executable.labels(frames)
        assert labels.dtype == torch.uint8 and labels.shape == (1, *size) and labels.is_contiguous()
        assert wrong_labels(labels, logits) == 0
        assert (labels == resize_argmax(logits, size)[0]).double().mean() >= 0.9999
        assert torch.equal(executable.labels(frames, size, seen=size), labels)
        for other in others:
            assert wrong_labels(executable.labels(frames, other), logits, size) == 0
            assert wrong_labels(executable.labels(frames, other, exact=False), logits) == 0


@on_every_isa
@in_both_dtypes
def test_frames_seen_smaller_and_larger(dtype, isa):
    """The official protocol: normalise, resize, logits to that size, then to the frame's; in eager torch."""
    executable = cpu.compile(trained_plan(), dtype, isa=isa, poisoned=True)
    frames = street((160, 256))
    for seen in ((120, 192), (97, 255)):
        logits, expected = protocol(dtype, seen)
        exact = executable.labels(frames, seen=seen)
        assert (exact == expected).double().mean() >= (0.999 if dtype == FULL else 0.99), seen
        fused = executable.labels(frames, seen=seen, exact=False)
        if min(seen) >= 96:  # where the photo is reduced as the model's own scale does
            assert (fused == exact).double().mean() >= 0.999, seen
        # From the same logits there is nothing to be forgiven.
        own = logits_seen(executable, frames, seen)
        assert wrong_labels(exact, own, seen) == 0
        assert wrong_labels(fused, own) == 0
        assert numerics.relative_error(own, logits) <= (1e-5 if dtype == FULL else 2e-2)


@functools.cache
def protocol(dtype, seen):
    """Logits and labels of the photo."""
    frames = street((160, 256))
    image = as_key(upsample(images.normalise(frames), seen))
    logits = emulated(trained_plan(False), dtype, image)
    return logits, resize_argmax(upsample(logits, seen), (160, 256))[0]


def logits_seen(executable, frames, seen):
    """Logits of resized frames, which only labels are made of otherwise."""
    n, (height, width) = len(frames), executable.plan.size(executable._output.buffer, *seen)
    output = torch.empty(n, height, width, executable._output.channels)
    executable.engine.run([cpu._spec(frames)], cpu._spec(output), *seen, torch.get_num_threads(), True)
    return output.permute(0, 3, 1, 2)


def test_an_image_is_not_resized():
    executable = cpu.compile(trained_plan(False))
    x = images.normalise(street((96, 160)))
    assert torch.equal(executable.labels(x, seen=(96, 160)), executable.labels(x))
    with pytest.raises(ValueError, match=r"\(96, 160\) can not be seen as \(64, 96\)"):
        executable.labels(x, seen=(64, 96))


@on_every_isa
@in_both_dtypes
def test_the_lowest_class_of_a_tie(dtype, isa):
    """Classes 7 and 9 are copies of 2, class 4 of 0, and one of these is the best everywhere."""
    plan = small_network(classes=11)
    (name,) = (op.weight for op in plan.ops if op.output.buffer == plan.ops[-1].input.buffer)
    one, other = plan.weights[name][[5, 10]]
    weight = (torch.minimum(one, other) - 0.1).repeat(11, 1, 1, 1)  # of what is never negative
    weight[[0, 4]], weight[[2, 7, 9]] = one, other
    executable = cpu.compile(plan.replace(weights={name: weight}), dtype, isa=isa)
    found = set()
    for seed, size in enumerate([(64, 96), (33, 47), (8, 130)]):
        frames = random_frames(1, *size, seed=seed)
        for out, exact in itertools.product((None, (90, 71)), (True, False)):
            found |= set(executable.labels(frames, out, exact=exact).unique().tolist())
    assert found == {0, 2}
    zero = cpu.compile(plan.replace(weights={name: torch.zeros_like(weight)}), dtype, isa=isa)
    assert not zero.labels(random_frames(2, 40, 65)).any()


# Who asks, how often, and with how many threads.


def networks():
    """Every instruction set with a small network, the best one with a whole one too."""
    return [(ISAS[0], trained_plan()), *((isa, small_network()) for isa in ISAS)]


@in_both_dtypes
def test_results_do_not_depend_on_threads(dtype):
    frames = street((129, 159))
    for isa, plan in networks():
        executable = cpu.compile(plan, dtype, isa=isa, poisoned=True)
        with threads(1):
            logits, labels = executable(frames), executable.labels(frames, (200, 240), seen=(96, 128))
        for count in THREADS * 2:
            with threads(count):
                assert torch.equal(executable(frames), logits), (isa, count)
                assert torch.equal(executable.labels(frames, (200, 240), seen=(96, 128)), labels)


@in_both_dtypes
def test_runs_engines_and_batches_give_the_same_bits(dtype):
    frames = torch.cat([street((96, 160)), random_frames(2, 96, 160)])
    for isa, plan in networks():
        executable, other = (cpu.compile(plan, dtype, isa=isa, poisoned=p) for p in (True, False))
        logits, labels = executable(frames), executable.labels(frames)
        for _ in range(2):
            assert torch.equal(executable(frames), logits)
            assert torch.equal(other(frames), logits)
            assert torch.equal(other.labels(frames), labels)
        for i in range(3):
            assert torch.equal(executable(frames[i : i + 1])[0], logits[i])
            assert torch.equal(executable.labels(frames[i : i + 1])[0], labels[i])
        assert executable(frames[:0]).shape == (0, 11, 12, 20)
        assert executable.labels(frames[:0]).shape == (0, 96, 160)


@in_both_dtypes
def test_sizes_alternate_between_engines(dtype):
    """More sizes than an engine keeps, larger and smaller, on two networks in turns."""
    plans = [small_network(), small_network(frames=False, seed=1)]
    sizes = [(32 + 13 * i % 70, 32 + 29 * i % 90) for i in range(11)]
    inputs = [[make(1, *s, seed=i) for i, s in enumerate(sizes)] for make in (random_frames, random_images)]
    for isa in ISAS:
        fresh = [
            [cpu.compile(plan, dtype, isa=isa)(x) for x in batch]
            for plan, batch in zip(plans, inputs, strict=True)
        ]
        executables = [cpu.compile(plan, dtype, isa=isa, poisoned=True) for plan in plans]
        for turn in range(3):
            for i in (range(11), range(10, -1, -1), (3, 3, 7, 3, 7, 0))[turn]:
                for executable, batch, expected in zip(executables, inputs, fresh, strict=True):
                    assert torch.equal(executable(batch[i]), expected[i])
                    assert executable.labels(batch[i]).shape == (1, *sizes[i])


@on_every_isa
@in_both_dtypes
def test_nan_and_infinity_leave_no_trace(dtype, isa):
    executable = cpu.compile(small_network(frames=False), dtype, isa=isa)
    clean = random_images(1, 64, 96)
    logits, labels = executable(clean), executable.labels(clean)
    for bad in (float("nan"), float("inf"), -float("inf"), 3e38):
        for where in (..., (0, 0, 0, 0), (0, slice(None), 30, 40), (0, 2, 63, 95)):
            dirty = clean.clone()
            dirty[where] = bad
            assert executable(dirty).shape == logits.shape
            assert executable.labels(dirty).max() < 11
            assert torch.equal(executable(clean), logits)
            assert torch.equal(executable.labels(clean), labels)


@in_both_dtypes
def test_nan_is_not_hidden(dtype):
    """What one bad pixel reaches through averages is all of the image, but not the next one of the batch."""
    for isa in ISAS:
        executable = cpu.compile(small_network(frames=False), dtype, isa=isa)
        x = random_images(2, 64, 96)
        expected = executable(x)
        x[0, 1, 20, 30] = float("nan")
        got = executable(x)
        assert got[0].isnan().any() and torch.equal(got[1], expected[1])


@in_both_dtypes
def test_python_threads_share_an_engine(dtype):
    cases = [random_frames(1, 32 + 8 * i, 96 - 9 * i, seed=i) for i in range(6)]
    for isa in ISAS:
        alone = cpu.compile(small_network(), dtype, isa=isa)
        expected = [(alone(x), alone.labels(x)) for x in cases]
        shared = cpu.compile(small_network(), dtype, isa=isa, poisoned=True)
        with threads(3), ThreadPoolExecutor(6) as pool:
            found = pool.map(lambda x, e=shared: (e(x), e.labels(x)), cases * 4)
            for (logits, labels), (e_logits, e_labels) in zip(found, expected * 4, strict=True):
                assert torch.equal(logits, e_logits) and torch.equal(labels, e_labels)


@in_both_dtypes
def test_engines_in_several_threads(dtype):
    """Engines of different networks and instruction sets at once: they share one pool of threads."""
    jobs = []
    for i, isa in enumerate(ISAS * 2):
        executable = cpu.compile(small_network(seed=i % 3), dtype, isa=isa, poisoned=True)
        frames = random_frames(1 + i % 2, 40 + 8 * i, 90 - 7 * i, seed=i)
        jobs.append((executable, frames, executable(frames)))

    def work(job):
        executable, frames, expected = job
        return all(torch.equal(executable(frames), expected) for _ in range(5))

    with threads(2), ThreadPoolExecutor(len(jobs)) as pool:
        assert all(pool.map(work, jobs))


def test_the_number_of_threads_is_torchs():
    asked = []

    class Spy:
        def run(self, inputs, output, height, width, count, exact):
            asked.append(count)

    executable = cpu.compile(small_network())
    executable.engine = Spy()
    for count in THREADS:
        with threads(count):
            executable(random_frames(1, 32, 32))
            executable.labels(random_frames(1, 32, 32))
    assert asked == [count for count in THREADS for _ in range(2)]


def test_outputs_are_fresh_and_inputs_stay():
    for dtype, frames in itertools.product((FULL, LOW), (True, False)):
        executable = cpu.compile(small_network(frames=frames), dtype)
        x = (random_frames if frames else random_images)(1, 40, 48)
        before, version = x.clone(), x._version
        found = [executable(x), executable(x), executable.labels(x), executable.labels(x)]
        assert len({y.untyped_storage().data_ptr() for y in (x, *found)}) == 5
        kept = [y.clone() for y in found]
        for y in found:
            y.fill_(7)
        again = [executable(x), executable(x), executable.labels(x), executable.labels(x)]
        assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))
        assert x._version == version and torch.equal(x, before)
        with torch.inference_mode():
            assert torch.equal(executable(x), kept[0])


# Memory.


def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def test_memory_at_full_size():
    executable = cpu.compile(trained_plan(), LOW)
    weights, arena = executable.memory
    assert 0 < weights < 25e6 and arena == 0
    executable.labels(random_frames(1, 512, 1024))
    weights, arena = executable.memory
    assert weights + arena < 60e6
    executable.labels(random_frames(2, 64, 96))
    assert executable.memory == (weights, arena)  # of the largest size, not of the last


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see memory in use")
def test_memory_does_not_grow():
    """Over frames, over more sizes than are kept, over engines that are made and dropped."""
    frames = [random_frames(1, 64 + 16 * i, 96) for i in range(10)]
    executable = cpu.compile(small_network())

    def some():
        for _ in range(20):
            for x in frames:
                executable(x)
                executable.labels(x, (100, 120), seen=(40, 56))
        for _ in range(5):
            cpu.compile(small_network())(frames[0])

    some()
    kept, before = executable.memory, resident()
    for _ in range(3):
        some()
    assert executable.memory == kept
    assert resident() - before < 8 << 20


def test_torch_allocates_only_the_output():
    executable = cpu.compile(small_network())
    frames = random_frames(1, 64, 96)
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        for _ in range(10):
            executable.labels(frames)
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert allocated == 10 * 64 * 96
