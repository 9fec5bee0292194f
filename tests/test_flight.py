"""Several frames on their way to a GPU at once, on a card that works late and in any order."""

import copy

import fake_gpu
import numpy as np
import pytest
import torch

from stdc_fast import BatchError, UserError, backends, flight

SIZE = (64, 96)


@pytest.fixture(params=range(4))
def card(monkeypatch, request):
    card = fake_gpu.install(monkeypatch, request.param)
    fake_gpu.install_flights(monkeypatch, card)
    return card


@pytest.fixture
def model(card, tiny_model):
    model = copy.deepcopy(tiny_model)
    model._decided = (model.device, model.precision), backends.Decision(fake_gpu.FakeBackend(), "")
    return model


def pictures(count, height=SIZE[0], width=SIZE[1]):
    random = np.random.default_rng(count)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def right(model, result, picture):
    weight = next(iter(model._watched._now.made.values())).weight
    expected = fake_gpu.expected(torch.from_numpy(picture)[None], picture.shape[:2], weight)[0].numpy()
    return np.array_equal(result.labels, expected) and np.array_equal(result.image, picture)


def test_labels_belong_to_their_frames(card, model):
    frames = pictures(13)
    results = list(model.stream(iter(frames), size="native"))
    assert all(right(model, *pair) for pair in zip(results, frames, strict=True))
    assert [r.name for r in results] == [f"frame {i}" for i in range(13)]
    results = model.predict(frames, size="native")
    assert all(right(model, *pair) for pair in zip(results, frames, strict=True))
    # Two streams in turns, besides the caller's; the general way was taken once for each of them.
    assert sum(stream.put_so_far > 0 for stream in card.streams) >= 4


def test_sizes_may_change_from_frame_to_frame(card, model):
    frames = [pictures(i + 1, 64 + 8 * (i % 3), 96 + 16 * (i % 2))[i] for i in range(9)]
    results = list(model.stream(frames, size="native"))
    assert all(right(model, *pair) for pair in zip(results, frames, strict=True))


def test_a_buffer_that_is_taken_too_early_shows(card, model, monkeypatch):
    """What the tests above would see if nobody waited."""
    monkeypatch.setattr(fake_gpu.Event, "synchronize", lambda self: None)
    frames = pictures(8)
    results = list(model.stream(frames, size="native"))
    assert not all(right(model, *pair) for pair in zip(results, frames, strict=True))


def test_no_more_are_begun_than_there_are_slots(card):
    ring = flight.Ring(torch.device("cpu"))
    frame = torch.zeros((1, 4, 4, 3), dtype=torch.uint8)
    begun = [ring.start(frame, lambda x: [x, None]) for _ in range(flight.DEPTH)]
    with pytest.raises(RuntimeError, match="2 frames are on their way"):
        ring.start(frame, lambda x: [x])
    assert begun[0]()[1] is None
    assert np.array_equal(ring.start(frame + 1, lambda x: [x])()[0], frame.numpy() + 1)


def test_memory_is_bounded(card, model):
    ring = model._ring()
    model._ring = lambda: ring
    list(model.stream(pictures(20), size="native"))
    memory = [slot._memory for slot in ring._slots]
    assert [sum(x.numel() for x in m.values()) for m in memory] == [64 * 96 * 4] * flight.DEPTH


@pytest.mark.parametrize("at", range(4))
def test_errors_come_in_their_frames_place(at, card, model):
    frames = pictures(6)
    frames[at] = np.zeros((8, 8, 3), np.uint8)
    stream = model.stream(frames, size="native")
    for i in range(at):
        assert right(model, next(stream), frames[i])
    with pytest.raises(UserError, match=f"frame {at}: "):
        next(stream)
    assert list(stream) == []
    with pytest.raises(BatchError) as raised:
        model.predict(frames, size="native")
    kept = [x for i, x in enumerate(frames) if i != at]
    assert all(right(model, *pair) for pair in zip(raised.value.results, kept, strict=True))


def test_an_error_of_the_source_comes_after_what_it_gave(card, model):
    def source():
        yield from pictures(3)
        raise OSError("unplugged")

    stream, got = model.stream(source(), size="native"), []
    with pytest.raises(OSError, match="unplugged"):
        got.extend(iter(lambda: next(stream), None))
    stream = model.stream(source(), size="native")
    assert all(right(model, next(stream), frame) for frame in pictures(3))


def test_an_interrupt_leaves_nothing_on_its_way(card, model, monkeypatch):
    """Ctrl-C while a frame is waited for: the others are waited for, and the source is closed."""
    frames = pictures(6)
    stream = model.stream(frames, size="native")
    next(stream)
    synchronize, calls = fake_gpu.Event.synchronize, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        synchronize(self)

    monkeypatch.setattr(fake_gpu.Event, "synchronize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert list(stream) == [] and not stream._begun
    assert right(model, *model.predict(frames[:1], size="native"), frames[0])


def test_closing_waits_for_what_is_on_its_way(card, model):
    with model.stream(pictures(6), size="native") as stream:
        next(stream)
    assert not stream._begun and list(stream) == []
    results = model.predict(pictures(6), size="native", stream=True)
    next(results)
    results.close()
