"""The native CPU engine, once for each instruction set of this machine."""

import pytest
from oracle import FULL, LOW

from engines.base import Engine
from stdc_fast import _native, backends
from stdc_fast.backends import cpu

WHY_NOT = cpu.BACKEND.why_not_here()
ISAS = ["none"] if WHY_NOT else _native.module().isas()


needs_native = pytest.mark.skipif(WHY_NOT is not None, reason=f"needs the native module: {WHY_NOT}")
in_both_dtypes = pytest.mark.parametrize("dtype", [FULL, LOW], ids=["float32", "bfloat16"])


class Cpu(Engine):
    backend = "cpu"
    dtypes, odd = (FULL, LOW), (FULL,)
    thrifty = planar = False
    # Tiny, odd, and wide enough for several bands of rows and tiles of pixels.
    few = many = ((1, 1, 1), (3, 1, 2), (1, 2, 1), (3, 3, 5), (1, 8, 6), (3, 9, 34), (1, 41, 67))
    photos = ((160, 256), (129, 159), (97, 33), (32, 32))
    frames = ((1, 71, 103), (2, 33, 40))

    def __init__(self, isa):
        self.isa, self.name = isa, f"cpu {isa}"
        self.second = isa != ISAS[0]

    def why_not(self):
        return WHY_NOT

    def compile(self, plan, dtype, poisoned=True):
        executable = cpu.compile(plan, dtype, isa=self.isa, poisoned=poisoned)
        assert executable.isa == self.isa
        return executable

    def transformed(self, executable):
        return frozenset(name for name, form in executable.forms.items() if form.startswith("F("))

    def force(self, monkeypatch):
        monkeypatch.setenv("STDC_FAST_CPU_ISA", self.isa)
        return counted(monkeypatch, cpu)

    def images(self, dtype):
        return dtype


def counted(monkeypatch, backend):
    """Plans that the backend, asked for by the environment, compiles."""
    monkeypatch.setenv(backends.ENVIRONMENT, backend.BACKEND.name)
    plans, compile = [], backend.compile

    def counting(plan, *arguments, **options):
        plans.append(plan)
        return compile(plan, *arguments, **options)

    monkeypatch.setattr(backend, "compile", counting)
    return plans


CPUS = [Cpu(isa) for isa in ISAS]
