"""The CUDA kernels on levels of 8 bits, in the emulator, against eager, whose sums are exact."""

import functools

import pytest
import torch
from engines import EMULATED
from hosted import CORES, Hosted, counters, forced
from levelled import FIT, agrees, both_signs, case, exact, levels_between, limit, seen, signs
from oracle import FULL, HALF, LOW, street
from plans import error
from sketch import plain, sketched, small_network

from stdc_fast import backends
from stdc_fast.backends import cuda, triton
from stdc_fast.backends.cuda.fragments import fragments, pack, pairs
from stdc_fast.backends.cuda.fusion import possible
from stdc_fast.backends.cuda.tiles import CompiledForms, CudaTiles
from stdc_fast.backends.gpu import preference
from stdc_fast.backends.gpu.model import DEVICES, Work
from stdc_fast.numerics import tolerance
from stdc_fast.plan.ops import View
from stdc_fast.plan.quantise import candidates, quantise
from stdc_fast.precision import INT8, INT8_FLOAT32

DTYPES = (HALF, LOW)


@pytest.mark.parametrize("name", FIT)
def test_sums_are_exact(name):
    agrees(EMULATED, FIT[name], (1, 2), DTYPES[list(FIT).index(name) % 2])


@pytest.mark.parametrize("name", [n for n in FIT if "sub-pixel" in n or "up" in n or "and" in n])
def test_tiles_that_touch_no_border(name):
    agrees(EMULATED, FIT[name], (2,), LOW, tiles=forced())


@functools.cache
def deep():
    return plain(200, 40, 3, 1)


@pytest.mark.parametrize("core", [c for c in CORES["conv"] if c[1] <= 64], ids=str)
def test_each_form(core):
    """In chunks that are less than all channels, the last of which is not whole."""
    agrees(EMULATED, deep(), (2,), HALF, tiles=forced(core, 4, 4, 64))


def test_blocks_that_share_a_tile():
    """They add up whole numbers; the counters are ready for the next image."""
    split = forced((64, 16), split=3)
    executable = agrees(EMULATED, both_signs, (2,), LOW, tiles=split)
    assert counters(executable) and not any(x.any() for x in counters(executable))
    one = EMULATED.compile(case(both_signs)[0], LOW, tiles=forced((64, 16)))
    (x,) = case(both_signs)[2][2]
    assert torch.equal(executable(x.to(LOW)), one(x.to(LOW)))


def test_inputs_of_both_signs():
    executable = agrees(EMULATED, both_signs, range(4), HALF)
    assert signs(executable.plan) == {"u8", "s8"}


def test_a_network():
    """No further from the network than the oracle is, with whatever else a kernel computes."""
    plan, frames = small_network(), street((64, 96))
    whole = quantise(plan, seen(plan, [[frames], [street((96, 160))]]), candidates(plan))
    reference = exact(plan, FULL)(frames)
    want = error(exact(whole, INT8.maps)(frames), reference)
    for fused in (False, possible):
        got = Hosted(whole, INT8, fused=fused)(frames)
        assert 0 < error(got, reference) <= tolerance("int8").emulation * want


@sketched(3, store="uint8")
def opening(s, x):
    """The first two convolutions in one kernel, which writes levels."""
    return s.conv(s.conv(s.stem(x, 32, (123.675, 116.28, 103.53)), 64, 3, 2), 20, 1)


def test_levels_out_of_a_kernel_of_several_ops():
    (last,) = candidates(opening())[1:]
    plan, floats, inputs = case(opening, (last,))
    executable = Hosted(plan, LOW, fused=possible)
    for frames in inputs[2:4]:
        want = exact(plan, LOW)(*frames)
        assert error(executable(*frames), want) <= limit(plan, want, exact(floats, FULL)(*frames), LOW)
        assert [launch.kind for launch in executable.last.launches] == ["stem + conv", "conv"]


def test_what_multiplies_levels_computes_nothing_else():
    plan = small_network()
    several = {(one.op, one.into) for one in possible(plan)}
    whole = case(small_network)[0]
    levelled = {op.name for op in whole.ops if getattr(op, "multipliers", None)}
    assert several and {(one.op, one.into) for one in possible(whole)} == {
        pair for pair in several if not levelled & {*pair}
    }


