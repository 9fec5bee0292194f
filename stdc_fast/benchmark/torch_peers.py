"""What people run today with PyTorch alone: the network in eager and compiled forms."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stdc_fast.benchmark.runners import Missing, Runner
from stdc_fast.benchmark.workloads import FRAME, Workload
from stdc_fast.reference.layers import ConvBNReLU, SegHead
from stdc_fast.reference.networks import STDCSeg, upsample


class Deployed(nn.Module):
    """A network with normalisation, resizing and argmax in its graph, as a peer's users deploy it.

    Maps what a scope starts from to what it ends with; see :data:`stdc_fast.benchmark.workloads.SCOPES`.
    """

    def __init__(self, network: nn.Module, workload: Workload, scope: str, dtype: torch.dtype):
        super().__init__()
        self.network, self.scope, self.dtype = network, scope, dtype
        self.size, self.corners = workload.size, workload.align_corners
        for name, values in (("mean", workload.mean), ("std", workload.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def forward(self, x: Tensor) -> Tensor:
        if self.scope == "logits":
            return self.network.logits8(x)
        x = (x.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.resized(x).argmax(1).to(torch.uint8)

    def resized(self, x: Tensor) -> Tensor:
        """Normalised float32 ``[N, 3, H, W]`` at the frame's size to float32 logits ``[N, C, H, W]``."""
        if self.scope == "frame" and self.size != FRAME:
            x = upsample(x, self.size)
        logits = self.network.logits8(x.to(self.dtype)).float()
        logits = upsample(logits, self.size, self.corners)
        if self.scope == "frame" and self.size != FRAME:
            logits = upsample(logits, FRAME, self.corners)
        return logits


class PublishedHeads(nn.Module):
    """The network as its authors' evaluation runs it: with both auxiliary and four detail heads.

    The heads have random weights; nobody looks at what they give. The auxiliary logits are resized to the
    input's size, as there. 23.08 GMAC for STDC1 at 512x1024 with 19 classes, instead of 16.86.
    """

    def __init__(self, network: STDCSeg):
        super().__init__()
        self.network = network
        classes = network.num_classes
        self.aux8, self.aux16 = SegHead(128, 64, classes), SegHead(128, 64, classes)
        self.details = nn.ModuleList(SegHead(c, 64, 1) for c in (32, 64, 256, 512))

    def logits8(self, x: Tensor) -> Tensor:
        cp = self.network.cp
        seen = []
        hook = cp.backbone.register_forward_hook(lambda module, inputs, outputs: seen.extend(outputs))
        feat8, context8, context16 = cp(x)
        hook.remove()
        for head, features in ((self.aux8, context8), (self.aux16, context16)):
            upsample(head(features), x.shape[2:])
        for head, features in zip(self.details, seen[:4], strict=True):
            head(features)
        return self.network.conv_out(self.network.ffm(feat8, context8))


def folded(network: STDCSeg) -> STDCSeg:
    """A copy with each batch norm folded into the convolution before it, by torch's own function."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for first, second in itertools.pairwise(list(module._modules)):
            conv, norm = module._modules[first], module._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module._modules[first], module._modules[second] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network


class TorchPeer(Runner):
    """A form of the network that torch runs. Subclasses say which, and how it is compiled."""

    layout = torch.channels_last

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        super().__init__(workload, dtype, device, threads)
        network = self.form(workload.network()).eval().requires_grad_(False)
        self.network = network.to(self.device, self.torch_dtype, memory_format=self.layout)
        self.weights = sum(p.numel() * p.itemsize for p in self.network.parameters())

    def form(self, network: STDCSeg) -> nn.Module:
        return network

    def deployed(self, scope: str) -> Deployed:
        return Deployed(self.network, self.workload, scope, self.torch_dtype).to(self.device).eval()

    def compiled(self, module: Deployed, example: Tensor) -> Callable[[Tensor], Tensor]:
        return module

    def placed(self, scope: str) -> Tensor:
        x = super().placed(scope)
        return x.to(self.torch_dtype).contiguous(memory_format=self.layout) if scope == "logits" else x

    def prepare(self, scope: str) -> Callable[[], Tensor]:
        example = self.placed(scope).to(self.device)
        run = self.staged(scope, self.compiled(self.deployed(scope), example))

        def call() -> Tensor:
            with torch.inference_mode():
                return run()

        return call


class Published(TorchPeer):
    """As published: plain layout, every head computed."""

    layout = torch.contiguous_format

    def form(self, network: STDCSeg) -> nn.Module:
        return PublishedHeads(network)


class Eager(TorchPeer):
    """The reference network without the training heads, NCHW."""

    layout = torch.contiguous_format


class ChannelsLast(TorchPeer):
    """The same in channels_last."""


class Folded(TorchPeer):
    """The same with batch norm folded."""

    def form(self, network: STDCSeg) -> nn.Module:
        return folded(network)


class TorchScript(TorchPeer):
    """Traced, frozen and optimised for inference. Deprecated, but still a form that people run."""

    def compiled(self, module: Deployed, example: Tensor) -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, example)
            return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


class Compiled(Folded):
    """``torch.compile``: with frozen weights on a CPU, max-autotune with CUDA graphs on a GPU."""

    def compiled(self, module: Deployed, example: Tensor) -> Callable[[Tensor], Tensor]:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        mode = "max-autotune" if self.device.type == "cuda" else None
        compiled = torch.compile(module, mode=mode, dynamic=False)
        if mode is None:
            return compiled

        def run(x: Tensor) -> Tensor:
            # The output lies in the graph's own memory until the next call, as in a peer's hot loop.
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(x)

        return run


class CudnnGraph(Folded):
    """cuDNN's fused convolution + bias + ReLU where it is the faster, all in one CUDA graph."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int):
        if not torch.backends.cudnn.is_available():
            raise Missing("torch has no cuDNN")
        torch.backends.cudnn.benchmark = True
        super().__init__(workload, dtype, device, threads)

    def form(self, network: STDCSeg) -> nn.Module:
        network = super().form(network)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, ConvBNReLU):
                    setattr(module, name, _FusedConv(child.conv))
        return network

    def compiled(self, module: Deployed, example: Tensor) -> Callable[[Tensor], Tensor]:
        static = example.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):
                module(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            output = module(static)

        def run(x: Tensor) -> Tensor:
            if self.scope_copies:
                static.copy_(x)
            graph.replay()
            return output

        return run

    def prepare(self, scope: str) -> Callable[[], Tensor]:
        # Frames arrive from the host; the other scopes' input lies in the graph's memory already.
        self.scope_copies = scope == "frame"
        return super().prepare(scope)


class _FusedConv(nn.Module):
    """Convolution + bias + ReLU by cuDNN's fused kernel or by two: what is faster for its first input."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.fused: bool | None = None

    def _run(self, x: Tensor, fused: bool) -> Tensor:
        conv = self.conv
        if not fused:
            return F.relu(conv(x))
        return torch.cudnn_convolution_relu(
            x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is None:
            self.fused = self._time(x, True) < self._time(x, False)
        return self._run(x, self.fused)

    def _time(self, x: Tensor, fused: bool) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(3):
            self._run(x, fused)
        start.record()
        for _ in range(20):
            self._run(x, fused)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)
