"""Backends with kernels of their own on an NVIDIA GPU: CUDA graphs, results, memory, streams, threads,
captures by others.
"""

import contextlib
import dataclasses
import gc
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gpus import DEVICE, ODD, SIZE, SMALL, each, every, frames_of, network_plan, on_a_gpu, small, street
from oracle import HALF
from plans import random_frames
from sketch import small_network

import stdc_fast
from bench import gpu_repeats
from stdc_fast import images
from stdc_fast.backends import triton
from stdc_fast.backends.cuda.tiles import CudaTiles
from stdc_fast.backends.gpu import graphs
from stdc_fast.backends.gpu.graphs import DEPENDENT, GRAPHS
from stdc_fast.numerics import relative_error, tolerance

pytestmark = on_a_gpu


# Graphs and dependent launches.


@every
def test_a_replay_is_what_its_launches_are(backend, dtype):
    """Bit by bit, also of frames that came after the capture; and with memory of NaN."""
    plan, others = network_plan(), ({"graphs": False}, {"poisoned": True})
    replayed = backend.compile(plan, dtype, DEVICE)
    launched = [backend.compile(plan, dtype, DEVICE, **options) for options in others]
    for seed in range(3):
        frames = frames_of(2, *SMALL, seed=seed)
        logits, labels = replayed(frames), replayed.labels(frames)
        for one in launched:
            assert torch.equal(one(frames), logits) and torch.equal(one.labels(frames), labels)
    kinds = [[i.graph is not None for i in one._instances.values()] for one in (replayed, *launched)]
    assert kinds == [[True, True], [False, False], [True, True]]


@every
def test_dependent_launches_change_nothing(backend, dtype):
    if torch.cuda.get_device_capability(0) < DEPENDENT:
        assert not small(backend, dtype)._dependent
        pytest.skip("no dependent launches before sm_90")
    pair = frames_of(1, 256, 512), frames_of(1, 256, 512, seed=1)
    expected = gpu_repeats.plain(backend, network_plan(), dtype)
    for dependent, replays in itertools.product((True, False), repeat=2):
        executable = backend.compile(network_plan(), dtype, DEVICE, graphs=replays)
        assert executable._dependent
        executable._dependent = dependent
        # Six: the launches before the capture, and replays.
        assert gpu_repeats.differing(executable, expected, pair, 6) == 0, (dependent, replays)


@pytest.mark.parametrize("size", [SIZE, ODD], ids=str)
@each
def test_a_thousand_times_the_same(backend, size):
    """Two frames in turns: what the same frame has left is the right value where a wait is missing."""
    frames = street(size).to(DEVICE)
    executable = backend.compile(network_plan(), HALF, DEVICE)
    expected = gpu_repeats.plain(backend, network_plan(), HALF)
    assert gpu_repeats.differing(executable, expected, (frames, frames.flip(2)), 1000) == 0


