"""The CPU engine on levels of 8 bits, against the eager backend, whose sums of whole numbers are exact."""

import functools

import pytest
import torch
from cases import CONVS, DOWNS, PROLOGUES, SUBPIXEL
from engines.cpu import CPUS, ISAS, in_both_dtypes, needs_native
from oracle import FULL, LOW, given, street, trained_plan
from plans import error
from sketch import pair, plain, sketched, small_network

from stdc_fast import _native
from stdc_fast.backends import cpu, eager
from stdc_fast.backends.cpu import levels
from stdc_fast.backends.eager.rounding import Rounding
from stdc_fast.numerics import tolerance
from stdc_fast.plan.ops import LEVELS, View
from stdc_fast.plan.quantise import Range, candidates, quantise
from stdc_fast.precision import FLOAT32, INT8, INT8_FLOAT32

pytestmark = needs_native

SHAPES = ((1, 1, 1), (3, 3, 5), (1, 8, 6), (2, 9, 34), (1, 41, 67))


class Seen:
    """Rounds nothing; keeps the range of each map, by channel."""

    tiles = frozenset()

    def __init__(self, plan):
        self.plan, self.ranges = plan, {}

    def tensor(self, key, x, offset=0):
        buffer = self.plan.buffers.get(key)
        count = buffer.channels if buffer else x.shape[1]
        low, high, mean = self.ranges.setdefault(key, torch.zeros(3, count, dtype=torch.float64))
        part = slice(offset, offset + x.shape[1])
        flat = x.transpose(0, 1).flatten(1).double()
        low[part] = torch.minimum(low[part], flat.amin(1))
        high[part] = torch.maximum(high[part], flat.amax(1))
        mean[part] += flat.mean(1)
        return x

    def weight(self, op, name, weight):
        return weight


def seen(plan, inputs):
    """Ranges of everything that a plan keeps, over some inputs."""
    looks = Seen(plan)
    run = eager.compile(plan, FLOAT32, rounding=looks)
    for x in inputs:
        run(*x)
    return {key: Range(low, high, mean / len(inputs)) for key, (low, high, mean) in looks.ranges.items()}


@functools.cache
def case(make, names=None):
    """(The plan on levels, the plan, inputs of each shape)."""
    plan = make()
    inputs = [given(plan, FULL, *shape, seed=i) for i, shape in enumerate(SHAPES)]
    # Channels of the input that its ranges are of, too.
    ranges = seen(plan, inputs)
    for i, name in enumerate(plan.inputs):
        if plan.buffers[name].store == "act":
            flat = torch.cat([x[i].transpose(0, 1).flatten(1) for x in inputs], 1).double()
            ranges[name] = Range(flat.amin(1), flat.amax(1), flat.mean(1))
    return quantise(plan, ranges, candidates(plan) if names is None else names), plan, inputs


@sketched(8)
def levels_between(s, x):
    """Convolutions that write nothing but levels: direct, and into parts of one buffer."""
    both = s.buffer(40, 1)
    s.conv(x, View(both.buffer, 0, 24), 3)
    s.conv(View(both.buffer, 0, 24), View(both.buffer, 24, 16), 3)
    return s.conv(both, 36, 1, act="none")


@sketched(8)
def levels_of_a_stage(s, x):
    """The outputs of a `down`, of which one may be negative."""
    both = s.buffer(48, 2)
    y = s.buffer(24, 2)
    s.down(x, y, View(both.buffer, 0, 24))
    s.conv(y, View(both.buffer, 24, 24), 3)
    return s.conv(both, 20, 1)


@sketched(64)
def tiles_to_levels(s, x):
    """Winograd's tiles that write levels; the first one stays as it is."""
    return s.conv(s.conv(x, 64, 3), 20, 1)


@sketched(3, store="uint8")
def stem_to_levels(s, x):
    return s.conv(s.stem(x, 32, (123.675, 116.28, 103.53)), 64, 3, 2)


MORE = {
    "levels between": levels_between,
    "levels of a stage": levels_of_a_stage,
    "stem to levels": stem_to_levels,
    "128 to 70, 3x3": plain(128, 70, 3, 1),
    "64 and 128 to 40": pair(64, 128, 40, 1, 1),
}
ALL = {name: make for table in (CONVS, DOWNS, SUBPIXEL, PROLOGUES, MORE) for name, make in table.items()}
FIT = {name: make for name, make in ALL.items() if candidates(make())}


def test_every_kind_of_op_is_among_the_cases():
    ops = [op for make in FIT.values() for op in case(make)[0].ops if getattr(op, "multipliers", None)]
    stores = {buffer.store for make in FIT.values() for buffer in case(make)[0].buffers.values()}
    assert {(op.kind, getattr(op, "kernel", 1), getattr(op, "stride", 1)) for op in ops} >= {
        ("conv", 1, 1), ("conv", 1, 2), ("conv", 3, 1), ("conv", 3, 2), ("conv", 2, 1), ("down", 1, 1),
    }  # fmt: skip
    assert stores >= set(LEVELS) and len(FIT) > 20


def exact(plan, dtype, tiles=()):
    return eager.compile(plan, FLOAT32, rounding=None if dtype == FULL else Rounding(dtype, tiles))


@pytest.mark.parametrize("engine", CPUS, ids=str)
@pytest.mark.parametrize("name", FIT)
@in_both_dtypes
def test_sums_are_exact(engine, name, dtype):
    plan, floats, inputs = case(FIT[name])
    executable = engine.compile(plan, dtype)
    several = sum(bool(getattr(op, "multipliers", None)) for op in plan.ops) > 1 or any(
        getattr(op, "levels", None) for op in plan.ops if op.kind != "quantise"
    )
    for x in inputs:
        x = [part if part.dtype == torch.uint8 else part.to(dtype) for part in x]
        wide = [part if part.dtype == torch.uint8 else part.float() for part in x]
        got, want = executable(*x), exact(plan, dtype, engine.transformed(executable))(*wide)
        limit = tolerance(dtype).op
        if several:  # a level beside a tie may be another one
            limit = max(limit, error(want, exact(floats, FULL)(*wide)) / 10)
        assert error(got, want) <= limit, (list(x[0].shape), error(got, want), limit)


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
