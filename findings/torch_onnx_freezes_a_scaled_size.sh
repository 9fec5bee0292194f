#!/usr/bin/env bash
# torch.onnx.export writes a constant output size behind a dynamic input, for int(size * 0.5), and reports success.
#
# Expected: an output of half the input's size, or an error: the example's size is not the only one that was asked for.
# Seen with torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.32.0: the input is [1, 3, "height", "width"], the output
# [1, 3, 32, 48], the example's. An image of 128x160 gives 32x48, where torch gives 64x80. Nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$folder/half.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F


class Half(torch.nn.Module):
    def forward(self, x):
        height, width = x.shape[2:]
        return F.interpolate(x, (int(height * 0.5), int(width * 0.5)), mode="bilinear")


free = {"x": {2: "height", 3: "width"}}
example = torch.randn(1, 3, 64, 96)
program = torch.onnx.export(Half().eval(), (example,), dynamo=True, dynamic_shapes=free, verbose=False)
program.save("half.onnx")
session = onnxruntime.InferenceSession("half.onnx")
(taken,), (given,) = session.get_inputs(), session.get_outputs()
image = np.zeros((1, 3, 128, 160), np.float32)
shape = session.run(None, {taken.name: image})[0].shape
want = tuple(Half()(torch.from_numpy(image)).shape)
print(f"input {taken.shape}, output {given.shape}; 128x160 gives {shape}, in torch {want}")
sys.exit(0 if shape == (1, 3, 32, 48) and want == (1, 3, 64, 80) else "the output's size is no longer frozen")
PYTHON
cd "$folder"
"$folder/env/bin/python" half.py 2> /dev/null
