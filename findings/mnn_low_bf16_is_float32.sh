#!/usr/bin/env bash
# MNN's precision "Low_BF16" on x86 says that it is used, and computes in float32.
#
# Expected: bfloat16 has 8 bits of mantissa, so a convolution differs from float32 by about 2^-9 of its size.
# Seen with MNN 3.6.1 on a processor with AVX512-BF16: it prints "MNN use lowBF precision", and the output has the bits
# of precision "high". So do those of "low" and "normal". In plain numpy bfloat16 inputs alone give an error of 2e-3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check MNN==3.6.1 numpy==2.4.6 onnx==1.23.2
cat > "$folder/convolve.py" <<'PYTHON'
import sys

import _tools
import MNN
import MNN.expr as expr
import MNN.nn as nn
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 64, 32, 32), dtype=np.float32)
weight = rng.standard_normal((64, 64, 1, 1), dtype=np.float32)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"])],
    "conv",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
    [numpy_helper.from_array(weight, "w")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "conv.onnx")
_tools.mnnconvert(["", "-f", "ONNX", "--modelFile", "conv.onnx", "--MNNModel", "conv.mnn", "--bizCode", "x"])
found = {}
for precision in ("high", "normal", "low", "Low_BF16"):
    settings = {"backend": "CPU", "numThread": 1, "precision": precision}
    runtime = nn.create_runtime_manager((settings,))
    module = nn.load_module_from_file("conv.mnn", ["x"], ["y"], runtime_manager=runtime)
    y = module.forward([expr.const(x, list(x.shape), expr.NCHW, expr.float)])[0]
    found[precision] = y.read().copy()


def rounded(a):
    """To bfloat16, to nearest even."""
    bits = a.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def product(a, b):
    return np.einsum("oi,nihw->nohw", b[:, :, 0, 0].astype(np.float64), a.astype(np.float64))


exact = product(x, weight)
errors = {name: np.linalg.norm(y - exact) / np.linalg.norm(exact) for name, y in found.items()}
errors["numpy, inputs in bfloat16"] = np.linalg.norm(product(rounded(x), rounded(weight)) - exact) / np.linalg.norm(exact)
print(f"MNN {MNN.version()}")
for name, error in errors.items():
    print(f"{name}: differs from float64 by {error:.1e}")
same = all(np.array_equal(y, found["high"]) for y in found.values())
sys.exit(0 if same and errors["Low_BF16"] < 1e-6 else "Low_BF16 is no longer float32")
PYTHON
cd "$folder"
"$folder/env/bin/python" convolve.py
