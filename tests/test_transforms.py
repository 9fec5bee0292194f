"""``model.transforms``: a picture as ``predict`` prepares it."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from stdc_fast import InputSize, UserError
from stdc_fast.reference.networks import normalise
from stdc_fast.transforms import Transforms


def test_labels_are_those_of_predict(model64, photo):
    """In float64, where no rounding decides; the network sees the picture at its own size."""
    for height, width in ((64, 96), (75, 101)):
        picture = photo(height, width)
        x = model64.transforms(picture, size="native")
        assert x.shape == (3, height, width) and x.dtype == torch.float32
        labels = model64(x[None].double()).argmax(1)[0].numpy()
        expected = model64.predict(picture, size="native").labels
        assert np.mean(labels == expected) > 0.999 and len(np.unique(expected)) > 3


def test_other_sizes(model64, photo):
    """Logits are those from which ``predict`` has its labels, before these have the picture's size."""
    picture = photo(300, 200)
    for options in ({}, {"scale": 0.5}, {"size": (70, 90)}):
        result = model64.predict(picture, **options)
        x = model64.transforms(picture, **options)
        assert tuple(x.shape[1:]) == result.input_size
        smaller = model64(x[None].double())
        resized = torch.nn.functional.interpolate(smaller, (300, 200), mode="bilinear", align_corners=True)
        assert np.mean(resized.argmax(1)[0].numpy() == result.labels) > 0.99


def test_kinds_of_images(model, photo, tmp_path):
    array = photo()
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = model.transforms(array)
    turned = Image.fromarray(np.rot90(array))
    turned.getexif()[274] = 6  # to be turned by 90 degrees, clockwise
    path = tmp_path / "a.png"
    kinds = [
        path, str(path), Image.fromarray(array), path.read_bytes(),
        torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1), turned,
    ]  # fmt: skip
    for image in kinds:
        assert torch.equal(model.transforms(image), expected)
    assert torch.equal(model.transforms(array[:, :, ::-1], bgr=True), expected)
    assert torch.equal(model.transforms(array.astype(np.uint16) * 16, range=(0, 4080)), expected)
    plain = normalise(torch.from_numpy(array)[None])[0]
    assert torch.equal(model.transforms(array, size="native"), plain)
    assert torch.equal(model.transforms(plain, size="native"), plain)


def test_batches(model, photo):
    arrays = np.stack([photo(seed=i) for i in range(3)])
    expected = torch.stack([model.transforms(a) for a in arrays])
    assert torch.equal(model.transforms(arrays), expected)
    assert torch.equal(model.transforms(torch.from_numpy(arrays)), expected)
    normalised = normalise(torch.from_numpy(arrays))
    assert model.transforms(normalised).shape == expected.shape


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (["a.png", "b.png"], "for one image, or a batch of one size"),
        (np.zeros((64, 64, 4), np.uint8), r"expected a uint8 array of shape \[H, W, 3\]"),
        (np.zeros((0, 64, 64, 3), np.uint8), "a batch of no images"),
        ("none.png", "no such file"),
        (5, "expected a path, address"),
        (torch.rand(3, 64, 64), r"tensor: a float tensor must be normalised, .*give range=\(0, 1\)"),
        (torch.rand(2, 3, 64, 64) * 255, r"tensor\[0\]: a float tensor must be normalised"),
        (torch.full((3, 64, 64), float("nan")), "holds NaN or infinity"),
    ],
)
def test_refusals(model, image, said):
    with pytest.raises(UserError, match=said):
        model.transforms(image)


def test_in_words(model):
    transforms = Transforms(InputSize(512), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert pickle.loads(pickle.dumps(transforms)) == transforms
    for words in ("shorter side has 512 pixels", "[0.5, 0.5, 0.5]", "[0.25, 0.25, 0.25]", "EXIF"):
        assert words in transforms.describe()
    assert "short_side=512" in repr(transforms) and "mean=(0.5, 0.5, 0.5)" in repr(transforms)
    assert (
        "left at its size" in Transforms().describe()
        and "by 0.5" in Transforms(InputSize(None, 0.5)).describe()
    )
    assert model.transforms == Transforms(model.input_size)
