"""The real packages, in the environments of ``make test-frameworks``; tests of absent ones skip."""

import copy

import numpy as np
import pytest
import torch

import stdc_fast
from bench import framework_models
from stdc_fast.numerics import relative_error

INSTALLED = framework_models.installed() or ""
needs_mmseg = pytest.mark.skipif("mmseg" not in INSTALLED, reason="mmsegmentation is not installed")
needs_sg = pytest.mark.skipif("super" not in INSTALLED, reason="super-gradients is not installed")
IMAGE = torch.randn((1, 3, 96, 160), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pair():
    own = framework_models.model("stdc1", 7).requires_grad_(False)
    return stdc_fast.accelerate(copy.deepcopy(own)), own


@needs_mmseg
def test_encoder_decoder(pair):
    model, own = pair
    assert stdc_fast.acceleration(model).how == "whole"
    meta = [{"img_shape": (96, 160), "ori_shape": (96, 160)}]
    for call in (
        lambda m: m._forward(IMAGE),
        lambda m: m(IMAGE, mode="tensor"),
        lambda m: m.encode_decode(IMAGE, meta),
        lambda m: m.inference(IMAGE, meta),
        lambda m: m.predict(IMAGE)[0].seg_logits.data,
    ):
        assert relative_error(call(model), call(own)) < 1e-5
    model, own = map(copy.deepcopy, pair)
    for m in (model, own):
        m.test_cfg = {"mode": "slide", "crop_size": (64, 64), "stride": (48, 48)}
        m.test_cfg = type(m.cfg)(m.test_cfg) if hasattr(m, "cfg") else _config(m.test_cfg)
    assert relative_error(model.inference(IMAGE, list(meta)), own.inference(IMAGE, list(meta))) < 1e-5


def _config(values):
    from mmengine.config import ConfigDict

    return ConfigDict(values)


@needs_mmseg
def test_inference_model():
    from mmseg.apis import inference_model, init_model

    config = framework_models.mmseg_config("stdc1", 19)
    own = framework_models.randomised(init_model(config, device="cpu"))
    photo = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    model = stdc_fast.accelerate(copy.deepcopy(own))
    got, expected = (inference_model(m, photo) for m in (model, own))
    assert relative_error(got.seg_logits.data, expected.seg_logits.data) < 1e-5
    assert (got.pred_sem_seg.data == expected.pred_sem_seg.data).float().mean() > 0.9999


@needs_sg
def test_all_outputs_of_super_gradients(pair):
    model, own = pair
    assert stdc_fast.acceleration(model).how == "blocks"
    got, expected = model(IMAGE), own(IMAGE)
    assert len(got) == len(expected) == 4
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))


@needs_sg
def test_predict_of_super_gradients(pair):
    from super_gradients.training.processing import processing

    steps = [
        processing.StandardizeImage(),
        processing.NormalizeImage(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        processing.ImagePermute(),
    ]
    photo = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    model, own = map(copy.deepcopy, pair)
    for m in (own, model):
        m.set_dataset_processing_params([str(i) for i in range(7)], processing.ComposeProcessing(steps))
    expected = own.predict(photo).prediction.segmentation_map
    # The pipeline copies and cuts the network, which is matched again. The package keeps one pipeline.
    pipeline = model._get_pipeline()
    for _ in range(2):
        assert (pipeline(photo).prediction.segmentation_map == expected).mean() > 0.9999
    assert stdc_fast.acceleration(pipeline.model).how == "whole"
