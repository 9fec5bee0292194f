"""On an NVIDIA GPU: numbers against the float64 network on the CPU; devices, dtypes, streams, results.

The eager backend by name; models, modules and ops on whatever is best there.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from blocks import call, every_block, nhwc, pair, weights_of
from gpus import reference, street, trained
from plans import VARIANTS, random_frames, random_network

import stdc_fast
from stdc_fast import images, postprocess
from stdc_fast.backends import eager
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.numerics import failures, label_agreement, relative_error, tolerance
from stdc_fast.plan import build, optimise

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]

ops = torch.ops.stdc_fast
SIZES = ((256, 512), (251, 509))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
exact_too = pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=str)


@pytest.fixture(autouse=True)
def arithmetic():
    """Products of float32 as they are meant, not in TF32; and the same algorithm each time, so that equal
    inputs give equal bits."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    settings = [
        (cudnn, "allow_tf32", False),
        (cublas, "allow_tf32", False),
        (cudnn, "deterministic", True),
        (cudnn, "benchmark", False),
    ]
    before = [getattr(where, name) for where, name, _ in settings]
    for where, name, value in settings:
        setattr(where, name, value)
    yield
    for (where, name, _), value in zip(settings, before, strict=True):
        setattr(where, name, value)


@functools.cache
def street_reference(size):
    return reference(street(size))


@functools.cache
def plan_of(optimised=True, frames=True):
    plan = build(trained(), frames=frames)
    return optimise(plan) if optimised else plan


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def on_device(*tensors):
    return all(x.device.type == DEVICE for x in tensors)


# Numbers.


@every_size
@every_dtype
@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_a_photo_keeps_the_contract(optimised, dtype, size):
    plan, frames = plan_of(optimised), street(size)
    executable = eager.compile(plan, dtype, DEVICE)
    given = frames.to(DEVICE)
    logits, labels = executable(given), executable.labels(given)
    assert on_device(logits, labels)
    assert (logits.dtype, labels.dtype) == (torch.float32, torch.uint8)
    assert torch.equal(given.cpu(), frames)
    emulated = None if dtype == torch.float32 else eager.compile(plan, rounding=Rounding(dtype))(frames)
    expected, expected_labels = street_reference(size)
    broken = failures(dtype, logits.cpu(), expected, labels.cpu(), expected_labels, emulated=emulated)
    assert not broken, broken
    if dtype != torch.float32:  # it must have run in that dtype
        assert relative_error(logits, expected) > torch.finfo(dtype).eps / 8


def test_a_photo_in_float64():
    frames = street((129, 159))
    expected, expected_labels = reference(frames)
    for optimised in (True, False):
        executable = eager.compile(plan_of(optimised), torch.float64, DEVICE)
        logits, labels = executable(frames.to(DEVICE)), executable.labels(frames.to(DEVICE))
        assert logits.dtype == torch.float64
        assert not failures("float64", logits.cpu(), expected, labels.cpu(), expected_labels)


