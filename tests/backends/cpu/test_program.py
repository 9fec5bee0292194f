"""Saved plans and the native engine's contract: what is damaged or does not fit is refused, never run."""

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engines.cpu import in_both_dtypes, needs_native
from oracle import FULL
from paths import ROOT, TESTS
from plans import random_frames
from sketch import Sketch, small_network

from stdc_fast import _native
from stdc_fast.backends import cpu
from stdc_fast.backends.cpu import program
from stdc_fast.plan.ops import Conv, View
from stdc_fast.plan.quantise import Range, candidates, quantise, wanted
from stdc_fast.precision import precision_of

pytestmark = needs_native

HERE = Path(__file__).resolve()
# Another process, and in it one a job, so that a crash is a failure like any other.
SERVER = f"""
import faulthandler, sys
faulthandler.enable()
sys.path[:0] = [{str(HERE.parent)!r}, {str(TESTS)!r}, {str(ROOT)!r}]
import {HERE.stem} as tests
tests.serve()
"""
JOBS = {}


def job(function):
    """Has ``said`` run this in a process of its own; what it returns is said."""
    JOBS[function.__name__] = function
    return function


def serve():
    for name, function in JOBS.items():
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            signal.alarm(60)
            os.write(write, str(function()).encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            text = pipe.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([name, text if status == 0 else f"ended with {status}"]), flush=True)


