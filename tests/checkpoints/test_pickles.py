"""The unpickler that runs nothing: every opcode, real objects, and files that were changed at random."""

import argparse
import collections
import datetime
import functools
import operator
import os
import pathlib
import pickle
import pickletools
import struct
import sys
import threading

import numpy as np
import pytest
import torch
from checkpoint_files import same, serialise, thin

from stdc_fast import checkpoints
from stdc_fast.checkpoints import pickles
from stdc_fast.checkpoints.pickles import _CODES, BrokenPickle, Global, Machine, Opaque
from stdc_fast.checkpoints.rebuild import MAKERS
from stdc_fast.errors import UserError


def run(data, **how):
    return Machine(memoryview(data), **how).run()


def test_every_opcode_has_its_step():
    assert {o.code.encode("latin1") for o in pickletools.opcodes} - set(_CODES) == {pickle.STOP}


PLAIN = {
    "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 10**30, -(10**30), 0.5, float("inf"), True, None],
    "texts": ["", "a", "klaße", "\n'\"\\", "x" * 300, "\ud800"],
    "bytes": [b"", b"\x00\xff", b"x" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [{"c": (1, [2])}]}},
    "sets": {1, 2},
    "ordered": collections.OrderedDict(a=1, b=collections.OrderedDict()),
    "default": collections.defaultdict(list, {"k": [1]}),
    "keys": {1: "a", (1, 2): "b", None: "c", 2.5: "d"},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values(name, protocol):
    value = PLAIN[name]
    value = [value, value]  # so that the memo is read
    assert run(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(2, 6))
def test_numbers_and_arrays_of_numpy(protocol):
    arrays = [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        np.array(3.5),
        np.zeros((0, 2), np.float16),
        np.ones(5000, np.float32),
        np.array([True, False]),
    ]
    made = run(pickle.dumps((arrays, np.float64(0.7), np.int32(-3), np.bool_(True)), protocol), makers=MAKERS)
    for array, wanted in zip(made[0], arrays, strict=True):
        np.testing.assert_array_equal(array.array(), wanted)
    assert made[1:] == (0.7, -3, True)
    others = [np.array(["a"]), np.array([{}]), np.array([1], [("a", "i4")])]
    assert [a.array() for a in run(pickle.dumps(others, protocol), makers=MAKERS)] == [None] * 3


class Own:
    """Of this file, so that unpickling it would need this module."""

    def __init__(self):
        self.value = 1

    def __setstate__(self, state):
        raise AssertionError("ran")

    def __reduce_ex__(self, protocol):
        return (type(self), (), {"value": 1}, iter([1, 2]), iter([("k", "v")]))


class Method:
    def method(self):
        """A method of a class is pickled as a call of getattr, as in mmengine's logs."""


@pytest.mark.parametrize("protocol", range(6))
def test_any_other_object_is_inert(protocol):
    others = [
        argparse.Namespace(a=1),
        pathlib.PosixPath("/x"),
        datetime.datetime(2026, 1, 2),
        slice(1, 2),
        1j,
        np.random.default_rng(0),
        np.random.RandomState(0),
        functools.partial(print, 1),
        Own(),
        Own,
        Method.method,
        os.system,
        operator.attrgetter("a.b"),
        range(3),
        Exception("x"),
        frozenset([1]),
    ]
    made = run(pickle.dumps([others, "after"], protocol), makers=MAKERS)
    assert made[1] == "after" and len(made[0]) == len(others)
    assert all(isinstance(v, (Opaque, Global, set)) for v in made[0])


def test_what_torch_saves_beside_weights():
    state = thin("official")
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "path": pathlib.Path("/x"),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
        "size": torch.Size([1]),
        "rng": torch.get_rng_state(),
        "layout": torch.strided,
        "sparse": torch.eye(2).to_sparse(),
        "parameter": torch.nn.Parameter(torch.ones(1)),
    }
    for legacy in (False, True):
        for protocol in (2, 3, 4, 5):
            data = serialise(
                {"state_dict": state, **beside},
                _use_new_zipfile_serialization=not legacy,
                pickle_protocol=protocol,
            )
            loaded = read_bytes(data)
            assert same(loaded.state, checkpoints.from_state(state).state)


