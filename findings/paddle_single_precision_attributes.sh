#!/usr/bin/env bash
# PaddlePaddle 3.3.1: a float64 network is not float64 throughout. The eps of batch norm is held in single precision,
# and so are the coordinates of a bilinear interpolation, while torch has both in double precision. So a converted
# network agrees to 1e-12 only with eps = float32(1e-5) and before its logits are resized.
# Seen: batch norm differs by 1e-14 of the float32 eps and by about 1e-8 of the float64 one, for a variance of 1e-5;
# the interpolation differs from torch's by more than 1e-9.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check paddlepaddle==3.3.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
import numpy as np
import paddle
import paddle.nn.functional as F

paddle.set_device("cpu")
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 4, 5, 7))
variance = np.full(4, 1e-5)
norm = F.batch_norm(
    paddle.to_tensor(x), paddle.zeros([4], "float64"), paddle.to_tensor(variance),
    paddle.ones([4], "float64"), paddle.zeros([4], "float64"), epsilon=1e-5,
).numpy()


def error(eps):
    wanted = x / np.sqrt(variance + eps)[:, None, None]
    return np.abs(norm - wanted).max() / np.abs(wanted).max()


single, double = error(float(np.float32(1e-5))), error(1e-5)
print(f"batch norm: {single:.1e} from eps in float32, {double:.1e} from eps in float64")
assert single < 1e-13 < 1e-9 < double

wide = F.interpolate(paddle.to_tensor(x), size=[33, 50], mode="bilinear", align_corners=True).numpy()
rows, columns = (np.arange(n) * (m - 1) / (n - 1) for n, m in ((33, 5), (50, 7)))
top, left = np.minimum(rows.astype(int), 3), np.minimum(columns.astype(int), 5)
down, right = (rows - top)[:, None], columns - left
corner = [[x[:, :, top + i][..., left + j] for j in (0, 1)] for i in (0, 1)]
wanted = (corner[0][0] * (1 - right) + corner[0][1] * right) * (1 - down) + (
    corner[1][0] * (1 - right) + corner[1][1] * right) * down
difference = np.abs(wide - wanted).max()
print(f"interpolation: {difference:.1e} from float64 coordinates")
assert 1e-9 < difference < 1e-5
PYTHON
