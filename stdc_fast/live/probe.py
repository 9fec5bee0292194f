"""Whether a fast part computes what the caller's own does: on small images, in float64 first."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stdc_fast.errors import UserError
from stdc_fast.freshness import Replacement
from stdc_fast.numerics import relative_error, tolerance

#: Heights and widths of the built-in probes, with their batch and the standard deviation of their values. The
#: second is odd at every scale. Values of the third pass the limits that clipping activations have.
PROBES = ((2, 64, 64, 1.0), (1, 49, 83, 1.0), (1, 32, 64, 40.0))

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
          "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")  # fmt: skip


def images(given: Tensor | None, device: torch.device) -> list[Tensor]:
    """The probes in float64: the caller's alone, or noise."""
    if given is not None:
        if (
            not isinstance(given, Tensor)
            or given.ndim != 4
            or given.shape[1] != 3
            or not given.is_floating_point()
        ):
            got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise UserError(f"probe must be a normalised float tensor [N, 3, H, W], not {got}")
        if not bool(given.isfinite().all()):
            raise UserError("probe holds NaN or infinite values; give an image")
        return [given.detach().to(device, torch.float64)]
    generator = torch.Generator().manual_seed(813)
    made = []
    for n, height, width, deviation in PROBES:
        noise = torch.randn((n, 3, height, width), generator=generator, dtype=torch.float64)
        # Each image and channel has a brightness and a contrast of its own.
        offset, gain = (torch.randn((n, 3, 1, 1), generator=generator, dtype=torch.float64) for _ in range(2))
        made.append((deviation * (noise * (1 + 0.3 * gain) + 0.5 * offset)).to(device))
    return made


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small float64 products gain nothing from more, and wait for all of them where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def copy_of(model: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, without hooks and replaced methods. UserError where it has none."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # whatever a class of somebody else's does
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{type(model).__name__} can not be copied, so nothing can be compared with it: {reason}"
        ) from None
    for m in twin.modules():
        for name in _HOOKS:
            if name in m.__dict__:
                m.__dict__[name].clear()
        unpatch(m)
    return twin.eval().requires_grad_(False).double()


def unpatch(module: nn.Module) -> bool:
    """Take the replacements of this module's methods away; whether there were any."""
    found = [k for k, v in vars(module).items() if isinstance(v, Replacement)]
    for name in found:
        del module.__dict__[name]
    return bool(found)


def difference(name: str, got: object, expected: object, limit: float) -> tuple[float, str]:
    """(relative error, "" or what is wrong in one line) of an output of this name."""
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        shape = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
        return float("inf"), f"{name} is {shape}, the model's own {list(expected.shape)}"
    error = relative_error(got, expected)
    if error <= limit:
        return error, ""
    most = (got.double() - expected.double()).abs().max().item()
    return error, f"{name} differs from the model's own by {most:.1e} at most (relative error {error:.1e})"


def limit_of(dtype: torch.dtype, own_error: float) -> float:
    """Relative error that a dtype allows: that of trained networks, or twice the model's own."""
    allowed = tolerance(dtype).logits
    return max(allowed, 2 * own_error) if own_error == own_error else allowed


@contextlib.contextmanager
def recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[tuple[tuple, dict, object]]]]:
    """Arguments and outputs of these submodules while the context lasts."""
    calls: dict[str, list] = {name: [] for name in names}
    handles = []
    for name in names:

        def note(module, args, kwargs, output, name=name):
            calls[name].append((args, kwargs, output))

        handles.append(model.get_submodule(name).register_forward_hook(note, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
