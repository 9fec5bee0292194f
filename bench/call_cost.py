"""What Python costs a call, frame to labels, of two trees in turns: a GPU's path without one, and the CPU's.

    python -m bench.call_cost OLD NEW --out docs/results/call_cost.jsonl

Each tree has a process of its own, and was built before by ``python setup.py build_ext --inplace``. On the
GPU's path all that CUDA would do is a stand-in that returns at once: streams, events, the graph and, in one
native call, its copies. Frames are 32x32, so that copies on the CPU take what torch needs to start one. So a
figure has all of Python and of torch's calls, and nothing of the driver's.

A row is a scope of a tree, in microseconds:

- "executable" is ``Executable.labels``, and "model" is ``Segmenter.label``;
- "launched" is the part of "model" until the GPU starts; the rest is beside it;
- "weights" is the check whether weights are still those that were packed;
- "cpu" is ``Segmenter.label`` on the CPU, with an engine that returns at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from bench.turns import Tree
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu

# The process of a tree: a line gives it a turn, and it prints what each scope took.
_WORKER = """
import contextlib, json, sys, time
from types import SimpleNamespace
import torch
import stdc_fast
from stdc_fast import backends, zoo
from stdc_fast.backends.base import Backend
from stdc_fast.backends.gpu import graphs
from stdc_fast.plan import build, optimise
print(stdc_fast.__file__, flush=True)

class Stream:
    cuda_stream = 7
    def __eq__(self, other): return self is other
    def __hash__(self): return 7
    def wait_event(self, event): pass

class Event:
    cuda_event = 9
    def record(self, stream): pass
    def query(self): return True

class Graph:
    started = None
    def replay(self): Graph.started = time.perf_counter()

class Replay(Graph):
    def __call__(self, stream, frame, labels):
        Graph.started = time.perf_counter()
        return True
    def reset(self): pass

class Guard:  # as torch.cuda.device
    def __enter__(self): pass
    def __exit__(self, *error): return False

stream = Stream()
torch.cuda.current_stream = lambda device=None: stream
torch.cuda.Event = Event

class Executable(graphs.GraphExecutable):
    def lower(self, request, variant=None):
        return SimpleNamespace(
            inputs={"image": torch.zeros((request.batch, *request.given, 3), dtype=torch.uint8)},
            result=torch.zeros((request.batch, *request.labels), dtype=torch.uint8),
            launch=lambda **how: None, tensors=list, pinned=list, nodes=[])
    def _on_device(self): return Guard()

class Instance(graphs._Instance):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.ordered, self.graph, self.replay = True, Graph(), Replay()
        self._record()

graphs._Instance = Instance
graphs._current_handle = lambda device, raw=getattr(torch._C, "_cuda_getCurrentRawStream", None): 7

class OneCall(Backend):
    name = "cuda"
    def why_not(self, *arguments): return None
    def compile(self, plan, precision, device, small=False):
        return Executable(plan, precision, device, {}, graphs=False)

model = zoo.load("stdc1_camvid", device="cpu", dtype="bfloat16", backend="cpu")
frames = torch.zeros((1, 32, 32, 3), dtype=torch.uint8)
model.label(frames, size="native")
engine = next(iter(model._watched._now.made.values()))
class Nothing:
    def run(self, *arguments): pass
engine.engine = Nothing()
gpu = zoo.load("stdc1_camvid", device="cpu", dtype="bfloat16", backend="eager")
gpu._decided = (gpu.device, gpu.precision), backends.Decision(OneCall(), "", False)
gpu.label(frames, size="native")
executable = next(iter(gpu._watched._now.made.values()))
state = gpu._watched._now
def launched():
    begin = time.perf_counter()
    gpu.label(frames, size="native")
    return Graph.started - begin
def whole(call):
    def timed():
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    return timed
scopes = {
    "executable": whole(lambda: executable.labels(frames)),
    "model": whole(lambda: gpu.label(frames, size="native")),
    "launched": launched,
    "weights": whole(lambda: state.holds(gpu.network)),
    "cpu": whole(lambda: model.label(frames, size="native")),
}
for line in sys.stdin:
    took = {}
    for name, scope in scopes.items():
        times = sorted(scope() for _ in range(int(line)))
        took[name] = times[len(times) // 2]
    print(json.dumps(took), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.call_cost", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1000, help="of each scope in a turn")
    parser.add_argument("--out", type=Path, help="file to write, JSON Lines, a row a scope of a tree")
    options = parser.parse_args()
    trees = {name: Tree(getattr(options, name), _WORKER, OMP_NUM_THREADS="1") for name in ("old", "new")}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for i in range(options.rounds):
        for name in (list(trees), list(trees)[::-1])[i % 2]:
            turns[name].append(trees[name].ask(options.calls))
    rows = []
    for scope in turns["old"][0]:
        for name, found in turns.items():
            took = quantiles([1e6 * turn[scope] for turn in found])
            rows.append(
                {
                    "scope": scope,
                    "tree": name,
                    "microseconds": {k: round(v, 2) if k != "n" else v for k, v in took.items()},
                    "calls": options.calls,
                    "cpu": cpu()["model"],
                    "load_average": round(os.getloadavg()[0], 1),
                }
            )
        ratio = statistics.median(
            new[scope] / old[scope] for old, new in zip(turns["old"], turns["new"], strict=True)
        )
        print(
            f"{scope}: {rows[-2]['microseconds']['p50']} to {rows[-1]['microseconds']['p50']} us, {ratio:.3f}"
        )
    if options.out:
        write_atomic(
            options.out, lambda p: Path(p).write_text("".join(json.dumps(row) + "\n" for row in rows))
        )


if __name__ == "__main__":
    main()
