"""Frames like earlier ones, which take one native call, and graphs that go, with a card that is not there."""

import copy
import gc
import itertools
import weakref

import fake_gpu
import pytest
import torch
from sketch import small_network

from stdc_fast import UserError, backends, segmenter
from stdc_fast.backends.gpu import graphs
from stdc_fast.images import normalise
from stdc_fast.precision import FLOAT16


@pytest.fixture
def card(monkeypatch):
    return fake_gpu.install(monkeypatch)


@pytest.fixture
def executable(card):
    return fake_gpu.Executable(small_network(), FLOAT16)


def right(labels, frames, executable, size=None):
    return torch.equal(labels, fake_gpu.expected(frames, size or frames.shape[1:3], executable.weight))


def _frames(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def calls(executable, monkeypatch):
    """How often the general way was taken."""
    taken = []
    compute = executable._compute
    monkeypatch.setattr(executable, "_compute", lambda *a: taken.append(a) or compute(*a))
    return taken


def test_one_call_for_frames_like_earlier_ones(card, executable, monkeypatch):
    taken, results = calls(executable, monkeypatch), []
    for seed in range(5):
        frames = _frames((2, 32, 48), seed)
        results.append((executable.labels(frames), frames))
    assert len(taken) == 1
    card.work()
    assert all(right(labels, frames, executable) for labels, frames in results)
    assert len({labels.data_ptr() for labels, _ in results}) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, ::2],
        lambda x: x.transpose(1, 2),
        lambda x: x[:1],
        lambda x: x.flip(0)[:, :, 1:],
    ],
    ids=["every second row", "not dense", "one frame", "part"],
)
def test_other_frames_take_the_general_way(change, card, executable, monkeypatch):
    frames = _frames((2, 32, 48), 0)
    executable.labels(frames)
    taken = calls(executable, monkeypatch)
    other = change(frames)
    labels = executable.labels(other)
    assert len(taken) == 1
    card.work()
    assert right(labels, other, executable)


def test_dtypes_devices_and_counts_are_still_refused(card, executable):
    frames = _frames((1, 32, 48), 0)
    for _ in range(2):
        executable.labels(frames)
    for wrong in (frames.to(torch.int8), frames.to("meta"), frames[0], frames[..., :2]):
        with pytest.raises(ValueError):
            executable.labels(wrong)


def test_sizes(card, executable, monkeypatch):
    frames = _frames((1, 32, 48), 1)
    for size in (None, (64, 96), [64, 96], (20, 30)):
        for _ in range(3):
            labels = executable.labels(frames, size)
            card.work()
            assert right(labels, frames, executable, tuple(size or (32, 48)))
    taken = calls(executable, monkeypatch)
    executable.labels(frames, (64, 96)), executable.labels(frames)
    assert not taken
    executable.labels(frames, exact=False)
    assert len(taken) == 1


def test_another_stream_waits_for_the_one_before(card, executable):
    """And goes on by single calls, until the stream changes again."""
    first, second = card.current, card.stream()
    frames = [_frames((1, 32, 48), seed) for seed in range(8)]
    results = []
    for i, stream in enumerate([first, first, second, second, second, first, first, second]):
        with card.on(stream):
            results.append(executable.labels(frames[i]))
    card.work()
    assert all(right(labels, x, executable) for labels, x in zip(results, frames, strict=True))


def test_a_capture_by_the_caller_takes_the_general_way(card, executable):
    frames = _frames((1, 32, 48), 0)
    executable.labels(frames), executable.labels(frames)
    card.capturing = True
    assert executable.again(frames) is None


def test_results_are_ordinary_tensors(card, executable):
    frames = _frames((1, 32, 48), 0)
    executable.labels(frames)
    with torch.inference_mode():
        assert not executable.labels(frames).is_inference()
        assert not executable.labels(frames).is_inference()


def test_another_variant_is_another_graph(card, executable, monkeypatch):
    frames = _frames((1, 32, 48), 0)
    executable.labels(frames), executable.labels(frames)
    monkeypatch.setattr(executable, "variant", lambda: "ieee")
    taken = calls(executable, monkeypatch)
    executable.labels(frames), executable.labels(frames)
    assert len(taken) == 1 and len(executable._instances) == 2


def test_sizes_in_use_stay(card, executable, monkeypatch):
    """The least recently used goes, by whichever way it was used."""
    kept = _frames((1, 32, 48), 0)
    executable.labels(kept)
    for i in range(3 * graphs.GRAPHS):
        executable.labels(_frames((1, 32, 64 + 8 * i), i))
        executable.labels(kept)
    assert len(executable._instances) == graphs.GRAPHS
    taken = calls(executable, monkeypatch)
    executable.labels(kept)
    assert not taken
    assert all(i in executable._instances.values() for i in executable._known.values())


# Graphs that go.


