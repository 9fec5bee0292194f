"""The tuner with a clock that makes times up: what it chooses, what it leaves, when it ends."""

import contextlib
import types

import hosted
import pytest
import torch
from sketch import small_network

from stdc_fast import backends, tune, zoo
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.cuda.tiles import CudaModel, CudaTiles
from stdc_fast.backends.gpu import tuned
from stdc_fast.backends.gpu.chooser import Chooser
from stdc_fast.backends.gpu.model import DEVICES
from stdc_fast.backends.gpu.placed import Request
from stdc_fast.backends.triton.tiles import TritonModel
from stdc_fast.errors import UserError
from stdc_fast.precision import FLOAT16

SIZE, DEVICE = (64, 96), DEVICES["sm_90"]


def size(t):
    """(pixels, channels) of a block of either backend."""
    return t.block[:2] if isinstance(t, CudaTiles) else (t.pixels, t.channels)


class Clock:
    """Fastest are tiles of as many pixels as channels; some do not fit."""

    def __init__(self, refused=lambda t: False):
        self.refused, self.calls = refused, 0

    def launches(self, lowered, launches=None):
        from triton.runtime.errors import OutOfResources

        self.calls += 1
        assert lowered.arena.view(torch.float16).isfinite().all() and lowered.arena.any()
        assert all(x.any() for x in lowered.inputs.values())
        chosen = [launch.tiles for launch in launches or lowered.launches if launch.work is not None]
        if launches is not None and any(map(self.refused, chosen)):
            raise OutOfResources(1 << 20, 1 << 18, "shared memory")
        assert not any(map(self.refused, chosen))
        return 1e-6 * sum(1 + abs(pixels - channels) for pixels, channels in map(size, chosen))


def of_triton():
    if not triton.interpreted():
        pytest.skip("kernels are compiled here; those of GPUs tune them")
    return triton.compile(small_network(), FLOAT16, "cpu"), TritonModel(DEVICE)


def of_cuda():
    native = hosted.module()
    chooser = Chooser(CudaModel(native))
    executable = cuda.CudaExecutable(small_network(), FLOAT16, torch.device("cpu"), native, chooser)
    return executable, chooser.model


@pytest.fixture(params=[of_triton, of_cuda])
def case(request):
    return request.param()


def run(case, clock, seconds=60):
    executable, model = case
    tuner = tune.Tuner(executable, Request(1, SIZE, SIZE, SIZE), model, clock, seconds)
    return tuner, tuner.run(quiet=True)


def test_the_fastest_is_chosen(case):
    tuner, found = run(case, Clock())
    assert found.finished and found.after <= found.before
    assert found.after < found.before or isinstance(case[1], CudaModel)
    assert len(found.tiles) == len(tuner.times)
    for key, t in found.tiles.items():
        assert tuner.times[key][t] == min(tuner.times[key].values())
        differences = [abs(pixels - channels) for pixels, channels in map(size, tuner.times[key])]
        assert abs(size(t)[0] - size(t)[1]) == min(differences)
        assert len(differences) <= 1 + case[1].shapes + case[1].variants


def test_cuda_tiles_of_several_forms_are_timed_and_all_can_be_launched():
    executable, model = of_cuda()
    tuner, found = run((executable, model), Clock())
    lowered = executable.lower(tuner.request)
    works = {launch.work.key: launch.work for launch in lowered.launches if launch.work is not None}
    assert works.keys() == tuner.times.keys() == found.tiles.keys()
    for key, times in tuner.times.items():
        assert all(isinstance(t, CudaTiles) for t in times)
        assert set(times) <= {*model.ranked(works[key]), executable._tiles(works[key])}
    convs = [times for key, times in tuner.times.items() if key.startswith("conv3")]
    assert all(len({t.block for t in times}) > 1 for times in convs)
    assert any(len({t.split for t in times}) > 1 for times in convs)
    assert model.forms.native is hosted.module()


def test_tiles_that_do_not_fit_are_left_aside():
    """The model only estimates what the compiler makes of Triton's."""
    clock = Clock(lambda t: t.pixels == t.channels)
    tuner, found = run(of_triton(), clock)
    assert any(seconds == float("inf") for times in tuner.times.values() for seconds in times.values())
    assert found.tiles and not any(map(clock.refused, found.tiles.values()))


def test_cuda_tiles_that_do_not_run_are_an_error():
    usual = Chooser(CudaModel(hosted.module()))
    executable, model = of_cuda()
    first = executable.lower(Request(1, SIZE, SIZE, SIZE)).launches
    current = {usual(launch.work) for launch in first if launch.work is not None}
    with pytest.raises(Exception, match="shared memory"):
        run((executable, model), Clock(lambda t: t not in current))


def test_no_time_is_no_change(case):
    clock = Clock()
    _, found = run(case, clock, seconds=-1)
    assert found.tiles == {} and not found.finished and found.before == found.after
    assert clock.calls == 2


