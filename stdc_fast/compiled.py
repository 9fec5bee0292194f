"""What a :class:`stdc_fast.Segmenter` is to torch's compilers: one op, whatever they do around it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from stdc_fast import library
from stdc_fast.errors import UserError
from stdc_fast.freshness import replaced_methods, transformed, weights_of
from stdc_fast.module_ops import Live, constant, takes_part

_log = logging.getLogger(__name__)


class CompiledCalls(Live):
    """The methods behind the ops of compiled and exported models."""

    watched_part = "network"

    def _compiled_logits(self, x: Tensor) -> Tensor | None:
        """What a compiler gets: an op. None where it has to see torch's own operations."""
        if not takes_part(self, (x,)):
            return None
        if not torch.compiler.is_exporting():
            return torch.ops.stdc_fast.live_logits(x, list(weights_of(self)), self._number)
        settings = _exported_settings(self)
        if settings is None:
            return None
        maps, sums = self.precision.maps, self.precision.sums
        return torch.ops.stdc_fast.stdc_seg(x.to(sums), list(weights_of(self)), *settings, maps)

    def _compiled_labels(
        self, frames: Tensor, scale: float | None, size: str | tuple[int, int] | None
    ) -> Tensor:
        """What a compiler gets in place of ``label``."""
        native = isinstance(size, str)
        how = scale, None if native else size, native
        return torch.ops.stdc_fast.live_labels(
            check_frames(frames), list(weights_of(self)), self._number, *how
        )

    def live_logits(self, x: Tensor) -> Tensor:
        """What a compiled program calls: logits ``[N, C, ceil(H/8), ceil(W/8)]`` of normalised images."""
        return library.as_format(self._runs(x).logits(x, tuple(x.shape[2:])), torch.channels_last)

    def fake_live_logits(self, x: Tensor) -> Tensor:
        """Like :meth:`live_logits` without numbers."""
        height, width = ((n + 7) // 8 for n in x.shape[2:])
        shape = (x.shape[0], self.num_classes, height, width)
        return torch.empty(
            shape, dtype=self.precision.sums, device=x.device, memory_format=torch.channels_last
        )

    def live_labels(
        self, frames: Tensor, scale: float | None, size: list[int] | None, native: bool
    ) -> Tensor:
        """What a compiled program calls: :meth:`label`."""
        labels = self.label(frames, scale=scale, size="native" if native else size)
        return labels.clone() if labels.device == frames.device else labels.to(frames.device)

    def fake_live_labels(self, frames: Tensor, *how) -> Tensor:
        """Like :meth:`live_labels` without numbers."""
        return torch.empty(frames.shape[:3], dtype=torch.uint8, device=frames.device)


@constant
def _exported_settings(model: CompiledCalls) -> tuple | None:
    """None too where somebody's own functions are in the network: an exported op would leave them out."""
    modules = list(model.network.modules())[1:]
    own = any(m._forward_hooks or m._forward_pre_hooks or replaced_methods(m) for m in modules)
    if model.precision.levels:
        dtype = str(model.precision.maps).removeprefix("torch.")
        _log.warning("%s: is exported in %s, as exported programs have no ranges for int8", model.name, dtype)
    return None if own else library.settings_of(model.network)


def check_frames(frames: object) -> Tensor:
    """The frames; UserError for what is no uint8 tensor ``[N, H, W, 3]``, and under a transform of torch."""
    if not torch.compiler.is_compiling() and transformed():
        raise UserError(
            "label() takes a batch as it is; call it without torch.vmap, or vmap the model itself"
        )
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8 or frames.shape[3:] != (3,):
        got = f"{frames.dtype} {list(frames.shape)}" if hasattr(frames, "dtype") else type(frames).__name__
        raise UserError(f"expected uint8 frames [N, H, W, 3], got {got}")
    return frames
