#!/usr/bin/env bash
# mmsegmentation's SegTTAModel merges the labels of all views, but returns the logits of the last view alone.
#
# Expected: pred_sem_seg of a result is the argmax of its seg_logits, as it is of every model without test-time
# augmentation. Seen with mmsegmentation 1.2.2: of six scales, each mirrored too, merge_preds() writes the merged
# labels into the sample of the last view, whose seg_logits stay: mirrored, at scale 1.75, resized back. Their argmax
# is another segmentation. mmcv's compiled operators and mmdet, which this model uses none of, are stubs here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip=("$folder/env/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 mmengine==0.10.7 mmcv-lite==2.1.0 opencv-python-headless ftfy regex prettytable scipy \
    matplotlib setuptools pillow
"${pip[@]}" --no-deps mmsegmentation==1.2.2
cat > "$folder/views.py" <<'PYTHON'
import sys
import types
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image


def missing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (torch.nn.Module,), {})


for name in ("mmcv.ops", "mmcv.ops.point_sample", "mmcv.ops.multi_scale_deform_attn", "mmdet", "mmdet.models",
             "mmdet.models.dense_heads", "mmdet.models.utils", "mmdet.utils"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__getattr__ = missing

from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

init_default_scope("mmseg")
norm = dict(type="BN", requires_grad=True)
torch.manual_seed(0)
model = MODELS.build(ConfigDict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True),
    backbone=dict(type="MobileNetV2", out_indices=(1, 2), norm_cfg=norm),
    decode_head=dict(type="FCNHead", in_channels=32, channels=16, num_convs=1, concat_input=False, num_classes=5,
                     norm_cfg=norm, loss_decode=dict(type="CrossEntropyLoss")),
    test_cfg=dict(mode="whole"),
)).eval()
for module in model.modules():  # random weights whose logits are not all alike
    if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight)
tta = MODELS.build(dict(type="SegTTAModel", module=model))
coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save("image.png")


def result(runs, *steps):
    data = Compose([dict(type="LoadImageFromFile"), *steps])(dict(img_path="image.png"))
    with torch.inference_mode():
        (sample,) = runs.test_step(pseudo_collate([data]))
    return sample.seg_logits.data, sample.pred_sem_seg.data.squeeze()


def resize(scale):
    return dict(type="Resize", scale_factor=scale, keep_ratio=True)


flips = [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)]
scales = [resize(scale) for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
logits, labels = result(model, dict(type="PackSegInputs"))
plain = (logits.argmax(0) == labels).double().mean().item()
logits, labels = result(tta, dict(type="TestTimeAug", transforms=[scales, flips, [dict(type="PackSegInputs")]]))
merged = (logits.argmax(0) == labels).double().mean().item()
last, _ = result(model, resize(1.75), flips[1], dict(type="PackSegInputs"))
print(f"mmsegmentation {version('mmsegmentation')}")
print(f"without views: {plain:.1%} of the labels are the argmax of the logits")
print(f"ms+flip:       {merged:.1%}; its logits are the last view's: {torch.equal(logits, last)}")
sys.exit(0 if plain == 1 and merged < 0.99 and torch.equal(logits, last) else "the logits are merged now")
PYTHON
cd "$folder"
"$folder/env/bin/python" -W ignore views.py 2>&1 | grep -v INFO
