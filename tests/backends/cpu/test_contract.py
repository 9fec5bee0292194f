"""What callers may hand to the native CPU engine: all else is an error with the values in it."""

import functools

import pytest
import torch
from engines.cpu import needs_native
from oracle import FULL, LOW
from plans import random_frames, random_images
from sketch import Sketch, small_network

from stdc_fast import UserError, _native
from stdc_fast.backends import cpu
from stdc_fast.backends.cpu import program
from stdc_fast.precision import FLOAT32

pytestmark = needs_native


@functools.cache
def saved(frames=True):
    return program.serialise(small_network(frames=frames), FLOAT32)


# The engine called as Python would if its own checks failed.


@functools.cache
def engine():
    return _native.module().Engine(saved())


X, Y = random_frames(1, 40, 56), torch.empty(1, 40, 56, 1, dtype=torch.uint8)


def spec(x, **changes):
    address, dtype, shape, strides = cpu._spec(x)
    given = {"address": address, "dtype": dtype, "shape": shape, "strides": strides, **changes}
    return given["address"], given["dtype"], given["shape"], given["strides"]


def call(inputs=None, output=None, height=40, width=56, threads=2):
    return lambda: engine().run(inputs or [spec(X)], output or spec(Y), height, width, threads, True)


FLAT = torch.empty(1, 5, 7, 11)
FLOATS = random_images(1, 40, 56).permute(0, 2, 3, 1)
WRONG = {
    "no input": (lambda: engine().run([], spec(Y), 40, 56, 2, True), "no inputs"),
    "two inputs": (call([spec(X)] * 2), "1 inputs, got 2"),
    "a null pointer": (call([spec(X, address=0)]), "frames: no data"),
    "a null output": (call(output=spec(Y, address=0)), "labels: no data"),
    "float frames": (call([spec(FLOATS)]), "uint8 frames, got float32"),
    "four channels": (call([spec(X, shape=(1, 40, 56, 4))]), r"shape \[1, 40, 56, 4\]"),
    "no rows": (call([spec(X, shape=(1, 0, 56, 3))]), r"\[1, 0, 56, 3\]"),
    "negative rows": (call([spec(X, shape=(1, -1, 56, 3))]), r"\[1, -1, 56, 3\]"),
    "a huge frame": (call([spec(X, shape=(1, 2**40, 56, 3))]), str(2**40)),
    "planes": (call([spec(X, strides=(1, 56, 1, 2240))]), r"\[1, 56, 1, 2240\]"),
    "spread pixels": (call([spec(X, strides=(1, 600, 4, 1))]), r"\[1, 600, 4, 1\]"),
    "another batch of labels": (call(output=spec(Y, shape=(2, 40, 56, 1))), r"\[2, 40, 56, 1\]"),
    "labels of two channels": (call(output=spec(Y, shape=(1, 40, 56, 2))), r"\[1, 40, 56, 2\]"),
    "labels of no size": (call(output=spec(Y, shape=(1, 0, 56, 1))), r"\[1, 0, 56, 1\]"),
    "huge labels": (call(output=spec(Y, shape=(1, 2**33, 56, 1))), str(2**33)),
    "spread labels": (call(output=spec(Y, strides=(1, 112, 2, 1))), r"\[1, 112, 2, 1\]"),
    "logits of another size": (
        call(output=spec(FLAT, shape=(1, 5, 8, 11))),
        r"\[1, 5, 8, 11\], not",
    ),
    "logits of other classes": (call(output=spec(FLAT, shape=(1, 5, 7, 12))), r"\[1, 5, 7, 12\]"),
    "logits in bfloat16": (call(output=spec(FLAT.to(LOW))), "bfloat16"),
    "planes of logits": (call(output=spec(FLAT, strides=(385, 7, 1, 35))), "35"),
    "misaligned logits": (call(output=spec(FLAT, address=FLAT.data_ptr() + 2)), "address"),
    "logits nowhere": (call(output=spec(FLAT, address=0)), "no data"),
    "another dtype": (call([spec(X, dtype="int16")]), "int16"),
    "no threads": (call(threads=0), "0 threads"),
    "fewer than none": (call(threads=-3), "-3 threads"),
    "too many threads": (call(threads=100000), "100000 threads"),
    "no height": (call(height=0), "0 x 56"),
    "a negative width": (call(width=-56), "40 x -56"),
    "a huge size": (call(height=2**40), str(2**40)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name):
    run, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        run()
    call()()  # and it is as good as before


def test_maps_of_float_engines():
    float_engine = _native.module().Engine(saved(frames=False))
    for x, message in (
        (spec(X), "expected a float input, got uint8"),
        (spec(FLOATS, shape=(1, 40, 57, 3)), r"\[1, 40, 57, 3\], not \[1, 40, 56, 3\]"),
        (spec(FLOATS, address=FLOATS.data_ptr() + 1), "address"),
        (spec(FLOATS, address=0), "no data"),
    ):
        with pytest.raises(ValueError, match=message):
            float_engine.run([x], spec(Y), 40, 56, 2, True)


# The contract in Python, before any pointer is taken.


@functools.cache
def executable(frames=True, dtype=FULL):
    return cpu.compile(small_network(frames=frames), dtype)


IMAGE = random_images(1, 40, 56)
CONTRACT = {
    "a float frame": (True, IMAGE.permute(0, 2, 3, 1), "uint8 frames .*float32"),
    "planes": (True, X.permute(0, 3, 1, 2), r"\[1, 3, 40, 56\]"),
    "one frame": (True, X[0], r"\[40, 56, 3\]"),
    "no rows": (True, X[:, :0], r"\[1, 0, 56, 3\]"),
    "a raw image": (False, X.permute(0, 3, 1, 2), "float input .*uint8"),
    "whole numbers": (False, IMAGE.long(), "int64"),
    "complex numbers": (False, IMAGE.to(torch.complex64), "complex64"),
    "channels last": (False, IMAGE.permute(0, 2, 3, 1), r"\[1, 40, 56, 3\]"),
    "one image": (False, IMAGE[0], r"\[3, 40, 56\]"),
    "no columns": (False, IMAGE[..., :0], r"\[1, 3, 40, 0\]"),
    "nowhere": (False, IMAGE.to("meta"), "on meta"),
    "frames nowhere": (True, X.to("meta"), "on meta"),
    "sparse": (False, IMAGE.to_sparse(), "sparse"),
    "with a gradient": (False, IMAGE.clone().requires_grad_(), "no_grad"),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract(name):
    frames, x, message = CONTRACT[name]
    for run in (executable(frames), executable(frames).labels):
        with pytest.raises(ValueError, match=message):
            run(x)


def test_contract_of_blocks():
    s = Sketch(6, 4)
    block = cpu.compile(s.plan(s.conv(s.inputs, 8, 3)))
    x, y = torch.randn(1, 6, 5, 7), torch.randn(1, 4, 5, 7)
    assert block(x, y).shape == (1, 8, 5, 7)
    for inputs in ((x,), (x, y, y), (), (y, x), (x, y[..., 1:]), (x, y.expand(2, -1, -1, -1))):
        with pytest.raises(ValueError, match="input"):
            block(*inputs)
    with pytest.raises(ValueError, match="gives a map, not labels"):
        block.labels(x)
    with torch.no_grad():
        assert torch.equal(block(x.clone().requires_grad_(), y), block(x, y))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (1 << 17, 1)])
def test_sizes_of_labels(size):
    with pytest.raises(ValueError, match=r"labels|size"):
        executable().labels(X, size)
    with pytest.raises(ValueError, match="size"):
        executable().labels(X, seen=size)


def test_other_dtypes_and_devices():
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(ValueError, match=str(dtype).removeprefix("torch.")):
            cpu.compile(small_network(), dtype)
    with pytest.raises(ValueError, match="cuda"):
        cpu.compile(small_network(), FULL, "cuda")
    with pytest.raises(UserError, match=r"nonsense.*portable"):
        cpu.compile(small_network(), isa="nonsense")


def test_a_plan_with_classes_for_no_byte():
    s = Sketch(3, store="uint8")
    x = s.conv(s.stem(s.inputs[0], 8, (1.0, 2.0, 3.0)), 8, 3, 2)
    logits = s.conv(x, 300, 1, 2, store="float32")
    plan = s.plan(s.labels(logits))
    assert program.why_not(plan, FLOAT32)
    assert program.why_not(plan.replace(plan.ops[:-1], outputs=(logits,)), FLOAT32) is None
    assert cpu.compile(plan.replace(plan.ops[:-1], outputs=(logits,)))(X).shape == (1, 300, 5, 7)
