"""``torch.ops.stdc_fast``, torch.compile, torch.export, tracers and transforms of blocks and models."""

import copy
import gc

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from blocks import (
    BLOCKS,
    FORMATS,
    OPS,
    assert_same,
    call,
    convolution,
    every_block,
    nhwc,
    norm,
    pair,
    some_blocks,
    weights_of,
)
from plans import error, one_thread
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vjp, vmap

import stdc_fast
from stdc_fast import backends, library
from stdc_fast.images import normalise
from stdc_fast.numerics import tolerance
from stdc_fast.reference.networks import upsample

ops = torch.ops.stdc_fast
DYNAMIC = torch.export.Dim.DYNAMIC


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def smaller(inputs):
    return [x[:1, :, :4, :6] for x in inputs]


# Ops.


def test_schemas_are_as_written():
    for name, schema in library.SCHEMAS.items():
        assert getattr(ops, name).default._schema == torch._C.parse_schema(f"stdc_fast::{name}{schema}")


@every_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_ops_do_what_the_blocks_do(name, dtype):
    _, reference, inputs = pair(name)
    exact = copy.deepcopy(reference).double()(*(x.double() for x in inputs))
    reference, inputs = reference.to(dtype), [x.to(dtype) for x in inputs]
    for given in (inputs, nhwc(inputs), smaller(inputs), [x[:0] for x in inputs]):
        got, plain = call(name, given, weights_of(reference)), reference(*given)
        assert (got.dtype, got.shape) == (plain.dtype, plain.shape)
        assert got.is_contiguous(memory_format=torch.channels_last) == plain.is_contiguous(
            memory_format=torch.channels_last
        )
        if got.shape == exact.shape:
            limit = tolerance(dtype)
            allowed = limit.emulation * error(plain, exact) if limit.emulation else limit.op
            assert error(got, exact) < allowed
    for m in reference.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 0.5
    assert error(call(name, inputs, weights_of(reference), 0.5), reference(*inputs)) < 1e-2


@every_block
def test_opcheck(name):
    _, reference, inputs = pair(name)
    op, settings = getattr(ops, OPS[name][0]), OPS[name][1]
    weights = weights_of(reference)
    cases = [(inputs, weights)]
    for form in ("nhwc", "one pixel", "transposed", "no image"):
        cases.append(([FORMATS[form](x) for x in inputs], weights))
    cases.append((nhwc([x[..., :2, :2].bfloat16() for x in inputs]), [w.bfloat16() for w in weights]))
    for i, (given, w) in enumerate(cases):
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(
            op, (*given, w, *settings), test_utils=tests if i else torch.library._OPCHECK_DEFAULT_UTILS
        )
    asking = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(op, (*asking, weights, *settings), test_utils=tests)


@some_blocks
def test_ops_have_no_gradient_and_say_so(name):
    _, reference, inputs = pair(name)
    asking = [inputs[0].clone().requires_grad_(), *inputs[1:]]
    parameters = [w.clone().requires_grad_() for w in weights_of(reference)]
    for given in ((asking, weights_of(reference)), (inputs, parameters)):
        y = call(name, *given)
        with pytest.raises(RuntimeError, match="inference"):
            y.sum().backward()


@some_blocks
def test_forward_mode_through_an_op_is_not_silently_zero(name):
    _, reference, inputs = pair(name)
    with pytest.raises((RuntimeError, NotImplementedError)):
        jvp(lambda x: call(name, [x, *inputs[1:]], weights_of(reference)), (inputs[0],), (inputs[0],))


