"""Every engine beside its numbers: wrong inputs, and what it keeps and shares."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engines import GRAPHED, in_dtypes, on
from oracle import answers, check
from sketch import plain

from stdc_fast.backends.gpu.graphs import GRAPHS


@in_dtypes(every=False)
def test_wrong_inputs_name_their_values(engine, dtype):
    executable = engine.compile(plain(6, 10, 1, 1)(), dtype)
    good = engine.put(torch.randn(1, 6, 3, 4))
    for bad, message in (
        (good[:, :5], r"\[1, 5, 3, 4\]"),
        (good[0], r"\[6, 3, 4\]"),
        (good.long(), "int64"),
        (good[..., :0], r"empty.*\[1, 6, 3, 0\]"),
        (good.to("meta"), "on meta"),
        (good.clone().requires_grad_(), "no_grad"),
    ):
        with pytest.raises(ValueError, match=message):
            executable(bad)
    with pytest.raises(ValueError, match="has 1 inputs"):
        executable(good, good)
    with pytest.raises(ValueError, match="gives a map, not labels"):
        executable.labels(good)
    assert executable(good).shape == (1, 10, 3, 4)


@on(GRAPHED)
def test_the_sizes_that_were_used_last_are_kept(engine):
    plan, dtype = plain(6, 10, 1, 1)(), engine.dtypes[0]
    executable = engine.compile(plan, dtype)
    shapes = [(1, 2, 3 + i) for i in range(GRAPHS + 3)]
    known = list(zip(shapes, answers(plan, dtype, shapes), strict=True))

    def run(i):
        shape, (inputs, expected) = known[i]
        check(executable(*map(engine.put, inputs)).cpu(), expected, dtype, shape)

    def kept():
        return sorted(request.given[1] - 3 for request, _ in executable._instances)

    for i in range(GRAPHS):
        run(i)
    assert kept() == list(range(GRAPHS))
    run(0)
    run(GRAPHS)
    assert kept() == [0, *range(2, GRAPHS), GRAPHS]
    for i in (*range(len(shapes)), 0, 1, 0):
        run(i)
        assert len(executable._instances) <= GRAPHS
    assert executable.memory[0] > 0


@pytest.mark.parametrize("how", ["one size", "several sizes"])
@in_dtypes(every=False)
def test_threads_share_an_executable(engine, dtype, how):
    plan = plain(6, 10, 3, 1)()
    executable = engine.compile(plan, dtype)
    shapes = [(1, 5, 6)] * 4 if how == "one size" else [(1, 5, 6), (2, 3, 4), (1, 7, 2), (1, 9, 9)]
    known = answers(plan, dtype, shapes) * 4
    given = [[engine.put(x) for x in inputs] for inputs, _ in known]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda inputs: executable(*inputs).cpu(), given))
    for got, (_, expected) in zip(found, known, strict=True):
        check(got, expected, dtype)
