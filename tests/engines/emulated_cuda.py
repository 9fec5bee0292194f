"""The CUDA kernels in the emulator, which watches for races and for what kernels may read and write."""

import functools

import torch
from hosted import Hosted, module, spared, warp_groups
from oracle import HALF, LOW

from engines.base import Engine
from engines.triton import of_one_run
from stdc_fast import backends
from stdc_fast.backends import cuda
from stdc_fast.backends.base import why_not_native


class EmulatedCuda(Engine):
    name, backend = "emulated_cuda", "cuda"
    dtypes = odd = (HALF, LOW)
    many = (*Engine.many, (2, 40, 51))
    frames = ((1, 63, 97), (2, 32, 45), (1, 32, 64), *Engine.frames)

    def why_not(self):
        module()  # skips the test where it does not compile

    def compile(self, plan, dtype, **how):
        return Hosted(plan, dtype, **how)

    def force(self, monkeypatch):
        plans = []

        def why_not(plan, precision, device):
            if precision.maps not in self.dtypes:
                return "another dtype"
            return None if plan is None else why_not_native(plan)

        def compile(plan, precision, device, small=False):
            plans.append(plan)
            return self.compile(plan, precision)

        instead = {
            "why_not_here": lambda: None,
            "why_not": why_not,
            "about": lambda: "emulated",
            "compile": compile,
        }
        for name, function in instead.items():
            monkeypatch.setattr(cuda.BACKEND, name, function)
        monkeypatch.setenv(backends.ENVIRONMENT, "cuda")
        return plans

    def inspect(self, executable, inputs):
        """What no op writes is as it was, and so are the copies of the inputs."""
        spared(executable)
        for name, old in zip(executable.plan.inputs, inputs, strict=True):
            copy = executable.last.buffers[name]
            assert torch.equal(copy, old if old.dtype == torch.uint8 else old.permute(0, 2, 3, 1).to(copy))

    def both(self, executable, image, **how):
        return of_one_run(executable, image, **how)


class EmulatedWgmma(EmulatedCuda):
    """With wgmma wherever there is a form of it."""

    name = "emulated_wgmma"

    def compile(self, plan, dtype, tiles=None, **how):
        return super().compile(plan, dtype, tiles=tiles or _warp_groups(), **how)


_warp_groups = functools.cache(warp_groups)  # the module is built at the first call
EMULATED, EMULATED_WGMMA = EmulatedCuda(), EmulatedWgmma()
