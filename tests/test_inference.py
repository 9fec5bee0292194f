"""Views and windows against a small float64 implementation, written from what mmsegmentation 1.2.2 does."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stdc_fast import inference
from stdc_fast.classes import ClassSet
from stdc_fast.errors import UserError
from stdc_fast.protocol import Protocol, resize_bytes
from stdc_fast.reference import STDCSeg
from stdc_fast.segmenter import InputSize, Segmenter

NAMES = ("Sky", "Wall", "Road", "Tree", "Car")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = STDCSeg("stdc1", len(NAMES)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def exact(network):
    """The same in float64."""
    copy = STDCSeg("stdc1", len(NAMES))
    copy.load_state_dict(network.state_dict())
    return Segmenter(copy.double(), ClassSet.from_names(NAMES), InputSize(75), backend="eager")


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 256, (1, 3, 9, 12)))
    soft = F.interpolate(coarse, (66, 90), mode="bicubic")[0].permute(1, 2, 0)
    return (soft + torch.from_numpy(rng.normal(0, 20, soft.shape))).clamp(0, 255).to(torch.uint8).numpy()


def whole(network, x, window, stride):
    return network(x)


def slide(network, x, window, stride):
    """The mean of logits over windows, each at the window's size."""
    height, width = x.shape[2:]
    total, count = torch.zeros(1, len(NAMES), height, width).double(), torch.zeros(height, width).double()
    rows = max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1
    for i, j in itertools.product(range(rows), range(columns)):
        bottom = min(i * stride[0] + window[0], height)
        right = min(j * stride[1] + window[1], width)
        top, left = max(bottom - window[0], 0), max(right - window[1], 0)
        total[:, :, top:bottom, left:right] += network(x[:, :, top:bottom, left:right])
        count[top:bottom, left:right] += 1
    return total / count


def merged(network, frame, sizes, mirrors, window, stride, resize):
    # Logits as the network has them; images always with align_corners=True.
    """Mean softmax over the views, or the logits of one."""
    found = []
    run = slide if window else whole
    for size, mirrored in itertools.product(sizes, mirrors):
        x = resize(network, frame, size)
        logits = run(network, x.flip(3) if mirrored else x, window, stride)
        logits = logits.flip(3) if mirrored else logits
        logits = F.interpolate(logits, frame.shape[:2], mode="bilinear", align_corners=network.align_corners)
        found.append(logits)
    return found[0] if len(found) == 1 else sum(f.softmax(1) for f in found) / len(found)


def normalised(network, frame):
    return torch.from_numpy((frame / 255 - np.array(network.mean)) / np.array(network.std)).permute(2, 0, 1)[
        None
    ]


def of_bytes(network, frame, size):
    return normalised(network, resize_bytes(torch.from_numpy(frame)[None], size)[0].numpy())


def of_floats(network, frame, size):
    return F.interpolate(normalised(network, frame), size, mode="bilinear", align_corners=True)


CASES = {
    "whole": {},
    "scale": {"scale": 1.5},
    "size": {"size": (80, 100)},
    "flip": {"flip": True},
    "ms+flip": {"scales": (0.5, 0.75, 1.0, 1.75), "flip": True},
    "slide": {"window": (40, 48), "stride": (20, 33)},
    "slide by its own size": {"window": (33, 90)},
    "one window larger than the image": {"window": (200, 200)},
    "slide larger": {"scale": 1.5, "window": (64, 64), "stride": (30, 64)},
    "slide, ms+flip": {"scales": (0.6, 1.25), "flip": True, "window": (48, 60), "stride": (31, 60)},
}
# By (protocol, case), where it is not the image's size times its scales.
BASE = {
    ("mmseg", "scale"): [(99, 135)],
    ("mmseg", "slide larger"): [(99, 135)],
    ("mmseg", "size"): [(73, 100)],  # keeps its ratio
    ("official", "scale"): [(99, 135)],
    ("official", "slide larger"): [(99, 135)],
    ("official", "size"): [(80, 100)],
    # The weights' short side of 75, times the scales, rounded down.
    ("official", "ms+flip"): [(37, 51), (56, 76), (75, 102), (131, 178)],
    ("official", "slide, ms+flip"): [(45, 61), (93, 127)],
    ("mmseg", "ms+flip"): [(33, 45), (50, 68), (66, 90), (116, 158)],
    ("mmseg", "slide, ms+flip"): [(40, 54), (83, 113)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["official", "mmseg"])
def test_against_a_small_implementation(exact, frame, name, case):
    check(exact, frame, name, case)


@pytest.mark.parametrize("case", ["scale", "slide, ms+flip"])
@pytest.mark.parametrize("name", ["official", "mmseg"])
def test_the_networks_own_interpolation_and_normalisation(network, frame, name, case):
    other = STDCSeg("stdc1", len(NAMES), align_corners=False, mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))
    other.load_state_dict(network.state_dict())
    check(
        Segmenter(other.double(), ClassSet.from_names(NAMES), InputSize(75), backend="eager"),
        frame,
        name,
        case,
    )


