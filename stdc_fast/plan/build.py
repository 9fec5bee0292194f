"""From a reference module to its plan, op by op as the module computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from stdc_fast.plan import ops
from stdc_fast.plan.ops import Buffer, Op, View
from stdc_fast.plan.plan import Plan
from stdc_fast.reference import layers
from stdc_fast.reference.networks import STDCSeg


def build(
    module: nn.Module,
    state: Mapping[str, Tensor] | None = None,
    *,
    frames: bool = True,
    channels: Sequence[int] | None = None,
) -> Plan:
    """Plan of a reference network or block in eval mode, as it is written: nothing folded or fused.

    Args:
        module: an :class:`STDCSeg`, from image to labels; or a ``ConvBNReLU``, ``STDCModule``,
            ``STDCAddModule``, ``AttentionRefinement``, ``FeatureFusion`` or ``SegHead``, from maps to a map
            (logits in float32). Strides, eps and pooling are taken from it.
        state: weights under the module's state-dict names; by default its own.
        frames: whether the network reads raw uint8 frames ``[N, H, W, 3]`` or a normalised image. Training
            heads, where it has them, are further outputs: logits at their own resolution.
        channels: of each input of a block; only ``FeatureFusion`` needs to be told.

    Raises ValueError for a module that no plan can express, such as a dilated convolution.
    """
    builder = _Builder(module.state_dict() if state is None else state)
    if isinstance(module, STDCSeg):
        return builder.network(module, frames)
    for kind, width, add in _BLOCKS:
        if isinstance(module, kind):
            if channels is None and kind is layers.FeatureFusion:
                raise ValueError("a FeatureFusion has two inputs; give the channels of each")
            widths = channels or [width(module).in_channels]
            inputs = [builder.buffer(f"input{i or ''}", n, 1) for i, n in enumerate(widths)]
            output = add(builder, module, "", *inputs)
            return builder.plan(kind.__name__, [v.buffer for v in inputs], [output])
    raise ValueError(f"there is no plan for a {type(module).__name__}")


class _Builder:
    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state
        self.buffers: dict[str, Buffer] = {}
        self.ops: list[Op] = []

    def plan(self, name: str, inputs: list[str], outputs: list[View]) -> Plan:
        names = {name for op in self.ops for name in op.weights}
        # Copies: a plan of a float64 network must not change with it. Those on "meta" stay there.
        weights = {}
        for n in sorted(names):
            weight = self.state[n].detach()
            place = "meta" if weight.is_meta else "cpu"
            weights[n] = weight.to(place, torch.float64, copy=True)
        return Plan(name, self.buffers, tuple(self.ops), tuple(inputs), tuple(outputs), weights)

    def buffer(self, name: str, channels: int, stride: int, store: str = "act") -> View:
        self.buffers[name] = Buffer(name, channels, stride, store)
        return View(name, 0, channels)

    def stride(self, view: View) -> int:
        return self.buffers[view.buffer].stride

    def emit(
        self, kind: type[Op], name: str, channels: int, stride: int, store: str = "act", /, **fields
    ) -> View:
        """Append an op that writes a buffer of its own, of the same name; vectors are float32."""
        output = self.buffer(name, channels, stride, store if stride else "float32")
        self.ops.append(kind(name=name, output=output, **fields))
        return output

    # The layers, in the order of stdc_fast/reference/layers.py. Names end in "." or are empty.

    def conv(self, module: nn.Conv2d, name: str, x: View, act: str = "none", store: str = "act") -> View:
        kernel, stride = module.kernel_size[0], module.stride[0]
        depthwise = module.groups > 1
        standard = (
            module.kernel_size == (kernel, kernel)
            and kernel in (1, 3)
            and module.stride in ((1, 1), (2, 2))
            and module.padding == (kernel // 2, kernel // 2)
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and (not depthwise or module.groups == module.in_channels == module.out_channels)
        )
        if not standard:
            raise ValueError(f"{name}: there is no op for {module}")
        return self.emit(
            ops.Conv, name, module.out_channels, self.stride(x) * stride, store,
            inputs=(x,), weight=f"{name}.weight", bias=f"{name}.bias" if module.bias is not None else None,
            kernel=kernel, stride=stride, depthwise=depthwise, act=act,
        )  # fmt: skip

    def norm(self, module: nn.BatchNorm2d, name: str, x: View, act: str = "none") -> View:
        if not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{name}: there is no op for {module}; only batch norm can be folded")
        if module.running_mean is None:
            raise ValueError(f"{name}: a batch norm without stored statistics can not be folded")
        return self.emit(
            ops.Norm, name, x.channels, self.stride(x), input=x, eps=module.eps, act=act,
            gamma=f"{name}.weight" if module.affine else None, beta=f"{name}.bias" if module.affine else None,
            mean=f"{name}.running_mean", var=f"{name}.running_var",
        )  # fmt: skip

    def conv_bn_relu(self, module: layers.ConvBNReLU, name: str, x: View) -> View:
        return self.norm(module.bn, f"{name}bn", self.conv(module.conv, f"{name}conv", x), "relu")

    def depthwise(self, module: nn.Sequential, name: str, x: View) -> View:
        return self.norm(module[1], f"{name}1", self.conv(module[0], f"{name}0", x))

    def stdc(self, module: layers.STDCModule, name: str, x: View) -> View:
        first = x = self.conv_bn_relu(module.conv_list[0], f"{name}conv_list.0.", x)
        if module.stride == 2:
            pool = module.skip
            form = ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override")
            if type(pool) is not nn.AvgPool2d or [getattr(pool, k) for k in form] != [3, 2, 1, False, None]:
                raise ValueError(f"{name}skip: there is no op for {pool}")
            first = self.emit(
                ops.Pool, f"{name}skip", x.channels, 2 * self.stride(x),
                input=x, count_include_pad=pool.count_include_pad,
            )  # fmt: skip
            x = self.depthwise(module.avd_layer, f"{name}avd_layer.", x)
        outputs = [first]
        for i, conv in enumerate(module.conv_list[1:], 1):
            x = self.conv_bn_relu(conv, f"{name}conv_list.{i}.", x)
            outputs.append(x)
        return self.concat(f"{name}concat", *outputs)

    def stdc_add(self, module: layers.STDCAddModule, name: str, x: View) -> View:
        shortcut, outputs = x, []
        if module.stride == 2:
            shortcut = self.depthwise(module.skip, f"{name}skip.", x)
            shortcut = self.norm(
                module.skip[3], f"{name}skip.3", self.conv(module.skip[2], f"{name}skip.2", shortcut)
            )
        for i, conv in enumerate(module.conv_list):
            x = self.conv_bn_relu(conv, f"{name}conv_list.{i}.", x)
            if i == 0 and module.stride == 2:
                x = self.depthwise(module.avd_layer, f"{name}avd_layer.", x)
            outputs.append(x)
        return self.add(f"{name}add", self.concat(f"{name}concat", *outputs), shortcut)

    def attention(self, module: layers.AttentionRefinement, name: str, x: View) -> View:
        x = self.conv_bn_relu(module.conv, f"{name}conv.", x)
        gate = self.conv(module.conv_atten, f"{name}conv_atten", self.mean(f"{name}mean", x))
        gate = self.norm(module.bn_atten, f"{name}bn_atten", gate, "sigmoid")
        return self.scale(f"{name}scale", x, gate)

    def fusion(self, module: layers.FeatureFusion, name: str, spatial: View, context: View) -> View:
        x = self.concat(f"{name}concat", spatial, context)
        x = self.conv_bn_relu(module.convblk, f"{name}convblk.", x)
        gate = self.conv(module.conv1, f"{name}conv1", self.mean(f"{name}mean", x), "relu")
        # x + x * gate = x * (1 + gate)
        gate = self.conv(module.conv2, f"{name}conv2", gate, "sigmoid+1")
        return self.scale(f"{name}scale", x, gate)

    def head(self, module: layers.SegHead, name: str, x: View) -> View:
        x = self.conv_bn_relu(module.conv, f"{name}conv.", x)
        return self.conv(module.conv_out, f"{name}conv_out", x, store="float32")

    def concat(self, name: str, *inputs: View) -> View:
        width = sum(v.channels for v in inputs)
        return self.emit(ops.Concat, name, width, self.stride(inputs[0]), inputs=inputs)

    def mean(self, name: str, x: View) -> View:
        return self.emit(ops.Mean, name, x.channels, 0, input=x)

    def scale(self, name: str, x: View, vector: View) -> View:
        return self.emit(ops.Scale, name, x.channels, self.stride(x), input=x, scale=vector)

    def add(self, name: str, x: View, other: View) -> View:
        return self.emit(ops.Add, name, x.channels, self.stride(x), input=x, other=other)

    def up(self, name: str, x: View) -> View:
        return self.emit(ops.Resize, name, x.channels, self.stride(x) // 2, input=x)

    def network(self, net: STDCSeg, frames: bool) -> Plan:
        image = x = self.buffer("image", 3, 1, "uint8" if frames else "float32")
        if frames:
            x = self.emit(ops.Normalise, "normalise", 3, 1, "float32", input=x, mean=net.mean, std=net.std)
        context, features = net.cp, []
        for i, layer in enumerate(context.backbone.features):
            if isinstance(layer, layers.ConvBNReLU):
                add = self.conv_bn_relu
            else:
                add = self.stdc if isinstance(layer, layers.STDCModule) else self.stdc_add
            x = add(layer, f"cp.backbone.features.{i}.", x)
            features.append(x)
        if context.backbone.uses_conv_last:
            features[-1] = self.conv_bn_relu(context.backbone.conv_last, "cp.backbone.conv_last.", x)
        ends = [1 + sum(context.backbone.stages[: n + 1]) for n in range(3)]
        feat8, feat16, feat32 = (features[i] for i in ends)
        average = self.conv_bn_relu(context.conv_avg, "cp.conv_avg.", self.mean("cp.mean", feat32))
        x = self.add("cp.add32", self.attention(context.arm32, "cp.arm32.", feat32), average)
        up16 = self.conv_bn_relu(context.conv_head32, "cp.conv_head32.", self.up("cp.up32", x))
        x = self.add("cp.add16", self.attention(context.arm16, "cp.arm16.", feat16), up16)
        up8 = self.conv_bn_relu(context.conv_head16, "cp.conv_head16.", self.up("cp.up16", x))
        logits = self.head(net.conv_out, "conv_out.", self.fusion(net.ffm, "ffm.", feat8, up8))
        labels = {"input": logits, "align_corners": net.align_corners}
        outputs = [self.emit(ops.Upsample, "upsample", 1, 1, "uint8", **labels)]
        if net.training_heads:
            for name, source in (("conv_out16", up8), ("conv_out32", up16), ("conv_out_sp8", feat8)):
                outputs.append(self.head(getattr(net, name), f"{name}.", source))
        return self.plan(f"STDC-Seg {net.variant}", [image.buffer], outputs)


# Kind of block, the convolution that reads its input, and what adds it to a plan.
_BLOCKS: tuple[tuple[type, Callable, Callable], ...] = (
    (layers.ConvBNReLU, lambda m: m.conv, _Builder.conv_bn_relu),
    (layers.STDCModule, lambda m: m.conv_list[0].conv, _Builder.stdc),
    (layers.STDCAddModule, lambda m: m.conv_list[0].conv, _Builder.stdc_add),
    (layers.AttentionRefinement, lambda m: m.conv.conv, _Builder.attention),
    (layers.FeatureFusion, lambda m: m.convblk.conv, _Builder.fusion),
    (layers.SegHead, lambda m: m.conv.conv, _Builder.head),
)
