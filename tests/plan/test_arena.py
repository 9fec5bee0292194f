"""The arena: no live buffers overlap, it is small, and a run in it with all else NaN gives the same bits."""

import dataclasses
import functools
import itertools
import math
import random

import pytest
import torch
from plans import VARIANTS, error, one_thread, random_frames, random_images, random_network, seen, spied

from stdc_fast.backends import eager
from stdc_fast.backends.eager.memory import Pieces, Poisoned
from stdc_fast.plan import REWRITES, arena, build, optimise
from stdc_fast.plan.arena import Arena, layout
from stdc_fast.plan.ops import View
from stdc_fast.reference import AttentionRefinement, STDCModule

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Of the same numbers added up in another order.
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@functools.cache
def plan_of(variant, optimised):
    plan = build(random_network(variant))
    return optimise(plan) if optimised else plan


@functools.lru_cache(maxsize=1)
def alive(plan):
    """Per buffer the range of ops from the first that writes it to the last that uses it, found by buffer."""
    found = {}
    theirs = {*plan.inputs, *(v.buffer for v in plan.outputs)}
    for name in (n for n in plan.buffers if n not in theirs):
        writes = [i for i, op in enumerate(plan.ops) if any(v.buffer == name for v in op.writes)]
        reads = [i for i, op in enumerate(plan.ops) if any(v.buffer == name for v in op.reads)]
        found[name] = range(min(writes), max(reads + writes) + 1)
    return found


def check(plan, found, batch, height, width, itemsize, alignment):
    lives = alive(plan)
    assert set(found.spans) == set(found.shapes) == set(lives)
    sizes = {}
    for name, span in found.spans.items():
        buffer = plan.buffers[name]
        rows, columns = (math.ceil(n / buffer.stride) if buffer.stride else 1 for n in (height, width))
        assert found.shapes[name] == (batch, rows, columns, buffer.channels)
        per = itemsize if buffer.store == "act" else max(4, itemsize)
        sizes[name] = span.stop - span.start
        assert batch * rows * columns * buffer.channels * per <= sizes[name]
        assert span.start % alignment == span.stop % alignment == 0
        assert 0 <= span.start < span.stop <= found.size
    for a, b in pairs(lives):
        first, second = found.spans[a], found.spans[b]
        assert first.stop <= second.start or second.stop <= first.start, (a, b)
    live = max(sum(sizes[n] for n, life in lives.items() if i in life) for i in range(len(plan.ops)))
    assert found.live == live <= found.size
    return found.size / live, found.size / sum(sizes.values())


def pairs(lives):
    """Buffers that are alive at one time."""
    ordered = itertools.combinations(lives.items(), 2)
    return [(a, b) for (a, x), (b, y) in ordered if max(x.start, y.start) < min(x.stop, y.stop)]


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_layout(variant, optimised):
    """Sound at every size, the least that is possible at common ones, and a third of all buffers or less."""
    plan = plan_of(variant, optimised)
    for (height, width), batch in itertools.product(
        [(512, 1024), (720, 960), (64, 96), (1024, 2048)], (1, 3)
    ):
        for itemsize in (1, 2, 4, 8):
            found = layout(plan, batch, height, width, itemsize)
            size, share = check(plan, found, batch, height, width, itemsize, arena.ALIGNMENT)
            assert size == 1 and share < 0.3
    rng = random.Random(0)
    for _ in range(30):
        height, width = rng.randint(32, 200), rng.randint(32, 200)
        batch, itemsize, alignment = (
            rng.randint(1, 3),
            rng.choice((1, 2, 4, 8)),
            rng.choice((1, 64, 256, 4096)),
        )
        found = layout(plan, batch, height, width, itemsize, alignment)
        size, _ = check(plan, found, batch, height, width, itemsize, alignment)
        assert size <= 1.15, (height, width, itemsize, alignment)