def check(exact, frame, name, case):
    protocol = Protocol(name, **CASES[case])
    sizes = BASE.get((name, case), [(66, 90)] if name == "mmseg" else [(75, 102)])
    expected = merged(
        exact.network, frame, sizes, (False, True)[: 1 + protocol.flip], protocol.window, protocol.stride,
        of_bytes if name == "mmseg" else of_floats,
    )  # fmt: skip
    scores = inference.scores(exact, frame, protocol)
    torch.testing.assert_close(scores.rows(0, 66), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scores.rows(11, 12), expected[:, :, 11:12], rtol=1e-9, atol=1e-9)
    labels = inference.label(exact, frame, protocol)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected.argmax(1)[0])
    assert len(labels.unique()) > 1


def test_in_float32_on_the_backend_of_choice(network, exact, frame):
    fast = Segmenter(network, ClassSet.from_names(NAMES), InputSize(75))
    for name, case in itertools.product(("official", "mmseg"), ("whole", "slide, ms+flip")):
        protocol = Protocol(name, **CASES[case])
        same = inference.label(fast, frame, protocol) == inference.label(exact, frame, protocol)
        assert same.double().mean() > 0.999


@pytest.mark.parametrize("size", [1, 20000])  # one row; some, which do not divide the height
def test_bands_do_not_show(exact, frame, monkeypatch, size):
    protocol = Protocol("mmseg", **CASES["slide, ms+flip"])
    expected = inference.label(exact, frame, protocol)
    monkeypatch.setattr(inference, "_BAND_BYTES", size)
    assert torch.equal(inference.label(exact, frame, protocol), expected)


def test_bands_bound_what_is_stored(exact, frame, monkeypatch):
    """No view's logits are ever resized as a whole."""
    monkeypatch.setattr(inference, "_BAND_BYTES", 8 * len(NAMES) * 90 * 4)
    rows = []
    lerp = torch.lerp
    monkeypatch.setattr(torch, "lerp", lambda a, b, w: rows.append(a.shape[2]) or lerp(a, b, w))
    inference.label(exact, frame, Protocol("mmseg", scales=(0.5, 1.5), flip=True))
    # Four rows of the image, and of the view of 1.5 times its size one and a half times as many.
    assert len(rows) > 4 * 66 // 4
    assert max(rows) <= 4 * 1.5 + 2


def test_one_view_is_what_label_gives(exact, frame):
    for fields in ({}, {"scale": 1.5}, {"size": (80, 100)}, {"size": "native"}):
        expected = exact.label(frame[None], **fields)[0]
        assert torch.equal(inference.label(exact, frame, Protocol(**fields)), expected)


def test_refuses_what_is_no_image(exact, frame):
    with pytest.raises(UserError, match="expected a uint8 array"):
        inference.label(exact, frame.astype(complex), Protocol())
    with pytest.raises(UserError, match="would see 27x20"):
        inference.label(exact, frame, Protocol("mmseg", scale=0.3))