@every
@pytest.mark.parametrize("split", [2, 8])
def test_split_sums_are_deterministic(backend, split, dtype):
    """Whichever program comes last adds up the others' sums, and leaves the counters as they were."""
    usual = small(backend, dtype)

    def shared(work):
        t = usual._tiles(work)
        if work.kind != "conv" or len(work.inputs) > 1 or work.kernel == 2:
            return t
        if backend is triton:
            return dataclasses.replace(t, split=split)
        return CudaTiles((64, 64, 4), 8, 8, 16, min(split, -(-work.inputs[0] // 16)))

    executable, frames = small(backend, dtype, tiles=shared), frames_of(3, *SMALL)
    executable(frames)
    first = next(iter(executable._instances.values())).lowered
    counters = [x for x in first._beside if x.dtype == torch.int32]
    assert sum(x.numel() > 0 for x in counters) >= 4
    logits = executable(frames)
    assert relative_error(logits, usual(frames)) <= (tolerance(dtype).logits or 1)
    expected = gpu_repeats.plain(backend, small_network(), dtype, tiles=shared)
    assert gpu_repeats.differing(executable, expected, (frames, frames_of(3, *SMALL, seed=1)), 200) == 0
    assert not any(x.any() for x in counters)


# Results and memory.


@each
def test_results_stay_and_share_nothing(backend):
    """All are held, nobody waits, and one is written to."""
    executable, alone = small(backend), small(backend)
    frames = [frames_of(2, *SMALL, seed=seed) for seed in range(12)]
    kept = [x.clone() for x in frames]
    results = [(executable.labels(x), executable(x)) for x in frames]
    results[0][0].fill_(77), results[0][1].fill_(77)
    places = {x.untyped_storage().data_ptr() for x in (*frames, *(y for pair in results for y in pair))}
    assert len(places) == 36
    for x, copied, (labels, logits) in [*zip(frames, kept, results, strict=True)][1:]:
        assert torch.equal(x, copied)
        assert torch.equal(labels, alone.labels(x)) and torch.equal(logits, alone(x))
    assert torch.equal(executable.labels(frames[0]), alone.labels(frames[0]))
    assert executable(frames[0][:0]).shape == (0, 11, 9, 13)


@each
def test_memory_does_not_grow_and_is_given_back(backend):
    def use(executable, calls):
        for i in range(calls):
            executable.labels(frames[i % 2])
            executable(frames[i % 2])
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(DEVICE)

    frames = [frames_of(1, *SMALL), frames_of(2, 64, 96)]
    use(small(backend), 2)  # what torch keeps after the first graph of all
    gc.collect()
    before = torch.cuda.memory_allocated(DEVICE)
    executable = small(backend)
    warm = use(executable, 2)
    assert warm > before
    assert use(executable, 50) == warm
    del executable
    gc.collect()
    assert torch.cuda.memory_allocated(DEVICE) == before


# Streams, threads and other sizes.


@every
def test_several_streams(backend, dtype):
    """Frames arrive on each after a wait there: what ran elsewhere or too early would not see them."""
    executable = small(backend, dtype)
    frames = [frames_of(1, *SMALL, seed=seed) for seed in range(4)]
    expected = [(executable.labels(x), executable(x)) for x in frames]
    late, streams = [torch.zeros_like(x) for x in frames], [torch.cuda.Stream() for _ in frames]
    torch.cuda.synchronize()
    for fresh in (executable, small(backend, dtype), small(backend, dtype, graphs=False)):
        results = []
        for _ in range(3):
            for stream, x, place in zip(streams, frames, late, strict=True):
                with torch.cuda.stream(stream):
                    place.zero_()
                    torch.cuda._sleep(10_000_000)  # some 6 ms
                    place.copy_(x)
                    results.append((fresh.labels(place), fresh(place)))
        torch.cuda.synchronize()
        for one, other in zip(results, expected * 3, strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("same", [True, False], ids=["same size", "own sizes"])
@each
def test_several_threads(backend, same):
    """Their first calls too, which compile and capture at once. (None may wait for the whole device.)"""
    executable, alone = small(backend), small(backend)
    sizes = [SMALL if same else (64 + 8 * i, 96) for i in range(4)]
    frames = [frames_of(1 + same, *size, seed=i) for i, size in enumerate(sizes)]
    expected = [(alone.labels(x), alone(x)) for x in frames]
    streams = [torch.cuda.Stream() for _ in frames]
    torch.cuda.synchronize()

    def work(i):
        wrong = 0
        with torch.cuda.stream(streams[i]):
            for _ in range(50):
                got = executable.labels(frames[i]), executable(frames[i])
                wrong += not all(map(torch.equal, got, expected[i]))
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0] * 4
    assert len(executable._instances) == (2 if same else 8)


@each
def test_more_sizes_than_are_kept(backend):
    """The first goes while its graph waits on another stream, and what takes its memory must not be seen."""
    executable, alone = small(backend), small(backend)
    frames = [frames_of(1, 64, 64 + 8 * i, seed=i) for i in range(GRAPHS + 3)]
    expected = [alone.labels(x) for x in frames]
    executable.labels(frames[0])
    torch.cuda.synchronize()
    stream, late = torch.cuda.Stream(), torch.zeros_like(frames[0])
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # some 120 ms
        late.copy_(frames[0])
        first = executable.labels(late)
    found, junk = [], []
    for x in frames[1:]:
        found.append(executable.labels(x))
        junk += [torch.full((1 << k,), 255, dtype=torch.uint8, device=DEVICE) for k in range(9, 21)]
    assert len(executable._instances) == GRAPHS
    torch.cuda.synchronize()
    assert all(map(torch.equal, (first, *found), expected))
    assert torch.equal(executable.labels(frames[0]), expected[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@each
def test_another_gpu_than_the_current_one(backend):
    if torch.cuda.get_device_capability(1) < triton.TENSOR_CORES:
        pytest.skip("cuda:1 is older than sm_80")
    frames, there = random_frames(1, *SMALL), backend.compile(small_network(), HALF, "cuda:1")
    labels, logits = there.labels(frames.to("cuda:1")), there(frames.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert str(labels.device) == str(logits.device) == "cuda:1"
    assert relative_error(logits, small(backend)(frames.to(DEVICE))) <= tolerance(HALF).logits
    with pytest.raises(ValueError, match="cuda:0"):
        there(frames.to(DEVICE))


# Captures by the caller.


@contextlib.contextmanager
def captured():
    """A capture as torch's documentation has it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        yield graph


@every
def test_a_capture_by_the_caller(backend, dtype):
    """The kernels are in the caller's graph, in its memory, whatever the backend does meanwhile."""
    executable, x = small(backend, dtype), frames_of(2, *SMALL)
    executable.labels(x), executable(x)  # compiles
    with captured() as graph:
        labels, logits = executable.labels(x), executable(x)
    for seed in range(3):
        x.copy_(frames_of(2, *SMALL, seed=seed + 10))
        expected = executable.labels(x), executable(x)
        labels.fill_(77), logits.fill_(77)
        graph.replay()
        executable(frames_of(2, *SMALL, seed=99))
        assert torch.equal(labels, expected[0]) and torch.equal(logits, expected[1])
    del executable  # the graph has what it needs of it, or keeps it
    gc.collect()


@each
def test_garbage_collected_in_a_capture(backend):
    """An executable that is forgotten meanwhile, with its graphs, does not end the capture."""
    executable, x, garbage = small(backend), frames_of(1, *SMALL), [small(backend)]
    expected = executable.labels(x)
    garbage[0].labels(x)
    with captured() as graph:
        garbage.clear()
        gc.collect()
        labels = executable.labels(x)
    graph.replay()
    assert torch.equal(labels, expected)


@each
def test_a_capture_needs_a_call_before_it(backend):
    executable, x = small(backend), frames_of(1, *SMALL)
    with captured(), pytest.raises(RuntimeError, match="call it once before"):
        executable.labels(x)
    expected = small(backend).labels(x)
    assert torch.equal(executable.labels(x), expected)


@each
def test_another_thread_ends_our_captures(backend, monkeypatch):
    """The first of each size. Results are right, the next capture succeeds, and memory, caches and random
    numbers are as they were before.
    """
    frames = [frames_of(1, 32 * i, 64) for i in range(1, 6)]
    expected = [small(backend, graphs=False).labels(x) for x in frames]
    executable, refused, failed = small(backend), [], len(graphs._failed)
    lower = executable.lower

    def ended(*request):
        lowered = lower(*request)
        launch = lowered.launch

        def once(**options):
            launch(**options)
            if "side" in options:
                with ThreadPoolExecutor(1) as pool:
                    refused.append(pool.submit(torch.cuda.synchronize, DEVICE).exception())
                lowered.launch = launch

        lowered.launch = once
        return lowered

    monkeypatch.setattr(executable, "lower", ended)
    results = [[executable.labels(x) for _ in range(5)] for x in frames]
    for labels, one in zip(expected, results, strict=True):
        assert all(torch.equal(x, labels) for x in one)
    assert len(refused) == len(frames) and all(isinstance(error, RuntimeError) for error in refused)
    assert len(graphs._failed) == failed + len(frames)
    assert all(i.graph is not None for i in executable._instances.values())
    torch.cuda.empty_cache()
    torch.randn(3, device=DEVICE), torch.empty(3).pin_memory()
    before = torch.cuda.memory_allocated(DEVICE)
    for _ in range(10):
        other = torch.cuda.Stream(DEVICE)
        x = torch.empty(1 << 20, device=DEVICE)
        x.record_stream(other)
        del x
    torch.cuda.synchronize(DEVICE)
    del other
    torch.empty(1, device=DEVICE)
    assert torch.cuda.memory_allocated(DEVICE) == before


@each
def test_a_capture_of_the_model(backend):
    model = stdc_fast.load("stdc1_camvid", device=DEVICE, backend=backend.BACKEND.name)
    frames = street(ODD).to(DEVICE)
    x = images.normalise(frames)
    model.label(frames, size="native"), model(x)
    with captured() as graph:
        labels, logits = model.label(frames, size="native"), model(x)
    frames.copy_(frames.flip(2))
    x.copy_(images.normalise(frames))
    expected = model.label(frames, size="native"), model(x)
    graph.replay()
    assert torch.equal(labels, expected[0])
    assert relative_error(logits, expected[1]) <= tolerance(HALF).op
