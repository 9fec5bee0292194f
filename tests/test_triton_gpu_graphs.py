"""The Triton backend on an NVIDIA GPU: CUDA graphs, results, memory, streams, threads, captures by others."""

import contextlib
import dataclasses
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engines import small_network
from plans import random_frames
from test_gpu import street
from test_triton_gpu import (
    DEVICE,
    FULL,
    HALF,
    ODD,
    SIZE,
    SMALL,
    every_dtype,
    frames_of,
    network_plan,
    on_a_gpu,
    photos,
    same_tiles,
    small,
)

import stdc_fast
from stdc_fast import images
from stdc_fast.backends import triton
from stdc_fast.backends.graphs import DEPENDENT, GRAPHS
from stdc_fast.numerics import relative_error, tolerance

pytestmark = on_a_gpu


# Graphs and dependent launches.


@every_dtype
def test_a_replay_is_what_its_launches_are(dtype):
    """Bit by bit, also of frames that came after the capture; and with memory of NaN."""
    plan, others = network_plan(), ({"graphs": False}, {"poisoned": True})
    replayed = triton.compile(plan, dtype, DEVICE)
    launched = [triton.compile(plan, dtype, DEVICE, **options) for options in others]
    for seed in range(3):
        frames = frames_of(2, *SMALL, seed=seed)
        logits, labels = replayed(frames), replayed.labels(frames)
        for one in launched:
            assert torch.equal(one(frames), logits) and torch.equal(one.labels(frames), labels)
    kinds = [[i.graph is not None for i in one._instances.values()] for one in (replayed, *launched)]
    assert kinds == [[True, True], [False, False], [True, True]]


@every_dtype
def test_dependent_launches_change_nothing(dtype):
    if torch.cuda.get_device_capability(0) < DEPENDENT:
        assert not small(dtype)._dependent
        pytest.skip("no dependent launches before sm_90")
    frames, results = frames_of(1, 256, 512), []
    for dependent in (True, False):
        for graphs in (True, False):
            executable = triton.compile(network_plan(), dtype, DEVICE, graphs=graphs)
            assert executable._dependent
            executable._dependent = dependent
            # Three: of the launches before the capture, and of two replays.
            results += [(executable(frames), executable.labels(frames)) for _ in range(3)]
    assert all(torch.equal(x, y) for one in results for x, y in zip(one, results[0], strict=True))


@pytest.mark.parametrize("size", [SIZE, ODD], ids=str)
def test_a_thousand_times_the_same(size):
    frames = photos(size, 1)[0].to(DEVICE)
    executable = triton.compile(network_plan(), HALF, DEVICE)
    logits, labels = executable(frames), executable.labels(frames)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(1000):  # nobody waits in between
        wrong += (executable(frames) != logits).sum() + (executable.labels(frames) != labels).sum()
    assert wrong.item() == 0


@every_dtype
@pytest.mark.parametrize("split", [2, 8])
def test_split_sums_are_deterministic(split, dtype):
    """Whichever program comes last adds up the others' sums, and leaves the counters as they were."""

    def shared(work):
        t = same_tiles(work)
        alone = work.kind == "conv" and len(work.inputs) == 1 and work.kernel != 2
        return dataclasses.replace(t, split=split) if alone else t

    executable, frames = small(dtype, tiles=shared), frames_of(3, *SMALL)
    executable(frames)
    first = next(iter(executable._instances.values())).lowered
    counters = [launch.arguments["arrivals"] for launch in first.launches if "arrivals" in launch.arguments]
    assert sum(x.numel() > 0 for x in counters) >= 4
    logits = executable(frames)
    assert relative_error(logits, small(dtype)(frames)) <= (tolerance(dtype).logits or 1)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(200):
        wrong += (executable(frames) != logits).sum()
    assert wrong.item() == 0
    assert not any(x.any() for x in counters)


# Results and memory.


def test_results_stay_and_share_nothing():
    """All are held, nobody waits, and one is written to."""
    executable, alone = small(), small()
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


def test_memory_does_not_grow_and_is_given_back():
    def use(executable, calls):
        for i in range(calls):
            executable.labels(frames[i % 2])
            executable(frames[i % 2])
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(DEVICE)

    frames = [frames_of(1, *SMALL), frames_of(2, 64, 96)]
    use(small(), 2)  # what torch keeps after the first graph of all
    gc.collect()
    before = torch.cuda.memory_allocated(DEVICE)
    executable = small()
    warm = use(executable, 2)
    assert warm > before
    assert use(executable, 50) == warm
    del executable
    gc.collect()
    assert torch.cuda.memory_allocated(DEVICE) == before


# Streams, threads and other sizes.


@every_dtype
def test_several_streams(dtype):
    """Frames arrive on each after a wait there: what ran elsewhere or too early would not see them."""
    executable = small(dtype)
    frames = [frames_of(1, *SMALL, seed=seed) for seed in range(4)]
    expected = [(executable.labels(x), executable(x)) for x in frames]
    late, streams = [torch.zeros_like(x) for x in frames], [torch.cuda.Stream() for _ in frames]
    torch.cuda.synchronize()
    for fresh in (executable, small(dtype), small(dtype, graphs=False)):
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
def test_several_threads(same):
    """Their first calls too, which compile and capture at once. (None may wait for the whole device.)"""
    executable, alone = small(), small()
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


def test_more_sizes_than_are_kept():
    """The first goes while its graph waits on another stream, and what takes its memory must not be seen."""
    executable, alone = small(), small()
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
def test_another_gpu_than_the_current_one():
    if torch.cuda.get_device_capability(1) < triton.TENSOR_CORES:
        pytest.skip("cuda:1 is older than sm_80")
    frames, there = random_frames(1, *SMALL), triton.compile(small_network(), FULL, "cuda:1")
    labels, logits = there.labels(frames.to("cuda:1")), there(frames.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert str(labels.device) == str(logits.device) == "cuda:1"
    assert relative_error(logits, small(FULL)(frames.to(DEVICE))) <= tolerance(FULL).logits
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


@every_dtype
def test_a_capture_by_the_caller(dtype):
    """The kernels are in the caller's graph, in its memory, whatever the backend does meanwhile."""
    executable, x = small(dtype), frames_of(2, *SMALL)
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


def test_garbage_collected_in_a_capture():
    """An executable that is forgotten meanwhile, with its graphs, does not end the capture."""
    executable, x, garbage = small(), frames_of(1, *SMALL), [small()]
    expected = executable.labels(x)
    garbage[0].labels(x)
    with captured() as graph:
        garbage.clear()
        gc.collect()
        labels = executable.labels(x)
    graph.replay()
    assert torch.equal(labels, expected)


def test_a_capture_needs_a_call_before_it():
    executable, x = small(), frames_of(1, *SMALL)
    with captured(), pytest.raises(RuntimeError, match="call it once before"):
        executable.labels(x)
    expected = small().labels(x)
    assert torch.equal(executable.labels(x), expected)


def test_a_capture_of_the_model():
    model = stdc_fast.load("stdc1_camvid", device=DEVICE)
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
