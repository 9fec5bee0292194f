"""What is done when a CUDA graph can not be captured, with stand-ins for those of torch."""

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch

from stdc_fast.backends.gpu import graphs
from stdc_fast.precision import FLOAT16

POOL, ENDED = (0, 7), "endAllocatePool: not currently recording to mempool_id"


class Torch:
    """Captures of which those numbered in ``fails`` end with an error; ``log`` has all calls."""

    def __init__(self, fails=(), begin=False):
        self.log, self.fails, self.begin, self.count = [], fails, begin, 0

    def graph(self):
        self.count += 1
        return Graph(self, self.count)

    def end_allocation(self, device, pool):
        self.log.append(("given back", device, pool))
        raise RuntimeError(ENDED)


class Graph:
    def __init__(self, torch, number):
        self.torch, self.number = torch, number

    def capture_begin(self, pool, capture_error_mode):
        assert (pool, capture_error_mode) == (POOL, "thread_local")
        self.torch.log.append(("begin", self.number))
        if self.torch.begin:
            raise RuntimeError("no begin")

    def capture_end(self):
        self.torch.log.append(("end", self.number))
        if self.number in self.torch.fails:
            raise RuntimeError("invalidated")

    def replay(self):
        self.torch.log.append(("replay", self.number))


@pytest.fixture
def stand_in(monkeypatch):
    def set_up(fails=(), begin=False):
        made = Torch(fails, begin)
        for name, value in {
            "CUDAGraph": made.graph,
            "graph_pool_handle": lambda: POOL,
            "current_device": lambda: 3,
            "stream": lambda stream: contextlib.nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", made.end_allocation, raising=False)
        monkeypatch.setattr(graphs, "_failed", [])
        for name in ("_capture_stream", "_side_stream"):
            monkeypatch.setattr(graphs, name, lambda device: None)
        return made

    return set_up


def test_a_capture(stand_in):
    made, launched = stand_in(), []
    graph = graphs.captured(lambda: launched.append(list(made.log)))
    assert graph.number == 1 and launched == [[("begin", 1)]]
    assert made.log == [("begin", 1), ("end", 1)] and not graphs._failed


def test_a_capture_that_others_end(stand_in):
    """The pool is given back, the graph is kept, and another capture sets the generator free."""
    made = stand_in(fails={1})
    with pytest.raises(RuntimeError, match="invalidated"):
        graphs.captured(lambda: None)
    given = ("given back", 3, POOL)
    assert made.log == [("begin", 1), ("end", 1), given, ("begin", 2), ("end", 2)]
    assert [graph.number for graph in graphs._failed] == [1]
    assert not graphs._capturing.locked()


def test_a_torch_that_gives_the_pool_back_itself(stand_in, monkeypatch):
    stand_in(fails={1})
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    with pytest.raises(RuntimeError, match="invalidated"):
        graphs.captured(lambda: None)


@pytest.mark.parametrize("fails", [{1}, {1, 2}])
def test_an_error_of_a_launch_is_the_one_that_is_raised(stand_in, fails):
    made = stand_in(fails)
    with pytest.raises(KeyError, match="launch"):
        graphs.captured(lambda: {}["launch"])
    assert [graph.number for graph in graphs._failed] == sorted(fails | {1})
    assert made.log.count(("given back", 3, POOL)) == len(fails)


def test_a_capture_that_does_not_begin(stand_in):
    made = stand_in(begin=True)
    with pytest.raises(RuntimeError, match="no begin"):
        graphs.captured(lambda: pytest.fail("launched"))
    assert ("end", 1) not in made.log and not graphs._capturing.locked()


@pytest.mark.parametrize("failures", [0, 1, 2, 5])
def test_a_size_of_which_captures_fail_is_still_right(stand_in, failures, caplog):
    """They are tried three times; then its kernels are launched one by one."""
    # Odd numbers: after each that fails there is one more.
    made, launches = stand_in(fails={2 * i + 1 for i in range(failures)}), []
    x = torch.full((1, 2, 2, 3), 9, dtype=torch.uint8)
    lowered = SimpleNamespace(
        direct=False,
        inputs={"image": x.clone()},
        result=torch.full((1, 2, 2), 5),
        launch=lambda **kw: launches.append(kw),
    )
    executable = SimpleNamespace(
        lower=lambda *request: lowered, plan=SimpleNamespace(name="small"), precision=FLOAT16,
        device=torch.device("cpu"), _of_network=True, _poisoned=False,
    )  # fmt: skip
    request = graphs.Request(1, (2, 2), (2, 2), (2, 2))
    instance = graphs._Instance(executable, request, None, graphs=True)
    with caplog.at_level(logging.WARNING, "stdc_fast"):
        for call in range(6):
            assert torch.equal(instance([x + call]), lowered.result)
            assert torch.equal(lowered.inputs["image"], x + call)
    tried = min(failures, graphs.ATTEMPTS)
    replays = sum(what[0] == "replay" for what in made.log)
    assert replays == (5 - tried if tried < graphs.ATTEMPTS else 0)
    texts = [record.getMessage() for record in caplog.records]
    assert [" yet: invalidated" in text for text in texts] == [True, True, False][:tried]
    assert [", from now on: invalidated" in text for text in texts] == [False, False, True][:tried]
    captures = [kw for kw in launches if "side" in kw]
    assert len(captures) == min(failures + 1, graphs.ATTEMPTS)
    assert [kw["first"] for kw in launches if "first" in kw] == [True] + [False] * (5 - replays)
