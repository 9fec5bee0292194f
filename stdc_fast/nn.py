"""Drop-in modules: the reference's blocks on the best backend, with their constructors and state-dict keys.

In eval mode, where no gradient is asked for, each runs a plan of its own block, packed for its device and
dtype. Wherever that would not be what the eager module does, it is the eager module: in training, with
inputs or parameters that require grad under ``torch.enable_grad``, with hooks on submodules, with submodules
that were exchanged or reconfigured. Changed weights are noticed, except those written through
``tensor.data``, which torch does not count: call ``module.repack()`` after that.

For the fast path freeze the parameters (``module.requires_grad_(False)``) or use ``torch.inference_mode()``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stdc_fast import backends, library
from stdc_fast.packing import Packed, asks_for_grad, weights_of
from stdc_fast.reference import layers

__all__ = ["AttentionRefinement", "ConvBNReLU", "FeatureFusion", "STDCModule", "SegHead"]


class _Fused(nn.Module):
    """What the drop-in modules share; the reference module follows it in the order of bases."""

    _op: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._packed = Packed(self)

    def _settings(self) -> tuple:
        """What the op's schema has between weights and eps."""
        return ()

    def repack(self) -> None:
        """Forget packed weights; needed only after writing to ``tensor.data``."""
        self._packed.clear()

    def forward(self, *inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # Exported programs stay plain, and so does what Inductor can fuse itself.
            if not self.training and not torch.compiler.is_exporting() and _opaque():
                op = getattr(torch.ops.stdc_fast, self._op)
                return op(*inputs, list(weights_of(self)), *self._settings(), self._eps())
            return super().forward(*inputs)
        state = None if self.training else self._packed.snapshot(self)
        dtype = None if state is None else _dtype(state, inputs)
        if dtype is None:
            return super().forward(*inputs)
        channels = tuple(x.shape[1] for x in inputs)
        executable = state.executables.get((dtype, channels))
        if executable is None:
            weights = [w for w, *_ in state.weights]
            executable = state.executables[dtype, channels] = library.compiled(
                self._op, weights, self._settings(), self._eps(), dtype, state.device, channels=channels
            )
        return library.run_block(executable, tuple(x.to(dtype) for x in inputs))

    def _eps(self) -> float:
        return next(m.eps for m in self.modules() if isinstance(m, nn.BatchNorm2d))


def _dtype(state, inputs: tuple[Tensor, ...]) -> torch.dtype | None:
    """What a block computes in, or None where the eager module must do it (or say what is wrong)."""
    plain = (
        all(type(x) is Tensor and x.ndim == 4 and x.numel() and x.is_floating_point() for x in inputs)
        and all(x.device == state.device for x in inputs)
        and state.device.type in ("cpu", "cuda")
        and not torch.jit.is_tracing()
        and not any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in inputs)
        and not asks_for_grad(inputs, state.parameters)
    )
    if not plain or not inputs:
        return None
    dtypes = {x.dtype for x in inputs}
    kind = state.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (*dtypes, state.dtype):
        return torch.get_autocast_dtype(kind)
    return state.dtype if dtypes == {state.dtype} else None


class ConvBNReLU(_Fused, layers.ConvBNReLU):
    __doc__ = layers.ConvBNReLU.__doc__
    _op = "conv_bn_relu"

    def _settings(self) -> tuple:
        return (self.conv.stride[0],)


class STDCModule(_Fused, layers.STDCModule):
    __doc__ = layers.STDCModule.__doc__
    _op = "stdc_module"

    def _settings(self) -> tuple:
        return (self.stride, self.skip.count_include_pad if self.stride == 2 else True)


class AttentionRefinement(_Fused, layers.AttentionRefinement):
    __doc__ = layers.AttentionRefinement.__doc__
    _op = "attention_refinement"


class FeatureFusion(_Fused, layers.FeatureFusion):
    __doc__ = layers.FeatureFusion.__doc__
    _op = "feature_fusion"


class SegHead(_Fused, layers.SegHead):
    __doc__ = layers.SegHead.__doc__
    _op = "seg_head"


@torch.compiler.assume_constant_result
def _opaque() -> bool:
    """Whether a compiled graph should call our ops: not if they are torch's own behind a wall."""
    return backends.choose().name != "eager"
