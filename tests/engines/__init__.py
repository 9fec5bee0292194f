"""Where the tests of ops, networks and processes run: one object an engine, and how tests are listed.

A test that takes ``engine`` runs once an engine, which says what it computes in, how much a test can afford
there and what to look at after a run. Tests of what only one engine has are in the folder of its backend.
"""

import itertools

import pytest
from oracle import FULL, HALF, LOW

from engines.cpu import CPUS
from engines.emulated_cuda import EMULATED, EMULATED_WGMMA
from engines.gpu import GPU
from engines.triton import TRITON

ENGINES = [*CPUS, TRITON, EMULATED, EMULATED_WGMMA, GPU]
#: Those on which a frame takes no seconds.
QUICK = [engine for engine in ENGINES if not engine.thrifty]
#: Those that keep a graph, or what stands for one, of each request.
GRAPHED = [TRITON, EMULATED, GPU]


def _param(engine, *values, wide=False, name=""):
    marks = [*engine.marks, *([pytest.mark.wide] if wide else [])]
    return pytest.param(engine, *values, id=", ".join(filter(None, (engine.name, name))), marks=marks)


def on(engines=ENGINES):
    """Parametrises by ``engine``."""
    return pytest.mark.parametrize("engine", [_param(engine) for engine in engines], indirect=True)


def in_dtypes(engines=ENGINES, every=True, odd=False):
    """Parametrises by ``engine`` and ``dtype``: all of them, or on thrifty engines by default the last."""
    rows = []
    for engine in engines:
        for dtype in engine.odd if odd else engine.dtypes:
            rare = not every and engine.thrifty and dtype != engine.dtypes[-1]
            rows.append(_param(engine, dtype, wide=rare, name=str(dtype)))
    return pytest.mark.parametrize("engine, dtype", rows, indirect=["engine"])


def listed(names, rows, chosen, engines=ENGINES):
    """Parametrises by ``engine`` and names.

    Args:
        rows: of an engine -> values of the names.
        chosen: (engine, *values) -> whether it runs by default, for thrifty and second engines.
    """
    found = []
    for engine in engines:
        for row in rows(engine):
            rare = (engine.thrifty or engine.second) and not chosen(engine, *row)
            found.append(_param(engine, *row, wide=rare, name=", ".join(map(str, row))))
    return pytest.mark.parametrize(f"engine, {names}", found, indirect=["engine"])


def with_cases(cases, more=lambda case, engine, many: (), engines=ENGINES):
    """Parametrises by ``engine``, ``case``, ``dtype`` and ``shapes``.

    Engines come last, so that they share a case's answers.

    Args:
        cases: names; those that start with "odd" are of odd numbers of channels.
        more: (case, engine, many) -> shapes besides the engine's.
    """
    rows = []
    for (i, case), dtype in itertools.product(enumerate(cases), (FULL, HALF, LOW)):
        for engine in engines:
            dtypes = engine.odd if case.startswith("odd") else engine.dtypes
            if dtype not in dtypes:
                continue
            few, many = (
                (*shapes, *more(case, engine, wide))
                for shapes, wide in ((engine.few, False), (engine.many, True))
            )
            name = f"{case}, {dtype}"
            # Forms of a convolution come in fours.
            if not engine.thrifty or dtype == dtypes[(i + i // 4) % len(dtypes)]:
                rows.append(_param(engine, case, dtype, few, name=name))
            if many != few:
                rows.append(_param(engine, case, dtype, many, wide=True, name=f"{name}, all sizes"))
    return pytest.mark.parametrize("engine, case, dtype, shapes", rows, indirect=["engine"])