@some_blocks
def test_ops_compute_in_the_dtype_of_the_input_also_under_autocast(name):
    _, reference, inputs = pair(name)
    exact = reference(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (inputs, nhwc(inputs)):
            got = call(name, given, weights_of(reference))
            assert got.dtype == torch.float32 and error(got, exact) < tolerance(torch.float32).op


WRONG = {
    "none": lambda w: [],
    "one less": lambda w: [*w[:-2], w[-1]],
    "one more": lambda w: [*w, w[0]],
    "one channel less": lambda w: [w[0], w[1][:-1], *w[2:]],
    "a flat kernel": lambda w: [w[0].flatten(), *w[1:]],
    "reversed": lambda w: w[::-1],
}


@every_block
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_weights_are_value_errors_with_their_values(name, wrong):
    _, reference, inputs = pair(name)
    weights = WRONG[wrong](weights_of(reference))
    values = rf"stdc_fast::{OPS[name][0]}: {len(weights)} weights"
    with pytest.raises(ValueError, match=values) as problem:
        call(name, inputs, weights)
    if wrong == "one channel less":
        n = len(weights[1])
        assert f"is [{n}], not [{n + 1}]" in str(problem.value)


@some_blocks
def test_wrong_inputs_of_ops_are_value_errors(name):
    _, reference, inputs = pair(name)
    for change in (lambda x: torch.cat([x, x], 1), lambda x: x[0], torch.Tensor.int):
        with pytest.raises(ValueError, match=r"\d"):
            call(name, [change(x) for x in inputs], weights_of(reference))


@pytest.mark.parametrize("stride", [0, 3, -1])
def test_wrong_strides(stride):
    (_, conv, [x]), (_, stdc, [y]) = pair("conv"), pair("stdc")
    with pytest.raises(ValueError, match=f"{stride}"):
        ops.conv_bn_relu(x, weights_of(conv), stride)
    with pytest.raises(ValueError, match=f"not {stride}"):
        ops.stdc_module(y, weights_of(stdc), stride)


def test_the_cache_of_ops():
    library._CACHE.clear()
    for name in BLOCKS:
        _, reference, inputs = pair(name)
        weights = weights_of(reference)
        for change in (lambda w: None, lambda w: w[0].mul_(-1), lambda w: torch._foreach_add_(w, 0.5)):
            change(weights)
            for _ in range(2):
                assert error(call(name, inputs, weights), reference(*inputs)) < 2e-6
    assert len(library._CACHE) <= len(BLOCKS)
    del reference, weights
    gc.collect()
    kept = pair("head")[1]
    call("head", pair("head")[2], weights_of(kept))
    assert len(library._CACHE) == 1


@pytest.fixture(scope="module")
def frames():
    return torch.randint(
        0, 256, (2, 33, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def test_the_network_and_its_labels(tiny_network, frames):
    weights, x = weights_of(tiny_network), normalise(frames, torch.float32)
    expected = tiny_network.logits8(x)
    for image in (x, frames, x.contiguous(memory_format=torch.channels_last)):
        logits = ops.stdc_seg(image, weights, "stdc1")
        assert logits.dtype == torch.float32 and error(logits, expected) < 1e-5
    for dtype in (torch.bfloat16, torch.float16):
        logits = ops.stdc_seg(frames, weights, "stdc1", dtype=dtype)
        assert logits.dtype == torch.float32 and 1e-5 < error(logits, expected) < 0.06
    labels = ops.labels(expected, [50, 61])
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), upsample(expected, (50, 61)).argmax(1))
    for wrong, given in (
        ("192 weights", (x, weights[:-1], "stdc1")),
        ("unknown network 'stdc3'", (x, weights, "stdc3")),
        ("193 weights", (x, weights, "stdc2")),
        (r"is \[16, 3, 3, 3\], not \[32, 3, 3, 3\]", (x, [weights[0][:16], *weights[1:]], "stdc1")),
        ("float input.*int32", (x.int(), weights, "stdc1")),
        (r"\[N, 3, H, W\]", (x[:, :2], weights, "stdc1")),
    ):
        with pytest.raises(ValueError, match=wrong):
            ops.stdc_seg(*given)
    small = frames[:1, :32, :32]
    torch.library.opcheck(
        ops.stdc_seg, (small, weights, "stdc1"), test_utils=("test_schema", "test_faketensor")
    )
    torch.library.opcheck(ops.labels, (expected, [9, 11]))


# torch.compile and torch.export.


@pytest.fixture
def native(monkeypatch):
    """As if a backend that a compiler can not see through were chosen."""
    decision = backends.Decision(backends.cpu.BACKEND, "for this test")
    monkeypatch.setattr(backends, "select", lambda *_: decision)


def compiled(module, **options):
    """(the compiled module, names of what its graphs call)."""
    called = set()

    def backend(graph, inputs):
        called.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    return torch.compile(module, backend=backend, fullgraph=True, **options), called


@pytest.mark.parametrize(
    ("name", "backend"), [("conv", "native"), ("stdc, stride 2", "eager"), ("fusion", "native")]
)
@torch.no_grad()
def test_compiled_blocks_call_their_modules(name, backend, request):
    if backend == "native":
        request.getfixturevalue("native")
    module, reference, inputs = pair(name)
    run, called = compiled(module)
    assert_same(run, reference, inputs)
    assert {target for target in called if "stdc_fast" in target} == {"stdc_fast.live_block"}
    for m in (module, reference):
        torch._foreach_mul_(list(m.parameters()), -1.5)
        norm(name, m).running_mean.add_(1)
    assert_same(run, reference, inputs)
    assert_same(run, reference, nhwc(inputs))
    assert_same(torch.compile(module, backend="aot_eager", fullgraph=True), reference, inputs)


@torch.no_grad()
def test_blocks_are_compiled_once_for_all_sizes(native):
    module, reference, inputs = pair("attention")
    run, _ = compiled(module, dynamic=True)
    for given in (inputs, [torch.cat([x] * 3)[..., :4] for x in inputs], [x[:, :, :3] for x in inputs]):
        assert_same(run, reference, given)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run, _ = compiled(module)
    given = [x.clone() for x in inputs]
    for x in given:
        for d in (0, 2, 3):
            torch._dynamo.mark_dynamic(x, d)
    assert_same(run, reference, given)
    assert_same(run, reference, [torch.cat([x] * 3)[:, :, :4, :6].contiguous() for x in inputs])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


COMPILED_CHANGES = {
    "hook on a child": lambda name, m: convolution(name, m).register_forward_hook(lambda m, i, o: 2 * o),
    "eps of one": lambda name, m: setattr(norm(name, m), "eps", 0.5),
    "norm in training mode": lambda name, m: norm(name, m).train(),
    "padding mode": lambda name, m: setattr(convolution(name, m), "padding_mode", "circular"),
    "synchronised norm": lambda name, m: nn.SyncBatchNorm.convert_sync_batchnorm(m),
    "patched forward": lambda name, m: setattr(
        convolution(name, m), "forward", lambda x: 2 * nn.Conv2d.forward(convolution(name, m), x)
    ),
}


@pytest.mark.parametrize("change", COMPILED_CHANGES)
@torch.no_grad()
def test_changed_blocks_are_compiled_as_their_references(change, native):
    module, reference, inputs = pair("attention")
    for m in (module, reference):
        COMPILED_CHANGES[change]("attention", m)
    assert error(compiled(module)[0](*inputs), reference(*inputs)) < 2e-6


@pytest.mark.parametrize("case", ["training", "eval", "eval, frozen"])
def test_compiled_blocks_have_gradients(case, native):
    module, reference, inputs = pair("attention", frozen=case == "eval, frozen")
    results = []
    for m, run in (
        (module, torch.compile(module, backend="aot_eager", fullgraph=True)),
        (reference, reference),
    ):
        m.train(case == "training")
        given = [x.clone().requires_grad_() for x in inputs]
        run(*given).square().sum().backward()
        results.append(
            [given[0].grad, *(p.grad for p in m.parameters() if p.requires_grad), m.conv.bn.running_var]
        )
    assert all(error(a, b) < 1e-5 for a, b in zip(*results, strict=True))


def test_compiled_blocks_under_autocast(native):
    module, reference, inputs = pair("attention")
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = compiled(module)[0](*inputs), reference(*inputs)
    assert got.dtype == expected.dtype == torch.bfloat16


def test_compiled_blocks_refuse_what_the_reference_refuses(native):
    module, reference, inputs = pair("attention")
    for wrong in (torch.Tensor.half, torch.Tensor.double, lambda x: x[0]):
        for m in (module, reference):
            with pytest.raises(Exception):  # noqa: B017
                compiled(m)[0](*(wrong(x) for x in inputs))


@every_block
def test_exported_blocks_are_plain(name, native):
    module, reference, inputs = pair(name)
    names = ["spatial", "context"][: len(inputs)] if len(inputs) == 2 else ["x"]
    shapes = tuple({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC} for _ in inputs)
    program = torch.export.export(nn.Sequential(module) if len(inputs) == 1 else module, tuple(inputs))
    assert_same(program.module(), reference, inputs)
    assert_same(program.run_decompositions().module(), reference, inputs)
    assert not any("stdc_fast" in str(node.target) for node in program.graph.nodes)
    named = torch.export.export(module, tuple(inputs), dynamic_shapes=dict(zip(names, shapes, strict=True)))
    assert_same(named.module(), reference, smaller(inputs))


class Calls(nn.Module):
    """A module of somebody else that calls ops."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        maps = ops.seg_head(x, weights_of(self.block))
        return ops.labels(maps, [2 * x.shape[2], 2 * x.shape[3]])


@torch.no_grad()
def test_ops_in_compiled_and_exported_programs():
    _, head, [x] = pair("head")
    module, other = Calls(head), smaller([x])[0].contiguous()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},))
    program = program.run_decompositions()
    run, called = compiled(module, dynamic=True)
    for given in (x, other):
        expected = upsample(head(given), (2 * given.shape[2], 2 * given.shape[3])).argmax(1)
        assert torch.equal(program.module()(given).long(), expected)
        assert torch.equal(run(given).long(), expected)
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    for name in ("stdc_fast.seg_head", "stdc_fast.labels"):
        assert {f"{name}.default"} <= calls and any(target.startswith(name) for target in called)


@torch.no_grad()
def test_the_network_in_a_compiled_program(tiny_network, frames):
    weights = weights_of(tiny_network)
    run, _ = compiled(lambda x: ops.labels(ops.stdc_seg(x, weights, "stdc1"), x.shape[1:3]))
    expected = tiny_network(normalise(frames, torch.float32)).argmax(1)
    assert (run(frames) == expected).float().mean() > 0.999


@pytest.mark.parametrize(("dtype", "backend"), [("float32", "eager"), ("bfloat16", "native")])
@torch.no_grad()
def test_compiled_and_exported_models(dtype, backend, tiny_weights, frames, request):
    model = stdc_fast.load(tiny_weights, device="cpu", dtype=dtype)
    if backend == "native":
        request.getfixturevalue("native")
    x = normalise(frames, torch.float32)
    exact = copy.deepcopy(model.network).double()(x.double())
    run, _ = compiled(model)
    program = torch.export.export(model, (x,)).module()
    limit = {"float32": 1e-5, "bfloat16": 0.06}[dtype]
    for got in (run(x), program(x)):
        assert got.dtype == torch.float32
        assert error(got, exact) < limit
    for p in model.parameters():
        p.mul_(1.01)
    assert error(run(x), copy.deepcopy(model.network).double()(x.double())) < limit


# Transforms.


def split(module):
    return {k: p.detach() for k, p in module.named_parameters()}, dict(module.named_buffers())


def ensemble(module, inputs):
    """vmap over stacked weights, with a module on the meta device."""
    other = copy.deepcopy(module)
    torch._foreach_mul_(list(other.parameters()), 1.5)
    weights = stack_module_state([module, other])
    empty = copy.deepcopy(module).to("meta")
    return vmap(lambda w: functional_call(empty, w, tuple(inputs)))(weights)


def dual(module, inputs):
    with forward_ad.dual_level(), torch.no_grad():
        x = forward_ad.make_dual(inputs[0], inputs[0])
        return forward_ad.unpack_dual(module(x, *inputs[1:])).tangent


def dual_weights(module, inputs):
    parameters, _ = split(module)
    with forward_ad.dual_level(), torch.no_grad():
        duals = {k: forward_ad.make_dual(p, p.clone()) for k, p in parameters.items()}
        return forward_ad.unpack_dual(functional_call(module, duals, tuple(inputs))).tangent


def gradients(module, inputs):
    parameters, buffers = split(module)

    def loss(parameters):
        return functional_call(module, (parameters, buffers), tuple(inputs)).square().sum()

    return torch.cat([g.flatten() for g in grad(loss)(parameters).values()])


TRANSFORMS = {
    "functional_call": lambda m, x: functional_call(m, {k: 2 * p for k, p in split(m)[0].items()}, tuple(x)),
    "grad of weights": gradients,
    "grad of inputs": lambda m, x: grad(lambda y: m(y, *x[1:]).square().sum())(x[0]),
    "vjp": lambda m, x: vjp(m, *x)[1](m(*x))[0],
    "jvp": lambda m, x: jvp(m, tuple(x), tuple(x))[1],
    "jvp, nhwc": lambda m, x: jvp(m, tuple(nhwc(x)), tuple(nhwc(x)))[1],
    "vmap": lambda m, x: vmap(m)(*(torch.stack([y, -y]) for y in x)),
    "ensemble": ensemble,
    "forward-mode": dual,
    "forward-mode, nhwc": lambda m, x: dual(m, nhwc(x)),
    "forward-mode of weights": dual_weights,
}


@some_blocks
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_give_what_they_give_of_the_reference(name, transform):
    module, reference, inputs = pair(name)
    module(*inputs)
    got = TRANSFORMS[transform](module, inputs)
    expected = TRANSFORMS[transform](reference, inputs)
    assert got is not None and error(got, expected) < 5e-6
    assert_same(module, reference, inputs)


@pytest.mark.parametrize("transform", ["grad of weights", "jvp", "forward-mode", "functional_call"])
def test_transforms_of_a_model(transform, tiny_model, frames):
    x = normalise(frames[:1], torch.float32)
    tiny_model(x)
    got, expected = (TRANSFORMS[transform](m, [x]) for m in (tiny_model, tiny_model.network))
    assert got is not None and error(got, expected) < 1e-4


@pytest.mark.parametrize("how", ["jit.trace", "meta"])
def test_shapes_and_traces_of_a_model(how, tiny_model, frames):
    x = normalise(frames[:1], torch.float32)
    for model in (tiny_model, tiny_model.network):
        run = torch.jit.trace(model, (x,)) if how == "jit.trace" else copy.deepcopy(model).to("meta")
        assert run(x.to("cpu" if how == "jit.trace" else "meta")).shape == (1, 11, 33, 47)