def read_bytes(data, folder=None):
    path = pathlib.Path(folder or read_bytes.folder) / "model.pth"
    path.write_bytes(data)
    return checkpoints.read(path)


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    read_bytes.folder = tmp_path


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_dtype_and_layout(dtype, legacy):
    if legacy and dtype.itemsize == 1:
        pytest.skip("torch's older format has no such storage")
    state = {k: v.contiguous() for k, v in thin("official").items()}
    key = "cp.conv_avg.conv.weight"
    turned = torch.randn(state[key].shape[::-1]).permute(3, 2, 1, 0)
    state[key] = torch.cat([turned, turned])[len(turned) :]  # starts within its storage, other strides
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    loaded = read_bytes(serialise(state, _use_new_zipfile_serialization=not legacy))
    assert loaded.state[key].dtype == dtype
    assert torch.equal(loaded.state[key].float(), state[key].float())


# Names whose call would be seen: they import, run, write, or make what is not plain.
HOSTILE = (
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("builtins", "getattr"),
    ("builtins", "setattr"),
    ("builtins", "open"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("nowhere.at.all", "thing"),
    ("stdc_fast.errors", "UserError"),
    ("stdc_fast.checkpoints.pickles", "PLAIN.clear"),
    ("runpy", "run_path"),
    ("webbrowser", "open"),
)


class Reduces:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def seeds():
    """Pickles that hold every opcode between them, with calls of dangerous names in all forms."""
    texts = []
    for protocol in range(6):
        texts.append(pickle.dumps([PLAIN, Own(), Method.method, np.arange(3), slice(1)], protocol))
    for module, name in HOSTILE:
        head = f"c{module}\n{name}\n".encode()
        argument = b"(S'touch /tmp/never'\nt"
        texts += [
            head + argument + b"R.",  # REDUCE
            head + b")\x81" + b"}(S'a'\nI1\nub.",  # NEWOBJ, SETITEMS, BUILD
            b"(i" + head[1:] + b".",  # INST
            b"(" + head + b"I1\no.",  # OBJ
            b"\x80\x04\x8c"
            + bytes([len(module)])
            + module.encode()
            + b"\x8c"
            + bytes([len(name)])
            + name.encode()
            + b"\x93)}\x92.",  # STACK_GLOBAL, NEWOBJ_EX
            head + b"N}S'x'\nI1\ns\x86b.",  # BUILD of a global with a state of slots
            head + b"(lI1\na\x85R.",
            head + argument + b"Rb.",
            b"\x80\x02" + head + b"Q.",  # persistent
            b"\x80\x02\x82\x01)R.",  # EXT1
            head + b"(d(e.",
        ]
    # Opcodes that Python writes for large values only.
    one = (1).to_bytes(8, "little")
    texts.append(
        b"(T" + one[:4] + b"a\x8b" + one[:4] + b"\x05\x8d" + one + b"a\x8e" + one + b"ar\x00\x01\x00\x00"
        b"j\x00\x01\x00\x00l."
    )
    buffers: list = []
    texts.append(pickle.dumps(pickle.PickleBuffer(b"x"), 5, buffer_callback=buffers.append))
    return texts


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        kind, at = rng.integers(4), int(rng.integers(len(data)))
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            data[at:at] = rng.choice(list(_CODES)) + bytes(
                rng.integers(0, 256, rng.integers(3), dtype=np.uint8)
            )
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 8))]
        else:
            other = int(rng.integers(len(data)))
            data[at:at] = data[other : other + int(rng.integers(1, 40))]
        if not data:
            break
    return bytes(data)


class Watch:
    """What Python's own audit reports while it is on: imports, code that runs, files that are opened, ..."""

    on, seen = False, []

    @classmethod
    def hook(cls, event, arguments):
        if cls.on and event != "builtins.id":  # of a dtype's error message
            cls.seen.append((event, arguments))


sys.addaudithook(Watch.hook)


