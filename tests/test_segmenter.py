"""Segmenter: the official protocol, every kind of input, wrong options, as a module."""

import contextlib
import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import stdc_fast
from stdc_fast import BatchError, Segmentation, UserError, checkpoints

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


def same(result, labels):
    return np.array_equal(result.labels, labels)


def official_input(array, target):
    x = (torch.from_numpy(array.copy()).double() / 255 - MEAN) / STD
    x = x.permute(2, 0, 1)[None]
    return F.interpolate(x, target, mode="bilinear", align_corners=True)


@torch.no_grad()
def official_logits(network, array, target):
    """Logits at the photo's size, written down again from the paper's evaluation code."""
    logits = network(official_input(array, target))  # at the input's size
    return F.interpolate(logits, array.shape[:2], mode="bilinear", align_corners=True)


PROTOCOLS = [
    ({"scale": 1.0}, (75, 117)),
    ({"scale": 0.75}, (56, 87)),  # 56.25 and 87.75, rounded down
    ({"scale": 1.5}, (112, 175)),
    ({"size": (59, 83)}, (59, 83)),
    ({"size": (101, 64)}, (101, 64)),  # other proportions
    ({"size": "native"}, (75, 117)),
    ({}, (64, 100)),  # the weights' short side is 64
]


@pytest.mark.parametrize(("options", "target"), PROTOCOLS)
def test_labels_are_those_of_the_official_protocol(options, target, model64, photo):
    array = photo(75, 117)
    logits = official_logits(model64.network, array, target)
    result = model64.predict(array, confidence=True, **options)
    assert result.input_size == target
    assert same(result, logits[0].argmax(0).numpy())
    np.testing.assert_allclose(result.confidence, logits[0].softmax(0).amax(0).numpy(), atol=1e-6)
    frames = torch.from_numpy(array)[None]
    assert torch.equal(model64.label(frames, **options), torch.from_numpy(result.labels)[None])


@pytest.mark.parametrize(("options", "target"), PROTOCOLS)
def test_float32_labels_differ_only_between_equals(options, target, model, model64, photo):
    array = photo(75, 117, seed=1)
    best, order = official_logits(model64.network, array, target)[0].topk(2, 0)
    wrong = torch.from_numpy(model.predict(array, **options).labels).long() != order[0]
    margin = (best[0] - best[1])[wrong]
    assert (margin < 1e-3 * best.abs().max()).all()
    assert wrong.double().mean() <= 1e-4


def test_the_test_model_tells_wrong_labels(model, photo):
    """The comparisons here are worth something only if labels vary within an image and between them."""
    one, other = model.predict(photo()), model.predict(photo(seed=1))
    assert len(one.counts()) >= 5
    assert max(one.shares().values()) < 0.7
    assert (one.labels != other.labels).mean() > 0.3
    assert (one.labels != model.predict(photo()[:, :, ::-1]).labels).mean() > 0.1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(64, 96, (64, 96)), (96, 64, (96, 64)), (80, 120, (64, 96)), (40, 60, (64, 96)), (33, 99, (64, 192))],
)
def test_the_default_brings_the_short_side_to_the_weights_own(height, width, expected, model, photo):
    result = model.predict(photo(height, width))
    assert result.input_size == expected
    assert result.labels.shape == (height, width)


