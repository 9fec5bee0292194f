"""Triton's kernels on levels of 8 bits, against the eager backend, whose sums of whole numbers are exact."""

import dataclasses

import pytest
import torch
from engines import TRITON
from levelled import FIT, agrees, both_signs, case, exact, levels_between, seen, signs
from oracle import FULL, HALF, LOW, street
from plans import error
from sketch import plain, small_network

from stdc_fast.backends import eager, triton
from stdc_fast.backends.triton.tiles import TritonTiles, interpreted
from stdc_fast.numerics import tolerance
from stdc_fast.plan.quantise import candidates, quantise
from stdc_fast.precision import INT8, INT8_FLOAT32

pytestmark = pytest.mark.skipif(TRITON.why_not() is not None, reason=f"needs Triton: {TRITON.why_not()}")
DTYPES = (FULL, HALF, LOW)


@pytest.mark.parametrize("name", FIT)
def test_sums_are_exact(name):
    agrees(TRITON, FIT[name], (1, 2), DTYPES[list(FIT).index(name) % 3])


def forced(**changes):
    """Small tiles, most of which touch no border; as many programs to one as a convolution allows."""

    def choose(work):
        if work.kind != "conv":
            return interpreted(work)
        t = TritonTiles(**{"height": 4, "width": 4, "channels": 32, "depth": 32, "stages": 1} | changes)
        alone = len(work.inputs) > 1 or work.kernel == 2
        return dataclasses.replace(t, split=1) if alone else t

    return choose


@pytest.mark.parametrize("split", [1, 4])
def test_programs_that_share_a_tile(split):
    agrees(TRITON, levels_between, (2,), FULL, tiles=forced(split=split))


@pytest.mark.parametrize("name", [n for n in FIT if "sub-pixel" in n or "up" in n or "and" in n])
def test_borders_of_maps_and_of_tiles(name):
    """Levels that are kept less 128 are zero outside of the map, and lack nothing there."""
    agrees(TRITON, FIT[name], (2,), FULL, tiles=forced(depth=64))


def test_inputs_of_both_signs():
    """One of which is kept less 128, and the other is not."""
    executable = agrees(TRITON, both_signs, range(4), LOW)
    assert signs(executable.plan) == {"u8", "s8"}


def test_a_network():
    """No further from the network than the oracle is."""
    plan, frames = small_network(), street((64, 96))
    whole = quantise(plan, seen(plan, [[frames], [street((96, 160))]]), candidates(plan))
    for precision in (INT8, INT8_FLOAT32):
        got = TRITON.compile(whole, precision)(TRITON.put(frames)).cpu()
        reference = exact(plan, FULL)(frames)
        want = error(exact(whole, precision.maps)(frames), reference)
        assert 0 < error(got, reference) <= tolerance("int8").emulation * want


def test_what_is_beyond_the_range_is_clipped_and_nan_is_the_least():
    plan, _, inputs = case(FIT["64 to 150, 1x1 / 1"])
    (x,) = inputs[2]
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    executable = TRITON.compile(plan, FULL)
    run = lambda value: executable(TRITON.put(torch.where(chosen, value, x))).cpu()  # noqa: E731
    far = torch.where(chosen, 1e30, x)
    assert error(run(1e30), exact(plan, FULL)(far)) <= tolerance(FULL).op
    assert torch.equal(run(float("nan")), run(-1e30))


def test_what_triton_multiplies_in_8_bits():
    plan = small_network()
    device = torch.device(TRITON.device)
    for precision in (INT8, INT8_FLOAT32):
        assert triton.BACKEND.levels(plan, precision, False) == candidates(plan)
        assert triton.BACKEND.why_not(case(levels_between)[0], precision, device) is None


def test_weights_are_bytes():
    plan, floats, _ = case(plain(128, 70, 3, 1))
    here = torch.device("cpu")
    whole, halves = (triton.packed(p, INT8, here)["op 0"].weight for p in (plan, floats))
    assert whole.numel() == halves.numel() and whole.dtype == torch.int8


def test_eager_is_what_is_compared_with():
    plan, floats, inputs = case(levels_between)
    (x,) = inputs[3]
    assert error(eager.compile(plan, FULL)(x), eager.compile(floats, FULL)(x)) > 1e-3
