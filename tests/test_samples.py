"""Depth of samples: certain ranges are obeyed, likely ones announced, others refused with their values."""

import re

import numpy as np
import pytest
import torch

from stdc_fast import UserError, errors
from stdc_fast.images import MEAN, STD, normalise
from stdc_fast.samples import check_normalised, check_range, to_bytes


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(errors, "_said", type(errors._said)(maxlen=4))


@pytest.fixture
def ramp():
    return np.arange(256, dtype=np.uint8).reshape(8, 32)


@pytest.mark.parametrize(
    ("dtype", "scale", "said"),
    [
        (np.uint8, 1, None),
        (np.uint16, 257, None),
        (">u2", 257, None),
        (np.uint32, 16843009, None),
        (np.float32, 1 / 255, r"float32 values from 0 to 1 are taken as 0 \(black\) to 1 \(white\)"),
        (np.float64, 1 / 255, r"float64 values from 0 to 1 "),
        (np.float32, 1, r"from 0 to 255 are taken as 0 \(black\) to 255 \(white\)"),
        (np.int32, 1, "int32 values from 0 to 255 are taken .* to 255"),
        (np.int32, 257, "int32 values from 0 to 65535 are taken .* to 65535"),
        (np.int32, 8421504, "int32 values from 0 to 2147483520 are taken .* to 2147483647"),
    ],
)
def test_likely_ranges(ramp, dtype, scale, said, caplog):
    values = (ramp * np.float64(scale)).astype(dtype)
    assert np.array_equal(to_bytes(values, "a.tif"), ramp)
    assert bool(said) == bool(caplog.messages)
    if said:
        caplog.clear()
        to_bytes(values, "b.tif")  # said already
        assert not caplog.messages
        to_bytes(values, "elsewhere/a.tif")
        (line,) = caplog.messages
        assert re.match(f"elsewhere/a.tif: its .*{said}", line)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.arange(4096, dtype=np.uint16),
            r"uint16 values from 0 to 4095 of 65535 .*12 bits.*range=\(0, 4095\)",
        ),
        (np.arange(1000, dtype=np.uint16), r"10 bits.*range=\(0, 1023\) or \(0, 65535\).*--range 0,1023$"),
        (np.arange(16384, dtype=np.uint16), r"range=\(0, 16383\)"),
        (np.arange(200, dtype=np.uint16), r"range=\(0, 255\)"),
        (np.arange(4096, dtype=np.int32), r"int32 values from 0 to 4095"),
        (np.arange(-128, 128, dtype=np.int16), r"8 bits.*range=\(-128, 127\)"),
        (np.arange(-5, 4096, dtype=np.int16), r"int16 values from -5 to 4095.*range=\(-5, 4095\)"),
        (
            np.array([-1.5, 300.2]),
            r"float64 values from -1.5 to 300.2, neither .*range=\(-2, 301\).*--range -2,301$",
        ),
        (np.array([0, 3.5], np.float32), "from 0 to 3.5"),
        (np.array([0, np.nan]), "NaN"),
        (np.array([0, np.inf]), "infinity"),
    ],
)
def test_other_ranges_are_refused(values, said):
    with pytest.raises(UserError, match=said) as error:
        to_bytes(values, "a.tif")
    assert str(error.value).startswith("a.tif: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_a_range_is_obeyed(dtype, caplog):
    values = np.array([0, 10, 61, 110, 200], dtype)
    assert to_bytes(values, "a", (10, 110)).tolist() == [0, 0, 130, 255, 255]
    assert to_bytes(-values.astype(np.float32), "a", (-110, -10)).tolist() == [255, 255, 125, 0, 0]
    assert not caplog.messages


def test_black_is_black_at_any_depth():
    for dtype in (np.uint16, np.int32, np.float32):
        assert to_bytes(np.zeros((2, 2), dtype), "a").max() == 0
    assert to_bytes(np.array([False, True]), "a").tolist() == [0, 255]


@pytest.mark.parametrize("wrong", [(1, 0), (0, 0), (0,), (0, 1, 2), "ab", 3, (0, float("nan")), (None, 1)])
def test_wrong_ranges(wrong):
    with pytest.raises(UserError, match="range must be two"):
        check_range(wrong)


def test_normalised_tensors_pass(photo):
    for array in (photo(), np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)):
        check_normalised(normalise(torch.tensor(array)[None])[0], "a", MEAN, STD)
    check_normalised(torch.zeros(3, 32, 32), "a", MEAN, STD)
    check_normalised(torch.randn(3, 200, 200, dtype=torch.bfloat16), "a", MEAN, STD)
    check_normalised(torch.rand(3, 32, 32), "a", (0, 0, 0), (1, 1, 1))  # of a network that takes them so


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.linspace(0, 1, 3072), r"from 0 to 1; .*range=\(0, 1\)"),
        (torch.linspace(-0.02, 1.04, 3072), r"range=\(0, 1\)"),  # by a resize
        (torch.linspace(-1, 1, 3072), r"range=\(-1, 1\)"),
        (torch.linspace(-0.5, 0.5, 3072), r"range=\(-0\.5, 0\.5\)"),
        (torch.linspace(0, 255, 3072), r"-2.12 .* 2.64, but .* 0 to 255; .*range=\(0, 255\)"),
        (torch.linspace(-300, 10, 3072), r"from -300 to 10"),
        (torch.full((3072,), float("nan")), "NaN"),
        (torch.tensor([0.0] * 3071 + [float("inf")]), "infinity"),
    ],
)
def test_tensors_that_are_not_normalised(tensor, said):
    with pytest.raises(UserError, match=said):
        check_normalised(tensor.reshape(3, 32, 32), "tensor", MEAN, STD)
