"""The tuner with a clock that makes times up: what it chooses, what it leaves, when it ends."""

import pytest
import torch
from engines import small_network

from stdc_fast import tune
from stdc_fast.backends import tiles, triton
from stdc_fast.backends.placed import Request

SIZE, DEVICE = (64, 96), tiles.DEVICES["sm_90"]


class Clock:
    """Fastest are tiles of as many pixels as channels; some do not fit."""

    def __init__(self, refused=lambda t: False):
        self.refused, self.calls = refused, 0

    def launches(self, launches):
        from triton.runtime.errors import OutOfResources

        self.calls += 1
        chosen = [launch.tiles for launch in launches if launch.work is not None]
        if len(launches) == 1 and any(map(self.refused, chosen)):
            raise OutOfResources(1 << 20, 1 << 18, "shared memory")
        assert not any(map(self.refused, chosen))
        return 1e-6 * sum(1 + abs(t.pixels - t.channels) for t in chosen)


@pytest.fixture
def executable():
    if not triton.interpreted():
        pytest.skip("kernels are compiled here; tests/test_triton_gpu.py tunes them")
    return triton.compile(small_network(), torch.float16, "cpu")


def run(executable, clock, seconds=60):
    tuner = tune.Tuner(executable, Request(1, SIZE, SIZE, SIZE), DEVICE, clock, seconds)
    return tuner, tuner.run(quiet=True)


def test_the_fastest_is_chosen(executable):
    tuner, found = run(executable, Clock())
    assert found.finished and found.after < found.before
    assert len(found.tiles) == len(tuner.times)
    for key, t in found.tiles.items():
        assert tuner.times[key][t] == min(tuner.times[key].values())
        assert abs(t.pixels - t.channels) == min(abs(o.pixels - o.channels) for o in tuner.times[key])


def test_tiles_that_do_not_fit_are_left_aside(executable):
    """The model only estimates what the compiler makes of them."""
    clock = Clock(lambda t: t.pixels == t.channels)
    tuner, found = run(executable, clock)
    assert any(seconds == float("inf") for times in tuner.times.values() for seconds in times.values())
    assert found.tiles and not any(map(clock.refused, found.tiles.values()))


def test_no_time_is_no_change(executable):
    clock = Clock()
    _, found = run(executable, clock, seconds=-1)
    assert found.tiles == {} and not found.finished and found.before == found.after
    assert clock.calls == 2
