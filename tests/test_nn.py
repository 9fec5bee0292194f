"""Drop-in modules: one plan a block in eval mode, and the eager reference wherever that could differ."""

import copy
import inspect
import io
import pickle
import threading

import pytest
import torch
from blocks import BLOCKS, FORMATS, NHWC, assert_same, every_block, nhwc, norm, pair, some_blocks
from plans import error, one_thread
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from stdc_fast import nn as fast
from stdc_fast.numerics import tolerance
from stdc_fast.reference import layers


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


# What they are.


@every_block
def test_they_are_made_and_stored_as_the_references(name, spy):
    kind, arguments, options, *_ = BLOCKS[name]
    module, reference, inputs = pair(name)
    assert isinstance(module, getattr(layers, kind))
    assert repr(module) == repr(reference)
    assert list(module.state_dict()) == list(reference.state_dict())
    assert [n for n, _ in module.named_modules()] == [n for n, _ in reference.named_modules()]
    names = list(inspect.signature(getattr(layers, kind)).parameters)
    by_name = getattr(fast, kind)(**dict(zip(names, arguments, strict=False)), **options).eval()
    by_name.load_state_dict(reference.state_dict())
    torch._foreach_mul_([p.detach() for p in by_name.parameters()], 1.5)
    reference.load_state_dict(by_name.state_dict())
    assert_same(by_name.requires_grad_(False), reference, inputs)
    assert spy.runs == 1


@every_block
def test_inputs_can_be_given_by_name(name):
    module, reference, inputs = pair(name)
    names = ["spatial", "context"] if len(inputs) == 2 else ["x"]
    named = dict(zip(names, inputs, strict=True))
    assert error(module(**named), reference(**named)) < 1e-6


@pytest.mark.parametrize("options", [{"kernel_size": 5}, {"stride": 3}, {"stride": (1, 2)}], ids=str)
def test_a_convolution_without_an_op_is_the_eager_module(options):
    module = fast.ConvBNReLU(5, 7, **options).eval().requires_grad_(False)
    reference = layers.ConvBNReLU(5, 7, **options).eval()
    reference.load_state_dict(module.state_dict())
    x = torch.randn(2, 5, 9, 8)
    assert error(module(x), reference(x)) < 1e-6


# In eval mode.


@every_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_eval_runs_one_packed_plan(name, dtype, spy):
    module, reference, inputs = pair(name)
    exact = copy.deepcopy(reference).double()(*(x.double() for x in inputs))
    module, reference = module.to(dtype), reference.to(dtype)
    inputs = [x.to(dtype) for x in inputs]
    for given in (inputs, nhwc(inputs), inputs):
        got, plain = module(*given), reference(*given)
        assert got.dtype == plain.dtype
        if dtype.itemsize > 2:
            assert error(got, plain) < tolerance(dtype).op
        else:
            assert error(got, exact) < tolerance(dtype).emulation * error(plain, exact)
    assert (spy.packs, spy.runs) == (1, 3)


@every_block
@pytest.mark.parametrize("form", FORMATS)
def test_outputs_have_the_references_memory_format(name, form):
    module, reference, inputs = pair(name)
    inputs = [FORMATS[form](x) for x in inputs]
    kept = [x.clone() for x in inputs]
    got, expected = module(*inputs), reference(*inputs)
    assert got.shape == expected.shape
    assert got.numel() == 0 or error(got, expected) < 2e-6
    for layout in (NHWC, torch.contiguous_format):
        assert got.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


@every_block
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_outputs_are_fresh(name, layout):
    module, _, inputs = pair(name)
    inputs = [FORMATS[layout](x) for x in inputs]
    first = module(*inputs)
    kept = first.clone()
    second = module(*(2 * x for x in inputs))
    assert torch.equal(first, kept)
    assert len({x.untyped_storage().data_ptr() for x in (first, second, *inputs)}) == 2 + len(inputs)
    first.fill_(torch.nan)
    assert torch.equal(module(*inputs), kept)
    assert not second.isnan().any()


@every_block
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_nan_stays_nan(name, layout):
    module, reference, inputs = pair(name)
    inputs[0][0, 1, 2, 3] = torch.nan
    inputs = [FORMATS[layout](x) for x in inputs]
    assert torch.equal(module(*inputs).isnan(), reference(*inputs).isnan())


WRONG = {
    "channels": lambda x: torch.cat([x, x], 1),
    "three dimensions": lambda x: x[0],
    "five dimensions": lambda x: x[None],
    "no rows": lambda x: x[:, :, :0],
    "float16": torch.Tensor.half,
    "float64": torch.Tensor.double,
    "integers": torch.Tensor.int,
    "meta": lambda x: x.to("meta"),
    "a list": torch.Tensor.tolist,
}


