"""Which backend runs a plan, and why: one function decides, and everybody shows what it decided."""

import copy
import json
import pickle

import pytest
import torch

import stdc_fast
from stdc_fast import UserError, backends, checkpoints
from stdc_fast.backends import eager
from stdc_fast.backends.base import Backend
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.precision import BFLOAT16, FLOAT32, FLOAT64
from stdc_fast.reference.networks import STDCSeg

CPU = torch.device("cpu")
NO_ENGINE = backends.cpu.BACKEND.why_not_here()
needs_engine = pytest.mark.skipif(NO_ENGINE is not None, reason=f"needs the native module: {NO_ENGINE}")


class Stub(Backend):
    """A backend that answers as it is told."""

    def __init__(self, name, missing=None, hidden=None, refused=None):
        self.name, self.missing, self.hidden, self.refused = name, missing, hidden, refused

    def why_not_here(self):
        return self.missing

    def about(self):
        return f"{self.name} as a stub"

    def why_not_by_default(self):
        return self.hidden

    def why_not(self, plan, precision, device):
        return self.refused

    def compile(self, plan, precision, device):
        return eager.compile(plan, precision, device)


@pytest.fixture
def some_backends(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    found = Stub("cuda", missing="no nvcc was found"), Stub("cpu"), Stub("eager")
    monkeypatch.setattr(backends, "BACKENDS", found)
    return found


def select(asked="auto"):
    return backends.select(None, FLOAT32, CPU, asked)


def test_the_first_one_says_why_none_before_it(some_backends, monkeypatch):
    _, cpu, plain = some_backends
    assert select() == backends.Decision(cpu, "cpu as a stub (cuda: no nvcc was found)")
    assert not select().asked
    assert select("eager") == backends.Decision(plain, "asked for") and select("eager").asked
    monkeypatch.setenv(backends.ENVIRONMENT, "eager")
    assert select() == backends.Decision(plain, "asked for (from STDC_FAST_BACKEND)")
    assert select("cpu") == backends.Decision(cpu, "asked for")
    for nothing in ("", "auto"):
        monkeypatch.setenv(backends.ENVIRONMENT, nothing)
        assert select().name == "cpu"


def test_each_kind_of_no_is_passed_on(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    every = (
        Stub("a", missing="not here"),
        Stub("b", hidden="by name"),
        Stub("c", refused="not this"),
        Stub("d"),
    )
    monkeypatch.setattr(backends, "BACKENDS", every)
    assert select().reason == "d as a stub (a: not here; b: by name; c: not this)"
    assert select("b").name == "b"
    with pytest.raises(UserError, match="backend c can not run this: not this; use another, or auto"):
        select("c")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cudaa", "unknown backend 'cudaa'.*did you mean cuda"),
        ("eagr", "unknown backend 'eagr'.*did you mean eager"),
        ("tensorrt", "unknown backend 'tensorrt'.*available here: cpu, eager"),
        ("cuda", "cuda.*not available: no nvcc was found; available here: cpu, eager"),
    ],
)
@pytest.mark.parametrize("environment", [False, True])
def test_backends_that_can_not_be_had(asked, message, environment, some_backends, monkeypatch):
    if environment:
        monkeypatch.setenv(backends.ENVIRONMENT, asked)
    with pytest.raises(UserError, match=message) as problem:
        select("auto" if environment else asked)
    assert ("STDC_FAST_BACKEND" in str(problem.value)) == environment


