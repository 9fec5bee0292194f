"""Which precision is chosen and why, what does not fit into fp16, and the limits of each dtype."""

import copy
import logging
import pickle
import re
import threading

import pytest
import torch
from plans import error, one_thread

import stdc_fast
from stdc_fast import UserError, checkpoints, hardware, numerics, precision, zoo
from stdc_fast.backends.eager import ranges, rounding
from stdc_fast.classes import CAMVID
from stdc_fast.images import normalise
from stdc_fast.plan import build, optimise

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def frames():
    return torch.randint(
        0, 256, (2, 33, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


# Which dtype.


@pytest.fixture
def machine(monkeypatch):
    """Simulates a processor with these instruction sets, or a GPU of this compute capability."""

    def simulate(*features, onednn=True, capability=None):
        monkeypatch.setattr(hardware, "_cpu_model", lambda: ("a processor", list(features)))
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    return simulate


@pytest.mark.parametrize(
    ("features", "onednn", "name", "reason"),
    [
        (("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"), True, "bfloat16", "AMX-BF16"),
        (("avx2", "avx512f", "avx512_bf16"), True, "bfloat16", "AVX512-BF16"),
        (("avx2", "avx512f", "amx_tile", "amx_int8"), True, "float32", "without"),
        (("avx2", "fma", "avx512f", "avx512_fp16"), True, "float32", "without"),
        ((), True, "float32", "without"),
        (("amx_bf16", "avx512_bf16"), False, "float32", "without"),
    ],
)
def test_auto_on_a_processor(features, onednn, name, reason, machine):
    machine(*features, onednn=onednn)
    for device in ("cpu", torch.device("cpu")):
        found, why = precision.choose("auto", device)
        assert (found.name, found.maps) == (name, DTYPES[name])
        assert reason in why and "CPU" in why
    assert precision.choose() == (found, why)


@pytest.mark.parametrize(
    ("capability", "name", "reason"),
    [
        ((9, 0), "float16", "tensor cores"),
        ((7, 0), "float16", "tensor cores"),
        ((10, 0), "float16", "tensor cores"),
        ((6, 1), "float32", "without tensor cores.*6.1"),
    ],
)
def test_auto_on_a_gpu(capability, name, reason, machine):
    machine("amx_bf16", capability=capability)
    for device in ("cuda", "cuda:0", torch.device("cuda", 0)):
        found, why = precision.choose("auto", device)
        assert found.name == name
        assert re.search(reason, why)
    assert precision.choose("auto", "cpu")[0].name == "bfloat16"


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_that_is_asked_for(name, machine):
    machine(capability=(6, 1))
    for request in (name, DTYPES[name], precision.PRECISIONS[name]):
        for device in ("cpu", "cuda"):
            found, why = precision.choose(request, device)
            assert found is precision.PRECISIONS[name] and why == "asked for"
            assert found.maps == found.weights == DTYPES[name] and not found.levels
            assert found.sums == (torch.float64 if name == "float64" else torch.float32)


@pytest.mark.parametrize(
    ("features", "name", "maps", "reason"),
    [
        (("avx512f", "avx512_vnni", "avx512_bf16"), "int8", "bfloat16", "bfloat16 maps.*AVX512-BF16"),
        (("avx512f", "avx512_vnni"), "int8+float32", "float32", "float32 maps.*without"),
        (("avx2", "avx_vnni"), "int8+float32", "float32", "float32 maps.*without"),
    ],
)
def test_int8_has_the_maps_of_auto(features, name, maps, reason, machine):
    machine(*features)
    found, why = precision.choose("int8", "cpu")
    assert found is precision.PRECISIONS[name] and found.levels
    assert found.maps == found.weights == DTYPES[maps] and found.sums == torch.float32
    assert "asked for" in why and re.search(reason, why)
    assert precision.choose("auto", "cpu")[0] is precision.PRECISIONS[maps]
    assert precision.choose(found, "cpu") == (found, "asked for")


def test_int8_on_a_gpu_does_not_ask_the_processor(machine):
    machine(capability=(9, 0))
    assert precision.choose("int8", "cuda") == (precision.INT8, "asked for")


@pytest.mark.parametrize(
    "request_", ["half", "fp16", "", "Float32", "int4", torch.int8, torch.complex64, None, 16]
)
def test_an_unknown_dtype(request_):
    with pytest.raises(UserError, match=r"unknown dtype.*auto.*float32.*bfloat16") as problem:
        precision.choose(request_)
    assert repr(request_) in str(problem.value)


# What fits into fp16.


def scaled(network, factor):
    """The same function, but what lies between the first two layers is ``factor`` times as large."""
    network = copy.deepcopy(network)
    first, second = network.cp.backbone.features[:2]
    with torch.no_grad():
        for tensor in (first.bn.weight, first.bn.bias):
            tensor.mul_(factor)
        second.conv.weight.div_(factor)
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled")

    def save(network):
        path = folder / f"{len(list(folder.iterdir()))}.safetensors"
        checkpoints.save(
            checkpoints.inference_state(network), path, {"variant": "stdc1", "classes": CAMVID.names}
        )
        return path

    return save


@pytest.mark.parametrize(
    ("factor", "problem"),
    [(1, None), (1e6, "values of cp.backbone.features.0"), (1e-7, "weights of cp.backbone.features.1")],
)
@torch.no_grad()
def test_what_overflows_fp16_runs_in_bfloat16(factor, problem, tiny_network, saved, frames, caplog):
    network = scaled(tiny_network, factor)
    x = normalise(frames, torch.float32)
    exact = tiny_network(x)
    assert error(network(x), exact) < 1e-5
    found = ranges.fp16_overflow(optimise(build(network)))
    path = saved(network)
    with caplog.at_level(logging.WARNING):
        model = stdc_fast.load(path, device="cpu", dtype="float16")
    if problem is None:
        assert found is None and model.dtype == torch.float16
        assert not caplog.records and "float16: asked for" in model.reason
    else:
        assert found.startswith(problem) and "reach" in found
        assert model.dtype == torch.bfloat16
        (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
        for text in (record.getMessage(), model.reason):
            assert "float16 would overflow" in text and found in text and "bfloat16" in text
        assert str(path) in caplog.text
    assert error(model(x), exact) < 0.06
    assert (model.label(frames, size="native") == exact.argmax(1)).float().mean() > 0.9
    caplog.clear()
    for dtype in ("float32", "bfloat16"):
        assert stdc_fast.load(path, device="cpu", dtype=dtype).dtype == DTYPES[dtype]
    assert not caplog.records


def test_automatic_fp16_is_checked_too(tiny_network, saved, monkeypatch):
    choice = precision.FLOAT16, "GPU with tensor cores"
    monkeypatch.setattr(zoo, "choose", lambda *_: choice)
    assert stdc_fast.load(saved(scaled(tiny_network, 1e6)), device="cpu").dtype == torch.bfloat16
    assert stdc_fast.load(saved(tiny_network), device="cpu").dtype == torch.float16


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_out.conv_out.weight", torch.nan),
        ("conv_out.conv_out.weight", 1e5),
        ("ffm.conv1.weight", -torch.inf),
        ("cp.arm16.bn_atten.bias", torch.nan),
        ("cp.backbone.features.1.bn.weight", torch.nan),
        ("cp.backbone.features.1.bn.running_var", torch.nan),
        ("cp.backbone.features.1.bn.running_mean", torch.nan),
        ("cp.backbone.features.3.conv_list.1.bn.bias", torch.nan),
        ("cp.backbone.features.3.conv_list.1.bn.bias", 1e5),
        ("cp.backbone.features.3.conv_list.1.bn.bias", torch.inf),
    ],
)
def test_single_values_that_do_not_fit(key, value, tiny_network):
    network = copy.deepcopy(tiny_network).requires_grad_(False)
    tensor = network.state_dict()[key]
    tensor[(0,) * tensor.ndim] = value
    assert ranges.fp16_overflow(optimise(build(network))) is not None


def test_models_with_nan_weights_have_nan_logits(tiny_model, frames):
    x = normalise(frames, torch.float32)
    for key in ("conv_out.conv_out.weight", "cp.backbone.features.1.bn.running_mean"):
        model = copy.deepcopy(tiny_model)
        tensor = model.network.state_dict()[key]
        tensor[(0,) * tensor.ndim] = torch.nan
        assert torch.equal(model(x).isnan(), model.network(x).isnan()), key


def test_observed_ranges_keep_what_is_nan_in_any_batch():
    observer = rounding.Observer()
    for x in ([1.0, 2.0], [torch.nan, 3.0], [-1.0, 1.0]):
        observer.tensor("map", torch.tensor(x))
    low, high = observer.ranges["map"]
    assert low != low and high != high


# Models in every dtype.


LIMITS = {"float64": 1e-10, "float32": 1e-5, "float16": 0.01, "bfloat16": 0.08}


def assert_dtype(model, name, x, exact, limit=None):
    """Runs in that dtype: not worse, and not better where the difference shows."""
    assert model.dtype == DTYPES[name] and f"dtype={name}" in repr(model)
    y = model(x.double())
    assert y.dtype == (torch.float64 if name == "float64" else torch.float32)
    found = error(y, exact)
    assert found < max(limit or 0, LIMITS[name])
    assert found > LIMITS[name] / 1e3 or name == "float64"


@pytest.mark.parametrize("name", DTYPES)
@torch.no_grad()
def test_a_loaded_model_keeps_its_dtype(name, tiny_weights, tiny_model, frames):
    x = normalise(frames, torch.float64)
    exact = copy.deepcopy(tiny_model.network).double()(x)
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=name)
    for change in (
        lambda m: m,
        lambda m: m.to("cpu"),
        lambda m: m.to(memory_format=torch.contiguous_format).eval(),
        lambda m: pickle.loads(pickle.dumps(copy.deepcopy(m.share_memory()))),
    ):
        model = change(model)
        assert_dtype(model, name, x, exact, LIMITS["float32"])
        assert {p.dtype for p in model.parameters()} == {DTYPES[name if name == "float64" else "float32"]}
    assert (model.label(frames, size="native") == exact.argmax(1)).float().mean() > 0.9
    for given in (x.half(), x.bfloat16(), x.float(), x.contiguous(memory_format=torch.channels_last)):
        assert model(given).dtype == (torch.float64 if name == "float64" else torch.float32)


