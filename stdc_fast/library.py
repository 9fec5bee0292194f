"""``torch.ops.stdc_fast``: blocks, the network and its labels as torch operators.

One coarse op a block. Its weights are tensors in the order of the module's state dict, without
``num_batches_tracked``; it packs them once for the best backend, and again when torch's version counters say
that they changed. Those do not count what batch norm does to its statistics in training: pass clones after
that. Ops are for inference: they have no gradient, and NaN may come out as zero. They have fake kernels, so
``torch.compile`` and ``torch.export`` take them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stdc_fast import backends
from stdc_fast.freshness import Cache, Watched
from stdc_fast.plan import build, optimise
from stdc_fast.postprocess import resize_argmax
from stdc_fast.precision import precision_of
from stdc_fast.reference import layers
from stdc_fast.reference.networks import STDCSeg

SCHEMAS = {
    "conv_bn_relu": "(Tensor x, Tensor[] weights, int stride=1, float eps=1e-05) -> Tensor",
    "stdc_module": (
        "(Tensor x, Tensor[] weights, int stride=1, bool count_include_pad=True, float eps=1e-05) -> Tensor"
    ),
    "attention_refinement": "(Tensor x, Tensor[] weights, float eps=1e-05) -> Tensor",
    "feature_fusion": "(Tensor spatial, Tensor context, Tensor[] weights, float eps=1e-05) -> Tensor",
    "seg_head": "(Tensor x, Tensor[] weights, float eps=1e-05) -> Tensor",
    "stdc_seg": (
        "(Tensor image, Tensor[] weights, str variant, str module='cat', bool count_include_pad=True, "
        "float eps=1e-05, ScalarType? dtype=None) -> Tensor"
    ),
    "labels": "(Tensor logits, SymInt[] size) -> Tensor",
}


# The module that a list of weights belongs to, with its shapes but without its numbers.


def _conv_bn_relu(weights: Sequence[Tensor], stride: int = 1) -> nn.Module:
    out, width, kernel, _ = weights[0].shape
    return layers.ConvBNReLU(width, out, kernel, stride)


def _stdc_module(weights: Sequence[Tensor], stride: int = 1, count_include_pad: bool = True) -> nn.Module:
    half, width = weights[0].shape[:2]
    blocks = len(weights) // 5 - (stride == 2)
    return layers.STDCModule(width, 2 * half, blocks, stride, count_include_pad)


def _attention_refinement(weights: Sequence[Tensor]) -> nn.Module:
    return layers.AttentionRefinement(weights[0].shape[1], weights[0].shape[0])


def _feature_fusion(weights: Sequence[Tensor]) -> nn.Module:
    return layers.FeatureFusion(weights[0].shape[1], weights[0].shape[0])


def _seg_head(weights: Sequence[Tensor]) -> nn.Module:
    out, width = weights[0].shape[:2]
    return layers.SegHead(width, out, weights[5].shape[0], bias=len(weights) > 6)


def _stdc_seg(
    weights: Sequence[Tensor], variant: str, module: str = "cat", count_include_pad: bool = True
) -> nn.Module:
    bias = weights[-1].ndim == 1
    return STDCSeg(variant, len(weights[-1]), module, count_include_pad, classifier_bias=bias)


_SKELETONS: dict[str, Callable[..., nn.Module]] = {
    "conv_bn_relu": _conv_bn_relu,
    "stdc_module": _stdc_module,
    "attention_refinement": _attention_refinement,
    "feature_fusion": _feature_fusion,
    "seg_head": _seg_head,
    "stdc_seg": _stdc_seg,
}


def weight_names(module: nn.Module) -> list[str]:
    """Names of the tensors of ``weights``, in order."""
    return [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]


def settings_of(network: STDCSeg) -> tuple | None:
    """What the schema of ``stdc_seg`` has between weights and dtype; None where it has no words for it."""
    first = next(
        m for m in network.cp.backbone.features if isinstance(m, (layers.STDCModule, layers.STDCAddModule))
    )
    plain = isinstance(first, layers.STDCModule)
    pads = first.skip.count_include_pad if plain else True
    epsilons = {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
    biases = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    # NOTE: no network is made to compare with, as an exporter would write that down too.
    others = network.training_heads or network.cp.backbone.uses_conv_last or biases - {"conv_out.conv_out"}
    settings = (network.variant, "cat" if plain else "add", pads)
    return (*settings, *epsilons) if not others and len(epsilons) == 1 else None


def compiled(
    name: str,
    weights: Sequence[Tensor],
    settings: tuple,
    eps: float,
    dtype: torch.dtype,
    device: torch.device,
    *,
    channels: tuple[int, ...] | None = None,
    frames: bool = False,
):
    """The executable of an op's plan.

    Args:
        name: of the op, see :data:`SCHEMAS`.
        weights: of the module, in order.
        settings: what the op's schema has between weights and eps.
        eps: of all batch norms.
        dtype, device: what to run in and on; the backend is the best there, or STDC_FAST_BACKEND.
        channels: of each input of a block.
        frames: whether the network reads raw frames.

    Raises ValueError if the weights are not those of such a module.
    """
    try:
        with torch.device("meta"):
            module = _SKELETONS[name](weights, *settings)
        names = weight_names(module)
        state = dict(zip(names, weights, strict=True))
        for key, tensor in module.state_dict().items():
            if key in state and tensor.shape != state[key].shape:
                raise ValueError(f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}")
    except (ValueError, IndexError) as error:
        raise ValueError(f"stdc_fast::{name}: {len(weights)} weights do not fit: {error}") from None
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = eps
    plan = optimise(build(module, state, frames=frames, channels=channels))
    return backends.compile(plan, precision_of(dtype), device)


def run_watched(
    module: nn.Module,
    watched: Watched,
    inputs: tuple[Tensor, ...],
    make: Callable[[Any, torch.dtype, tuple[int, ...]], Any],
    layout: torch.memory_format | None = None,
) -> Tensor | None:
    """What a watched block's plan gives, or None where its own ``forward`` must do it (or say what is wrong).

    ``make(state, dtype, channels)`` packs the executable, or gives None where there is no plan.
    ``layout`` is of the output, by default the input's.
    """
    # Where a module has no op of its own, compiled programs have torch's own operations.
    if torch.compiler.is_compiling():
        return None
    state = watched.state(module, inputs)
    if state is None or any(x.ndim != 4 or not x.numel() for x in inputs):
        return None
    dtypes = {x.dtype for x in inputs}
    if len({(len(x), *x.shape[2:]) for x in inputs}) > 1 or not all(d.is_floating_point for d in dtypes):
        return None
    kind = state.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (*dtypes, state.dtype):
        dtype = torch.get_autocast_dtype(kind)
    elif dtypes == {state.dtype}:
        dtype = state.dtype
    else:
        return None
    key = (dtype, *(x.shape[1] for x in inputs))
    if key not in state.made:
        state.made[key] = make(state, dtype, key[1:])
    executable = state.made[key]
    return executable and run_block(executable, tuple(x.to(dtype) for x in inputs), layout)


def run_block(executable, inputs: tuple[Tensor, ...], layout: torch.memory_format | None = None) -> Tensor:
    """A block's output, in dtype and, unless told otherwise, memory format of its (first) input."""
    x = inputs[0]
    return as_format(executable(*inputs).to(x.dtype), layout or format_of(x))


