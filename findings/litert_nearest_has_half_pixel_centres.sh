#!/usr/bin/env bash
# litert-torch converts torch's "nearest" interpolation with half-pixel centres, which is another function.
#
# Expected: as torch documents, mode "nearest" takes pixel floor(i * in / out); "nearest-exact" has half-pixel centres.
# Seen with litert-torch 0.10.0, ai-edge-litert 2.3.0, torch 2.13.0: a map of 3x4 resized to 5x7 differs from torch's
# in 15 of 35 pixels, and is the one of "nearest-exact". Where the output is a multiple of the input, both are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 litert-torch==0.10.0 ai-edge-litert==2.3.0
cat > "$folder/nearest.py" <<'PYTHON'
import sys

import litert_torch
import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter


class Nearest(torch.nn.Module):
    def forward(self, x):
        return F.interpolate(x, (5, 7), mode="nearest")


x = torch.arange(12.0).view(1, 1, 3, 4)
litert_torch.convert(Nearest().eval(), (x,)).export("nearest.tflite")
interpreter = Interpreter("nearest.tflite")
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.numpy())
interpreter.invoke()
got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
want = F.interpolate(x, (5, 7), mode="nearest").numpy()
other = F.interpolate(x, (5, 7), mode="nearest-exact").numpy()
print(f"{(got != want).sum()} of {want.size} pixels differ from torch's nearest")
print(f"{(got != other).sum()} of {want.size} pixels differ from torch's nearest-exact")
sys.exit(0 if (got != want).sum() == 15 and np.array_equal(got, other) else "nearest is another one now")
PYTHON
cd "$folder"
"$folder/env/bin/python" nearest.py 2> /dev/null