def test_nothing_of_a_mutated_pickle_is_imported_or_called(monkeypatch):
    """Twenty thousand mutations, under Python's audit and with every opcode."""
    rng = np.random.default_rng(0)
    texts = seeds()
    ran = collections.Counter()

    def counted(code, step):
        def count(machine):
            step(machine)
            ran[code] += 1

        return count

    steps = [counted(bytes([i]), step) for i, step in enumerate(pickles._OPERATIONS)]
    monkeypatch.setattr(pickles, "_OPERATIONS", steps)

    outcomes = collections.Counter()
    Watch.seen.clear()
    for i in range(20000):
        text = texts[i] if i < len(texts) else mutated(rng, texts[rng.integers(len(texts))])
        Watch.on = True
        try:
            run(text, makers=MAKERS)
            outcomes["read"] += 1
        except BrokenPickle:
            outcomes["broken"] += 1
        finally:
            Watch.on = False
    assert Watch.seen == []
    Watch.on = True
    pickle.loads(pickle.dumps(os.getpid))
    Watch.on = False
    assert Watch.seen  # so it would have been seen
    assert min(outcomes["read"], outcomes["broken"]) > 2000, outcomes
    # Persistent ids and buffers outside are refused where there are none, as here.
    outside = {pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER}
    assert set(_CODES) - set(ran) == outside


def test_the_machine_calls_nothing_but_makers():
    """Whatever a pickle names, what it makes is a name or an inert object."""
    for module, name in HOSTILE:
        made = run(f"c{module}\n{name}\n(S'x'\ntR.".encode(), makers=MAKERS)
        assert isinstance(made, Opaque) and made.name == f"{module}.{name}"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b".",
        b"R.",
        b"(I1\nt",
        b"]I1\nR.",
        b"}I1\nb.",
        b"]b.",
        b"I1\n)R.",
        b"h\x00.",
        b"j\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"(((((.",
        b"0.",
        b"1.",
        b"s.",
        b"u.",
        b"\x97.",
        b"\xff.",
        b"](I1\nu.",
        b"}(I1\nu.",
        b"}(I1\nI2\nI3\nu.",
        b"cos\nsystem",
        b"X\x00\x00",
        b"Vabc",
    ],
)
def test_broken_pickles(text):
    with pytest.raises(BrokenPickle):
        run(text)


def test_a_little_does_not_become_much():
    """One text that is encoded again and again, one dict that is copied, numbers that all have one hash."""
    text = b"X" + struct.pack("<I", 1 << 16) + b"a" * (1 << 16)
    for made in (b"c_codecs\nencode\n", b"cbuiltins\nset\n"):
        again = b"\x80\x02(" + made + b"q\x010" + text + b"q\x020" + b"h\x01h\x02\x85R" * 40 + b"l."
        with pytest.raises(BrokenPickle, match="far more than it holds"):
            run(again)
    number = (1 << 61) - 1
    numbers = b"".join(b"\x8a\x0c" + (i * number).to_bytes(12, "little") + b"N" for i in range(1, 4000))
    assert all(isinstance(k, Opaque) for k in run(b"\x80\x02}(" + numbers + b"u."))


def test_deep_nesting_is_harmless():
    deep = 100_000
    for text in (
        b"]" * deep + b"a" * (deep - 1) + b".",
        b")" + b"\x85" * deep + b".",
        b")" + b"\x85" * deep + b"}2I1\ns.",
    ):
        try:
            made = run(text)
        except BrokenPickle:
            continue
        while isinstance(made, (list, tuple)) and made:  # taken apart without recursion
            made = made[0]
    key = b"}(" + b")" + b"\x85" * deep + b"I1\nu."
    assert list(map(type, run(key))) == [Opaque]


def test_threads_read_at_once_and_the_callers_globals_stay(tmp_path):
    """torch's list of safe globals is neither read nor changed, whatever is in it."""
    state = thin("mmseg")
    content = {"state_dict": state, "args": argparse.Namespace(a=1), "own": Own()}
    path = tmp_path / "iter_1.pth"
    torch.save(content, path)
    wanted = checkpoints.from_state(state).state
    torch.serialization.add_safe_globals([argparse.Namespace])
    failures, before = [], torch.serialization.get_safe_globals()
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(12):
            try:
                assert same(checkpoints.read(path).state, wanted)
            except (UserError, AssertionError) as error:
                failures.append(error)

    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [] and torch.serialization.get_safe_globals() == before
    finally:
        torch.serialization.clear_safe_globals()