@pytest.mark.parametrize("height", [64, 100, 128])
def test_label_equals_predict_up_to_a_reduction_by_two(height, model, photo):
    arrays = [photo(height, height * 3 // 2, seed) for seed in range(2)]
    expected = np.stack([model.predict(a).labels for a in arrays])
    labels = model.label(np.stack(arrays))
    assert labels.dtype == torch.uint8
    # Convolutions of one and of two images may round differently.
    assert (labels.numpy() != expected).mean() < 1e-3
    single = torch.cat([model.label(a[None]) for a in arrays])
    assert np.array_equal(single.numpy(), expected)


@contextlib.contextmanager
def network_inputs(model):
    """Collects what the network sees."""
    seen = []
    hook = model.network.cp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize(("options", "target"), PROTOCOLS)
def test_the_network_sees_the_official_input(options, target, model, model64, photo):
    array = photo(75, 117)
    expected = official_input(array, target)
    for network, dtype, tolerance in ((model64, torch.float64, 1e-12), (model, torch.float32, 1e-5)):
        with network_inputs(network) as seen:
            network.predict(array, **options)
            network.label(array[None], **options)
        assert len(seen) == 2
        for x in seen:
            assert x.dtype == dtype
            torch.testing.assert_close(x.double(), expected, rtol=0, atol=tolerance)


def test_large_images_are_averaged_not_sampled(model):
    """Stripes of one pixel are grey from afar; picking rows would make them black or white."""
    stripes = np.zeros((504, 756, 3), np.uint8)
    stripes[::2] = 255
    with network_inputs(model) as seen:
        model.predict(stripes)
        model.predict(stripes.transpose(1, 0, 2))
        model.predict(stripes, size=(64, 756))  # each direction by its own factor
        model.predict(stripes.transpose(1, 0, 2), size=(756, 64))
    assert len(seen) == 4
    for x in seen:
        assert min(x.shape[2:]) == 64
        value = x[0].double() * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
        assert value.min() > 0.3
        assert value.max() < 0.7


def test_one_photo_in_every_form(model, photo, tmp_path):
    array = photo()
    Image.fromarray(array).save(tmp_path / "a.png")
    result = model.predict(array)
    labels = result.labels
    assert labels.dtype == np.uint8
    assert labels.shape == (64, 96)
    tensor = torch.from_numpy(array)
    for source in (
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Image.fromarray(array),
        Image.open(tmp_path / "a.png"),
        np.asfortranarray(array),
        tensor,
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1).contiguous(),
    ):
        found = model.predict(source)
        assert isinstance(found, Segmentation)
        assert same(found, labels)
        assert np.array_equal(found.image, array)
    assert same(model.predict(array[:, :, ::-1], bgr=True), labels)
    assert same(model.predict(np.ascontiguousarray(array[:, :, ::-1]), bgr=True), labels)
    assert np.array_equal(model.predict(array[:, :, ::-1], bgr=True).image, array)
    assert same(model.predict(tensor.flip(2), bgr=True), labels)
    # What is not an array has its channels in a known order already.
    assert same(model.predict(tmp_path / "a.png", bgr=True), labels)
    assert same(model.predict(Image.fromarray(array), bgr=True), labels)


def test_normalised_tensors(model, model64, photo):
    array = photo()
    x = ((torch.from_numpy(array).double() / 255 - MEAN) / STD).permute(2, 0, 1)
    result = model64.predict(x)
    assert same(result, model64.predict(array).labels)
    assert np.array_equal(result.image, array)  # denormalised, for the overlay
    (first,) = model64.predict(x[None])
    assert same(first, result.labels)
    # A tensor that autograd follows is as good.
    labels = model.predict(x.float().requires_grad_()).labels
    assert (labels == model.predict(array).labels).mean() > 0.999


def test_batches_are_lists(model, photo):
    arrays = [photo(seed=s) for s in range(2)]
    expected = [model.predict(a).labels for a in arrays]
    batch = np.stack(arrays)
    tensor = torch.from_numpy(batch)
    for source in (batch, tensor, tensor.permute(0, 3, 1, 2), arrays, tuple(arrays), iter(arrays)):
        results = model.predict(source)
        assert isinstance(results, list)
        assert len(results) == 2
        assert all(same(r, e) for r, e in zip(results, expected, strict=True))
    assert model.predict([]) == []
    assert model.predict(batch[:0]) == []


def test_mixed_lists_folders_and_globs(model, photo, tmp_path):
    arrays = [photo(64, 96 + 8 * i, i) for i in range(5)]
    for i in (0, 1):
        Image.fromarray(arrays[i]).save(tmp_path / f"{i}.png")
    results = model.predict(
        [
            tmp_path,
            arrays[2],
            Image.fromarray(arrays[3]),
            torch.from_numpy(arrays[4]),
            str(tmp_path / "*.png"),
        ]
    )
    for result, i in zip(results, [0, 1, 2, 3, 4, 0, 1], strict=True):
        assert same(result, model.predict(arrays[i]).labels)
    assert [r.name for r in results][:3] == [str(tmp_path / "0.png"), str(tmp_path / "1.png"), "item 1"]
    assert len(model.predict(tmp_path)) == 2
    assert len(model.predict(f"{tmp_path}/1.*")) == 1


def test_exif_orientation_turns_the_labels(model, photo, tmp_path):
    array = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood upright
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    expected = model.predict(np.rot90(array, -1))
    assert expected.labels.shape == (96, 64)
    for source in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert same(model.predict(source), expected.labels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I"])
def test_pil_modes(mode, model, photo):
    picture = Image.fromarray(photo()).convert(mode)
    assert picture.mode == mode
    before = picture.tobytes()
    assert same(model.predict(picture), model.predict(np.array(picture.convert("RGB"))).labels)
    assert picture.mode == mode
    assert picture.tobytes() == before


def test_a_dead_batch_member_does_not_stop_the_others(model, photo, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    sources = [photo(), tmp_path / "bad.png", photo(seed=1), np.zeros((64, 96, 2), np.uint8), "missing.jpg"]
    with pytest.raises(BatchError, match="3 of 5 images failed") as error:
        model.predict(sources)
    assert [name for name, _ in error.value.failures] == [str(tmp_path / "bad.png"), "item 3", "missing.jpg"]
    assert all(name in message for name, message in error.value.failures)
    assert len(error.value.results) == 2
    assert same(error.value.results[1], model.predict(photo(seed=1)).labels)
    with pytest.raises(UserError, match=r"bad.png") as single:
        model.predict(tmp_path / "bad.png")
    assert not isinstance(single.value, BatchError)


def test_a_damaged_pil_image_does_not_stop_the_others(model, photo):
    buffer = io.BytesIO()
    Image.fromarray(photo(200, 300)).save(buffer, "JPEG")
    broken = Image.open(io.BytesIO(buffer.getvalue()[:1500]))
    with pytest.raises(BatchError, match="1 of 2 images failed") as error:
        model.predict([broken, photo()])
    assert len(error.value.results) == 1


def test_batch_errors_survive_a_process_boundary():
    """Workers send exceptions by pickle; one that can not be read back kills the pool."""
    error = pickle.loads(pickle.dumps(BatchError([], [("a.jpg", "a.jpg: is empty")], 2)))
    assert error.failures == [("a.jpg", "a.jpg: is empty")]
    assert str(error) == "1 of 2 images failed: a.jpg: is empty"


def test_streams_are_lazy(model, photo, tmp_path):
    taken = []

    def frames():
        for i in range(3):
            taken.append(i)
            yield photo(seed=i)

    stream = model.predict(frames(), stream=True)
    assert iter(stream) is stream
    assert taken == []
    first = next(stream)
    assert taken == [0]
    assert same(first, model.predict(photo()).labels)
    assert len(list(stream)) == 2
    assert taken == [0, 1, 2]

    # One image is a stream of one, so that callers need no second code path.
    assert [r.name for r in model.predict(photo(), stream=True)] == ["array"]


def test_streams_report_failures_at_their_end(model, photo, tmp_path):
    for i in range(3):
        Image.fromarray(photo(seed=i)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"")
    stream = model.predict(tmp_path, stream=True)
    assert [next(stream).name[-5:], next(stream).name[-5:]] == ["0.png", "2.png"]
    with pytest.raises(BatchError, match=r"1 of 3 images failed: .*1.png") as error:
        next(stream)
    assert error.value.results == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale": 1.0, "size": (64, 96)}, "not both"),
        ({"scale": 1.0, "size": "native"}, "not both"),
        ({"scale": float("nan")}, "positive number, not nan"),
        ({"scale": float("inf")}, "positive number, not inf"),
        ({"scale": -0.5}, "positive number, not -0.5"),
        ({"scale": 0}, "positive number, not 0"),
        ({"scale": 0.4}, "38x25"),
        ({"scale": 1e5}, "64 million"),
        ({"scale": 1e308}, "scale"),  # finite, but not times 64
        ({"size": "natve"}, "natve"),
        ({"size": 64}, "64"),
        ({"size": (64,)}, "64"),
        ({"size": (64, 96, 3)}, "96"),
        ({"size": (64, None)}, "None"),
        ({"size": (64, float("inf"))}, "inf"),
        ({"size": (16, 96)}, "96x16"),
        ({"size": (-64, 96)}, "96x-64"),
        ({"size": (10**6, 10**6)}, "64 million"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(options, reason, model, photo):
    with pytest.raises(UserError, match=reason):
        model.predict(photo(), **options)
    with pytest.raises(UserError, match=reason):
        model.label(photo()[None], **options)


@pytest.mark.parametrize("size", [[64, 96], torch.Size((64, 96)), np.array([64, 96])], ids=repr)
def test_sizes_of_other_types(size, model, photo):
    assert model.predict(photo(80, 120), size=size).input_size == (64, 96)


def test_a_size_error_names_the_image_of_a_batch(model, photo):
    """Only one of these is too small at this scale, and the user must learn which."""
    with pytest.raises(BatchError, match="1 of 2") as error:
        model.predict([photo(), photo(40, 50)], scale=0.6)
    ((name, message),) = error.value.failures
    assert name == "item 1"
    assert "item 1" in message


def test_forward(model, model64, photo):
    x = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (2, 11, 65, 97)
    assert logits.dtype == torch.float32
    exact = model64(x.double())
    assert exact.dtype == torch.float64
    assert torch.linalg.norm(logits.double() - exact) < 1e-5 * torch.linalg.norm(exact)
    assert torch.equal(model(x.double()), logits)
    assert not model.training
    assert (model.num_classes, model.dtype, model.device.type) == (11, torch.float32, "cpu")
    assert "tiny" in repr(model)


def test_forward_refuses_what_it_can_not_take(model):
    with pytest.raises(UserError, match=r"uint8.*label"):
        model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    for x in (torch.zeros(3, 64, 96), torch.zeros(1, 4, 64, 96), torch.zeros(1, 64, 96, 3)):
        with pytest.raises(ValueError, match="shape") as error:
            model(x)
        assert str(list(x.shape)) in str(error.value)
    with pytest.raises(ValueError, match="16x96"):
        model(torch.zeros(1, 3, 16, 96))


def test_label_refuses_what_it_can_not_take(model, photo):
    array = photo()
    for frames in (
        array,  # one frame without a batch
        array[None].transpose(0, 3, 1, 2),
        array[None].astype(np.float32),
        array[None].astype(object),
        torch.from_numpy(array)[None].float(),
        [array],
        "photo.jpg",
    ):
        with pytest.raises(UserError, match=r"uint8 .*\[N, H, W, 3\]"):
            model.label(frames)
    with pytest.raises(UserError, match="96x20"):
        model.label(array[None, :20])


def test_label_of_no_frames(model, photo):
    labels = model.label(photo()[None][:0])
    assert labels.shape == (0, 64, 96)
    assert labels.dtype == torch.uint8


def test_label_takes_any_strides(model, photo):
    wide = photo(64, 192)
    for window in (wide[None, ::-1, ::2], wide[None, :, 20:131], wide.transpose(1, 0, 2)[None]):
        expected = model.label(window.copy())
        assert torch.equal(model.label(window), expected)
    every_other = torch.from_numpy(wide)[None, :, ::2]
    assert torch.equal(model.label(every_other), model.label(every_other.contiguous()))


def test_state_dict_fits_the_reference_network(model, tiny_network):
    mine = {k.removeprefix("network."): v for k, v in model.state_dict().items()}
    expected = tiny_network.state_dict()
    assert set(mine) == set(expected)
    for key, value in checkpoints.inference_state(tiny_network).items():
        assert torch.equal(mine[key], value)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = torch.randn(1, 3, 64, 96)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_equal_and_independent(clone, model, photo):
    expected = model.predict(photo()).labels
    other = clone(model)
    assert same(other.predict(photo()), expected)
    assert (other.classes, other.input_size, other.name) == (model.classes, model.input_size, model.name)
    assert other.report == model.report
    with torch.no_grad():
        other.network.conv_out.conv_out.weight.neg_()
    assert not same(other.predict(photo()), expected)
    assert same(model.predict(photo()), expected)


def test_to_moves_everything(model, model64, photo):
    double = copy.deepcopy(model).to(torch.float64)
    assert double.dtype == torch.float64
    assert same(double.predict(photo()), model64.predict(photo()).labels)
    assert copy.deepcopy(model).to("cpu").device == torch.device("cpu")
    assert double(torch.zeros(1, 3, 64, 96)).dtype == torch.float64


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_small_dtypes(dtype, limit, tiny_weights, model, photo):
    small = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype)
    assert small.dtype == getattr(torch, dtype)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    logits, expected = small(x), model(x)
    assert logits.dtype == torch.float32
    error = torch.linalg.norm(logits - expected) / torch.linalg.norm(expected)
    assert 0 < error < limit
    result = small.predict(photo(80, 120), confidence=True)
    assert result.confidence.dtype == np.float32
    assert (result.labels == model.predict(photo(80, 120)).labels).mean() > 0.97
    assert torch.equal(small.label(photo(80, 120)[None]), torch.from_numpy(result.labels)[None])


def test_one_output_is_announced(photo, caplog):
    """Its labels can only be 0, though it may have been trained for a threshold."""
    network = stdc_fast.create_model("stdc1", num_classes=1).eval()
    model = stdc_fast.Segmenter(network, stdc_fast.ClassSet.from_names(["road"]), name="own")
    assert "own: has one output, so every pixel is road; load its state dict with threshold=" in caplog.text
    assert not model.predict(photo(64, 96)).labels.any()


def test_gradients_and_inference_mode(model, photo):
    x = torch.randn(1, 3, 64, 96)
    assert not model(x).requires_grad  # frozen: for inference without no_grad()
    trained = copy.deepcopy(model).requires_grad_()
    trained(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
    x.requires_grad_()
    model(x).square().mean().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    expected = model.predict(photo()).labels
    with torch.inference_mode():
        assert same(model.predict(photo()), expected)
        assert not model(torch.randn(1, 3, 64, 96)).requires_grad
    with torch.no_grad():
        assert same(model.predict(photo()), expected)
    # A generator must not leave the caller's code in inference mode between its results.
    stream = model.predict([photo(), photo()], stream=True)
    next(stream)
    assert not torch.is_inference_mode_enabled()
