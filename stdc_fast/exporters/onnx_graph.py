"""The graph of a plan in ONNX, written node by node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from stdc_fast.exporters.graph import emit
from stdc_fast.exporters.settings import Settings
from stdc_fast.plan.plan import Plan
from stdc_fast.version import __version__

if TYPE_CHECKING:
    import onnx

#: What every runtime reads that knows opset 18.
_IR_VERSION = 9


def model_of(plan: Plan, settings: Settings, metadata: dict[str, object]) -> onnx.ModelProto:
    """The ONNX model of a plan of :func:`stdc_fast.exporters.graph.plan_of`.

    Its input is ``image``, its output ``logits`` or ``labels``. ``metadata`` goes to ``metadata_props``,
    texts as they are, other values as JSON.
    """
    from onnx import checker, helper

    e = _OnnxEmitter(settings, next(iter(plan.buffers.values())).channels)
    classes = next(plan.buffers[op.input.buffer].channels for op in plan.ops if op.kind == "upsample")
    e.node("Identity", [emit(plan, settings, e)], "output", output=settings.output_name)
    graph = helper.make_graph(
        e.nodes, plan.name, [e.input()], [e.output(classes)], list(e.initializers.values())
    )
    model = helper.make_model(
        graph,
        producer_name="stdc_fast",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", settings.opset)],
        ir_version=_IR_VERSION if settings.opset < 20 else 10,
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    helper.set_model_props(model, texts)
    checker.check_model(model, full_check=True)
    return model


class _OnnxEmitter:
    """Values are names of tensors."""

    def __init__(self, settings: Settings, channels: int):
        from onnx import TensorProto

        self.settings, self.channels = settings, channels
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.kinds = {
            "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8,
        }  # fmt: skip
        self.dtype = np.dtype(settings.dtype)

    # The graph's own parts.

    def node(self, kind: str, inputs: list[str], name: str, /, output: str = "", **attributes) -> str:
        from onnx import helper

        output = output or f"{name}.{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{name}.{kind}", **attributes))
        return output

    def constant(self, value: np.ndarray, name: str) -> str:
        from onnx import numpy_helper

        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def numbers(self, *values: int) -> str:
        """The same constant for the same numbers."""
        return self.constant(np.array(values, np.int64), f"numbers_{'_'.join(map(str, values))}")

    def _sides(self, size: tuple[int, int] | None) -> tuple[int | str, int | str]:
        return size if size is not None else ("height", "width")

    def input(self) -> onnx.ValueInfoProto:
        from onnx import helper

        batch, (height, width) = self.settings.batch or "batch", self._sides(self.settings.image)
        shape = [batch, self.channels, height, width]
        if self.settings.input == "nhwc":
            shape = [batch, height, width, self.channels]
        kind = self.kinds["uint8" if self.settings.raw else "float32"]
        return helper.make_tensor_value_info("image", kind, shape)

    def output(self, classes: int) -> onnx.ValueInfoProto:
        from onnx import helper

        settings = self.settings
        batch, (height, width) = settings.batch or "batch", self._sides(settings.image)
        if settings.output == "logits8":
            height, width = (f"{s}_8" if isinstance(s, str) else -(-s // 8) for s in (height, width))
        labels = settings.output == "labels"
        shape = [batch, height, width] if labels else [batch, classes, height, width]
        kind = self.kinds["uint8" if labels else "float32"]
        return helper.make_tensor_value_info(settings.output_name, kind, shape)

    # What the walk calls.

    def image(self) -> str:
        x = "image"
        if self.settings.input == "nhwc":
            x = self.node("Transpose", [x], "image", perm=[0, 3, 1, 2])
        return self.node("Cast", [x], "image", to=self.kinds["float32"]) if self.settings.raw else x

    def subtract(self, x: str, offset: tuple[float, ...], name: str) -> str:
        value = np.array(offset, np.float32).reshape(1, -1, 1, 1)
        return self.node("Sub", [x, self.constant(value, name)], name)

    def _cast(self, x: str, dtype: str, name: str) -> str:
        return x if self.settings.dtype == "float32" else self.node("Cast", [x], name, to=self.kinds[dtype])

    def narrow(self, x: str) -> str:
        return self._cast(x, self.settings.dtype, "narrow")

    def widen(self, x: str) -> str:
        return self._cast(x, "float32", "widen")

    def convolve(
        self, x: str, name: str, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
    ) -> str:
        inputs = [x, self.constant(weight.numpy().astype(self.dtype), f"{name}.weight")]
        if bias is not None:
            inputs.append(self.constant(bias.numpy().astype(self.dtype), f"{name}.bias"))
        return self.node(
            "Conv", inputs, name, kernel_shape=list(weight.shape[2:]), strides=[stride] * 2,
            pads=[padding] * 4, group=groups, dilations=[1, 1],
        )  # fmt: skip

    def activate(self, x: str, act: str, name: str) -> str:
        if act == "none":
            return x
        if act == "relu":
            return self.node("Relu", [x], name)
        x = self.node("Sigmoid", [x], name)
        one = np.array(1, self.dtype)
        return self.node("Add", [x, self.constant(one, "one")], f"{name}.one") if act == "sigmoid+1" else x

    def concatenate(self, parts: list[str], name: str) -> str:
        return self.node("Concat", parts, name, axis=1)

    def multiply(self, x: str, y: str, name: str) -> str:
        return self.node("Mul", [x, y], name)

    def add(self, x: str, y: str, name: str) -> str:
        return self.node("Add", [x, y], name)

    def pool(self, x: str, count_include_pad: bool, name: str) -> str:
        return self.node(
            "AveragePool", [x], name, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4,
            count_include_pad=int(count_include_pad),
        )  # fmt: skip

    def mean(self, x: str, name: str) -> str:
        return self.node("GlobalAveragePool", [x], name)

    def shuffle(self, x: str, name: str) -> str:
        return self.node("DepthToSpace", [x], name, blocksize=2, mode="CRD")

    def crop(self, x: str, start: int, size: tuple[int, int], name: str) -> str:
        stop = self.numbers(*(start + side for side in size))
        return self.node("Slice", [x, self.numbers(start, start), stop, self.numbers(2, 3)], name)

    def double(self, x: str, channels: int, size: tuple[int, int] | None, like: str, name: str) -> str:
        if size is not None:
            # ncnn has no DepthToSpace of copies, but a transposed convolution with ones.
            ones = self.constant(np.ones((channels, 1, 2, 2), self.dtype), f"ones_{channels}")
            x = self.node(
                "ConvTranspose", [x, ones], name, kernel_shape=[2, 2], strides=[2, 2], group=channels
            )  # fmt: skip
            return self.crop(x, 0, size, name)
        # Four copies of all channels, each for one place of a block: ONNX Runtime runs that the faster.
        x = self.node("DepthToSpace", [self.concatenate([x] * 4, name)], name, blocksize=2, mode="DCR")
        stop = self.node("Shape", [like], name, start=2, end=4)
        return self.node("Slice", [x, self.numbers(0, 0), stop, self.numbers(2, 3)], name)

    def resize(
        self, x: str, channels: int, size: tuple[int, int] | None, align_corners: bool, name: str
    ) -> str:
        more = {"coordinate_transformation_mode": "align_corners" if align_corners else "half_pixel"}
        if size is not None and self.settings.batch is not None:
            sizes = self.numbers(self.settings.batch, channels, *size)  # ncnn's converter knows no axes
        else:
            more["axes"] = [2, 3]
            first = 1 if self.settings.input == "nhwc" else 2
            sizes = (
                self.numbers(*size)
                if size is not None
                else self.node("Shape", ["image"], name, start=first, end=first + 2)
            )
        return self.node("Resize", [x, "", "", sizes], name, mode="linear", **more)

    def labels(self, x: str) -> str:
        x = self.node("ArgMax", [x], "labels", axis=1, keepdims=0, select_last_index=0)
        return self.node("Cast", [x], "labels", to=self.kinds["uint8"])
