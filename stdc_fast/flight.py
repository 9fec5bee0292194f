"""Frames on their way to a GPU and back: copies of some run beside the network's work on others."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stdc_fast.errors import UserError

T, R = TypeVar("T"), TypeVar("R")

#: Frames on their way at once: while one is computed, the one before it comes back and the next one goes
#: there.
DEPTH = 2


def in_turn(
    items: Iterable[T], begin: Callable[[T], Callable[[], R]], depth: int
) -> Iterator[tuple[T, R | UserError]]:
    """``begin(item)()`` of each, in order, or the UserError of either.

    ``depth`` are begun before the first of them is waited for. Where the caller stops early, those
    that are on their way are waited for.
    """
    begun: collections.deque[tuple[T, Callable[[], R] | UserError]] = collections.deque()

    def first() -> tuple[T, R | UserError]:
        item, finish = begun.popleft()
        try:
            return item, finish if isinstance(finish, UserError) else finish()
        except UserError as error:
            return item, error

    try:
        for item in items:
            try:
                begun.append((item, begin(item)))
            except UserError as error:
                begun.append((item, error))
            if len(begun) == depth:
                yield first()
        while begun:
            yield first()
    finally:
        while begun:
            with contextlib.suppress(Exception):
                first()


class _Slot:
    """What one frame on its way needs: a stream, host memory that copies run beside, and when it is back."""

    def __init__(self, device: torch.device):
        self.stream, self.done = torch.cuda.Stream(device), torch.cuda.Event()
        self.busy = False
        self._memory: dict[Hashable, Tensor] = {}

    def host(self, name: Hashable, like: Tensor) -> Tensor:
        """Page-locked memory of that shape and dtype; the same one for as long as these stay."""
        found = self._memory.get(name)
        if found is None or found.shape != like.shape or found.dtype != like.dtype:
            found = self._memory[name] = _locked(like)
        return found


class Ring:
    """Slots that frames take in turns, so that memory does not grow with their number.

    Each frame has a stream for its copy there, its network and the copy back. Kernels of several frames that
    use the same memory are put in order by their executable.
    """

    def __init__(self, device: torch.device, depth: int = DEPTH):
        self.device, self.depth = device, depth
        self._slots = collections.deque(_Slot(device) for _ in range(depth))

    def start(
        self, frame: Tensor, compute: Callable[[Tensor], Sequence[Tensor | None]]
    ) -> Callable[[], list[np.ndarray | None]]:
        """Send a frame of the CPU, and ``compute`` of it on the device; the frame may be changed at once.

        Returns what waits for the results and gives them, in memory of their own. It is to be called once,
        and before as many more frames as there are slots are started.
        """
        slot = self._slots[0]
        if slot.busy:
            raise RuntimeError(f"{self.depth} frames are on their way; ask for the first one's labels")
        sent = slot.host("frame", frame)
        sent.copy_(frame)
        slot.stream.wait_stream(torch.cuda.current_stream(self.device))  # where weights may just be packed
        with torch.cuda.stream(slot.stream):
            results = compute(_sent(sent, self.device))
            back = [x if x is None else slot.host(i, x) for i, x in enumerate(results)]
            for host, x in zip(back, results, strict=True):
                if x is not None:
                    _fetch(host, x)
            slot.done.record(slot.stream)
        slot.busy = True
        self._slots.rotate(-1)

        def finish() -> list[np.ndarray | None]:
            slot.done.synchronize()
            slot.busy = False
            return [x if x is None else x.numpy().copy() for x in back]

        return finish


def _locked(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)


def _sent(host: Tensor, device: torch.device) -> Tensor:
    return host.to(device, non_blocking=True)


def _fetch(host: Tensor, x: Tensor) -> None:
    host.copy_(x, non_blocking=True)