@every_dtype
def test_a_normalised_photo_keeps_the_contract(dtype):
    size = SIZES[1]
    x = images.normalise(street(size), torch.float64).to(DEVICE)
    logits = eager.compile(plan_of(frames=False), dtype, DEVICE)(x)
    assert not failures(dtype, logits.cpu(), street_reference(size)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_weights_in_float32(variant):
    """Not much worse than the network itself in float32 on the GPU; these weights drive it above 1e-5."""
    net, frames = random_network(variant), random_frames(2, 71, 103, seed=5)
    expected = net.logits8(images.normalise(frames, torch.float64))
    own = copy.deepcopy(net).float().to(DEVICE).logits8(images.normalise(frames.to(DEVICE)))
    for plan in (build(net), optimise(build(net))):
        got = eager.compile(plan, torch.float32, DEVICE)(frames.to(DEVICE))
        assert relative_error(got, expected) <= 3 * relative_error(own, expected)


@every_dtype
def test_each_image_of_a_batch_keeps_the_contract(dtype):
    first = street((136, 200))
    frames = torch.cat([first, first.flip(2), 255 - (255 - first) // 2])
    executable = eager.compile(plan_of(), dtype, DEVICE)
    logits, labels = executable(frames.to(DEVICE)).cpu(), executable.labels(frames.to(DEVICE)).cpu()
    assert labels.shape == (3, 136, 200)
    for i in range(3):
        expected, expected_labels = reference(frames[i : i + 1])
        assert not failures(dtype, logits[i : i + 1], expected, labels[i : i + 1], expected_labels)
    assert executable(frames[:0].to(DEVICE)).shape == (0, 11, 17, 25)


@every_block
@exact_too
def test_blocks(name, dtype):
    """The drop-in module and the op against the float64 module; in 16 bits also against torch's own here."""
    module, plain_module, inputs = pair(name)
    exact = copy.deepcopy(plain_module).double()(*(x.double() for x in inputs))
    module, plain_module = module.to(DEVICE, dtype), plain_module.to(DEVICE, dtype)
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    limit = tolerance(dtype)
    for given, layout in ((inputs, torch.contiguous_format), (nhwc(inputs), torch.channels_last)):
        allowed = limit.op
        if limit.emulation:
            allowed = limit.emulation * relative_error(plain_module(*given), exact)
        for got in (module(*given), call(name, given, weights_of(plain_module))):
            assert on_device(got) and got.dtype == dtype
            assert got.is_contiguous(memory_format=layout)
            assert relative_error(got, exact) <= allowed
    assert module._packed._now.executables, "the reference module ran instead of the block's plan"


# torch.ops.


@exact_too
def test_ops_of_the_network(dtype):
    frames = street((129, 159)).to(DEVICE)
    net = copy.deepcopy(trained()).float().to(DEVICE)
    if dtype == torch.float64:
        net = net.double()
    logits = ops.stdc_seg(frames, weights_of(net), "stdc1", dtype=dtype)
    assert on_device(logits) and logits.dtype == wide(dtype)
    expected, expected_labels = reference(frames.cpu())
    labels = ops.labels(logits, [129, 159])
    assert on_device(labels) and labels.dtype == torch.uint8
    assert not failures(dtype, logits.cpu(), expected, labels.cpu(), expected_labels)


def test_ops_refuse_tensors_on_two_devices():
    _, module, inputs = pair("conv")
    with pytest.raises(ValueError, match=r"input on cuda:0, another tensor on cpu"):
        call("conv", [x.to(DEVICE) for x in inputs], weights_of(module))
    net = random_network("stdc1")
    with pytest.raises(ValueError, match=r"image on cuda:0, a weight on cpu"):
        ops.stdc_seg(random_frames(1, 64, 96).to(DEVICE), weights_of(net), "stdc1")


def test_ties_take_the_lowest_class_and_bands_change_nothing(monkeypatch):
    logits = torch.zeros(2, 11, 9, 13, device=DEVICE)
    logits[:, [3, 7]] = 1.5
    assert (ops.labels(logits, [70, 101]) == 3).all()
    logits = torch.randn(2, 11, 9, 13, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    whole = postprocess.resize_argmax(logits, (70, 101), confidence=True)
    monkeypatch.setattr(postprocess, "_BAND_BYTES", 1 << 16)
    bands = postprocess.resize_argmax(logits, (70, 101), confidence=True)
    on_cpu = postprocess.resize_argmax(logits.cpu(), (70, 101), confidence=True)
    assert on_device(*whole, *bands)
    for labels, confidence in (bands, on_cpu):
        assert label_agreement(labels, whole[0]) >= 0.9999
        torch.testing.assert_close(confidence.cpu(), whole[1].cpu(), rtol=0, atol=1e-5)


# The model.


@every_dtype
def test_a_model_labels_a_photo(dtype):
    model = stdc_fast.load("stdc1_camvid", device=DEVICE, dtype=dtype)
    assert (model.device.type, model.dtype) == (DEVICE, dtype)
    size = SIZES[1]
    frames, (_, expected) = street(size), street_reference(size)
    least = tolerance(dtype).agreement
    labels = model.label(frames, size="native")
    assert on_device(labels) and labels.dtype == torch.uint8
    assert label_agreement(labels, expected) >= least
    for given in (frames.to(DEVICE), frames.numpy()):
        assert torch.equal(model.label(given, size="native"), labels)
    result = model.predict(frames[0].numpy(), size="native", confidence=True)
    # With a confidence labels come by another way, so sums of equal logits may round otherwise.
    assert label_agreement(torch.from_numpy(result.labels)[None], labels) >= 0.9999
    assert result.confidence.dtype == np.float32
    assert (result.confidence > 0).all() and (result.confidence <= 1).all()
    x = images.normalise(frames.to(DEVICE))
    logits = model(x)
    assert on_device(logits) and logits.dtype == torch.float32 and logits.shape == (1, 11, *size)
    assert label_agreement(logits.argmax(1).to(torch.uint8), expected) >= least
    (from_tensor,) = model.predict(x, size="native")
    assert label_agreement(torch.from_numpy(from_tensor.labels)[None], expected) >= least


@every_dtype
def test_a_model_resizes_there_and_back(dtype):
    frames = street(SIZES[0])
    model, exact = (
        stdc_fast.load("stdc1_camvid", device=d, dtype=t) for d, t in ((DEVICE, dtype), ("cpu", "float64"))
    )
    for options in ({"size": (192, 256)}, {"scale": 0.75}):
        labels, expected = model.label(frames, **options), exact.label(frames, **options)
        assert label_agreement(labels, expected) >= tolerance(dtype).agreement


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_the_dtype_of_a_gpu(device):
    model = stdc_fast.load("stdc1_camvid", device=device)
    assert model.device == torch.device("cuda:0")
    tensor_cores = torch.cuda.get_device_capability(model.device) >= (7, 0)
    assert model.dtype == (torch.float16 if tensor_cores else torch.float32)
    assert "tensor cores" in model.reason


@every_dtype
def test_a_model_moves_to_the_gpu_and_back(dtype, tiny_weights, photo):
    frames = torch.from_numpy(photo())[None]
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = model.label(frames)
    for _ in range(2):
        model.to(DEVICE)
        assert (model.device.type, model.dtype) == (DEVICE, dtype)
        there = model.label(frames)
        assert on_device(there, *model.state_dict().values())
        # Random weights, so agreement is worse than the contract's; another network's labels agree on less.
        assert label_agreement(there, before) > 0.97
        model.to("cpu")
        back = model.label(frames)
        assert back.device.type == "cpu" and torch.equal(back, before)
        assert model.dtype == dtype
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_changed_weights_are_noticed_there(tiny_weights, photo):
    frames = torch.from_numpy(photo())[None]
    model = stdc_fast.load(tiny_weights, device=DEVICE, dtype="float32")
    before = model.label(frames)
    with torch.no_grad():
        model.network.conv_out.conv_out.weight.neg_()
    assert label_agreement(model.label(frames), before) < 0.9
    with torch.no_grad():
        model.network.conv_out.conv_out.weight.neg_()
    assert torch.equal(model.label(frames), before)


# Results.


@every_dtype
def test_two_results_share_nothing(dtype, tiny_weights):
    model = stdc_fast.load(tiny_weights, device=DEVICE, dtype=dtype)
    one, other = (random_frames(1, 64, 96, seed=s).to(DEVICE) for s in (0, 1))
    x, y = images.normalise(one), images.normalise(other)
    for run, a, b in ((lambda f: model.label(f, size="native"), one, other), (model, x, y)):
        given, first = a.clone(), run(a)
        kept = first.clone()
        second = run(b)
        places = {t.untyped_storage().data_ptr() for t in (first, second, a, b)}
        assert len(places) == 4
        assert torch.equal(first, kept)
        assert not torch.equal(first, second)
        first.fill_(77)
        assert torch.equal(run(a), kept)
        assert torch.equal(a, given)


@every_dtype
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_image(bad, dtype, tiny_weights):
    model = stdc_fast.load(tiny_weights, device=DEVICE, dtype=dtype)
    frames = random_frames(2, 65, 97).to(DEVICE)
    x = images.normalise(frames)
    expected, labels = model(x), model.label(frames, size="native")
    poisoned = x.clone()
    poisoned[0, 1, 20:30, 40:50] = bad
    got = model(poisoned)
    assert not got[0].isfinite().all()
    # Its neighbour, the next call, and a call of the other kind of input.
    assert relative_error(got[1], expected[1]) <= tolerance(dtype).logits
    assert torch.equal(model(x), expected)
    assert torch.equal(model.label(frames, size="native"), labels)


@every_dtype
def test_work_goes_to_the_callers_stream(dtype, tiny_weights):
    """The frames arrive on a side stream after a long wait there: what ran elsewhere would not see them."""
    model = stdc_fast.load(tiny_weights, device=DEVICE, dtype=dtype)
    frames = random_frames(2, 64, 96).to(DEVICE)
    x = images.normalise(frames)
    expected, logits = model.label(frames, size="native"), model(x)
    late_frames, late_x = torch.zeros_like(frames), torch.zeros_like(x)
    assert not torch.equal(model.label(late_frames, size="native"), expected)
    stream = torch.cuda.Stream()
    for _ in range(2):
        late_frames.zero_()
        late_x.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # some 30 ms
            late_frames.copy_(frames)
            late_x.copy_(x)
            got, got_logits = model.label(late_frames, size="native"), model(late_x)
        stream.synchronize()
        assert label_agreement(got, expected) > 0.999
        assert relative_error(got_logits, logits) <= tolerance(dtype).op


def test_weights_packed_on_a_side_stream_serve_all(tiny_weights):
    frames = random_frames(1, 64, 96).to(DEVICE)
    expected = stdc_fast.load(tiny_weights, device=DEVICE, dtype="float32").label(frames, size="native")
    model = stdc_fast.load(tiny_weights, device=DEVICE, dtype="float32")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        there = model.label(frames, size="native")
    stream.synchronize()
    assert label_agreement(there, expected) > 0.999
    assert label_agreement(model.label(frames, size="native"), expected) > 0.999
