"""The graph of a plan as a torch module: for torch.export, and for converters that start from there."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdc_fast.exporters.graph import emit
from stdc_fast.exporters.settings import Settings
from stdc_fast.plan.plan import Plan
from stdc_fast.reference.networks import upsample


class GraphModule(nn.Module):
    """A plan of :func:`stdc_fast.exporters.graph.plan_of` in float32, weights as buffers.

    ``forward`` maps what the settings say that is read to what they say that is given.
    """

    def __init__(self, plan: Plan, settings: Settings):
        super().__init__()
        tape = _Tape(self, settings)
        self._result = emit(plan, settings, tape)
        self._steps = tape.steps

    def forward(self, image: Tensor) -> Tensor:
        values = [image]
        for run, inputs in self._steps:
            values.append(run(*(values[i] for i in inputs)))
        return values[self._result]


class _Tape:
    """Writes down what the walk asks for. Values are places in the list of results; 0 is the input."""

    def __init__(self, module: nn.Module, settings: Settings):
        self.module, self.settings = module, settings
        self.steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []

    def step(self, run: Callable[..., Tensor], *inputs: int) -> int:
        self.steps.append((run, inputs))
        return len(self.steps)

    def constant(self, value: Tensor, name: str) -> Callable[[], Tensor]:
        key, module = name.replace(".", "_"), self.module
        module.register_buffer(key, value.to(torch.float32).contiguous())
        return lambda: getattr(module, key)

    def image(self) -> int:
        x = 0
        if self.settings.input == "nhwc":
            x = self.step(lambda v: v.permute(0, 3, 1, 2), x)
        return self.step(lambda v: v.to(torch.float32), x) if self.settings.raw else x

    def subtract(self, x: int, offset: tuple[float, ...], name: str) -> int:
        value = self.constant(torch.tensor(offset).view(1, -1, 1, 1), name)
        return self.step(lambda v: v - value(), x)

    def narrow(self, x: int) -> int:
        return x

    widen = narrow

    def convolve(
        self, x: int, name: str, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
    ) -> int:
        w = self.constant(weight, f"{name}.weight")
        b = self.constant(torch.zeros(len(weight)) if bias is None else bias, f"{name}.bias")
        return self.step(lambda v: F.conv2d(v, w(), b(), stride, padding, groups=groups), x)

    def activate(self, x: int, act: str, name: str) -> int:
        if act == "none":
            return x
        if act == "relu":
            return self.step(torch.relu, x)
        x = self.step(torch.sigmoid, x)
        return self.step(lambda v: v + 1, x) if act == "sigmoid+1" else x

    def concatenate(self, parts: list[int], name: str) -> int:
        return self.step(lambda *v: torch.cat(v, 1), *parts)

    def multiply(self, x: int, y: int, name: str) -> int:
        return self.step(torch.mul, x, y)

    def add(self, x: int, y: int, name: str) -> int:
        return self.step(torch.add, x, y)

    def pool(self, x: int, count_include_pad: bool, name: str) -> int:
        return self.step(lambda v: F.avg_pool2d(v, 3, 2, 1, count_include_pad=count_include_pad), x)

    def mean(self, x: int, name: str) -> int:
        return self.step(lambda v: v.mean((2, 3), keepdim=True), x)

    def shuffle(self, x: int, name: str) -> int:
        return self.step(lambda v: F.pixel_shuffle(v, 2), x)

    def crop(self, x: int, start: int, size: tuple[int, int], name: str) -> int:
        height, width = size
        return self.step(lambda v: v[:, :, start : start + height, start : start + width], x)

    def double(self, x: int, channels: int, size: tuple[int, int] | None, like: int | None, name: str) -> int:
        if size is None:
            # A crop to another map's size would be a condition on it, which torch.export refuses.
            return self.step(lambda v, to: F.interpolate(v, to.shape[2:], mode="nearest"), x, like)
        height, width = size

        def run(v: Tensor) -> Tensor:
            n, c, h, w = v.shape
            copies = v.unsqueeze(2).expand(n, c, 4, h, w).reshape(n, 4 * c, h, w)
            return F.pixel_shuffle(copies, 2)[:, :, :height, :width]

        return self.step(run, x)

    def resize(
        self, x: int, channels: int, size: tuple[int, int] | None, align_corners: bool, name: str
    ) -> int:
        if size is not None:
            return self.step(lambda v: upsample(v, size, align_corners), x)
        first = 1 if self.settings.input == "nhwc" else 2
        return self.step(lambda v, to: upsample(v, to.shape[first : first + 2], align_corners), x, 0)

    def labels(self, x: int) -> int:
        return self.step(lambda v: v.argmax(1).to(torch.uint8), x)