@pytest.mark.parametrize("how", ["forgotten", "evicted", "refused"])
def test_a_graph_outlives_its_last_launch(how, card):
    executable = fake_gpu.Executable(small_network(), FLOAT16)
    frames = _frames((1, 32, 48), 0)
    labels = [executable.labels(frames) for _ in range(3)]
    weight, size = executable.weight, frames.shape[1:3]
    graph = weakref.ref(next(iter(executable._instances.values())).graph)
    # The last one waits on another stream.
    with card.on(card.stream()):
        labels += [executable.labels(frames) for _ in range(2)]
    asked = card.asked
    assert graph() is not None
    if how == "forgotten":
        del executable
    elif how == "evicted":
        for i in range(graphs.GRAPHS):
            executable.labels(_frames((1, 32, 64 + 8 * i), i))
    else:
        executable._forget(*executable._instances)
    gc.collect()
    if how == "forgotten":
        assert card.asked == asked, "under a capture of somebody's that ends it"
    assert graph() is not None
    card.work()
    assert all(torch.equal(x, fake_gpu.expected(frames, size, weight)) for x in labels)
    fake_gpu.Executable(small_network(), FLOAT16).labels(frames)  # asks for memory
    gc.collect()
    assert graph() is None


def test_graphs_that_run_are_kept_and_those_that_are_done_are_not(card):
    executables = [fake_gpu.Executable(small_network(), FLOAT16) for _ in range(3)]
    frames = _frames((1, 32, 48), 0)
    for one in executables:
        one.labels(frames)
    del one
    executables.clear()
    gc.collect()
    assert len(graphs._retired) == 3
    graphs._retired.settle()
    assert len(graphs._retired) == 3
    card.work()
    graphs._retired.settle()
    assert len(graphs._retired) == 0


# The model.


@pytest.fixture
def model(card, tiny_model):
    model = copy.deepcopy(tiny_model)
    model._decided = (model.device, model.precision), backends.Decision(fake_gpu.FakeBackend(), "")
    return model


def runs(model):
    return next(iter(model._watched._now.made.values()))


def test_the_model_starts_at_once(card, model, monkeypatch):
    frames = [_frames((1, 64, 96), seed) for seed in range(4)]
    model.label(frames[0], size="native")
    monkeypatch.setattr(model, "_labels", lambda *a: pytest.fail("the general way"))
    results = [model.label(x, size="native") for x in frames]
    card.work()
    assert all(right(labels, x, runs(model)) for labels, x in zip(results, frames, strict=True))
    assert not any(labels.is_inference() for labels in results)


CHANGES = {
    "in place": lambda m: torch._foreach_mul_(list(m.network.parameters()), 2),
    "repacked": lambda m: (next(m.network.parameters()).data.mul_(2), m.repack()),
    "data": lambda m: setattr(next(m.network.parameters()), "data", next(m.network.parameters()) * 2),
    "loaded": lambda m: m.network.load_state_dict(
        {k: 2 * v if v.is_floating_point() else v for k, v in m.network.state_dict().items()}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_never_answered_by_the_old_ones(change, card, model):
    frames = _frames((1, 64, 96), 0)
    for _ in range(3):
        model.label(frames, size="native")
    before = runs(model).weight
    with torch.no_grad():
        CHANGES[change](model)
    labels = model.label(frames, size="native")
    card.work()
    assert runs(model).weight != before
    assert right(labels, frames, runs(model))


def test_other_settings_are_heeded(card, model, monkeypatch):
    frames = _frames((1, 64, 96), 0)
    for _ in range(2):
        model.label(frames), model.label(frames, scale=0.75), model.label(frames, size=(48, 64))
    seen, again = [], runs(model).again
    monkeypatch.setattr(runs(model), "again", lambda x, size, at: seen.append(at) or again(x, size, at))
    model.label(frames), model.label(frames, scale=0.75), model.label(frames, size=(48, 64))
    assert seen == [(64, 96), (48, 72), (48, 64)]
    model.input_size = segmenter.InputSize(scale=0.5)
    model.label(frames)
    key = next(reversed(runs(model)._instances))
    assert key[0].seen == (32, 48)
    for wrong in ({"scale": True}, {"scale": 0.75, "size": (48, 64)}, {"size": (48.0, 64)}):
        with pytest.raises(UserError):
            model.label(frames, **wrong)


def test_hooks_end_it(card, model):
    frames = _frames((1, 64, 96), 0)
    for _ in range(2):
        model.label(frames, size="native")
    launches = card.launches
    inner = next(m for m in model.network.modules() if isinstance(m, torch.nn.Conv2d))
    hook = inner.register_forward_hook(lambda *a: None)
    labels = model.label(frames, size="native")
    hook.remove()
    x = normalise(frames, torch.float32, model.network.mean, model.network.std)
    assert (labels == model.network(x).argmax(1)).float().mean() > 0.999
    assert card.launches == launches + 1  # started, and given to nobody


def test_packed_weights_are_not_kept_for_it(card, model):
    frames = _frames((1, 64, 96), 0)
    for _ in range(2):
        model.label(frames, size="native")
    packed = weakref.ref(runs(model))
    model.repack()
    gc.collect()
    assert packed() is None
    assert copy.deepcopy(model)._ways == {}


def test_kinds_of_frames_are_bounded(card, model):
    for height, width in itertools.product(range(32, 40), range(32, 42)):
        model.label(_frames((1, height, width), 0), size="native")
        assert len(model._ways) <= segmenter.WAYS