def format_of(x: Tensor) -> torch.memory_format:
    """channels_last for what is that and nothing else, as torch's own convolutions have it."""
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


def as_format(y: Tensor, layout: torch.memory_format) -> Tensor:
    """``y`` in that memory format, with the very strides that a new tensor has."""
    fresh = torch.empty(y.shape, dtype=y.dtype, device="meta").to(memory_format=layout)
    return y if y.stride() == fresh.stride() else torch.empty_like(y, memory_format=layout).copy_(y)


_CACHE = Cache()
# Of what follows a block's weights: the dispatcher leaves out what is at its default.
_DEFAULTS = {"conv_bn_relu": (1, 1e-5), "stdc_module": (1, True, 1e-5)}


def _settings(name: str, given: tuple) -> tuple[tuple, float]:
    """(settings, eps) of a block's op."""
    defaults = _DEFAULTS.get(name, (1e-5,))
    *settings, eps = (*given, *defaults[len(given) :])
    return tuple(settings), eps


def _real_block(name: str, maps: int):
    def run(*arguments) -> Tensor:
        no_forward_mode()
        inputs, weights = arguments[:maps], arguments[maps]
        x = inputs[0]
        for other in (*inputs, *weights):
            if other.device != x.device:
                raise ValueError(f"stdc_fast::{name}: input on {x.device}, another tensor on {other.device}")
        if any(y.dtype != x.dtype or not y.is_floating_point() for y in inputs):
            dtypes = ", ".join(str(y.dtype) for y in inputs)
            raise ValueError(f"stdc_fast::{name}: inputs of {dtypes}; all must be of one float dtype")
        settings, eps = _settings(name, arguments[maps + 1 :])
        channels = tuple(y.shape[1] for y in inputs)
        executable = _CACHE.get(
            (name, settings, eps, x.dtype, channels),
            weights,
            lambda: compiled(name, weights, settings, eps, x.dtype, x.device, channels=channels),
        )
        return run_block(executable, inputs)

    return run