class Native:
    """Notes what it is told to run."""

    def __init__(self):
        self.calls = []

    def run(self, *arguments):
        self.calls.append(arguments)


def test_some_launches_are_started_as_each_backend_has_them(monkeypatch):
    called = []
    tune.start(types.SimpleNamespace(), [lambda: called.append(1), lambda: called.append(2)])
    assert called == [1, 2]
    stream = types.SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    native, device = Native(), torch.device("cuda", 1)
    lowered = types.SimpleNamespace(native=native, dependent=True, device=device)
    tune.start(lowered, [types.SimpleNamespace(arguments=name) for name in "ab"])
    assert native.calls == [(["a", "b"], 77, True, 1)]


# The command: whose tiles, and where they are stored.


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As far as tuning asks; what is compiled and timed is made up."""
    monkeypatch.setenv("STDC_FAST_CACHE", str(tmp_path))
    properties = types.SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    loaded = types.SimpleNamespace(
        device=torch.device("cuda", 0), precision=FLOAT16, reason="asked for", plan=lambda: None
    )
    asked = []

    def load(model, device, dtype, backend):
        asked.append((model, str(device), dtype, backend))
        name = {"auto": "cuda"}.get(backend, backend)
        found = next(b for b in backends.BACKENDS if b.name == name)
        loaded.decision = backends.Decision(found, "asked for", True)
        return loaded

    monkeypatch.setattr(zoo, "load", load)
    return asked


@pytest.mark.parametrize("backend, runs", [("auto", "cuda"), ("cuda", "cuda"), ("triton", "triton")])
def test_what_is_found_is_stored_for_its_backend(backend, runs, gpu, monkeypatch, tmp_path):
    make, module = (of_cuda, cuda) if runs == "cuda" else (of_triton, triton)
    executable, model = make()
    monkeypatch.setattr(module, "compile", lambda *_: executable)
    monkeypatch.setattr(type(module.BACKEND), "model", lambda *_: model)
    monkeypatch.setattr(tune, "GraphClock", Clock)
    (found,) = tune.tune_network(sizes=[SIZE], backend=backend)
    assert gpu == [("stdc1_camvid", "cuda", "auto", backend)]
    assert found.backend == runs and found.tiles
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("cuda_tiles_nvidia_h100" if runs == "cuda" else "tiles_nvidia_h100")
    other, device = triton if runs == "cuda" else cuda, torch.device("cuda", 0)
    tables = [tuned.load(m.BACKEND.environment(device), m.BACKEND.tiles) for m in (module, other)]
    assert tables == [found.tiles, {}]


def test_a_backend_without_tiles_is_refused(gpu):
    with pytest.raises(UserError, match="backend eager has no tiles to tune"):
        tune.tune_network(backend="eager")


def test_the_command_says_whose_tiles_they_are(monkeypatch, run_cli):
    told = []

    def network(*arguments):
        told.append(arguments)
        return [tune.Tuned({"a": None}, 200e-6, 100e-6, False, "cuda")]

    monkeypatch.setattr(tune, "tune_network", network)
    finished = run_cli("tune", "--size", "64x96", "--backend", "cuda", "--seconds", "5", "-q")
    assert finished.code == 0
    assert told == [("stdc1_camvid", [(64, 96)], 1, "auto", "auto", 5.0, True, "cuda")]
    assert finished.out.startswith("cuda, 64x96, batch 1: 200 us before, 100 us after, 1 kernels (stopped")


@pytest.mark.parametrize("backend", ["auto", "cuda", "nonsense"])
def test_the_command_needs_a_gpu(backend, run_cli):
    finished = run_cli("tune", "--backend", backend)
    assert finished.code == 2 and len(finished.messages) == 1
    assert "measures a GPU" in finished.messages[0]


def test_a_run_that_was_stopped_is_gone_on_with(case, tmp_path, monkeypatch):
    """What was measured is known, also after a line that was cut off; what did not fit as well."""
    monkeypatch.setenv("STDC_FAST_CACHE", str(tmp_path))
    executable, model = case
    about, request = {"device": "a GPU"}, Request(1, SIZE, SIZE, SIZE)
    times = tuned.Times(about, model.tiles)
    clock = Clock()
    first = tune.Tuner(executable, request, model, clock, 60, times.load(), times.add)
    found = first.run(quiet=True)
    times.file.write_text(times.file.read_text() + '["conv1s1 64>')
    assert times.load() == first.times
    again = Clock()
    second = tune.Tuner(executable, request, model, again, 60, times.load(), times.add)
    assert second.run(quiet=True).tiles == found.tiles and second.times == first.times
    alone = sum(map(len, first.times.values()))
    assert again.calls == clock.calls - alone
    some = next(iter(first.times))
    times.add(some, next(iter(first.times[some])), float("inf"))
    assert float("inf") in times.load()[some].values()
    times.forget()
    times.forget()
    assert times.load() == {}