@torch.no_grad()
def test_a_cast_model_has_the_new_dtype(tiny_weights, tiny_model, frames):
    x = normalise(frames, torch.float64)
    exact = copy.deepcopy(tiny_model.network).double()(x)
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float16")
    for cast, name in (
        (lambda m: m.float(), "float32"),
        (lambda m: m.to(torch.bfloat16), "bfloat16"),
        (lambda m: m.to("cpu"), "bfloat16"),
        (lambda m: m.double(), "float64"),
        (lambda m: m.half(), "float16"),
        (lambda m: m.to(torch.zeros(1)), "float32"),
        (lambda m: m.type(torch.float64), "float64"),
        (lambda m: m.to("cpu", torch.float32), "float32"),
    ):
        assert cast(model) is model
        # What bfloat16 rounded away does not come back.
        assert_dtype(model, name, x, exact, LIMITS["bfloat16"])
        assert {p.dtype for p in model.parameters()} == {DTYPES[name]}
        assert (model.label(frames, size="native") == exact.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["float32", "float64"])
@torch.no_grad()
def test_autocast_does_not_make_a_model_less_exact(name, tiny_weights, frames):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=name)
    x = normalise(frames, torch.float32)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert got.dtype == exact.dtype and error(got, exact) < numerics.tolerance("float32").logits


