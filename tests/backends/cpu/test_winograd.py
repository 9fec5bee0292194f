"""Convolutions by Winograd's tiles: which ones, and how far they are from float64."""

import pytest
import torch
from cases import subpixel
from engines.cpu import CPUS, ISAS, needs_native
from oracle import FULL, LOW, given, street, trained_plan
from sketch import plain
from torch.nn import functional as F

import stdc_fast
from stdc_fast.backends import cpu, eager
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.backends.eager.winograd import SubpixelTiles, Tiles, matrices
from stdc_fast.errors import UserError
from stdc_fast.numerics import relative_error
from stdc_fast.plan.ops import Conv
from stdc_fast.plan.plan import Plan

#: Relative error of one convolution of random numbers in bfloat16: what a float64 emulation showed, 1.0e-2
#: and 6.7e-3, and a quarter to a third more.
RANDOM = {"F(4x4, 3x3)": 1.3e-2, "F(4x4, 2x2)": 0.9e-2}


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("taps", [2, 3])
def test_matrices_are_exact(taps):
    a, b, g = matrices(taps)
    x, w = random(taps + 3), random(taps)
    expected = F.conv1d(x[None, None], w[None, None])[0, 0]
    torch.testing.assert_close(a.T @ ((g @ w) * (b.T @ x)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 3), (9, 14)])
def test_the_emulation_without_rounding_is_a_convolution(size):
    x, w, bias = random(2, 6, *size), random(5, 6, 3, 3), random(5)
    tiles = Tiles(w, bias, "relu", torch.float64)
    torch.testing.assert_close(tiles(x, size), F.conv2d(x, w, bias, padding=1).relu(), rtol=1e-11, atol=1e-11)
    w = random(3, 3, 5, 6, 2, 2)
    for wanted in ((2 * size[0], 2 * size[1]), (2 * size[0] - 1, 2 * size[1] - 1)):
        tiles, direct = SubpixelTiles(w, bias, "none", *[torch.float64] * 2), eager.Subpixel(w, bias, "none")
        torch.testing.assert_close(tiles(x, wanted), direct(x, wanted), rtol=1e-11, atol=1e-11)


# The engine's.

of_engines = pytest.mark.parametrize("engine", CPUS, ids=str)


def forms(isa, dtype, small=False):
    plan = trained_plan()
    found = cpu.compile(plan, dtype, isa=isa, small=small).forms
    return {op.name: (found[op.name], op) for op in plan.ops if isinstance(op, Conv)}


@needs_native
def test_which_convolutions_are_by_tiles():
    """All that can be; with AMX, whose products cost less than the transforms, only the largest."""
    for isa in ISAS:
        for dtype in (FULL, LOW):
            for form, op in forms(isa, dtype).values():
                can = len(op.inputs) == 1 and (op.kernel, op.stride) in ((3, 1), (2, 1))
                few = isa.startswith("amx") and dtype == LOW
                if can and (not few or op.name == "conv_out.conv.conv"):
                    expected = {3: "F(4x4, 3x3)", 2: "F(4x4, 2x2)"}[op.kernel]
                else:
                    expected = "direct"
                assert form == expected, (isa, op.name)


@needs_native
def test_small_leaves_large_weights_as_they_are():
    plan = trained_plan()
    small, fast = (
        {plan.buffers[op.output.buffer].stride for form, op in found.values() if form != "direct"}
        for found in (forms("portable", LOW, small=True), forms("portable", LOW))
    )
    assert small == {stride for stride in fast if stride <= 8} < fast


@needs_native
@of_engines
@pytest.mark.parametrize("kernel", [3, 2])
@pytest.mark.parametrize("channels", [32, 96, 512])
def test_errors_at_random_weights(engine, kernel, channels):
    """Odd sizes, edges of tiles, and more tiles than are done at once."""
    plan = (subpixel(channels, 48) if kernel == 2 else plain(channels, 48, 3, 1))()
    executable, exact = engine.compile(plan, LOW), eager.compile(plan, torch.float64)
    form = list(executable.forms.values())[-1]
    for size in ((1, 1), (7, 13), (4, 64), (21, 70)):
        (x,) = given(plan, LOW, 1, *size)
        error = relative_error(executable(x), exact(x.double()))
        assert error < (3.5e-3 if form == "direct" else RANDOM[form]), (size, form)


@needs_native
@of_engines
@pytest.mark.parametrize("dtype", [FULL, LOW], ids=["float32", "bfloat16"])
def test_both_kinds_of_tasks(engine, dtype):
    """With one thread tasks transform their own input, with many the input is transformed before."""
    shape = (1, 37, 130)
    for plan in (plain(64, 40, 3, 1)(), subpixel(64, 40)()):
        before, found = torch.get_num_threads(), []
        for threads in (1, 16):
            torch.set_num_threads(threads)
            try:
                executable = engine.agrees(plan, dtype, [shape])
                found.append(executable(*given(plan, dtype, *shape)))
            finally:
                torch.set_num_threads(before)
        assert torch.equal(*found)


@needs_native
@pytest.mark.parametrize("small", [False, True])
def test_errors_at_trained_weights(small):
    """No more than half again that of rounding maps and weights, which is what direct products do."""
    plan, frames = trained_plan(), street((129, 159))
    exact = eager.compile(plan, torch.float64)(frames)
    rounded = relative_error(eager.compile(plan, FULL, rounding=Rounding(LOW))(frames), exact)
    for isa in ISAS:
        executable = cpu.compile(plan, LOW, isa=isa, small=small, poisoned=True)
        assert relative_error(executable(frames), exact) < 1.5 * rounded


@needs_native
def test_memory_is_chosen_at_load_and_after(monkeypatch):
    monkeypatch.delenv("STDC_FAST_CPU_ISA", raising=False)
    model = stdc_fast.load(device="cpu", dtype="bfloat16", backend="cpu", memory="small")
    assert model.memory == "small" and "small: large weights as they are" in model.reason
    frames, found = street((64, 96)), {}
    for memory in ("small", "fast", "small"):
        model.memory = memory
        model.label(frames)
        executable = model._runs(frames)
        found[memory] = executable.memory[0]
        assert len([made for made in model._watched.snapshot(model.network).made if made is not Plan]) == 1
    assert 2 * found["small"] < found["fast"]
    for load in (lambda: stdc_fast.load(memory="tiny"), lambda: setattr(model, "memory", "tiny")):
        with pytest.raises(UserError, match='memory must be "fast" or "small", not \'tiny\''):
            load()
    eager = stdc_fast.load(device="cpu", backend="eager", memory="small")
    assert "small" not in eager.reason