@pytest.fixture(scope="module")
def said():
    """What each job returned, or that it did not."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of torch's own do not survive a fork
    command = [sys.executable, "-c", SERVER]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(map(json.loads, done.stdout.splitlines()))


@functools.cache
def saved(dtype=FULL, frames=True, levels=False):
    plan = small_network(frames=frames)
    if levels:
        names = candidates(plan)
        one = {key: torch.ones(n, dtype=torch.float64) for key, n in wanted(plan, names).items()}
        plan = quantise(plan, {key: Range(-3 * n, 3 * n, 0 * n) for key, n in one.items()}, names)
    return program.serialise(plan, precision_of(dtype))


def split(data):
    """Lines of the header, and the weights."""
    head, _, rest = data.partition(b"\ndata\n")
    used = len(head) + 6
    return head.decode().split("\n"), rest[-used % 64 :]


def joined(lines, weights):
    header = "\n".join([*lines, "data\n"]).encode()
    return header + bytes(-len(header) % 64) + weights


def attempt(data, threads=2):
    """Loads it and, if that succeeds, runs it as a caller does who believes it: None, or what it says."""
    try:
        engine = _native.module().Engine(data)
        frames, labels = random_frames(1, 40, 56), torch.empty(1, 40, 56, 1, dtype=torch.uint8)
        engine.run([cpu._spec(frames)], cpu._spec(labels), 40, 56, threads, True)
        logits = torch.empty(1, 5, 7, 11)
        engine.run([cpu._spec(frames)], cpu._spec(logits), 40, 56, threads, True)
    except (RuntimeError, ValueError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


# Damaged files.


@in_both_dtypes
def test_a_saved_plan_runs_as_it_is(dtype):
    assert attempt(saved(dtype)) is None
    lines, weights = split(saved(dtype))
    assert joined(lines, weights) == saved(dtype)
    assert attempt(saved(dtype, levels=True)) is None


@job
def truncate():
    data = saved()
    body = len(data) - len(split(data)[1])
    lengths = {0, 1, 5, 11, body - 64, body - 1, body, body + 1, len(data) - 1, len(data) - 64}
    lengths |= set(range(0, body, 37)) | set(range(body, len(data), 7919))
    for length in sorted(lengths):
        said = attempt(data[:length])
        # Zeros after the last weight are not missed.
        assert said is not None or length >= len(data) - 64, length
        assert said is None or said.startswith("RuntimeError: not a usable saved plan: "), said
    return len(lengths)


def test_truncated(said):
    assert int(said["truncate"]) > 100


@job
def damage():
    generator, data = random.Random(0), saved()
    header = len(data) - len(split(data)[1])
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 1, 2, 5))):
            place = generator.randrange(header)
            if generator.random() < 0.5:
                damaged[place] = generator.choice(b"0123456789 -+\n")
            else:
                damaged[place] ^= 1 << generator.randrange(8)
        refused += attempt(bytes(damaged)) is not None
    return refused


def test_random_damage(said):
    assert 300 < int(said["damage"]) < 600


@job
def shuffle():
    """Numbers of the header exchanged for others: what flipped bits rarely reach."""
    generator = random.Random(1)
    files = [split(saved()), split(saved(levels=True))]
    values = [
        -1,
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        11,
        16,
        32,
        40,
        64,
        96,
        97,
        255,
        256,
        1 << 16,
        (1 << 16) + 1,
        1 << 31,
        1 << 63,
    ]
    refused = 0
    for attempted in range(600):
        lines, weights = files[attempted % 2]
        changed = list(lines)
        for _ in range(generator.choice((1, 1, 2, 3))):
            i = generator.randrange(2, len(changed))
            words = changed[i].split(" ")
            numbers = [j for j, w in enumerate(words) if w.lstrip("-").isdigit()]
            if numbers:
                words[generator.choice(numbers)] = str(generator.choice(values))
            changed[i] = " ".join(words)
        if generator.random() < 0.2:
            i, j = generator.randrange(2, len(changed)), generator.randrange(2, len(changed))
            changed[i], changed[j] = changed[j], changed[i]
        refused += attempt(joined(changed, weights)) is not None
    return refused


def test_other_numbers(said):
    assert 300 < int(said["shuffle"]) < 600


# Hostile headers, each with one lie.


def small(*ops, buffers=(), weights=(), inputs="1 0", output="3 0 4", dtype="float32", version=2):
    """A block of four channels: 0 given -> 1 map -> 2 map -> 3 result, and what else is asked for."""
    buffers = ["image 4 1 given", "act 4 1 a", "act 4 1 b", "image 4 1 result", *buffers]
    weights = ["float32 0 4 4 4 1 1", "float32 64 1 4", "float32 64 4 4 4 3 3", *weights]
    lines = [
        f"stdc-plan {version}", f"name {dtype}", f"buffers {len(buffers)}", *buffers,
        f"weights {len(weights)}", *weights,
        f"ops {len(ops)}", *ops, f"inputs {inputs}", f"output {output}",
    ]  # fmt: skip
    return joined(lines, torch.ones(1024).numpy().tobytes())


def of_levels(*ops, store="u8", extra=(), weights=()):
    """A block of levels: 1 map -> 4 levels -> 2 map, by int8 weights 3, multipliers and inverse steps 1."""
    return small(
        IN, *ops, OUT, version=3, buffers=[f"{store} 4 1 l", "s8 4 1 m", *extra],
        weights=["int8 0 4 4 4 1 1", *weights],
    )  # fmt: skip


TO_LEVELS, ON_LEVELS = "prologue p 1 1 0 4 4 0 4 - - 1", "conv c 1 4 0 4 2 0 4 1 1 0 3 1 - 1 -1"
IN, OUT = "import i 1 0 0 4 1 0 4", "export e 1 2 0 4 3 0 4"
CONV = "conv c 1 1 0 4 2 0 4 1 1 0 0 1 -"
LOGITS = ("logits 4 1 l", "logits 40 1 m", "labels 1 1 x")
HOSTILE = {
    "another version": small(IN, CONV, OUT).replace(b"stdc-plan 2", b"stdc-plan 1"),
    "nothing": b"",
    "no plan": b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "a plan of no dtype": small(IN, CONV, OUT, dtype="uint8"),
    "no export": small(IN, CONV),
    "reads what is not written": small(IN, CONV.replace("1 1 0 4", "1 2 0 4"), OUT),
    "in another order": small(CONV, IN, OUT),
    "writes twice": small(IN, CONV, CONV, OUT),
    "writes what it reads": small(IN, CONV.replace("2 0 4", "1 0 4"), OUT),
    "writes its input": small(IN, CONV, OUT, "export f 1 2 0 4 0 0 4"),
    "a view outside of its buffer": small(IN, CONV.replace("1 1 0 4", "1 1 1 4"), OUT),
    "a view of no channels": small(IN, CONV.replace("1 1 0 4", "1 1 0 0"), OUT),
    "a negative offset": small(IN, CONV.replace("1 1 0 4", "1 1 -1 4"), OUT),
    "no such buffer": small(IN, CONV.replace("1 1 0 4", "1 9 0 4"), OUT),
    "a negative buffer": small(IN, CONV.replace("1 1 0 4", "1 -1 0 4"), OUT),
    "no such weight": small(IN, "conv c 1 1 0 4 2 0 4 1 1 0 9 1 -", OUT),
    "no weight": small(IN, "conv c 1 1 0 4 2 0 4 1 1 0 -1 1 -", OUT),
    "a weight of another shape": small(IN, "conv c 1 1 0 4 2 0 4 3 1 0 0 1 -", OUT),
    "a bias of another size": small(IN, "conv c 1 1 0 4 2 0 4 1 1 0 0 2 -", OUT),
    "weights beyond the end": small(
        IN, "conv c 1 1 0 4 2 0 4 1 1 0 3 1 -", OUT, weights=["float32 4096 4 4 4 1 1"]
    ),
    "an offset that overflows": small(
        IN, "conv c 1 1 0 4 2 0 4 1 1 0 3 1 -", OUT, weights=[f"float32 {2**63 - 4} 4 4 4 1 1"]
    ),
    "weights without end": small(IN, CONV, OUT, weights=["float32 0 6" + " 65536" * 6]),
    "weights of no size": small(IN, CONV, OUT, weights=["float32 0 2 0 4"]),
    "misaligned weights": small(IN, CONV, OUT, weights=["float32 2 1 4"]),
    "a stride of another size": small(IN, "conv c 1 1 0 4 2 0 4 1 2 0 0 1 -", OUT),
    "too many inputs of an op": small(IN, "conv c 3 1 0 4 1 0 4 1 0 4 2 0 4 1 1 0 0 1 -", OUT),
    "an unknown op": small(IN, CONV.replace("conv", "matmul"), OUT),
    "a line that ends early": small(IN, "conv c 1 1 0 4 2 0", OUT),
    "a word for a number": small(IN, CONV.replace("1 1 0 4", "1 1 0 four"), OUT),
    "the input is no image": small(IN, CONV, OUT, inputs="1 1"),
    "no inputs": small(IN, CONV, OUT, inputs="0"),
    "the output is no map": small(IN, CONV, OUT, output="2 0 4"),
    "a part of the output": small(IN, CONV, OUT, output="3 0 3"),
    "an average that is read as a vector": small(
        IN, CONV[:-1] + "+ 4 0 4", "prologue p 1 2 0 4 5 0 4 + 4 0 4 -", OUT.replace("1 2", "1 5"),
        buffers=["vector 4 0 v", "act 4 1 c"],
    ),
    "a vector for a map": small(IN, "conv c 1 1 0 4 4 0 4 1 1 0 0 1 -", OUT, buffers=["vector 4 0 v"]),
    "sub-pixel weights of another shape": small(IN, "conv c 1 1 0 4 2 0 4 2 1 0 0 1 -", OUT),
    "a channel of a buffer of 2^31": small(IN, CONV, OUT, buffers=[f"act {2**31} 1 x"]),
    "a stride of a vector": small(IN, CONV, OUT, buffers=["vector 4 1 v"]),
    "a map without a stride": small(IN, CONV, OUT, buffers=["act 4 0 v"]),
    "an import of what is no input": small(
        IN, CONV, OUT.replace("3 0 4", "4 0 4"), "import j 1 4 0 4 5 0 4", "export f 1 5 0 4 3 0 4",
        buffers=["image 4 1 other", "act 4 1 c"],
    ),
    "a second, larger output": small(
        IN, CONV, OUT, "conv d 1 1 0 4 4 0 40 1 1 0 3 -1 -", "export f 1 4 0 40 5 0 40",
        buffers=["act 40 1 wide", "image 40 1 other"], weights=["float32 0 4 40 4 1 1"],
    ),
    "logits beside the output": small(
        IN, CONV, OUT, "conv d 1 1 0 4 5 0 40 1 1 0 3 -1 -",
        buffers=LOGITS, weights=["float32 0 4 40 4 1 1"],
    ),
    "labels of other logits": small(
        IN, CONV.replace("2 0 4", "4 0 4"), "conv d 1 1 0 4 5 0 40 1 1 0 3 -1 -", "upsample u 1 5 0 40 6 0 1",
        buffers=LOGITS, weights=["float32 0 4 40 4 1 1"], output="4 0 4",
    ),
    "two kinds of labels": small(
        IN, CONV.replace("2 0 4", "4 0 4"), "upsample u 1 4 0 4 6 0 1", "upsample w 1 4 0 4 7 0 1",
        buffers=[*LOGITS, "labels 1 1 y"], output="4 0 4",
    ),
    "an output that is an input": small(IN, CONV, output="0 0 4"),
    "levels in a version that had none": of_levels(TO_LEVELS, ON_LEVELS).replace(b"plan 3", b"plan 2"),
    "levels without steps": of_levels(TO_LEVELS[:-1] + "-1", ON_LEVELS),
    "steps without levels": of_levels(TO_LEVELS, ON_LEVELS[:-2] + "1"),
    "steps of another size": of_levels(TO_LEVELS[:-1] + "0", ON_LEVELS),
    "steps of no floats": of_levels(TO_LEVELS[:-1] + "3", ON_LEVELS),
    "levels without multipliers": of_levels(TO_LEVELS, ON_LEVELS.replace("- 1 -1", "- -1 -1")),
    "multipliers without levels": of_levels(TO_LEVELS, ON_LEVELS.replace("1 4 0 4", "1 1 0 4")),
    "multipliers of another size": of_levels(TO_LEVELS, ON_LEVELS.replace("- 1 -1", "- 0 -1")),
    "float weights for levels": of_levels(TO_LEVELS, ON_LEVELS.replace("0 3 1 -", "0 0 1 -")),
    "whole weights for maps": of_levels("conv c 1 1 0 4 2 0 4 1 1 0 3 1 - -1 -1"),
    "levels that are read as a map": of_levels(TO_LEVELS, "prologue q 1 4 0 4 2 0 4 - - -1"),
    "levels that are added": of_levels(TO_LEVELS, "prologue q 1 1 0 4 2 0 4 - + 4 0 4 -1"),
    "levels with different zeros": of_levels(
        TO_LEVELS, TO_LEVELS.replace(" p ", " q ").replace("4 0 4", "5 0 4"),
        "conv c 2 4 0 4 5 0 4 2 0 4 1 1 0 4 1 - 1 -1", weights=["int8 0 4 4 8 1 1"],
    ),
    "levels for an output": of_levels(TO_LEVELS, ON_LEVELS).replace(b"output 3 0 4", b"output 4 0 4"),
    "odd channels of levels": of_levels(
        TO_LEVELS, "conv c 1 4 0 2 2 0 4 1 1 0 4 1 - 1 -1", weights=["int8 0 4 4 2 1 1"]
    ),
    "a plan of int8": small(IN, CONV, OUT, dtype="int8"),
    "weights of uint8": small(IN, CONV, OUT, weights=["uint8 0 1 4"]),
}  # fmt: skip


def run_hostile(name):
    """Loads and, if it can be had, runs a block, to a map and to labels, in memory that is watched."""
    try:
        engine = _native.module().Engine(HOSTILE[name])
    except RuntimeError as error:
        return error
    x, found = torch.ones(1, 64, 64, 4), ["loaded"]
    frames = torch.ones(1, 64, 64, 3, dtype=torch.uint8)
    for inputs, (channels, dtype) in itertools.product(([x], [x, frames]), ((4, FULL), (1, torch.uint8))):
        guard = torch.full((3, 64, 64, channels), 77, dtype=dtype)
        try:
            engine.run([cpu._spec(i) for i in inputs], cpu._spec(guard[1:2]), 64, 64, 2, True)
        except (RuntimeError, ValueError):
            continue
        outside = "" if (guard[[0, 2]] == 77).all() else ", wrote outside of its output"
        found.append("wrote nothing" if (guard[1] == 77).all() else "ran" + outside)
    return "; ".join(found)


for name in HOSTILE:
    JOBS[name] = functools.partial(run_hostile, name)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(name, said):
    assert said[name].startswith("not a usable saved plan: ") and "\n" not in said[name]


@job
def run_small():
    found = []
    for conv, inside in ((CONV, 5), ("conv c 1 1 0 4 2 0 4 3 1 0 2 1 -", 37)):
        x, y = torch.ones(1, 5, 7, 4), torch.empty(1, 5, 7, 4)
        engine = _native.module().Engine(small(IN, conv, OUT))
        engine.run([cpu._spec(x)], cpu._spec(y), 5, 7, 2, True)
        found.append(bool((y[:, 1:-1, 1:-1] == inside).all()))
    return found


def test_the_block_without_lies_runs(said):
    assert said["run_small"] == "[True, True]"


def test_the_block_of_levels_without_lies_is_read():
    for store in ("u8", "s8"):
        _native.module().Engine(of_levels(TO_LEVELS, ON_LEVELS, store=store))


# Plans that Python refuses to save.


def depthwise(s, x):
    weight = s.weight(6, 1, 3, 3)
    out = s.buffer(6, 1)
    s.emit(Conv, inputs=(x,), output=out, weight=weight, kernel=3, depthwise=True)
    return out


def three_inputs(s, x):
    return s.conv([x, x, x], 8, 1)


def prologue_of_two(s, x):
    mean = s.vector(12)
    s.conv(x, 12, 1, mean=mean)
    return s.conv([x, x], 8, 1, scale=s.gate(mean, (12,), ("relu",)))


def subpixel_of_two(s, x):
    x = s.conv(x, 8, 1, 2)
    return s.conv([x, x], 8, 2)


def three_layers(s, x):
    mean = s.vector(6)
    s.conv(x, 6, 1, mean=mean)
    return s.scale(x, s.gate(mean, (4, 4, 6), ("relu",) * 3))


def average_without_gate(s, x):
    mean = s.vector(6)
    return s.scale(s.conv(x, 6, 1, mean=mean), mean)


def vector_for_an_output(s, x):
    mean = s.vector(6)
    s.conv(x, 6, 1, mean=mean)
    return s.gate(mean, (4,), ("relu",))


def two_logits(s, x):
    s.conv(x, 40, 1, store="float32")
    return s.conv(x, 4, 1, store="float32")


def part_of_logits(s, x):
    return View(s.conv(x, 8, 1, store="float32").buffer, 2, 4)


def sigmoid(s, x):
    return s.conv(x, 8, 1, act="sigmoid")


DRAWN = (
    depthwise, three_inputs, prologue_of_two, subpixel_of_two, three_layers, average_without_gate,
    vector_for_an_output, two_logits, part_of_logits, sigmoid,
)  # fmt: skip


@in_both_dtypes
@pytest.mark.parametrize("draw", DRAWN, ids=lambda f: f.__name__)
def test_what_is_saved_can_be_loaded(draw, dtype):
    """What the engine does not run is refused by name before it is tried: eager takes it then."""
    sketch = Sketch(6)
    plan = sketch.plan(draw(sketch, *sketch.inputs))
    reason = program.why_not(plan, precision_of(dtype))
    assert isinstance(reason, str) and reason
    with pytest.raises(ValueError, match="the native engine can not run sketch"):
        program.serialise(plan, precision_of(dtype))


# Memory.


@job
def starve():
    """A size for which there is no memory, in a process that may not have much."""
    import resource

    frames, executable = random_frames(1, 40, 56), cpu.compile(small_network())
    before, found = executable.labels(frames), []
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    for _ in range(2):
        try:
            executable.labels(frames, seen=(20000, 20000))
        except MemoryError:
            found.append("refused")
        found.append(torch.equal(executable.labels(frames), before))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory as Linux has them")
def test_without_memory(said):
    """An error, and no trace of it."""
    assert said["starve"] == "['refused', True, 'refused', True]"