def test_fine_tuning_has_the_networks_gradients(tiny_weights, frames):
    for name in ("float32", "bfloat16"):
        model = stdc_fast.load(tiny_weights, device="cpu", dtype=name)
        network = copy.deepcopy(model.network)
        x = normalise(frames, torch.float32)
        assert not model(x).requires_grad
        for m in (model, network):
            m.requires_grad_()
            m(x).square().mean().backward()
        assert all(
            torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), network.parameters(), strict=True)
        )
        model.requires_grad_(False)
        model(x.requires_grad_()).sum().backward()
        assert x.grad.abs().sum() > 0
        with torch.no_grad():
            assert model.train()(x.detach()).shape == (2, 11, 33, 47)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_threads_share_a_model(name, tiny_weights, frames):
    model, results = stdc_fast.load(tiny_weights, device="cpu", dtype=name), {}
    x = normalise(frames, torch.float32)

    def work(i):
        results[i] = [model(x + i), model(x + i), model.label(frames + i, size="native")]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    for i in range(4):
        assert all(error(y, model(x + i)) < 1e-6 for y in results[i][:2])
        assert torch.equal(results[i][2], model.label(frames + i, size="native"))


# Limits.


def test_the_table_has_every_dtype_with_the_contracts_limits():
    for name, logits, agreement in (
        ("float64", 1e-10, 1.0),
        ("float32", 1e-5, 0.9999),
        ("float16", 3e-3, 0.998),
        ("bfloat16", 2e-2, 0.99),
        ("int8", 3e-2, 0.98),
    ):
        limit = numerics.tolerance(name)
        assert (limit.logits, limit.agreement) == (logits, agreement)
        assert limit.reason and limit is numerics.TOLERANCES[name]
        assert limit.emulation == (None if name in ("float64", "float32") else 1.5)
        if name == "int8":
            assert numerics.tolerance("int8+float32") is limit
        else:
            assert numerics.tolerance(DTYPES[name]) is numerics.tolerance(f"torch.{name}") is limit
    order = [numerics.tolerance(n).op for n in ("float64", "float32", "float16", "bfloat16", "int8")]
    assert order == sorted(order)
    for unknown in (torch.complex64, "fp16", torch.int32):
        with pytest.raises(KeyError):
            numerics.tolerance(unknown)


