"""Drop-in modules: the reference's blocks on the best backend, with their constructors and state-dict keys.

In eval mode, where no gradient is asked for, each runs a plan of its own block, packed for its device and
dtype. Wherever that would not be what the eager module does, it is the eager module: in training, with
inputs or parameters that require grad under ``torch.enable_grad``, with hooks on submodules, with submodules
that were exchanged or reconfigured, for inputs or weights that are not finite, and in compiled and exported
programs. Changed weights are noticed, except those written through ``tensor.data`` or NumPy, which torch
does not count: call ``module.repack()`` after that.

For the fast path freeze the parameters (``module.requires_grad_(False)``) or use ``torch.inference_mode()``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast import library
from stdc_fast.errors import UserError
from stdc_fast.freshness import Watched, weights_of
from stdc_fast.module_ops import Live, takes_part
from stdc_fast.reference import layers

__all__ = ["AttentionRefinement", "ConvBNReLU", "FeatureFusion", "STDCModule", "SegHead"]


class _Fused(Live):
    """What the drop-in modules share; the reference module follows it in the order of bases."""

    _op: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._watched = Watched(self)

    def _settings(self) -> tuple:
        """What the op's schema has between weights and eps."""
        return ()

    def repack(self) -> None:
        """Forget packed weights; needed only after writing to ``tensor.data``."""
        self._watched.clear()

    def _fused(self, *inputs: Tensor) -> Tensor | None:
        """What the block's plan gives, or None where the eager module must do it (or say what is wrong)."""
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting() or not takes_part(self, inputs):
                return None  # programs for elsewhere have torch's own operations
            return torch.ops.stdc_fast.live_block(inputs, list(weights_of(self)), self._number)
        return library.run_watched(self, self._watched, inputs, self._compiled)

    def live_block(self, inputs: list[Tensor]) -> Tensor:
        """What a compiled program calls."""
        y = self.forward(*inputs)
        return library.as_format(y, library.format_of(inputs[0]))

    def fake_live_block(self, inputs: list[Tensor]) -> Tensor:
        """Like :meth:`live_block` without numbers."""
        return library.fake_block(self._op, inputs, list(weights_of(self)), self._settings())

    def _compiled(self, state, dtype: torch.dtype, channels: tuple[int, ...]):
        """The executable, or None if there is no plan for this block or for so many channels."""
        eps = next(m.eps for m in self.modules() if hasattr(m, "eps"))
        try:
            return library.compiled(
                self._op, state.weights, self._settings(), eps, dtype, state.device, channels=channels
            )
        except UserError:
            raise  # of the backend that was asked for
        except ValueError:
            return None


class ConvBNReLU(_Fused, layers.ConvBNReLU):
    __doc__ = layers.ConvBNReLU.__doc__
    _op = "conv_bn_relu"

    def _settings(self) -> tuple:
        rows, columns = self.conv.stride
        if rows != columns:
            raise ValueError(f"there is no op for a stride of {self.conv.stride}")
        return (rows,)

    def forward(self, x: Tensor) -> Tensor:
        y = self._fused(x)
        return super().forward(x) if y is None else y


class STDCModule(_Fused, layers.STDCModule):
    __doc__ = layers.STDCModule.__doc__
    _op = "stdc_module"

    def _settings(self) -> tuple:
        return (self.stride, self.skip.count_include_pad if self.stride == 2 else True)

    def forward(self, x: Tensor) -> Tensor:
        y = self._fused(x)
        return super().forward(x) if y is None else y


class AttentionRefinement(_Fused, layers.AttentionRefinement):
    __doc__ = layers.AttentionRefinement.__doc__
    _op = "attention_refinement"

    def forward(self, x: Tensor) -> Tensor:
        y = self._fused(x)
        return super().forward(x) if y is None else y


class FeatureFusion(_Fused, layers.FeatureFusion):
    __doc__ = layers.FeatureFusion.__doc__
    _op = "feature_fusion"

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        y = self._fused(spatial, context)
        return super().forward(spatial, context) if y is None else y


class SegHead(_Fused, layers.SegHead):
    __doc__ = layers.SegHead.__doc__
    _op = "seg_head"

    def forward(self, x: Tensor) -> Tensor:
        y = self._fused(x)
        return super().forward(x) if y is None else y
