"""Times calls: by the host's clock on a CPU, by events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

#: Bytes that are written to empty the caches before a cold frame: above any last-level cache.
FLUSH = 256 << 20


class Clock:
    """The clock of one device, "cpu" or a CUDA device."""

    def __init__(self, device: str):
        self.gpu = device != "cpu"
        self._flush = None
        self._free = torch.cuda.mem_get_info()[0] if self.gpu else 0

    def flush(self) -> None:
        """Overwrite the caches."""
        if self._flush is None:
            # NumPy writes with one thread; torch's would go on spinning beside the runner's.
            self._flush = (
                torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
                if self.gpu
                else np.empty(FLUSH, np.uint8)
            )
        if self.gpu:
            self._flush.zero_()
            torch.cuda.synchronize()
        else:
            self._flush.fill(1)

    def time(self, call: Callable[[], object], host: bool) -> float:
        return self.times(call, 1, host)[0]

    def times(self, call: Callable[[], object], frames: int, host: bool) -> list[float]:
        """Seconds of each of ``frames`` calls, one after the other."""
        if self.gpu and not host:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(frames + 1)]
            events[0].record()
            for event in events[1:]:
                call()
                event.record()
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
        taken = []
        for _ in range(frames):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return taken

    def device_peak(self) -> int | None:
        """Bytes of the GPU's memory that this process took, torch or not: what is not free any more."""
        if not self.gpu:
            return None
        return max(self._free - torch.cuda.mem_get_info()[0] - FLUSH, torch.cuda.max_memory_allocated())