def test_relative_error():
    b = torch.tensor([[3.0, 4.0]])
    assert numerics.relative_error(b, b) == 0
    assert numerics.relative_error(torch.tensor([[3.0, 4.5]]), b) == pytest.approx(0.1)
    tiny = torch.tensor([[1e-30, 0.0]])  # its square is no float32
    assert numerics.relative_error(2 * tiny, tiny) == pytest.approx(1)
    large = torch.full((4,), 3e38)
    assert numerics.relative_error(large, large / 2) == pytest.approx(1)
    assert numerics.relative_error(b.half(), b.double()) == 0
    for x, y in ((torch.nan, 1.0), (1.0, torch.nan), (torch.inf, 1.0)):
        assert not numerics.relative_error(torch.tensor([x, 1]), torch.tensor([y, 1])) < 1e300
    assert numerics.relative_error(b.requires_grad_(), b) == 0
    with pytest.raises(ValueError, match=r"\[1, 2\] and \[2\]"):
        numerics.relative_error(b, b[0])


def test_label_agreement():
    a = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    assert numerics.label_agreement(a, a.long()) == 1
    assert numerics.label_agreement(a, torch.tensor([[0, 1, 2, 4]])) == 0.75
    with pytest.raises(ValueError, match=r"\[1, 4\] and \[4\]"):
        numerics.label_agreement(a, a[0])


def test_unexplained():
    logits = torch.tensor([[[[5.0, 5.0, 5.0]], [[4.5, 4.0, 2.0]]]])  # two classes, three pixels
    best, other = torch.zeros(1, 1, 3, dtype=torch.uint8), torch.ones(1, 1, 3, dtype=torch.uint8)
    assert numerics.unexplained(best, logits, 0.0) == 0
    for error_, count in ((0.0, 3), (0.2, 3), (0.3, 2), (0.6, 1), (1.5, 0), (2.0, 0)):
        assert numerics.unexplained(other, logits, error_) == count


def test_nan_explains_no_label():
    logits, other = (
        torch.tensor([[[[5.0, 5.0, 5.0]], [[4.5, 4.0, 2.0]]]]),
        torch.ones(1, 1, 3, dtype=torch.uint8),
    )
    assert numerics.unexplained(other, logits, float("nan")) == 3
    assert numerics.unexplained(other, logits * torch.nan, 0.1) == 3


def off(reference, by):
    """Logits whose relative error is exactly that."""
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return reference + noise * (by * reference.norm() / noise.norm())


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "int8"])
def test_every_limit_can_hold_and_fail(name):
    limit = numerics.tolerance(name)
    reference = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(20_000).view(1, 100, 200) % 5

    def found(*arguments, **options):
        return numerics.failures(name, *arguments, **options)

    if limit.logits is not None:
        assert found(off(reference, 0.9 * limit.logits), reference) == []
        (line,) = found(off(reference, 1.1 * limit.logits), reference)
        assert "logits" in line and name in line
        untrained = found(off(reference, 1.1 * limit.logits), reference, trained=False)
        assert len(untrained) == (name == "float64")
        assert len(found(reference * torch.nan, reference)) == 1
    if limit.emulation is not None:
        emulated = off(reference, 1e-3)
        for trained in (True, False):
            assert found(off(reference, 1.4e-3), reference, emulated=emulated, trained=trained) == []
            (line,) = found(off(reference, 1.6e-3), reference, emulated=emulated, trained=trained)
            assert "emulation" in line
        assert found(reference * torch.nan, reference, emulated=emulated, trained=False)
        assert found(reference, reference, emulated=emulated * torch.nan, trained=False)
    flat = torch.ones_like(reference)  # a tie everywhere, which explains every label
    wrong = round((1 - limit.agreement) * labels.numel())
    for count in (wrong, wrong + 1):
        other = labels.clone()
        other.view(-1)[:count] = (other.view(-1)[:count] + 1) % 5
        lines = found(flat, flat, other, labels)
        assert len(lines) == (count > wrong) and all("agree" in line and name in line for line in lines)
    everything = found(flat * torch.nan, flat, other, labels, emulated=flat)
    assert len(everything) == 2 + (limit.logits is not None) + (limit.emulation is not None)
    (line,) = found(reference, reference, reference.argmin(1))
    assert line.startswith("64 labels differ by more")
