"""Triton's kernels: on a GPU if there is one, else in Triton's interpreter (conftest.py says which)."""

from oracle import FULL, HALF, LOW

from engines.base import Engine
from engines.cpu import counted
from stdc_fast.backends import triton


class Triton(Engine):
    name = backend = "triton"
    dtypes = odd = (FULL, HALF, LOW)
    device = "cpu" if triton.interpreted() else "cuda"

    def why_not(self):
        return triton.BACKEND.why_not_here()

    def compile(self, plan, dtype, **how):
        return triton.compile(plan, dtype, self.device, **{"poisoned": True} | how)

    def force(self, monkeypatch):
        return counted(monkeypatch, triton)

    def both(self, executable, image, **how):
        return of_one_run(executable, self.put(image), **how)


def of_one_run(executable, image, **how):
    """Logits and labels of one run, where a run of a network takes seconds."""
    labels = executable.labels(image, **how)
    lowered = list(executable._instances.values())[-1].lowered
    logits = lowered.buffers[executable._output.buffer]
    n, height, width, classes = logits.shape
    return logits.view(n, classes, height, width).clone().cpu(), labels.cpu()


TRITON = Triton()
