"""Where the eager backend keeps what it computes: loose tensors, or the arena of a native backend."""

from __future__ import annotations

import torch
from torch import Tensor

from stdc_fast.plan.arena import Arena
from stdc_fast.plan.ops import View


class Pieces:
    """Each written view is a tensor of its own; a concatenation is made when somebody reads across pieces."""

    def __init__(self) -> None:
        self.buffers: dict[str, dict[View, Tensor]] = {}

    def write(self, view: View, x: Tensor) -> None:
        self.buffers.setdefault(view.buffer, {})[view] = x

    def read(self, view: View) -> Tensor:
        pieces = self.buffers[view.buffer]
        if view in pieces:
            return pieces[view]
        for known, x in pieces.items():
            if view.mask & ~known.mask == 0:
                start = view.offset - known.offset
                return x[:, start : start + view.channels]
        parts = sorted((v for v in pieces if v.mask & view.mask), key=lambda v: v.offset)
        whole = View(view.buffer, parts[0].offset, sum(v.channels for v in parts))
        joined = torch.cat([pieces[v] for v in parts], 1)
        # From here on the pieces are part of it: their memory is given back.
        self.buffers[view.buffer] = {v: x for v, x in pieces.items() if v not in parts} | {whole: joined}
        return self.read(view)

    def free(self, buffer: str) -> None:
        self.buffers.pop(buffer, None)


class Poisoned:
    """One arena, as :mod:`stdc_fast.plan.arena` lays it out, in which everything dead is NaN.

    All is NaN at first, and a buffer again after its last reader: an op that reads what is dead, or a
    layout in which two live buffers overlap, shows in the result.
    """

    def __init__(self, arena: Arena, dtypes: dict[str, torch.dtype], device: torch.device):
        self.arena = arena
        self.bytes = torch.full((arena.size,), 0xFF, dtype=torch.uint8, device=device)
        self.dtypes = dtypes
        self.outside = Pieces()  # inputs and outputs are the caller's

    def read(self, view: View) -> Tensor:
        if view.buffer not in self.arena.spans:
            return self.outside.read(view)
        return self._nchw(view.buffer)[:, view.offset : view.offset + view.channels]

    def write(self, view: View, x: Tensor) -> None:
        if view.buffer not in self.arena.spans:
            self.outside.write(view, x)
            return
        self._nchw(view.buffer)[:, view.offset : view.offset + view.channels].copy_(x)

    def free(self, buffer: str) -> None:
        if buffer in self.arena.spans:
            self._bytes(buffer).fill_(0xFF)

    def _bytes(self, buffer: str) -> Tensor:
        span = self.arena.spans[buffer]
        return self.bytes[span.start : span.stop]

    def _nchw(self, buffer: str) -> Tensor:
        shape = self.arena.shapes[buffer]
        dtype = self.dtypes[buffer]
        used = self._bytes(buffer)[: shape.numel() * dtype.itemsize]
        return used.view(dtype).view(shape).permute(0, 3, 1, 2)
