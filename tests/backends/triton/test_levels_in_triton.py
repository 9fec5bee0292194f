"""Triton's kernels on levels of 8 bits, against the eager backend, whose sums of whole numbers are exact."""

import dataclasses

import pytest
import torch
from engines import TRITON
from levelled import FIT, case, exact, levels_between, limit, seen
from oracle import FULL, HALF, LOW, street
from plans import error
from sketch import pair, plain, small_network

from stdc_fast import backends
from stdc_fast.backends import cuda, eager, triton
from stdc_fast.backends.triton.tiles import TritonTiles, interpreted
from stdc_fast.numerics import tolerance
from stdc_fast.plan.quantise import candidates, quantise
from stdc_fast.precision import INT8, INT8_FLOAT32

pytestmark = pytest.mark.skipif(TRITON.why_not() is not None, reason=f"needs Triton: {TRITON.why_not()}")
DTYPES = (FULL, HALF, LOW)


def agrees(plan, floats, inputs, dtype, tiles=None):
    executable = TRITON.compile(plan, dtype, **({} if tiles is None else {"tiles": tiles}))
    for x in inputs:
        x = [part if part.dtype == torch.uint8 else part.to(dtype) for part in x]
        wide = [part if part.dtype == torch.uint8 else part.float() for part in x]
        got, want = executable(*map(TRITON.put, x)).cpu(), exact(plan, dtype)(*wide)
        most = limit(plan, want, exact(floats, FULL)(*wide), dtype, prologues=True)
        assert error(got, want) <= most, (list(x[0].shape), error(got, want), most)


@pytest.mark.parametrize("name", FIT)
def test_sums_are_exact(name):
    plan, floats, inputs = case(FIT[name])
    agrees(plan, floats, inputs[1:3], DTYPES[list(FIT).index(name) % 3])


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
    plan, floats, inputs = case(levels_between)
    agrees(plan, floats, [[x[:1, ..., :14] for x in inputs[3]]], FULL, forced(split=split))


@pytest.mark.parametrize("name", [n for n in FIT if "sub-pixel" in n or "up" in n or "and" in n])
def test_borders_of_maps_and_of_tiles(name):
    """Levels that are kept less 128 are zero outside of the map, and lack nothing there."""
    plan, floats, inputs = case(FIT[name])
    agrees(plan, floats, inputs[2:3], FULL, forced(depth=64))


def test_inputs_of_both_signs():
    """One of which is kept less 128, and the other is not."""
    plan, floats, inputs = case(pair(32, 64, 40, 3, 1))
    stores = {plan.buffers[view.buffer].store for op in plan.ops for view in op.reads}
    assert "s8" in stores
    agrees(plan, floats, inputs[:4], LOW)


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
    assert cuda.BACKEND.levels(plan, INT8, False) == []


def test_weights_are_bytes():
    plan, floats, _ = case(plain(128, 70, 3, 1))
    here = torch.device("cpu")
    whole, halves = (triton.packed(p, INT8, here)["op 0"].weight for p in (plan, floats))
    assert whole.numel() == halves.numel() and whole.dtype == torch.int8


def test_eager_is_what_is_compared_with():
    plan, floats, inputs = case(levels_between)
    (x,) = inputs[3]
    assert error(eager.compile(plan, FULL)(x), eager.compile(floats, FULL)(x)) > 1e-3


def test_triton_is_what_runs_int8_on_a_gpu(monkeypatch):
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    monkeypatch.setattr(triton, "_why_not_device", lambda device: None)
    monkeypatch.setattr(triton.BACKEND, "why_not_here", lambda: None)
    monkeypatch.setattr(cuda.BACKEND, "why_not_here", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    decision = backends.select(None, INT8, torch.device("cuda", 0))
    assert decision.name == "triton" and not decision.asked
