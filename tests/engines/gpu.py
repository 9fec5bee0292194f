"""The CUDA kernels on an NVIDIA GPU."""

import pytest
from oracle import HALF, LOW

from engines.base import Engine
from engines.cpu import counted
from stdc_fast.backends import cuda


class Gpu(Engine):
    name, backend = "gpu", "cuda"
    device = "cuda"
    dtypes = odd = (HALF, LOW)
    thrifty = False
    few = ((1, 1, 2), (3, 3, 5), (1, 17, 34))
    many = ((3, 1, 1), (2, 2, 1), (1, 8, 6), (3, 9, 34), (1, 17, 33), (2, 40, 65), (1, 66, 130))
    runs = 2  # launches, then the graph; counters are as they were
    marks = (pytest.mark.gpu,)

    def why_not(self):
        return cuda.BACKEND.why_not_here()

    def compile(self, plan, dtype, **how):
        return cuda.compile(plan, dtype, self.device, **{"poisoned": True} | how)

    def force(self, monkeypatch):
        return counted(monkeypatch, cuda)


GPU = Gpu()
