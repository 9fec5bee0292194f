"""Protocols: sizes of views, what is refused, and OpenCV's resize to the bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stdc_fast.errors import UserError
from stdc_fast.input_size import InputSize
from stdc_fast.protocol import MULTI_SCALE, Protocol, View, resize_bytes


def sizes(protocol, height, width, default=None):
    return [view.size for view in protocol.views(height, width, InputSize(default))]


def test_sizes_on_cityscapes():
    assert sizes(Protocol(scale=0.5), 1024, 2048) == [(512, 1024)]
    assert sizes(Protocol(scale=0.75), 1024, 2048) == [(768, 1536)]
    assert sizes(Protocol("mmseg"), 1024, 2048, 512) == [(1024, 2048)]
    expected = [(512, 1024), (768, 1536), (1024, 2048), (1280, 2560), (1536, 3072), (1792, 3584)]
    assert sizes(Protocol("mmseg", scales=MULTI_SCALE), 1024, 2048) == expected


def test_sizes_are_rounded_as_the_code_bases_do():
    assert sizes(Protocol(scale=0.75), 361, 479) == [(270, 359)]  # down
    # Half up, to 271x359; then the ratio that fits in there, half up again.
    assert sizes(Protocol("mmseg", scale=0.75), 361, 479) == [(271, 359)]
    # 33x51, of which 51/101 is the larger ratio; so 33 = int(66 * 33 / 66 + 0.5), and 50.5 becomes 51.
    assert sizes(Protocol("mmseg", scale=0.5), 66, 101) == [(33, 51)]
    # Rounding twice shows: 0.3 x (107, 999) is 32x300, and 32/107 < 300/999 leaves 299 of the width.
    assert sizes(Protocol("mmseg", scale=0.3), 107, 999) == [(32, 299)]
    assert sizes(Protocol("mmseg", size=(1024, 2048)), 360, 480) == [(1024, 1365)]
    assert sizes(Protocol("mmseg", size=(1024, 2048)), 480, 360) == [(1365, 1024)]  # turned


def test_the_weights_own_size_is_the_official_default():
    assert sizes(Protocol(), 360, 480, 630) == [(630, 840)]
    assert sizes(Protocol(scales=(0.5, 1.0)), 360, 480, 630) == [(315, 420), (630, 840)]
    assert sizes(Protocol(size="native"), 360, 480, 630) == [(360, 480)]
    assert sizes(Protocol("mmseg", size="native", scales=(2.0,)), 360, 480, 630) == [(720, 960)]


def test_views_are_mirrored_one_by_one():
    views = Protocol("mmseg", scales=(1.0, 2.0), flip=True).views(40, 50, InputSize())
    small, large = (40, 50), (80, 100)
    assert views == [View(small), View(small, True), View(large), View(large, True)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "theirs"}, "unknown protocol 'theirs'; use official or mmseg"),
        ({"scale": 0.5, "size": (64, 64)}, "not both"),
        ({"scale": -1}, "scale must be a positive number, not -1"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, 1.0)}, "different numbers"),
        ({"scales": (1.0, float("nan"))}, "scale must be a positive number, not nan"),
        ({"stride": (8, 8)}, "stride 8x8 is of a sliding window"),
        ({"window": (16, 64)}, "window 16x64: both sides must be at least 32"),
        ({"window": (64, 64), "stride": (64, 65)}, "stride 64x65 must lie between 1x1 and the window, 64x64"),
        ({"window": (64, 64), "stride": (0, 64)}, "stride 0x64 must lie"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, said):
    with pytest.raises(UserError, match=said) as error:
        Protocol(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["official", "mmseg"])
def test_views_that_the_network_can_not_see(name):
    for scales, said in (((1.0, 0.5), "would see"), ((1.0, 1000.0), "at most 64 million")):
        with pytest.raises(UserError, match=said):
            Protocol(name, scales=scales).views(48, 48, InputSize())


def test_all_that_counts_is_said():
    protocol = Protocol("mmseg", scales=(0.5, 1.0), flip=True, window=(64, 96), stride=(32, 96))
    text, found = str(protocol), json.loads(json.dumps(protocol.to_dict()))
    for part in ("mmseg", "cv2.INTER_LINEAR", "0.5, 1", "mirrored", "softmax",
                 "64x96", "every 32x96"):  # fmt: skip
        assert part in text
    for field in dataclasses.fields(protocol):
        assert field.name in found
    assert found["merge"]["views"] == "mean of softmax"
    assert "window" not in str(Protocol()) and "views" not in str(Protocol())


SMALL = [[95, 130, 194, 217, 207], [235, 15, 163, 33, 215], [217, 130, 248, 189, 16], [69, 184, 232, 205, 78]]
#: Of SMALL by cv2.resize(..., interpolation=cv2.INTER_LINEAR), OpenCV 4.14.0 and 5.0.0.
BY_OPENCV = [
    [
        [95, 110, 134, 174, 201, 215, 211, 207], [145, 120, 95, 153, 173, 153, 184, 210],
        [225, 137, 32, 121, 128, 53, 141, 214], [226, 159, 81, 164, 176, 117, 113, 116],
        [206, 175, 141, 211, 229, 193, 95, 20], [122, 140, 169, 215, 226, 202, 118, 56],
        [69, 119, 187, 217, 223, 207, 133, 78],
    ],
    [[117, 140, 187, 206], [207, 122, 146, 115], [104, 197, 214, 84]],
    [[134, 179, 182], [147, 240, 97]],
]  # fmt: skip


@pytest.mark.parametrize("expected", BY_OPENCV, ids=["up", "down", "half"])
def test_the_bits_of_opencv(expected):
    frame = torch.tensor(SMALL, dtype=torch.uint8)[None, :, :, None].expand(2, -1, -1, 3)
    resized = resize_bytes(frame, np.shape(expected))
    assert resized.dtype == torch.uint8
    assert all((resized[n, :, :, c] == torch.tensor(expected)).all() for n in (0, 1) for c in range(3))


@pytest.mark.parametrize("size", [(33, 47), (61, 90), (200, 33), (122, 180)])
def test_resized_bytes_are_bilinear_to_one(size):
    frame = torch.randint(0, 256, (1, 61, 90, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    exact = F.interpolate(frame.permute(0, 3, 1, 2).double(), size, mode="bilinear").permute(0, 2, 3, 1)
    assert (resize_bytes(frame, size) - exact).abs().max() <= 1
    for value in (0, 255):
        assert (resize_bytes(torch.full_like(frame, value), size) == value).all()
