"""The CPU engine on levels of 8 bits, against the eager backend, whose sums of whole numbers are exact."""

import pytest
import torch
from engines.cpu import CPUS, ISAS, in_both_dtypes, needs_native
from levelled import FIT, both_signs, case, exact, levels_between, limit, seen, tiles_to_levels
from oracle import FULL, LOW, street, trained_plan
from plans import error
from sketch import plain, small_network

from stdc_fast import _native
from stdc_fast.backends import cpu
from stdc_fast.backends.cpu import levels
from stdc_fast.numerics import tolerance
from stdc_fast.plan.ops import LEVELS
from stdc_fast.plan.quantise import Range, candidates, quantise
from stdc_fast.precision import FLOAT32, INT8, INT8_FLOAT32

pytestmark = needs_native


def test_every_kind_of_op_is_among_the_cases():
    ops = [op for make in FIT.values() for op in case(make)[0].ops if getattr(op, "multipliers", None)]
    stores = {buffer.store for make in FIT.values() for buffer in case(make)[0].buffers.values()}
    assert {(op.kind, getattr(op, "kernel", 1), getattr(op, "stride", 1)) for op in ops} >= {
        ("conv", 1, 1), ("conv", 1, 2), ("conv", 3, 1), ("conv", 3, 2), ("conv", 2, 1), ("down", 1, 1),
    }  # fmt: skip
    assert stores >= set(LEVELS) and len(FIT) > 20


@pytest.mark.parametrize("engine", CPUS, ids=str)
@pytest.mark.parametrize("name", FIT)
@in_both_dtypes
def test_sums_are_exact(engine, name, dtype):
    plan, floats, inputs = case(FIT[name])
    executable = engine.compile(plan, dtype)
    for x in inputs:
        x = [part if part.dtype == torch.uint8 else part.to(dtype) for part in x]
        wide = [part if part.dtype == torch.uint8 else part.float() for part in x]
        got, want = executable(*x), exact(plan, dtype, engine.transformed(executable))(*wide)
        most = limit(plan, want, exact(floats, FULL)(*wide), dtype)
        assert error(got, want) <= most, (list(x[0].shape), error(got, want), most)


@pytest.mark.parametrize("engine", CPUS, ids=str)
def test_tiles_write_levels(engine):
    plan, _, inputs = case(tiles_to_levels, ("op 1",))
    for dtype in (FULL, LOW):
        executable = engine.compile(plan, dtype)
        for x in inputs:
            want = exact(plan, dtype, engine.transformed(executable))(*(part.to(dtype).float() for part in x))
            assert error(executable(*(part.to(dtype) for part in x)), want) < 1e-2


@pytest.mark.parametrize("engine", CPUS, ids=str)
@in_both_dtypes
def test_whole_networks(engine, dtype):
    """A trained network and one of random weights: no further from the network than the oracle is."""
    for plan, frames in ((trained_plan(), street((97, 129))), (small_network(), street((64, 96)))):
        whole = quantise(plan, seen(plan, [[frames], [street((160, 256))]]), candidates(plan))
        executable = engine.compile(whole, dtype)
        reference = exact(plan, FULL)(frames)
        want = error(exact(whole, dtype, engine.transformed(executable))(frames), reference)
        assert error(executable(frames), reference) <= tolerance("int8").emulation * want


@in_both_dtypes
def test_results_do_not_depend_on_threads(dtype):
    plan = trained_plan()
    frames = street((129, 159))
    whole = quantise(plan, seen(plan, [[frames]]), candidates(plan))
    before = torch.get_num_threads()
    for isa in ISAS[:1]:
        executable, found = cpu.compile(whole, dtype, isa=isa, poisoned=True), []
        for count in (1, 2, 5, 3, 1):
            torch.set_num_threads(count)
            found.append(executable(frames))
        torch.set_num_threads(before)
        assert all(torch.equal(x, found[0]) for x in found)


def test_what_is_beyond_the_range_is_clipped_and_nan_is_the_least():
    plan, _, inputs = case(FIT["64 to 150, 1x1 / 1"])
    (x,) = inputs[-1]
    far = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1, 1e30, x)
    for isa in ISAS:
        executable = cpu.compile(plan, FULL, isa=isa)
        assert error(executable(far), exact(plan, FULL)(far)) <= tolerance(FULL).op
        some = executable(torch.where(far > 1e29, float("nan"), x))
        least = executable(torch.where(far > 1e29, -1e30, x))
        assert torch.equal(some, least)


def test_the_model_of_costs_knows_what_processors_multiply():
    plan = trained_plan()
    direct = [
        n for n in candidates(plan) if n.endswith(("features.1.conv", "conv_list.0.conv", "convblk.conv"))
    ]
    chosen = {isa: levels(plan, INT8, isa=isa) for isa in ISAS}
    assert chosen["portable"] == []
    if "avx512_bf16" in chosen:
        assert set(direct) <= set(chosen["avx512_bf16"]) and "conv_out.conv.conv" not in chosen["avx512_bf16"]
        assert set(chosen["avx512_bf16"]) < set(levels(plan, INT8, small=True, isa="avx512_bf16"))
    if "avx512_vnni" in chosen:
        assert levels(plan, INT8_FLOAT32, isa="avx512_vnni") == candidates(plan)


def test_inputs_of_both_signs_stay_as_they_are():
    """An op has levels of one kind here."""
    plan = both_signs()
    several = {op.name for op in plan.ops if len(op.inputs) > 1}
    for isa in ISAS:
        assert not several & set(levels(plan, INT8_FLOAT32, small=True, isa=isa))
    assert several < set(candidates(plan))


def test_memory_of_levels():
    plan = trained_plan()
    ranges = seen(plan, [[street((96, 128))]])
    whole = cpu.compile(quantise(plan, ranges, candidates(plan)), FULL)
    small = cpu.compile(plan, FULL, small=True)
    assert whole.memory[0] < 0.4 * small.memory[0]


def test_sums_that_might_not_fit_into_32_bits(monkeypatch):
    monkeypatch.setattr("stdc_fast.plan.quantise.MOST", 10**9)
    for channels, fits in ((7308, True), (7312, False)):
        plan = plain(channels, 1, 3, 1)()
        ones = torch.ones(channels, dtype=torch.float64)
        ranges = {plan.inputs[0]: Range(-ones, ones, 0 * ones)}
        saved = cpu.program.serialise(quantise(plan, ranges, candidates(plan)), FLOAT32)
        if fits:
            _native.module().Engine(saved)
            continue
        with pytest.raises(RuntimeError, match="sums of more products than 32 bits hold"):
            _native.module().Engine(saved)


@pytest.mark.parametrize("wrong", [("stdc-plan 3", "stdc-plan 4"), ("stdc-plan 3", "stdc-plan 2")])
def test_plans_of_other_versions(wrong):
    saved = cpu.program.serialise(case(levels_between)[0], FLOAT32)
    _native.module().Engine(saved)
    with pytest.raises(RuntimeError, match="not a usable saved plan") as refused:
        _native.module().Engine(saved.replace(*(text.encode() for text in wrong)))
    assert "\n" not in str(refused.value)