def test_what_is_beyond_the_range_is_clipped_and_nan_is_the_least():
    plan, _, inputs = case(FIT["64 to 150, 1x1 / 1"])
    (x,) = inputs[2]
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    executable = EMULATED.compile(plan, LOW)
    run = lambda value: executable(torch.where(chosen, value, x).to(LOW))  # noqa: E731
    far = torch.where(chosen, 1e30, x).to(LOW).float()
    assert error(run(1e30), exact(plan, LOW)(far)) <= tolerance(LOW).op
    assert torch.equal(run(float("nan")), run(-1e30))
    none = torch.where(chosen, float("nan"), x).to(LOW).float()
    assert error(run(float("nan")), exact(plan, LOW)(none)) <= tolerance(LOW).op


def test_weights_are_bytes_in_the_order_of_lanes():
    plan, floats, _ = case(plain(128, 70, 3, 1))
    here = torch.device("cpu")
    whole, halves = (pack(p, INT8, here)["op 0"].weight for p in (plan, floats))
    least = whole.numel() * whole.itemsize / (halves.numel() * halves.itemsize)
    assert 0.5 <= least < 0.65  # what follows the last step is as long
    weight = torch.arange(-128, 128, dtype=torch.int8).view(1, 32, 8)
    found = fragments(pairs(weight)).view(torch.int8).view(32, 2, 8)[:, 0]  # of the first eight outputs
    for lane in range(32):
        row, column = lane % 4 * 4, lane // 4
        rows = [*range(row, row + 4), *range(row + 16, row + 20)]
        assert found[lane].tolist() == weight[0, rows, column].tolist()


def test_what_the_kernels_multiply_in_8_bits(monkeypatch):
    plan = small_network()
    monkeypatch.setattr(cuda, "why_not_device", lambda capability: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    device = torch.device("cuda", 0)
    assert cuda.BACKEND.levels(plan, INT8, False) == candidates(plan)
    assert cuda.BACKEND.why_not(case(levels_between)[0], INT8, device) is None
    assert "not int8+float32" in cuda.BACKEND.why_not(plan, INT8_FLOAT32, device)


@sketched(8)
def odd_buffer(s, x):
    """Levels of which two pixels do not begin at whole pairs."""
    y = s.buffer(29, 1)
    s.conv(x, View(y.buffer, 0, 24), 1)
    s.conv(x, View(y.buffer, 24, 5), 1)
    return s.conv(View(y.buffer, 0, 24), 20, 3)


def test_levels_in_odd_buffers_stay_as_they_are(monkeypatch):
    """Kernels move them in pairs."""
    monkeypatch.setattr(cuda, "why_not_device", lambda capability: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    plan, device = odd_buffer(), torch.device("cuda", 0)
    *others, last = candidates(plan)
    assert cuda.BACKEND.levels(plan, INT8, False) == others
    assert cuda.BACKEND.why_not(case(odd_buffer, tuple(others))[0], INT8, device) is None
    reason = cuda.BACKEND.why_not(case(odd_buffer)[0], INT8, device)
    assert reason == f"{last} reads levels of an odd number of channels"


def test_levels_are_not_for_warp_groups():
    work = Work("conv", 3, 1, (128,), 128, 1, 32, 64, "int8")
    forms = CompiledForms(EMULATED.compile(case(deep())[0], LOW)._native)
    tiles = CudaTiles((64, 64), 8, 8, 64, 1, 1)
    assert forms.form(work, tiles) is None
    floats = Work("conv", 3, 1, (128,), 128, 1, 32, 64, "float16")
    assert forms.form(floats, tiles) is not None
    assert not any(t.wgmma for t in cuda.CudaModel(forms.native, DEVICES["sm_90"]).ranked(work))


def test_levels_with_what_their_kernels_lack_are_refused():
    plan = case(deep())[0]
    executable = EMULATED.compile(plan, LOW)
    (x,) = case(deep())[2][2]
    executable(x.to(LOW))
    launch = executable.last.launches[-1]
    native, made = executable._native, executable._native.ConvArgs(launch.arguments)
    made.prologue = 1
    with pytest.raises(RuntimeError, match="levels with a prologue, a gate or a classifier"):
        native.run([made], 0, True, -1)


def test_which_of_the_two_runs_int8_on_a_gpu(monkeypatch):
    """The one that is faster in 8 bits by the shipped table, as for other precisions."""
    for backend in (triton, cuda):
        monkeypatch.setattr(backend.BACKEND, "why_not_here", lambda: None)
        monkeypatch.setattr(backend.BACKEND, "why_not", lambda plan, precision, device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    times = preference.table()["predicted_us"]["sm_86"]["int8"]
    decision = backends.select(None, INT8, torch.device("cuda", 0))
    assert decision.name == min(times, key=times.get) and not decision.asked
    assert f"{decision.name} {times[decision.name]:.0f} us" in decision.choice