def test_the_backends_of_this_version_have_reasons(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    assert [b.name for b in backends.BACKENDS] == ["cuda", "triton", "cpu", "eager"]
    assert backends.BACKENDS[-1] is eager.BACKEND and eager.BACKEND.why_not_here() is None
    decision = select()
    for backend in backends.BACKENDS:
        if why_not := backend.why_not_here():
            assert f"{backend.name}: {why_not}" in decision.reason
        else:
            assert backend.about()


# What the model shows is what runs.


@pytest.fixture(scope="module")
def add_weights(tmp_path_factory):
    """A file of the "add" form, which only eager runs."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("add") / "add.safetensors"
    network = STDCSeg("stdc1", 11, "add").eval()
    checkpoints.save(checkpoints.inference_state(network), path, {"variant": "stdc1"}, half=True)
    return path


def test_the_add_form_names_the_backend_that_runs_it(add_weights, photo, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    model = stdc_fast.load(add_weights, device="cpu", dtype="float32")
    assert model.backend == "eager" and "backend=eager" in repr(model)
    why_not = NO_ENGINE or backends.cpu.BACKEND.why_not(model.plan(), FLOAT32, CPU)
    assert NO_ENGINE or "depthwise" in why_not
    assert f"cpu: {why_not}" in model.reason
    frames = torch.from_numpy(photo(64, 96))[None]
    expected = model.network(stdc_fast.images.normalise(frames)).argmax(1)
    assert (model.label(frames, size="native") == expected).float().mean() > 0.999


@needs_engine
def test_the_add_form_is_refused_by_the_cpu_engine_on_loading(add_weights, monkeypatch):
    with pytest.raises(UserError, match=r"backend cpu can not run this: .*depthwise.*or auto"):
        stdc_fast.load(add_weights, device="cpu", dtype="float32", backend="cpu")
    monkeypatch.setenv(backends.ENVIRONMENT, "cpu")
    with pytest.raises(UserError, match=r"backend cpu \(from STDC_FAST_BACKEND\) can not run this"):
        stdc_fast.load(add_weights, device="cpu", dtype="float32")


def test_every_view_of_a_decision_is_the_same(tiny_weights, run_cli, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    model = stdc_fast.load(tiny_weights, device="cpu")
    decision = backends.select(model.plan(), model.precision, CPU)
    assert model.decision == decision and model.backend == decision.name
    assert model.reason.startswith(f"{decision.name}: {decision.reason}; {model.precision}: ")
    assert f"backend={decision.name}, dtype={model.precision}" in repr(model)
    assert json.loads(run_cli("info", "--json").out)["default_backend"] == decision.name


def test_a_decision_is_made_once_and_again_after_a_cast(tiny_weights, monkeypatch, photo):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    made, select = [], backends.select
    monkeypatch.setattr(backends, "select", lambda *how: made.append(how[1]) or select(*how))
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    for _ in range(2):
        model.predict(photo())
        model(torch.zeros(1, 3, 64, 96))
        assert made == [FLOAT32] and model.backend and model.reason
    model.double()
    model.predict(photo())
    assert made == [FLOAT32, FLOAT64] and model.backend == "eager" and "cast after loading" in model.reason


def test_a_dtype_that_is_set_is_decided_upon(tiny_weights, photo):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    expected = model.double().predict(photo()).labels
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    model.dtype = torch.float64
    assert (model.predict(photo()).labels == expected).mean() > 0.999
    assert model.backend == "eager" and model.dtype == torch.float64 and "set after loading" in model.reason


@pytest.mark.parametrize("first", ["frames", "images"])
def test_the_plan_is_given_up_when_it_is_packed(first, tiny_weights, photo):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    snapshot = model._watched.snapshot(model.network)
    assert Plan in snapshot.made
    _ = model.predict(photo()) if first == "frames" else model(torch.zeros(1, 3, 64, 96))
    assert Plan not in snapshot.made and len(snapshot.made) == 1


def test_copies_keep_the_decision(tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu")
    decision = model.decision
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied._decided is None
        assert copied.decision == decision and copied.decision.backend is decision.backend
    for backend in backends.BACKENDS:
        assert pickle.loads(pickle.dumps(backend)) is backend


def test_a_pickled_model_decides_where_it_is_loaded(tiny_weights, photo, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    saved = pickle.dumps(stdc_fast.load(tiny_weights, device="cpu", dtype="float32"))
    monkeypatch.setattr(stdc_fast._native, "_load", lambda: "it was never built")
    model = pickle.loads(saved)
    assert model.predict(photo()).labels.shape == photo().shape[:2] and model.backend == "eager"


@pytest.mark.parametrize("when", ["unset after loading", "set after loading"])
def test_the_environment_counts_when_a_model_is_loaded(when, tiny_weights, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    if when.startswith("unset"):
        monkeypatch.setenv(backends.ENVIRONMENT, "eager")
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    before = model.backend
    if when.startswith("unset"):
        monkeypatch.delenv(backends.ENVIRONMENT)
    else:
        monkeypatch.setenv(backends.ENVIRONMENT, "triton")
    assert model.double().float().backend == before


def test_a_network_of_which_there_is_no_plan_can_be_looked_at(tiny_weights):
    exchanged = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    exchanged.network.conv_out.conv.bn = torch.nn.Identity()
    wrapped = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    torch.nn.utils.parametrizations.weight_norm(wrapped.network.conv_out.conv_out)
    for model in (exchanged.double(), wrapped.bfloat16()):
        assert repr(model) and model.backend and model.reason


@pytest.mark.parametrize("dtype", [torch.float32, "float32"], ids=str)
@needs_engine
def test_a_dtype_stands_for_its_precision(dtype, tiny_weights, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    plan = stdc_fast.load(tiny_weights, device="cpu", dtype="float32").plan()
    assert backends.select(plan, dtype, "cpu").name == "cpu"
    assert type(backends.compile(plan, dtype, "cpu")) is backends.cpu.CpuExecutable


def test_a_compiled_model_keeps_its_precision_under_autocast(tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = model.network.double()(x.double())
    model.network.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = torch.compile(model, backend="eager", fullgraph=True)(x)
    assert torch.linalg.norm(got - expected) / torch.linalg.norm(expected) < 1e-4


@needs_engine
def test_a_cast_beyond_the_backend_that_was_asked_for_is_refused(tiny_weights, photo):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32", backend="cpu").double()
    assert "backend=none" in repr(model)
    with pytest.raises(UserError, match=r"it computes in float32, bfloat16 and int8, not float64"):
        model.predict(photo())
    assert model.to(torch.float32).predict(photo()).labels.shape == photo().shape[:2]


# One way for a frame.


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_engine)])
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("size", ["native", (96, 128)], ids=["as it is", "resized"])
def test_a_frame_is_packed_once(backend, precision, size, tiny_weights, photo, monkeypatch):
    """Also one that is resized; and the weights are looked at once a frame."""
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=precision, backend=backend)
    packs, looks = [], []
    kind = type(model.decision.backend)
    compile, state = kind.compile, model._watched.state
    monkeypatch.setattr(kind, "compile", lambda *how: packs.append(how) or compile(*how))
    monkeypatch.setattr(model._watched, "state", lambda *how: looks.append(how) or state(*how))
    for n in (1, 2):
        model.predict(photo(), size=size)
        assert len(packs) == 1 and len(looks) == n
    model.predict(photo(), size=size, confidence=True)
    assert len(packs) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resized_frames_do_not_depend_on_the_strides_of_a_batch(dtype, tiny_weights, photo):
    """NumPy gives a new axis the stride 0."""
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype, backend="eager")
    executable = eager.compile(model.plan(), model.precision)
    given = torch.from_numpy(photo(80, 120)[None])
    dense = given.clone(memory_format=torch.contiguous_format)
    strided = dense.as_strided(dense.shape, (0, *dense.stride()[1:]))
    logits = [executable.logits(x, (64, 96)) for x in (given, dense, strided)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[1], logits[2])


@pytest.mark.parametrize("confidence", [False, True])
def test_resized_frames_are_the_published_protocol(confidence, tiny_weights, photo):
    """Eager in float64: normalise, resize, network, logits to what was seen and then to the photo's size."""
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float64", backend="eager")
    frames, seen = torch.from_numpy(photo(70, 103))[None], (96, 128)
    network, upsample = model.network, stdc_fast.reference.networks.upsample
    image = upsample(stdc_fast.images.normalise(frames, torch.float64), seen)
    logits = network.logits8(image)
    executable = eager.compile(optimise(build(network)), FLOAT64)
    error = (executable.logits(frames, seen) - logits).abs().max() / logits.abs().max()
    assert error <= 1e-10
    full = upsample(upsample(logits, seen), (70, 103))
    result = model.predict(photo(70, 103), size=seen, confidence=confidence)
    assert (torch.from_numpy(result.labels) == full.argmax(1)[0]).float().mean() > 0.9999
    if confidence:
        expected = full.softmax(1).amax(1)[0]
        assert (torch.from_numpy(result.confidence) - expected).abs().max() <= 1e-5
