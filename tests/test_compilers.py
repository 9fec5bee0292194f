"""Models and blocks under torch's compilers, exporters and transforms: they keep what is packed."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.func import functional_call, vmap

import stdc_fast
from stdc_fast import nn as fused
from stdc_fast.errors import UserError

DYNAMIC = torch.export.Dim.DYNAMIC


@pytest.fixture
def model(tiny_weights):
    return stdc_fast.load(tiny_weights, device="cpu", dtype="float32")


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compiled(call):
    """(the compiled call, names of what its graphs call)."""
    called = set()

    def backend(graph, inputs):
        called.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(call, backend=backend, fullgraph=True), called


def ops(called):
    return {name for name in called if "stdc_fast" in name}


@torch.no_grad()
def test_a_compiled_model_runs_the_packed_network(model):
    x, other = images(1, 3, 64, 96), images(2, 3, 97, 131)
    run, called = compiled(model)
    assert torch.equal(run(x), model(x)) and torch.equal(run(other), model(other))
    assert ops(called) == {"stdc_fast.live_logits"}
    packed = model._watched.current.made
    run(x)
    assert model._watched.current.made is packed and len(packed) == 1


@torch.no_grad()
def test_a_compiled_model_notices_what_happens_to_it(model):
    x = images(1, 3, 64, 96)
    run, _ = compiled(model)
    before = run(x)
    for p in model.parameters():
        p.mul_(1.1)
    assert torch.equal(run(x), model(x)) and not torch.equal(run(x), before)
    handle = model.network.conv_out.register_forward_hook(lambda module, given, result: 2 * result)
    assert torch.allclose(run(x), model(x))
    handle.remove()
    model.to(torch.float64)
    assert run(x.double()).dtype == torch.float64 and torch.equal(run(x.double()), model(x.double()))
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.zero_()
    assert torch.equal(compiled(twin)[0](x.double()), twin(x.double()))
    assert not torch.equal(run(x.double()), twin(x.double()))


@pytest.mark.parametrize("how", [{}, {"scale": 0.5}, {"size": "native"}, {"size": (64, 96)}])
def test_compiled_labels(model, how):
    frames = torch.randint(0, 256, (2, 100, 140, 3), dtype=torch.uint8)
    run, called = compiled(model.label)
    assert torch.equal(run(frames, **how), model.label(frames, **how))
    assert ops(called) == {"stdc_fast.live_labels"}


def test_compiled_labels_refuse_other_frames(model):
    with pytest.raises(Exception, match="expected uint8 frames"):
        torch.compile(model.label, backend="eager")(torch.zeros(1, 64, 64, 3))


def test_gradients_autocast_and_training_go_through_torch(model):
    x = images(1, 3, 64, 96)
    model.requires_grad_()
    run, called = compiled(model)
    run(x).sum().backward()
    assert model.network.conv_out.conv_out.weight.grad is not None and not ops(called)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        run, called = compiled(model)
        run(x)
    assert not ops(called)
    run, called = compiled(model.train())
    run(torch.cat([x, x]))
    assert not ops(called)


@torch.no_grad()
def test_other_weights_in_a_compiled_call(model):
    x = images(1, 3, 64, 96)
    other = {name: p * 1.05 for name, p in model.named_parameters()}

    def call(weights, x):
        return functional_call(model, weights, (x,))

    run, _ = compiled(call)
    got = run(other, x)
    assert torch.allclose(got, call(other, x), atol=1e-4) and not torch.allclose(got, model(x), atol=1e-2)
    assert torch.equal(run(dict(model.named_parameters()), x), model(x))


@torch.no_grad()
def test_vmap(model):
    x = images(2, 1, 3, 64, 96)
    expected = torch.stack([model(one) for one in x])
    assert torch.allclose(vmap(model)(x), expected, atol=1e-4)
    torch._dynamo.reset()
    run = torch.compile(lambda x: vmap(model)(x), backend="eager")
    assert torch.allclose(run(x), expected, atol=1e-4)
    frames = torch.randint(0, 256, (2, 1, 64, 96, 3), dtype=torch.uint8)
    with pytest.raises(UserError, match=r"^label\(\) takes a batch as it is; call it without torch\.vmap"):
        vmap(model.label)(frames)
    assert torch.equal(
        torch.compile(vmap(model.label), backend="eager")(frames)[:, 0], model.label(frames[:, 0])
    )


@torch.no_grad()
def test_predict_is_no_compilers_concern(model):
    frame = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy()

    def road(frame):
        return int((model.predict(frame).labels == 0).sum()) + 1

    assert torch.compile(road, backend="eager")(frame) == road(frame)
    assert len(list(torch.compile(model.stream, backend="eager")(iter([frame] * 2)))) == 2


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_an_exported_model_keeps_the_fast_op(model, strict, tmp_path):
    x = images(2, 3, 64, 96)
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},), strict=strict
    )
    assert ops({str(node.target) for node in program.graph.nodes}) == {"stdc_fast.stdc_seg.default"}
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for given in (x, images(3, 3, 97, 131), images(2, 3, 32, 64)):
        assert torch.equal(loaded(given), model(given))


@torch.no_grad()
def test_a_model_that_was_changed_is_exported_as_it_is(model):
    x = images(2, 3, 64, 96)
    model.network.ffm.register_forward_hook(lambda module, given, result: 2 * result)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x), atol=1e-4)


def test_for_onnx_torchs_own_operations_are_exported(model, monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(model, (images(1, 3, 64, 96),))
    assert not ops({str(node.target) for node in program.graph.nodes})


@pytest.mark.parametrize(
    "make", [lambda model: model, lambda model: torch.nn.Sequential(fused.ConvBNReLU(3, 8))]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_is_refused_in_one_line(model, make):
    with pytest.raises(UserError, match=r"torch\.jit\.script can not read .*; use torch\.compile") as error:
        torch.jit.script(make(model))
    assert "\n" not in str(error.value)


def test_a_program_whose_module_is_gone(model):
    x = images(1, 3, 64, 96)
    with pytest.raises(RuntimeError, match="that is gone"):
        torch.ops.stdc_fast.live_logits(x, list(model.parameters()), 10**9)


def test_the_library_does_not_import_the_compiler():
    code = (
        "import sys, stdc_fast; print([m for m in ('torch._dynamo', 'torch._inductor') if m in sys.modules])"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"
