"""Convolutions of the eager backend, in every dtype and layout, also on CPUs without 16-bit instructions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from plans import error, one_thread

from stdc_fast.backends.eager.convolution import Convolution, Subpixel
from stdc_fast.plan.rewrites import subpixel_weights

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@pytest.fixture
def old_processor(monkeypatch):
    """oneDNN as where a CPU has no instructions for bfloat16: torch takes its own kernels."""

    def refuse(*_):
        raise RuntimeError("mkldnn_reorder_conv2d_weight: bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", refuse)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


def layouts(x):
    """The same numbers in four layouts; what lies between them is NaN."""
    nhwc = torch.channels_last
    deep = torch.full((len(x), x.shape[1] + 5, *x.shape[2:]), float("nan"), dtype=x.dtype)
    deep = deep.contiguous(memory_format=nhwc)
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), float("nan"), dtype=x.dtype)
    deep[:, 2:-3], wide[..., ::2] = x, x
    return x.contiguous(), x.contiguous(memory_format=nhwc), deep[:, 2:-3], wide[..., ::2]


ACTS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sigmoid+1": lambda x: torch.sigmoid(x) + 1,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 8])
def test_convolution(dtype, groups):
    """F.conv2d in float64 of the same rounded numbers, and the input is left alone."""
    torch.manual_seed(0)
    eps = torch.finfo(dtype).eps
    limit = eps / 2 if dtype in LOW else 4 * eps
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for (k, pad), stride in itertools.product(((1, 0), (3, 1), (3, 0)), (1, 2)):
        weight = (torch.randn(8, 8 // groups, k, k) / (8 // groups * k * k) ** 0.5).to(dtype)
        for (act, apply), bias in itertools.product(ACTS.items(), (torch.randn(8, dtype=wide), None)):
            conv = Convolution(weight, bias, stride, pad, groups, act)
            for size in ((3, 3), (1, 7), (5, 4), (9, 16)):
                if min(size) + 2 * pad < k:
                    continue
                x = torch.randn(2, 8, *size).to(dtype)
                b = None if bias is None else bias.double()
                expected = apply(F.conv2d(x.double(), weight.double(), b, stride, pad, 1, groups))
                for given in layouts(x):
                    got = conv(given)
                    assert got.dtype == dtype
                    assert error(got, expected) <= limit, (k, pad, stride, act, size)
                    assert torch.equal(given, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subpixel_convolution(dtype):
    """In float64 the large convolution; in fewer digits the small one in float64 with those weights."""
    torch.manual_seed(0)
    eps = torch.finfo(dtype).eps
    limit = eps / 2 if dtype in LOW else 4 * eps
    weight = torch.randn(6, 8, 3, 3, dtype=torch.float64) / 72**0.5
    bias = torch.randn(6, dtype=torch.float64).float()
    rounded = subpixel_weights(weight).to(dtype)
    for act in ("none", "relu", "sigmoid"):
        small, exact = Subpixel(rounded, bias, act), Subpixel(rounded.double(), bias.to(dtype), act)
        for n, m in itertools.product((1, 2, 5), repeat=2):
            x = torch.randn(2, 8, n, m).to(dtype)
            for size in itertools.product((2 * n, 2 * n - 1), (2 * m, 2 * m - 1)):
                expected = exact(x.double(), size)
                if dtype == torch.float64:
                    large = F.conv2d(F.interpolate(x, size, mode="nearest"), weight, bias.double(), padding=1)
                    assert error(expected, ACTS[act](large)) <= 1e-12
                for given in layouts(x):
                    got = small(given, size)
                    assert got.dtype == dtype and got.shape == (2, 6, *size)
                    assert error(got, expected) <= limit, (act, size)


@pytest.mark.parametrize("groups", [1, 8])
def test_convolution_in_bfloat16_without_its_instructions(groups, old_processor):
    test_convolution(torch.bfloat16, groups)


def test_subpixel_convolution_in_bfloat16_without_its_instructions(old_processor):
    test_subpixel_convolution(torch.bfloat16)