@pytest.mark.parametrize("seed", range(12))
def test_layout_of_plans_in_between(seed):
    """After any sequence of rewrites, with any maps kept for the caller."""
    rng = random.Random(seed)
    plan = build(random_network(VARIANTS[seed % 2], ("cat", "add")[seed // 2 % 2]), frames=seed % 3 > 0)
    seen = rng.sample([v for op in plan.ops for v in op.writes], 3)
    plan = plan.replace(outputs=(*plan.outputs, *seen))
    for rewrite in rng.choices(REWRITES, k=rng.randint(0, 8)):
        plan = rewrite(plan)
    height, width = rng.randint(32, 150), rng.randint(32, 150)
    check(plan, layout(plan, 2, height, width, 2), 2, height, width, 2, 256)


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_any_map_may_be_an_output(optimised):
    """It is the caller's then, and has no place in the arena."""
    plan = plan_of("stdc1", optimised)
    *views, logits = [v for op in plan.ops[:-1] for v in op.writes]
    for view in views:
        found = layout(seen(plan, [view]), 1, 64, 96)
        assert view.buffer not in found.spans and found.size <= layout(plan, 1, 64, 96).size
    assert logits.buffer == plan.ops[-1].reads[0].buffer


@pytest.mark.parametrize("poisoned", [True, False])
def test_logits_may_be_an_output(poisoned):
    plan = plan_of("stdc1", True)
    found = eager.compile(seen(plan, plan.ops[-1].reads), poisoned=poisoned).run(random_frames(1, 64, 96))
    assert torch.equal(*found)


def test_layout_of_blocks():
    for module in (STDCModule(6, 32, stride=2), AttentionRefinement(6, 8)):
        for plan in (build(module.eval()), optimise(build(module.eval()))):
            for size in ((1, 1), (5, 7), (64, 64)):
                check(plan, layout(plan, 1, *size), 1, *size, 4, 256)


# Runs.


def both(plan, dtype, *inputs):
    """Outputs of a plain and of a poisoned run."""
    return eager.compile(plan, dtype).run(*inputs), eager.compile(plan, dtype, poisoned=True).run(*inputs)


RUNS = list(itertools.product(VARIANTS, ("optimised", "built"), DTYPES))
SIZES = ((1, 64, 96), (2, 65, 97), (1, 32, 32), (2, 33, 71), (1, 40, 64))
# In the plan as built the bits depend on the strides of dimensions of size 1, in which the two kinds of
# memory differ: nearest up-sampling of a 1x1 map makes NCHW of it, and torch.matmul chooses its algorithm.
SENSITIVE = {("built", torch.float32, (1, 32, 32))}
SENSITIVE |= {("built", torch.float64, size) for size in ((2, 65, 97), (1, 32, 32), (2, 33, 71))}


@pytest.mark.parametrize(("variant", "kind", "dtype"), RUNS)
def test_poisoned_run(variant, kind, dtype):
    """Nothing is read that is dead, nothing is overwritten that is alive."""
    for size in SIZES:
        (plain,), (poisoned,) = both(plan_of(variant, kind == "optimised"), dtype, random_frames(*size))
        assert plain.isfinite().all() and plain.std() > 0.1
        if (kind, dtype, size) in SENSITIVE:
            assert error(poisoned, plain) <= CLOSE[dtype]
        else:
            assert torch.equal(plain, poisoned), size


@pytest.mark.parametrize("module", [STDCModule(6, 32, 4, 2), STDCModule(6, 32, 5), AttentionRefinement(6, 8)])
def test_poisoned_blocks(module):
    module.double().eval()
    for plan, dtype in itertools.product((build(module), optimise(build(module))), DTYPES):
        for size in ((1, 5, 7), (2, 17, 33)):
            x = torch.randn(size[0], 6, *size[1:]).contiguous(memory_format=torch.channels_last)
            (plain,), (poisoned,) = both(plan, dtype, x)
            assert plain.std() > 0.01 and torch.equal(plain, poisoned), (dtype, size)
            # A plain run would keep NCHW, and add up in another order.
            (poisoned,) = both(plan, dtype, x.contiguous())[1]
            assert error(poisoned, plain) <= CLOSE[dtype]


def test_logits_that_another_op_reads():
    plan = build(random_network("stdc1"))
    plan = spied(plan, plan.ops[-1].reads)
    logits, mean = eager.compile(plan).run(random_frames(1, 64, 96))
    assert error(mean, logits.mean((2, 3), keepdim=True)) <= 1e-5


def test_poisoned_training_heads():
    plain, poisoned = both(
        build(random_network("stdc1", training_heads=True)), torch.float32, random_frames(1, 64, 96)
    )
    for a, b in zip(plain, poisoned, strict=True):
        assert torch.equal(a, b)


def with_a_bad_frame():
    """Two good images, and a batch of one of NaN and the first of those."""
    good = random_images(2, 64, 96)
    return good, torch.cat([torch.full((1, 3, 64, 96), float("nan")), good[:1]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poisoned", [True, False])
def test_nan_stays_in_its_frame(poisoned, dtype):
    """NaN in one image of a batch is nowhere in the other, and nowhere in the next call."""
    plan = optimise(build(random_network("stdc1"), frames=False))
    executable = eager.compile(plan, dtype, poisoned=poisoned)
    good, bad = with_a_bad_frame()
    before, clean = executable(good).clone(), executable(good[:1]).clone()
    assert error(executable(bad)[1:], clean) <= CLOSE[dtype]
    assert torch.equal(executable(good), before)


@pytest.mark.parametrize("seed", range(20))
def test_both_memories_are_a_plain_buffer(seed):
    """Channels written in any pieces and order, read in any others, of neighbours or of parts."""
    rng = random.Random(seed)
    cuts = sorted({0, 24, *(rng.randint(1, 23) for _ in range(5))})
    pieces = [View("b", a, b - a) for a, b in itertools.pairwise(cuts)]
    rng.shuffle(pieces)
    shape = torch.Size((2, 3, 5, 24))
    spans = Arena({"b": slice(256, 256 + 3072)}, {"b": shape}, {"b": (0, 1)}, 3328, 3072)
    expected = torch.full((2, 24, 3, 5), float("nan"))
    for memory in (Pieces(), Poisoned(spans, {"b": torch.float32}, torch.device("cpu"))):
        written = 0
        for piece in pieces:
            x = torch.randn(2, piece.channels, 3, 5)
            memory.write(piece, x)
            expected[:, piece.offset : piece.offset + piece.channels] = x
            written |= piece.mask
            for _ in range(6):
                start = rng.randint(0, 23)
                view = View("b", start, rng.randint(1, 24 - start))
                if view.mask & ~written == 0:
                    assert torch.equal(memory.read(view), expected[:, start : start + view.channels])
        assert torch.equal(memory.read(View("b", 0, 24)), expected)


# That these checks can fail.


def runs_with(monkeypatch, plan, frames, lifetimes=None, found=None):
    """The poisoned logits with other lifetimes or another layout."""
    with monkeypatch.context() as patch:
        for module in (arena, eager):
            if lifetimes is not None:
                patch.setattr(module, "lifetimes", lambda _: lifetimes)
            if found is not None and module is eager:
                patch.setattr(module, "layout", lambda *_: found)
        return eager.compile(plan, poisoned=True)(frames)


@pytest.mark.parametrize("optimised", [True, False], ids=["optimised", "built"])
def test_a_lifetime_too_short_shows(monkeypatch, optimised):
    """Each buffer in turn is declared dead one op too early; but the logits, which are the caller's."""
    plan, frames = plan_of("stdc1", optimised), random_frames(1, 64, 96)
    expected, lives = eager.compile(plan)(frames), arena.lifetimes(plan)
    assert torch.equal(runs_with(monkeypatch, plan, frames, lives), expected)
    tried = 0
    for name, (first, last) in list(lives.items())[:: 1 if optimised else 4]:
        if first < last and last < len(plan.ops) - 1:
            got = runs_with(monkeypatch, plan, frames, {**lives, name: (first, last - 1)})
            assert not torch.equal(got, expected), name
            tried += 1
    assert tried > 20


def test_an_overlap_shows(monkeypatch):
    """Any two buffers that are alive at one time begin at the same place."""
    plan, size = plan_of("stdc1", True), (1, 64, 96)
    frames, right = random_frames(*size), layout(plan, *size)
    expected = eager.compile(plan)(frames)
    assert torch.equal(runs_with(monkeypatch, plan, frames, found=right), expected)
    together = pairs(alive(plan))
    assert len(together) > 60
    for a, b in together:
        start, length = right.spans[a].start, right.spans[b].stop - right.spans[b].start
        spans = {**right.spans, b: slice(start, start + length)}
        wrong = dataclasses.replace(right, spans=spans, size=max(s.stop for s in spans.values()))
        assert not torch.equal(runs_with(monkeypatch, plan, frames, found=wrong), expected), (a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dead_is_nan(dtype):
    """In memory never written and in memory that is free again, in every dtype."""
    plan = plan_of("stdc1", True)
    memory = eager.compile(plan, dtype, poisoned=True)._memory(1, 64, 96)
    for name in arena.lifetimes(plan):
        view = plan.whole(name)
        assert memory.read(view).isnan().all()
        memory.write(view, torch.zeros_like(memory.read(view)))
        assert not memory.read(view).isnan().any()
        memory.free(name)
        assert memory.read(view).isnan().all() and memory.bytes.eq(255).all()