@every_block
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs_raise_what_the_reference_raises(name, wrong):
    module, reference, inputs = pair(name)
    module(*inputs)
    inputs = [WRONG[wrong](x) for x in inputs]
    with pytest.raises(Exception) as expected:
        reference(*inputs)
    with pytest.raises(expected.type):
        module(*inputs)


@every_block
def test_a_wrong_number_of_inputs_is_a_type_error(name):
    module, _, inputs = pair(name)
    for given in ([], [*inputs, inputs[0]]):
        with pytest.raises(TypeError, match="positional argument"):
            module(*given)


@pytest.mark.parametrize("change", [lambda x: x[:, :, :3], lambda x: x[:1], torch.Tensor.double])
def test_inputs_of_a_fusion_that_differ_raise_what_the_reference_raises(change):
    module, reference, (spatial, context) = pair("fusion")
    with pytest.raises(Exception) as expected:
        reference(spatial, change(context))
    with pytest.raises(expected.type):
        module(spatial, change(context))


# Gradients.


@every_block
@pytest.mark.parametrize("case", ["training", "eval", "eval, frozen"])
def test_gradients_are_the_references_bit_by_bit(name, case, spy):
    module, reference, inputs = pair(name, frozen=case == "eval, frozen")
    results = []
    for m in (module.train(case == "training"), reference.train(case == "training")):
        given = [x.clone().requires_grad_() for x in inputs]
        for scale in (1, 3):
            y = m(*(scale * x for x in given))
            y.square().sum().backward()
        results.append([y, *m.buffers(), *(t.grad for t in (*m.parameters(), *given) if t.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert spy.runs == 0


@every_block
def test_gradients_are_asked_for_by_mode_parameters_and_inputs(name, spy):
    module, _, inputs = pair(name)
    last = list(module.parameters())[-1]
    assert not module(*inputs).requires_grad
    last.requires_grad_()
    assert module(*inputs).requires_grad
    with torch.no_grad():
        assert not module(*inputs).requires_grad
    with torch.inference_mode():
        assert module(*inputs).is_inference()
    last.requires_grad_(False)
    inputs[-1].requires_grad_()
    assert module(*inputs).requires_grad
    with torch.no_grad():
        module(*inputs)
    module.train()
    with torch.no_grad():
        module(*inputs)
    assert spy.runs == 4


@every_block
def test_inference_mode(name, spy):
    module, reference, inputs = pair(name)
    with torch.inference_mode():
        assert_same(module, reference, inputs)
        made = [x * 2 for x in inputs]
    for given in (inputs, nhwc(inputs), made):
        assert_same(module, reference, given)
        assert not module(*given).is_inference()
    assert spy.packs == 1
    with torch.inference_mode():  # these weights do not count their changes
        inside, other = copy.deepcopy(module), copy.deepcopy(reference)
        assert_same(inside, other, inputs)
        for m in (inside, other):
            torch._foreach_mul_(list(m.parameters()), -1.5)
        assert_same(inside, other, inputs)
    with torch.no_grad():
        assert_same(inside, other, inputs)


@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype, spy):
    module, reference, inputs = pair(name)
    exact = reference(*inputs)
    for given in (inputs, nhwc(inputs), [x.to(dtype) for x in inputs]):
        with torch.autocast("cpu", dtype):
            got, plain = module(*given), reference(*given)
            with torch.autocast("cpu", enabled=False):
                assert error(module(*inputs), exact) < 2e-6
        assert got.dtype == plain.dtype == dtype
        assert error(got, exact) < tolerance(dtype).emulation * error(plain, exact)
    assert error(module(*inputs), exact) < 2e-6
    assert (spy.packs, spy.runs) == (2, 7)
    with torch.autocast("cpu", dtype):
        assert_same(module.double(), reference.double(), [x.double() for x in inputs])
        module.float().requires_grad_()
        assert module(*inputs).dtype == dtype
        assert module(*inputs).requires_grad


# Hooks, copies, threads.


def record(module, inputs):
    """What hooks on a block and on all that it consists of see, in order."""
    seen, handles = [], []
    for key, m in module.named_modules():
        handles += [
            m.register_forward_pre_hook(lambda m, i, key=key: seen.append((key, "before"))),
            m.register_forward_hook(lambda m, i, o, key=key: seen.append((key, "after", o))),
        ]
    y = module(*inputs)
    for handle in handles:
        handle.remove()
    return seen, y


@every_block
def test_hooks_on_children_see_the_eager_module(name, spy):
    module, reference, inputs = pair(name)
    module(*inputs)
    (ours, y), (theirs, z) = record(module, inputs), record(reference, inputs)
    assert [s[:2] for s in ours] == [s[:2] for s in theirs]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(ours, theirs, strict=True) if len(a) > 2)
    assert torch.equal(y, z)
    assert spy.runs == 1
    assert_same(module, reference, inputs)
    assert spy.runs == 2


@every_block
def test_hooks_on_the_block_see_what_the_backend_does(name, spy):
    module, reference, inputs = pair(name)
    calls = []
    module.register_forward_pre_hook(lambda m, i: calls.append("before") or tuple(-x for x in i))
    module.register_forward_hook(lambda m, i, o: calls.append("after") or 2 * o)
    for _ in range(2):
        assert error(module(*inputs), 2 * reference(*(-x for x in inputs))) < 2e-6
    assert calls == 2 * ["before", "after"]
    assert spy.runs == 2


@every_block
def test_global_hooks_see_the_eager_module(name):
    module, reference, inputs = pair(name)
    module(*inputs)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
    try:
        module(*inputs)
        ours = list(seen)
        seen.clear()
        reference(*inputs)
    finally:
        handle.remove()
    assert ours == seen


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_block
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_copies_are_independent_and_fast(name, clone, spy):
    module, reference, inputs = pair(name)
    module(*inputs)
    other = clone(clone(module))
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(-1.5)
    assert_same(other, reference, inputs)
    assert spy.runs == 2
    for m in (other, reference):
        norm(name, m).eps = 0.5
    assert_same(other, reference, inputs)


@some_blocks
def test_a_shallow_copy_with_another_child_has_its_own_weights(name):
    module, reference, inputs = pair(name)
    module(*inputs)
    child = next(iter(module._modules))
    other, expected = copy.copy(module), copy.copy(reference)
    for m in (other, expected):
        m._modules = dict(m._modules)
        setattr(m, child, copy.deepcopy(getattr(m, child)))
        torch._foreach_mul_(list(getattr(m, child).parameters()), -1.5)
    assert_same(other, expected, inputs)
    assert_same(module, reference, inputs)


@pytest.mark.parametrize("name", ["stdc, stride 2", "attention"])
def test_threads_share_a_block(name):
    module, reference, inputs = pair(name)
    errors = []

    def work(i):
        for k in range(30):
            given = [x + i for x in inputs]
            given = nhwc(given) if k % 2 else given
            errors.append(error(module(*given), reference(*given)))
            if i == 0 and k % 7 == 0:
                module.repack()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert len(errors) == 120 and max(errors) < 2e-6


# Tracing.


class Outer(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, y=None):
        return self.block(x) if y is None else self.block(x, y)


TRACERS = {
    "jit.trace": lambda m, x: torch.jit.trace(m, tuple(x)),
    "fx": lambda m, x: torch.fx.symbolic_trace(m),
    "fx from outside": lambda m, x: torch.fx.symbolic_trace(Outer(m), {"y": None} if len(x) == 1 else None),
    "make_fx": lambda m, x: make_fx(m)(*x),
    "make_fx, fake": lambda m, x: make_fx(m, None, "fake", True)(*x),
    "make_fx, symbolic": lambda m, x: make_fx(m, None, "symbolic", True)(*x),
}


@some_blocks
@pytest.mark.parametrize("packed", [False, True], ids=["new", "packed"])
@pytest.mark.parametrize("tracer", TRACERS)
def test_tracers_trace(name, tracer, packed):
    module, reference, inputs = pair(name)
    if packed:
        module(*inputs)
    traced = TRACERS[tracer](module, inputs)
    given = [-x for x in inputs]
    assert error(traced(*given), reference(*given)) < 2e-6
    assert_same(module, reference, inputs)


@every_block
def test_shapes_without_numbers(name):
    module, reference, inputs = pair(name)
    module(*inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y, z = (m(*(mode.from_tensor(x) for x in inputs)) for m in (module, reference))
        made = getattr(fast, BLOCKS[name][0])(*BLOCKS[name][1], **BLOCKS[name][2]).eval()
        assert made(*(torch.empty(x.shape) for x in inputs)).shape == z.shape
    assert (y.shape, y.stride(), y.dtype, y.device) == (z.shape, z.stride(), z.dtype, z.device)
    y, z = (m.to("meta")(*(x.to("meta") for x in inputs)) for m in (module, reference))
    assert (y.shape, y.stride(), y.dtype, y.device) == (z.shape, z.stride(), z.dtype, z.device)