def _real_network(
    image, weights, variant, module="cat", count_include_pad=True, eps=1e-5, dtype=None
) -> Tensor:
    no_forward_mode()
    for weight in weights:
        if weight.device != image.device:
            raise ValueError(f"stdc_fast::stdc_seg: image on {image.device}, a weight on {weight.device}")
    frames = image.dtype == torch.uint8
    if not frames and not image.is_floating_point():
        given = f"{image.dtype} {list(image.shape)}"
        raise ValueError(f"stdc_fast::stdc_seg: expected uint8 frames or a float input, got {given}")
    if dtype is None:
        dtype = weights[0].dtype if frames else image.dtype
    settings = (variant, module, count_include_pad)
    executable = _CACHE.get(
        ("stdc_seg", settings, eps, dtype, frames),
        weights,
        lambda: compiled("stdc_seg", weights, settings, eps, dtype, image.device, frames=frames),
    )
    return as_format(executable(image), torch.channels_last)


def _real_labels(logits: Tensor, size: Sequence[int]) -> Tensor:
    return resize_argmax(logits, tuple(size))[0]


def fake_block(name: str, inputs: Sequence[Tensor], weights: Sequence[Tensor], settings: tuple) -> Tensor:
    """A block's output without numbers."""
    x = inputs[0]
    stride = settings[0] if settings else 1
    width = weights[0].shape[0]
    width = {"stdc_module": 2 * width, "seg_head": weights[-1].shape[0]}.get(name, width)
    height, columns = ((n + stride - 1) // stride for n in x.shape[2:])
    return torch.empty(
        (x.shape[0], width, height, columns), dtype=x.dtype, device=x.device, memory_format=format_of(x)
    )


def _fake_block(name: str, maps: int):
    def fake(*arguments) -> Tensor:
        settings, _ = _settings(name, arguments[maps + 1 :])
        return fake_block(name, arguments[:maps], arguments[maps], settings)

    return fake


def _fake_network(
    image, weights, variant, module="cat", count_include_pad=True, eps=1e-5, dtype=None
) -> Tensor:
    height, width = image.shape[1:3] if image.dtype == torch.uint8 else image.shape[2:]
    dtype = dtype or (weights[0].dtype if image.dtype == torch.uint8 else image.dtype)
    shape = (image.shape[0], weights[-1].shape[0], (height + 7) // 8, (width + 7) // 8)
    return torch.empty(
        shape, dtype=precision_of(dtype).sums, device=image.device, memory_format=torch.channels_last
    )


def _fake_labels(logits: Tensor, size) -> Tensor:
    return torch.empty((logits.shape[0], *size), dtype=torch.uint8, device=logits.device)


def refuse(ctx, *gradients):
    raise RuntimeError("ops of stdc_fast are for inference; train with the reference modules")


def no_forward_mode() -> None:
    """An op would silently drop tangents."""
    if torch.autograd.forward_ad._current_level >= 0:
        raise NotImplementedError("ops of stdc_fast have no forward-mode gradient; use the reference modules")


def _register() -> None:
    """Define every op, once. One Python implementation serves CPU and CUDA: backends choose by device."""
    for name, schema in SCHEMAS.items():
        qualified = f"stdc_fast::{name}"
        maps = 2 if name == "feature_fusion" else 1
        torch.library.define(qualified, schema)
        if name == "labels":
            real, fake = _real_labels, _fake_labels
        elif name == "stdc_seg":
            real, fake = _real_network, _fake_network
        else:
            real, fake = _real_block(name, maps), _fake_block(name, maps)
        torch.library.impl(qualified, ("CPU", "CUDA"), real)
        torch.library.register_fake(qualified, fake)
        torch.library.register_autograd(qualified, refuse)


_register()
