"""The native CPU engine whatever the threads, sizes, batches and engines beside it; and its memory."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import down
from engines.cpu import CPUS, ISAS, in_both_dtypes, needs_native
from oracle import FULL, LOW, street, trained_plan
from plans import random_frames, random_images
from sketch import plain, small_network

from stdc_fast.backends import cpu

pytestmark = needs_native

THREADS = (1, 2, 3, 5, 16)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def networks():
    """Every instruction set with a small network, the best one with a whole one too."""
    return [(ISAS[0], trained_plan()), *((isa, small_network()) for isa in ISAS)]


@pytest.mark.parametrize("engine", CPUS, ids=str)
@in_both_dtypes
def test_down_of_more_channels_than_a_step_has(engine, dtype):
    engine.agrees(down(1030, 16, True), dtype, [(1, 3, 5)])


@pytest.mark.parametrize("engine", CPUS, ids=str)
def test_long_sums_of_tiles(engine):
    """Thousands of products are added up in parts, as direct ones are."""
    executable = engine.agrees(plain(3072, 32, 3, 1), FULL, [(1, 5, 9)])
    assert set(executable.forms.values()) == {"F(4x4, 3x3)"}


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


# Memory.


def resident():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


@pytest.mark.parametrize("small, packed, most", [(True, 30e6, 20e6), (False, 70e6, 45e6)])
def test_memory_at_full_size(small, packed, most):
    executable = cpu.compile(trained_plan(), LOW, small=small)
    weights, arena = executable.memory
    assert 0 < weights < packed and arena == 0
    executable.labels(random_frames(1, 512, 1024))
    assert executable.memory[0] == weights
    arena = executable.memory[1]
    assert 0 < arena < most
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
