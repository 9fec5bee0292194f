"""Packed weights are never stale: whatever changes a block or a model, it does what the reference does."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from blocks import BLOCKS, assert_same, convolution, norm, pair
from plans import error, one_thread
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from stdc_fast.freshness import Cache, Watched, weights_of
from stdc_fast.images import normalise
from stdc_fast.reference import layers


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


def weights(module):
    return [p.detach() for p in module.parameters()]


def larger(module):
    return {k: 1.5 * v if v.is_floating_point() else v for k, v in module.state_dict().items()}


def stepped(optimiser, look=False, **options):
    """One step of fine-tuning with frozen statistics."""

    def change(name, m):
        inputs = pair(name)[2]
        m.requires_grad_()
        with torch.enable_grad():
            m(*inputs).square().mean().backward()
        if look:
            m(*inputs)
        optimiser(m.parameters(), lr=0.1, **options).step()
        m.requires_grad_(False)

    return change


def trained(name, m):
    m.train()
    m(*(3 * x + 1 for x in pair(name)[2]))
    m.eval()


def recalibrated(name, m):
    parent = nn.Sequential(m)
    if len(pair(name)[2]) == 1:
        update_bn([3 * pair(name)[2][0] + 1], parent)
    else:
        trained(name, m)
    parent.eval()


def new_parameter(name, m):
    convolution(name, m).weight = nn.Parameter(2 * convolution(name, m).weight, requires_grad=False)


def new_data(make):
    def change(name, m):
        convolution(name, m).weight.data = make(convolution(name, m).weight.data)

    return change


# What changes numbers, on the block and on its reference alike.
NUMBERS = {
    "in place": lambda name, m: convolution(name, m).weight.mul_(-1),
    "a view in place": lambda name, m: convolution(name, m).weight.view(-1)[:9].fill_(3),
    "detached in place": lambda name, m: convolution(name, m).weight.detach().mul_(2),
    "out=": lambda name, m: torch.mul(convolution(name, m).weight, 2, out=convolution(name, m).weight),
    "set_": lambda name, m: convolution(name, m).weight.set_(-convolution(name, m).weight),
    "foreach": lambda name, m: torch._foreach_mul_(weights(m), 1.5),
    "foreach copy": lambda name, m: torch._foreach_copy_(weights(m), [2 * w for w in weights(m)]),
    "moving average": lambda name, m: torch._foreach_lerp_(weights(m), [1 - w for w in weights(m)], 0.3),
    "new parameter": new_parameter,
    "new data": new_data(lambda w: 2 * w),
    "new data, a view of the old": new_data(lambda w: w[:1].expand_as(w)),
    "vector_to_parameters": lambda name, m: nn.utils.vector_to_parameters(
        1.3 * nn.utils.parameters_to_vector(m.parameters()), m.parameters()
    ),
    "swap_tensors": lambda name, m: torch.utils.swap_tensors(
        convolution(name, m).weight, nn.Parameter(2 * convolution(name, m).weight, requires_grad=False)
    ),
    "load_state_dict": lambda name, m: m.load_state_dict(larger(m)),
    "load_state_dict, assign": lambda name, m: m.load_state_dict(larger(m), assign=True),
    "running mean": lambda name, m: norm(name, m).running_mean.add_(1),
    "new running mean": lambda name, m: setattr(norm(name, m), "running_mean", weights(norm(name, m))[0] + 1),
    "reset statistics": lambda name, m: norm(name, m).reset_running_stats(),
    "eps": lambda name, m: [setattr(x, "eps", 0.5) for x in m.modules() if hasattr(x, "eps")],
    "SGD": stepped(torch.optim.SGD, foreach=False),
    "SGD, foreach": stepped(torch.optim.SGD, foreach=True),
    "SGD, fused": stepped(torch.optim.SGD, fused=True),
    "SGD, fused, used before the step": stepped(torch.optim.SGD, look=True, fused=True),
    "Adam": stepped(torch.optim.Adam),
    "AdamW, fused": stepped(torch.optim.AdamW, fused=True),
    "a pass in training mode": trained,
    "update_bn": recalibrated,
    "half precision and back": lambda name, m: (m.bfloat16(), m.float()),
}  # fmt: skip


@pytest.mark.parametrize("change", NUMBERS)
@torch.no_grad()
def test_changed_numbers_are_packed_again(change, spy):
    for name in BLOCKS:
        module, reference, inputs = pair(name)
        before = module(*inputs)
        for m in (module, reference):
            NUMBERS[change](name, m)
        assert error(before, reference(*inputs)) > 1e-3, name
        spy.runs = 0
        assert_same(module, reference, inputs)
        assert_same(module, reference, inputs)
        assert spy.runs == 2, name


def patched(attribute):
    """A method of the first convolution exchanged, as accelerate does with ``forward``."""

    def change(name, m):
        conv = convolution(name, m)
        method = getattr(conv, attribute)
        setattr(conv, attribute, lambda *given: 2 * method(*given))

    return change


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def seeded(change):
    def run(name, m):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            change(convolution(name, m))

    return run


def no_statistics(name, m):
    norm(name, m).running_mean = norm(name, m).running_var = None


def no_gains(name, m):
    norm(name, m).weight = norm(name, m).bias = None


def pruned(name, m):
    prune.l1_unstructured(convolution(name, m), "weight", 0.5)


def settings(**values):
    return lambda name, m: [setattr(convolution(name, m), k, v) for k, v in values.items()]


# What changes the module itself.
STRUCTURE = {
    "dilation": settings(dilation=(2, 2), padding=(2, 2)),
    "stride": settings(stride=(2, 2)),
    "padding mode": settings(
        padding_mode="replicate", padding=(1, 1), _reversed_padding_repeated_twice=[1, 1, 1, 1]
    ),
    "eps of one": lambda name, m: setattr(norm(name, m), "eps", 0.5),
    "norm in training mode": lambda name, m: norm(name, m).train(),
    "no statistics": no_statistics,
    "no gains": no_gains,
    "a bias": settings(bias=nn.Parameter(torch.ones(1), requires_grad=False)),
    "no norm": lambda name, m: m.set_submodule(BLOCKS[name][5], nn.Identity()),
    "group norm": lambda name, m: m.set_submodule(
        BLOCKS[name][5], nn.GroupNorm(1, norm(name, m).num_features)
    ),
    "synchronised norm": lambda name, m: nn.SyncBatchNorm.convert_sync_batchnorm(m),
    "hook": lambda name, m: convolution(name, m).register_forward_hook(lambda m, i, o: 2 * o),
    "pre-hook": lambda name, m: convolution(name, m).register_forward_pre_hook(lambda m, i: (2 * i[0],)),
    "pre-hook with keywords": lambda name, m: norm(name, m).register_forward_pre_hook(
        lambda m, i, k: ((2 * i[0],), k), with_kwargs=True
    ),
    "patched forward": patched("forward"),
    "patched _conv_forward": patched("_conv_forward"),
    "another class": lambda name, m: setattr(convolution(name, m), "__class__", Doubling),
    "parametrization": lambda name, m: parametrize.register_parametrization(
        convolution(name, m), "weight", nn.Softplus()
    ),
    "weight norm": seeded(lambda conv: (nn.utils.weight_norm(conv), conv.weight_g.mul_(2))),
    "weight norm, parametrized": seeded(
        lambda conv: parametrizations.weight_norm(conv).parametrizations.weight.original0.mul_(2)
    ),
    "spectral norm": seeded(nn.utils.spectral_norm),
    "spectral norm, parametrized": seeded(parametrizations.spectral_norm),
    "pruned": pruned,
    "pruned for good": lambda name, m: (pruned(name, m), prune.remove(convolution(name, m), "weight")),
}


def outcome(module, inputs):
    try:
        return module(*inputs)
    except (RuntimeError, ValueError) as problem:
        return type(problem)


@pytest.mark.parametrize("when", ["packed", "new"])
@pytest.mark.parametrize("change", STRUCTURE)
@torch.no_grad()
def test_changed_modules_do_what_the_reference_does(change, when):
    for name in BLOCKS:
        module, reference, inputs = pair(name)
        if when == "packed":
            module(*inputs)
        for m in (module, reference):
            STRUCTURE[change](name, m)
        got, expected = outcome(module, inputs), outcome(reference, inputs)
        if isinstance(expected, type):
            assert got is expected, name
        else:
            assert not isinstance(got, type) and error(got, expected) < 2e-6, name


@pytest.mark.parametrize("when", ["packed", "new"])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.avd_layer.append(nn.ReLU()),
        lambda m: m.conv_list.append(layers.ConvBNReLU(4, 4).eval()),
        lambda m: m.conv_list.__delitem__(-1),
        lambda m: setattr(m, "skip", nn.AvgPool2d(3, 2, 1)),
        lambda m: setattr(m.skip, "count_include_pad", True),
        lambda m: setattr(m.skip, "divisor_override", 5),
        lambda m: setattr(m, "stride", 1),
    ],
    ids=["appended", "block appended", "block removed", "pool", "padding", "divisor", "stride"],
)
@torch.no_grad()
def test_changed_children_of_a_module_of_blocks(change, when):
    module, reference, inputs = pair("stdc, stride 2")
    if when == "packed":
        module(*inputs)
    for m in (module, reference):
        torch.manual_seed(0)
        change(m)
    got, expected = outcome(module, inputs), outcome(reference, inputs)
    assert got is expected or error(got, expected) < 2e-6


@pytest.mark.parametrize("options", [{}, {"use_buffers": True}, {"multi_avg_fn": get_ema_multi_avg_fn(0.5)}])
@torch.no_grad()
def test_averaged_models(options):
    for name in BLOCKS:
        module, reference, inputs = pair(name)
        averages = [AveragedModel(m, **options).eval() for m in (module, reference)]
        for _ in range(3):
            for m, average in zip((module, reference), averages, strict=True):
                torch._foreach_add_(weights(m), 0.1)
                average.update_parameters(m)
            assert_same(*averages, inputs)


@torch.no_grad()
def test_only_what_changed_is_packed_again(spy):
    module, _, inputs = pair("attention")
    for _ in range(3):
        module(*inputs)
        module.eval()
        module.requires_grad_(False)
        module.to("cpu")
        module.load_state_dict(module.state_dict(), assign=True)
        module.bn_atten.momentum = 0.5
    assert spy.packs <= 3  # the assigned tensors are others, though their storage is the same
    spy.packs = 0
    hook = module.conv.register_forward_hook(lambda m, i, o: None)
    for _ in range(3):
        module(*inputs)
    assert spy.packs == 0
    hook.remove()
    module(*inputs)
    assert spy.packs == 1


@torch.no_grad()
def test_repack_after_writing_where_torch_does_not_count():
    for name in BLOCKS:
        module, reference, inputs = pair(name)
        module(*inputs)
        for m in (module, reference):
            convolution(name, m).weight.data.mul_(-1.5)
        module.repack()
        assert_same(module, reference, inputs)


def test_weights_are_in_the_order_of_the_state_dict():
    for name in BLOCKS:
        module, _, _ = pair(name)
        stored = [v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")]
        listed = list(weights_of(module))
        assert [w.data_ptr() for w in listed] == [w.data_ptr() for w in stored]


def test_packed_has_a_state_of_plain_modules_only():
    module, inputs = layers.AttentionRefinement(3, 4).requires_grad_(False), [torch.randn(1, 3, 4, 4)]
    packed = Watched(module)
    assert packed.state(module, inputs) is None
    module.eval()
    first = packed.state(module, inputs)
    first.made["key"] = 1
    assert packed.state(module, inputs) is first
    assert (first.dtype, first.device) == (torch.float32, torch.device("cpu"))
    packed.clear()
    assert packed.state(module, inputs).made == {}
    assert copy.deepcopy(packed).state(module, inputs) is not first
    module.conv.conv.half()
    assert packed.state(module, inputs).dtype is None
    module.conv.bn.eps = 1.0
    assert packed.state(module, inputs) is None


# Loose weights, as ops get them.


class Made:
    """What stands in for an executable: something that can be referred to weakly."""


def test_cache_makes_once_for_each_key_and_weights():
    cache = Cache()
    a, b = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    first = cache.get("k", a, Made)
    assert cache.get("k", a, Made) is first
    assert cache.get("k", [w.detach() for w in a], Made) is first
    others = [cache.get(*given, Made) for given in (("k", b), ("l", a), ("k", a[:1]), ("k", a[::-1]))]
    others += [cache.get("k", [a[0], a[1].T], Made), cache.get("k", [a[0][:2], a[1]], Made)]
    assert len({id(made) for made in (first, *others)}) == 7
    assert cache.get("k", a, Made) is first
    cache.clear()
    assert len(cache) == 0 and cache.get("k", a, Made) is not first


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w.view(-1)[0].fill_(1),
        lambda w: torch._foreach_mul_([w], 2),
        lambda w: w.set_(w.clone()),
        lambda w: setattr(w, "data", w.data.clone()),
        lambda w: torch.utils.swap_tensors(w, torch.ones(3)),
    ],
)
def test_cache_notices_changes(change):
    cache, weights = Cache(), [torch.randn(3)]
    first = cache.get("k", weights, Made)
    change(weights[0])
    assert cache.get("k", weights, Made) is not first


def test_cache_drops_what_belongs_to_freed_weights():
    cache, kept = Cache(), [torch.randn(3)]
    cache.get("k", kept, Made)
    alive = [weakref.ref(cache.get("k", [torch.randn(3), kept[0]], Made)) for _ in range(20)]
    gc.collect()
    cache.get("l", kept, Made)
    assert not any(ref() for ref in alive)
    assert len(cache) == 2


def test_cache_keeps_nothing_that_it_could_not_see_changing():
    cache = Cache()
    with torch.inference_mode():
        weights = [torch.randn(3)]
        assert cache.get("k", weights, Made) is not cache.get("k", weights, Made)
    assert cache.get("k", weights, Made) is not cache.get("k", weights, Made)
    assert len(cache) == 0


def test_cache_serves_threads():
    cache, wrong = Cache(), []

    def work():
        for _ in range(300):
            weights = [torch.randn(3) for _ in range(2)]
            total = [w.sum().item() for w in weights]
            for _ in range(2):
                if cache.get("k", weights, lambda w=weights: [x.sum().item() for x in w]) != total:
                    wrong.append(total)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# The same for a whole network.


@pytest.fixture(scope="module")
def frames():
    return torch.randint(
        0, 256, (2, 33, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def first(model):
    return model.network.cp.backbone.features[0]


def passed(model):
    model.train()
    model.network(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    model.eval()


def fitted(through=lambda model: model, **options):
    def change(model):
        model.requires_grad_()
        with torch.enable_grad():
            through(model)(torch.ones(1, 3, 32, 32)).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=1e-4, **options).step()
        model.requires_grad_(False)

    return change


MODEL_CHANGES = {
    "in place": lambda m: first(m).conv.weight.mul_(-1),
    "foreach": lambda m: torch._foreach_mul_(weights(m), 0.9),
    "load_state_dict": lambda m: m.load_state_dict(larger(m)),
    "load_state_dict of the network": lambda m: m.network.load_state_dict(larger(m.network), assign=True),
    "statistics": lambda m: first(m).bn.running_mean.sub_(1),
    "a pass in training mode": passed,
    "SGD": fitted(),
    "SGD, fused": fitted(fused=True),
    "SGD, fused, of the network": fitted(lambda model: model.network, fused=True),
    "hook": lambda m: first(m).conv.register_forward_hook(lambda m, i, o: -o),
    "hook on a path": lambda m: m.network.cp.register_forward_hook(lambda m, i, o: (-o[0], *o[1:])),
    "patched forward": lambda m: setattr(first(m), "forward", lambda x: -type(first(m)).forward(first(m), x)),
    "dilation": lambda m: [setattr(first(m).conv, k, (2, 2)) for k in ("dilation", "padding")],
    "synchronised norm": lambda m: (
        nn.SyncBatchNorm.convert_sync_batchnorm(m),
        first(m).conv.weight.mul_(-1),
    ),
    "classifier": lambda m: m.network.conv_out.conv_out.weight.neg_(),
    "another classifier": lambda m: setattr(
        m.network.conv_out, "conv_out", nn.Conv2d(256, 11, 1, bias=False).requires_grad_(False)
    ),
    "norm in training mode": lambda m: first(m).bn.train(),
}


@pytest.mark.parametrize("change", MODEL_CHANGES)
@torch.no_grad()
def test_a_changed_model_gives_what_its_network_gives(change, tiny_model, frames):
    model = copy.deepcopy(tiny_model)
    x = normalise(frames, torch.float32)
    before = model(x)
    model.label(frames, size="native")
    MODEL_CHANGES[change](model)
    expected = model.network(x)
    assert error(before, expected) > 1e-3
    # Statistics of a batch amplify what rounding does.
    assert error(model(x), expected) < 1e-5
    labels = model.label(frames, size="native")
    assert (labels == expected.argmax(1)).float().mean() > 0.999


@torch.no_grad()
def test_copies_of_a_model_have_weights_of_their_own(tiny_model, frames):
    model = copy.deepcopy(tiny_model)
    x = normalise(frames, torch.float32)
    kept = model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    torch._foreach_mul_(weights(model), 1.01)
    for other in copies:
        assert torch.equal(other(x), kept)
        labels = [result.labels for result in other.predict(frames.numpy(), size="native")]
        assert (torch.from_numpy(np.stack(labels)) == kept.argmax(1)).float().mean() > 0.999
        first(other).conv.weight.neg_()
        assert error(other(x), other.network(x)) < 1e-5
    first(model).conv.weight.data.neg_()
    model.repack()
    assert error(model(x), model.network(x)) < 1e-5
