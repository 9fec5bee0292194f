"""The native CPU engine in processes: forked, spawned, forced to an instruction set; and how it is chosen."""

import copy
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from engines import CPUS, in_dtypes
from engines.cpu import ISAS, needs_native
from oracle import FULL, LOW
from paths import ROOT, TESTS
from plans import random_frames
from sketch import small_network

import stdc_fast
from stdc_fast import UserError, _native, backends
from stdc_fast.backends import cpu, eager
from stdc_fast.precision import BFLOAT16, precision_of

REASON = "the native module was not built: no compiler"

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


def python(code, **environment):
    """Runs code in a fresh interpreter, which sees this source tree and these tests."""
    paths = os.pathsep.join(map(str, (ROOT, TESTS)))
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    environment = {k: v for k, v in environment.items() if v is not None}
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("STDC_FAST_BACKEND", raising=False)
    monkeypatch.delenv("STDC_FAST_CPU_ISA", raising=False)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def forked(work, seconds=30):
    """Exit status of a child that runs ``work()``: 0 if that is true. One that hangs is ended.

    The child must leave large tensors alone: torch's own threads do not come back after a fork.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)  # SIGALRM ends it, whatever it waits for
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Children.


@can_fork
@in_dtypes(CPUS)
def test_a_forked_child_runs_the_engine(engine, dtype, three_threads):
    """Its parent's threads are gone; it has some of its own, and so have its children."""
    executable = engine.compile(small_network(), dtype)
    frames = random_frames(2, 64, 96)
    expected, labels = executable(frames), executable.labels(frames)

    def right():
        runs = [(executable(frames), executable.labels(frames)) for _ in range(3)]
        return all(torch.equal(x, expected) and torch.equal(y, labels) for x, y in runs)

    assert forked(right) == 0
    assert right()
    assert forked(lambda: right() and forked(right) == 0) == 0
    assert right()


