"""What the tests of plans share: random networks in which no error can hide, and ways to look inside."""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from stdc_fast import images
from stdc_fast.backends import eager
from stdc_fast.backends.eager.memory import Pieces
from stdc_fast.plan import Plan
from stdc_fast.plan.ops import Buffer, Mean, View
from stdc_fast.reference import STDCSeg

VARIANTS = ("stdc1", "stdc2")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small float64 products gain nothing from more, and wait for all of them where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected|| over the whole tensor in float64; NaN if either has one."""
    assert got.shape == expected.shape, f"{list(got.shape)} instead of {list(expected.shape)}"
    got, expected = got.double(), expected.double()
    return ((got - expected).norm() / expected.norm()).item()


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    """Raw uint8 frames ``[N, H, W, 3]``: noise of every frequency, down to one grey level an image."""
    n, height, width = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.zeros(n, 3, height, width)
        for cells in (1, 3, 8):
            coarse = torch.randn(n, 3, cells, cells)
            x += nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        x = 128 + 50 * x + 40 * torch.randn(n, 3, height, width)
    return x.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def random_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same, normalised: ``[N, 3, H, W]``."""
    return images.normalise(random_frames(*shape, seed=seed), dtype)


def randomise_norms(module: nn.Module, *inputs: Tensor, seed: int = 0) -> nn.Module:
    """Random statistics, gains (of both signs) and offsets for all batch norms; to eval mode.

    The statistics are near those of ``inputs``, with which the module is run, so that what every norm returns
    is of order one however deep it stands.
    """
    generator = torch.Generator().manual_seed(seed)

    def set_statistics(norm: nn.BatchNorm2d, args) -> None:
        x = args[0].double()
        square = x.square().mean((0, 2, 3))
        variance = x.var((0, 2, 3), correction=0) + 0.1 * square + 1e-3
        normal = torch.randn(3, len(square), generator=generator, dtype=torch.float64)
        uniform = torch.rand(2, len(square), generator=generator, dtype=torch.float64)
        norm.running_mean.copy_(x.mean((0, 2, 3)) + 0.3 * variance.sqrt() * normal[0])
        norm.running_var.copy_(variance * (0.5 + uniform[0]))
        if norm.affine:
            norm.weight.copy_((0.5 + uniform[1]) * (normal[1] + 0.5).sign())
            norm.bias.copy_(0.4 * normal[2] + 0.2)

    module.eval()
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_pre_hook(set_statistics) for m in norms]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return module


@functools.lru_cache(maxsize=8)
def random_network(
    variant: str,
    module: str = "cat",
    count_include_pad: bool = True,
    training_heads: bool = False,
    classifier_bias: bool = False,
    classes: int = 11,
    seed: int = 0,
) -> STDCSeg:
    """A network in float64 and eval mode with random batch norms, whose logits vary from pixel to pixel and
    from class to class. Shared by all who ask for the same: change a copy.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = STDCSeg(variant, classes, module, count_include_pad, training_heads, classifier_bias)
        if classifier_bias:
            nn.init.normal_(net.conv_out.conv_out.bias)
    randomise_norms(_AllHeads(net), random_images(3, 96, 160, seed=seed), seed=seed)
    return net.double().requires_grad_(False)


class _AllHeads(nn.Module):
    """Runs the training heads too, in eval mode."""

    def __init__(self, net: STDCSeg):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        return outputs(self.net, x)


def outputs(net: STDCSeg, x: Tensor) -> list[Tensor]:
    """Logits at 1/8, then what the training heads say, if there are any, in the order of a plan's outputs."""
    feat8, context8, context16 = net.cp(x)
    found = [net.conv_out(net.ffm(feat8, context8))]
    if net.training_heads:
        found += [net.conv_out16(context8), net.conv_out32(context16), net.conv_out_sp8(feat8)]
    return found


def values_of(plan: Plan, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """In float64: every buffer's value by name, and the logits."""
    executable = eager.compile(plan, torch.float64)
    kept = Pieces()
    kept.free = lambda buffer: None
    executable._memory = lambda *_: kept
    logits = executable(*inputs)
    return {name: kept.read(plan.whole(name)) for name in kept.buffers}, logits


def check_changed(plan: Plan, before: Plan, values: dict[str, Tensor], size: tuple[int, int]) -> int:
    """Each op of ``plan`` that is not one of ``before``, run on the known values of what it reads, writes the
    known values to 1e-10; so the outputs are the same by induction over the ops. Returns how many they are.

    Args:
        values: of every buffer, as :func:`values_of` finds them.
        size: (H, W) of the input.
    """
    old, changed = set(before.ops), 0
    for op, execute, _ in eager.compile(plan, torch.float64)._steps:
        if op in old and all(plan.weights[name] is before.weights[name] for name in op.weights):
            continue
        memory = Pieces()
        for view in op.reads:
            memory.write(plan.whole(view.buffer), values[view.buffer])
        execute(memory, *size)
        for view in op.writes:
            known = values[view.buffer][:, view.offset : view.offset + view.channels]
            assert error(memory.read(view), known) <= 1e-10, f"{op.name}: {view}"
        changed += 1
    return changed


def seen(plan: Plan, views: Sequence[View]) -> Plan:
    """The plan with these as further outputs."""
    return plan.replace(outputs=(*plan.outputs, *views))


def spied(plan: Plan, views: Sequence[View]) -> Plan:
    """The plan with their averages as further outputs: another op reads them."""
    vectors = [Buffer(f"spy{i}", view.channels, 0, "float32") for i, view in enumerate(views)]
    spies = [
        Mean(name=buffer.name, input=view, output=View(buffer.name, 0, view.channels))
        for buffer, view in zip(vectors, views, strict=True)
    ]
    outputs = (*plan.outputs, *(op.output for op in spies))
    return plan.replace([*plan.ops, *spies], outputs=outputs, buffers={b.name: b for b in vectors})
