"""Whole networks through the CUDA kernels in the emulator, in any order of threads, blocks and streams."""

import itertools

import pytest
import torch
from engines import EMULATED, on
from hosted import Hosted, every_schedule, scheduled
from oracle import HALF, street, trained_plan
from plans import VARIANTS, random_frames, random_network
from sketch import small_network

from stdc_fast import backends
from stdc_fast.plan import build, optimise
from stdc_fast.precision import FLOAT16, FLOAT32


@every_schedule
def test_every_order_gives_the_same_network(schedule):
    """Bit by bit, with races of threads and of blocks watched for; in one arena, too."""
    plan, frames = small_network(), random_frames(2, 33, 52)
    expected = EMULATED.both(Hosted(plan, HALF), frames)
    for apart in (True, False):
        executable = Hosted(plan, HALF, apart=apart)
        with scheduled(schedule, block_races=True):
            got = executable(frames), executable.labels(frames)
        assert all(map(torch.equal, got, expected)), apart


def test_one_arena_for_all_buffers():
    """Memory is used again by later buffers, and nothing of that is seen."""
    frames = street((64, 96))
    expected = Hosted(trained_plan(), HALF)(frames)
    executable = Hosted(trained_plan(), HALF, apart=False)
    assert torch.equal(executable(frames), expected)
    lowered = executable.last
    total = sum(x.numel() * x.itemsize for n, x in lowered.buffers.items() if n not in lowered.inputs)
    assert lowered.arena.numel() < total


@pytest.mark.parametrize(
    "variant, every", [("stdc1", False), *(pytest.param(v, True, marks=pytest.mark.wide) for v in VARIANTS)]
)
def test_a_branch_runs_beside_others(variant, every):
    """In any order that two streams may have, in one arena: nothing of one is overwritten by the other."""
    plan = optimise(build(random_network(variant)))
    executable = Hosted(plan, HALF, apart=False)
    expected = executable.labels(street((32, 64)))
    lowered = executable.last
    before, branch, others, after = lowered.parts()
    assert min(map(len, lowered.parts())) > 1
    turns = [step for two in itertools.zip_longest(branch, others) for step in two if step is not None]
    places = [others[:k] + branch + others[k:] for k in range(len(others))]  # the plan has others + branch
    logits = lowered.buffers[executable._output.buffer].clone()
    if not every:
        places = [places[0], places[len(places) // 2], places[-1]]
    for middle in (turns, *places):
        lowered.poison()
        lowered.tell()
        lowered._run([*before, *middle, *after])
        assert torch.equal(lowered.buffers[executable._output.buffer], logits)
        assert torch.equal(lowered.result, expected)


@on([EMULATED])
def test_float32_goes_to_another_backend(engine, monkeypatch):
    engine.force(monkeypatch)
    monkeypatch.delenv(backends.ENVIRONMENT)
    decision = backends.select(None, FLOAT32, "cpu")
    assert decision.name != "cuda" and "cuda: another dtype" in decision.reason
    assert backends.select(None, FLOAT16, "cpu").name == "cuda"
