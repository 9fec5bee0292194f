#!/usr/bin/env bash
# pnnx ends with 0 for an ONNX Resize with "axes", and writes a file with a layer that ncnn does not have.
#
# Expected: an Interp layer, as for the same Resize with all four sizes, or an error.
# Seen with pnnx 20261020 and ncnn 1.0.20261020: exit code 0, "Resize Resize_0 1 1 in0 out0" in the .param file, and
# ncnn's load_param says "layer Resize not exists or registered" and gives -1. "axes" is in ONNX since opset 18.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    pnnx==20261020 ncnn==1.0.20261020 onnx==1.23.2 numpy==2.4.6
cat > "$folder/resize.py" <<'PYTHON'
import subprocess
import sys

import ncnn
import numpy as np
import onnx
import pnnx
from onnx import TensorProto, helper, numpy_helper

found = {}
for name, sizes, more in (("all", [1, 4, 9, 11], {}), ("axes", [9, 11], {"axes": [2, 3]})):
    node = helper.make_node(
        "Resize", ["x", "", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="align_corners", **more
    )
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 9, 11])],
        [numpy_helper.from_array(np.array(sizes), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")
    command = [pnnx.EXEC_PATH, f"{name}.onnx", "inputshape=[1,4,5,6]f32"]
    code = subprocess.run(command, capture_output=True).returncode
    layer = open(f"{name}.ncnn.param").read().splitlines()[3].split()[0]
    found[name] = code, layer, ncnn.Net().load_param(f"{name}.ncnn.param")
    print(f"{name}: pnnx ends with {code}, layer {layer}, load_param gives {found[name][2]}")
sys.exit(0 if found == {"all": (0, "Interp", 0), "axes": (0, "Resize", -1)} else "that is mended")
PYTHON
cd "$folder"
"$folder/env/bin/python" resize.py