@can_fork
@needs_native
def test_fork_while_threads_are_inside(three_threads):
    """Whatever they were at, and whichever locks they held."""
    engines = [cpu.compile(small_network(), dtype) for dtype in (FULL, LOW)]
    frames = [random_frames(1, 64 + 8 * i, 96, seed=i) for i in range(11)]  # more sizes than are kept
    expected = [[e(x) for x in frames] for e in engines]
    end, wrong = threading.Event(), []

    def loop(k):
        i = 0
        while not end.is_set():
            i += 1
            if not torch.equal(engines[k](frames[i % 11]), expected[k][i % 11]):
                wrong.append((k, i))

    def child():
        """Several threads, from the first call on."""
        results = []

        def work(k):
            results.append(
                all(torch.equal(engines[k](x), y) for x, y in zip(frames, expected[k], strict=True))
            )

        threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results == [True] * 4

    threads = [threading.Thread(target=loop, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    try:
        statuses = [forked(child) for _ in range(12)]
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert statuses == [0] * 12
    assert not wrong


def labels_of(queue, path):
    torch.set_num_threads(1)  # as workers of a DataLoader do: torch's own threads do not survive a fork
    model = stdc_fast.load(path, device="cpu")
    queue.put((model.backend, model.label(random_frames(1, 64, 96)).numpy()))


@needs_native
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method, tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu")
    expected = model.label(random_frames(1, 64, 96)).numpy()
    if method == "forkserver":
        pytest.skip("as spawn, from a server")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=labels_of, args=(queue, tiny_weights))
    process.start()
    backend, labels = queue.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0 and backend == "cpu" and (labels == expected).all()
    assert (model.label(random_frames(1, 64, 96)).numpy() == expected).all()


# Instruction sets.

FORCED = """
import torch
from plans import random_frames
from sketch import small_network
from stdc_fast.backends import cpu
for dtype in (torch.float32, torch.bfloat16):
    executable = cpu.compile(small_network(), dtype)
    logits = executable(random_frames(1, 40, 56))
    print(executable.isa, logits.double().norm().item())
"""


def forced_sets():
    """By default the second of those that there are: each takes a process."""
    yield from ("", None)
    for i, isa in enumerate(ISAS):
        yield pytest.param(isa, marks=() if i == 1 else pytest.mark.wide)


@needs_native
@pytest.mark.parametrize("isa", list(forced_sets()))
def test_an_instruction_set_is_forced(isa):
    done = python(FORCED, STDC_FAST_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    for line, dtype in zip(done.stdout.splitlines(), (FULL, LOW), strict=True):
        name, norm = line.split()
        assert name == (isa or ISAS[0])
        expected = cpu.compile(small_network(), dtype, isa=name)(random_frames(1, 40, 56))
        assert float(norm) == expected.double().norm().item()


@needs_native
def test_a_wrong_instruction_set(monkeypatch, tiny_weights):
    monkeypatch.setenv("STDC_FAST_CPU_ISA", "sse9")
    with pytest.raises(UserError, match=rf"sse9.*STDC_FAST_CPU_ISA.*{ISAS[0]}") as error:
        cpu.compile(small_network())
    assert "\n" not in str(error.value)
    environment = {"STDC_FAST_CPU_ISA": "sse9"}
    command = f"import stdc_fast; stdc_fast.load({str(tiny_weights)!r}, device='cpu', backend='cpu')"
    done = python(command, **environment)
    assert done.returncode == 1 and "sse9" in done.stderr.splitlines()[-1]
    with pytest.raises(UserError, match="sse9"):  # said at once, also where another backend could run
        stdc_fast.load(tiny_weights, device="cpu")
    assert stdc_fast.load(tiny_weights, device="cpu", backend="eager").backend == "eager"
    assert cpu.BACKEND.why_not_here() is None and "sse9" in cpu.BACKEND.about()


@needs_native
def test_a_forced_set_decides_the_dtype(monkeypatch, tiny_weights):
    monkeypatch.setenv("STDC_FAST_CPU_ISA", "Portable")
    model = stdc_fast.load(tiny_weights, device="cpu")
    assert model.dtype == torch.float32 and "STDC_FAST_CPU_ISA=Portable" in model.reason
    model.label(random_frames(1, 64, 96))


# Choice.


def test_the_native_module_is_built_where_it_can_be():
    """Else all tests that need it would be skipped, and nobody would notice that the build is broken."""
    if os.environ.get("STDC_FAST_NATIVE") == "0" or not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("no compiler here, or the build was turned off")
    assert cpu.BACKEND.why_not_here() is None


def test_import_does_not_load_the_native_module():
    done = python("import sys, stdc_fast; print('stdc_fast._C' in sys.modules)")
    assert done.stdout.split() == ["False"], done.stderr


def test_the_first_frame_does_not_wait_for_what_torch_imports_late(tiny_weights):
    """Some operations on meta tensors import sympy, which takes longer than all else that load() does."""
    code = f"""
import sys, torch, stdc_fast
stdc_fast.load({str(tiny_weights)!r}, device="cpu").label(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
print("sympy" in sys.modules)
"""
    done = python(code)
    assert done.stdout.split() == ["False"], done.stderr


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_default_on_the_cpu(dtype, tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype)
    assert model.backend == "cpu" and model.reason.startswith("cpu: ") and ISAS[0] in model.reason
    frames = random_frames(1, 64, 96)
    assert type(model._runs(frames)) is cpu.CpuExecutable
    asked = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype, backend="cpu")
    assert asked.backend == "cpu" and torch.equal(asked.label(frames), model.label(frames))


@needs_native
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_dtypes_are_left_to_eager(dtype, tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype)
    assert model.backend == "eager"
    assert f"cpu: it computes in float32, bfloat16 and int8, not {dtype}" in model.reason
    with pytest.raises(UserError, match=rf"backend cpu can not run this: .*not {dtype}") as error:
        stdc_fast.load(tiny_weights, device="cpu", dtype=dtype, backend="cpu")
    assert "\n" not in str(error.value)


def test_the_environment_asks_for_eager(monkeypatch, tiny_weights):
    monkeypatch.setenv("STDC_FAST_BACKEND", "eager")
    model = stdc_fast.load(tiny_weights, device="cpu")
    assert model.backend == "eager" and "from STDC_FAST_BACKEND" in model.reason
    assert type(model._runs(random_frames(1, 64, 96))) is eager.EagerExecutable


@needs_native
def test_the_environment_asks_for_cpu(monkeypatch, tiny_weights):
    monkeypatch.setenv("STDC_FAST_BACKEND", "cpu")
    assert stdc_fast.load(tiny_weights, device="cpu").backend == "cpu"
    with pytest.raises(UserError, match=r"cpu \(from STDC_FAST_BACKEND\) can not run this.*float64"):
        stdc_fast.load(tiny_weights, device="cpu", dtype="float64")


@needs_native
def test_training_heads_are_left_to_eager():
    plan, place = small_network(), torch.device("cpu")
    several = plan.replace(outputs=(*plan.outputs, plan.ops[0].output))
    assert type(backends.compile(plan, precision_of(BFLOAT16), place)) is cpu.CpuExecutable
    assert type(backends.compile(several, precision_of(BFLOAT16), place)) is eager.EagerExecutable
    with pytest.raises(UserError, match="training heads"):
        backends.compile(several, precision_of(BFLOAT16), place, "cpu")


@needs_native
def test_a_cast_model_changes_its_backend(tiny_weights, model64):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    frames, x = random_frames(1, 64, 96), torch.randn(1, 3, 64, 96)
    before = model(x)
    assert model.backend == "cpu"
    model.double()
    assert model.backend == "eager" and "eager" in model.reason
    assert torch.equal(model(x.double()), model64(x.double()))
    assert torch.equal(model.label(frames), model64.label(frames))
    model.float()
    assert model.backend == "cpu" and torch.equal(model(x), before)
    # Not run: where a CPU has no instructions for float16, torch takes half a minute to pack for it.
    half = copy.deepcopy(model).half()
    assert half.backend == "eager"
    assert half.to(LOW).backend == "cpu" and half(x).isfinite().all()


@needs_native
def test_a_model_that_asked_for_cpu_says_why_it_can_not_be_cast(tiny_weights):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32", backend="cpu").double()
    with pytest.raises(UserError, match="float64"):
        model.label(random_frames(1, 64, 96))


@pytest.fixture
def missing(monkeypatch):
    """As if there were no native module."""
    monkeypatch.setattr(_native, "_load", functools.lru_cache(lambda: REASON))


def test_without_the_native_module(missing, tiny_weights, run_cli):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    assert model.backend == "eager" and f"cpu: {REASON}" in model.reason
    assert model.label(random_frames(1, 64, 96)).shape == (1, 64, 96)
    with pytest.raises(UserError, match=f"backend cpu is not available: {REASON}; available here: .*eager"):
        stdc_fast.load(tiny_weights, device="cpu", backend="cpu")
    with pytest.raises(UserError, match=REASON):
        cpu.compile(small_network())
    assert REASON in run_cli("info").out
