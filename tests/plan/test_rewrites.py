"""Every rewrite alone, and any sequence of them, against the reference network in float64 to 1e-10."""

import dataclasses
import functools
import itertools
import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from plans import (
    VARIANTS,
    check_changed,
    error,
    one_thread,
    outputs,
    random_frames,
    random_network,
    seen,
    spied,
    values_of,
)

from stdc_fast import images
from stdc_fast.backends import eager
from stdc_fast.plan import REWRITES, Plan, build, optimise
from stdc_fast.plan.ops import FUSED, Add, Buffer, Conv, Down, Mean, Pool, Resize, Scale, View
from stdc_fast.plan.rewrites import (
    concat_views,
    drop_training,
    fold_batch_norm,
    fold_normalisation,
    fuse_down,
    fuse_gates,
    fuse_means,
    fuse_prologues,
    split_products,
    subpixel,
    subpixel_weights,
)
from stdc_fast.reference.networks import upsample

TOLERANCE = 1e-10
# Even and odd; maps at 1/16 or 1/32 that are odd in one dimension only; batches.
SIZES = (
    (1, 64, 96), (1, 96, 160), (1, 65, 97), (2, 71, 103), (1, 40, 64), (1, 64, 40), (2, 48, 64), (1, 33, 95),
)  # fmt: skip
LARGE = (1, 720, 960)
#: Rewrites that recognise nothing, or less, before these; they are proven after them.
FIRST = {
    fuse_down: (fold_batch_norm,),
    fuse_means: (fold_batch_norm, concat_views),
}
ALONE = [r for r in REWRITES if r is not drop_training]


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


@functools.cache
def frames_of(size):
    return random_frames(*size, seed=sum(size))


@functools.cache
def reference(variant, count_include_pad, size):
    net = random_network(variant, count_include_pad=count_include_pad)
    return net.logits8(images.normalise(frames_of(size), torch.float64))


@functools.cache
def plan_of(variant, count_include_pad=True):
    return build(random_network(variant, count_include_pad=count_include_pad), frames=True)


def after(plan, rewrites):
    for rewrite in rewrites:
        plan = rewrite(plan)
    return plan


def run(plan, *inputs):
    return eager.compile(plan, torch.float64).run(*inputs)


def kinds(plan):
    return Counter(op.kind for op in plan.ops)


def names(rewrites):
    return [rewrite.__name__ for rewrite in rewrites]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_error_can_hide(variant):
    """The random logits vary, and a relative change in any one weight is at least a ten-thousandth as large
    in them: far above the tolerance.
    """
    logits = reference(variant, True, SIZES[2])
    assert logits.std((0, 2, 3)).min() > 0.1
    assert logits.std(1).mean() > 0.5
    assert len(logits.argmax(1).unique()) >= 4
    net = random_network(variant)
    weights = {name: p.clone().requires_grad_() for name, p in net.named_parameters()}
    x = images.normalise(frames_of(SIZES[2]), torch.float64)
    again = torch.func.functional_call(net, weights, x)
    assert torch.equal(again, upsample(logits, SIZES[2][1:]))
    torch.manual_seed(0)
    direction = torch.randn_like(again)
    (again * direction / direction.norm()).sum().backward()
    for name, weight in weights.items():
        assert (weight * weight.grad).norm() > 1e-4 * again.norm() / len(again.flatten()) ** 0.5, name


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_built(variant, count_include_pad):
    executable = eager.compile(plan_of(variant, count_include_pad), torch.float64)
    for size in SIZES:
        got = executable(frames_of(size))
        assert error(got, reference(variant, count_include_pad, size)) <= TOLERANCE, size


def test_the_pooling_rules_differ():
    """Else a plan with the wrong rule would pass."""
    a, b = (run(plan_of("stdc1", rule), frames_of(SIZES[0]))[0] for rule in (True, False))
    assert error(a, b) > 1e-3


@pytest.mark.parametrize("rewrite", ALONE, ids=names(ALONE))
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_alone(variant, count_include_pad, rewrite):
    """Against the network, and against the plan before it where that is not the one as built."""
    before = after(plan_of(variant, count_include_pad), FIRST.get(rewrite, ()))
    plan = rewrite(before)
    assert [op.name for op in plan.ops] != [op.name for op in before.ops] or plan.ops != before.ops
    executable = eager.compile(plan, torch.float64)
    for size in SIZES if count_include_pad else SIZES[2:6]:
        got = executable(frames_of(size))
        assert error(got, reference(variant, count_include_pad, size)) <= TOLERANCE, size
    if before is not plan_of(variant, count_include_pad):
        assert error(got, run(before, frames_of(size))[0]) <= TOLERANCE


@pytest.mark.wide  # every other test has smaller maps, odd ones too
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_720x960(variant, count_include_pad):
    """45x60 at 1/16 and 23x30 at 1/32: the plan as built and the one with all rewrites against the network;
    of each rewrite alone, the ops that it changed against the plan as built.
    """
    built, frames = plan_of(variant, count_include_pad), frames_of(LARGE)
    expected = reference(variant, count_include_pad, LARGE)
    values, logits = values_of(built, frames)
    assert error(logits, expected) <= TOLERANCE
    for rewrite in ALONE:
        before = after(built, FIRST.get(rewrite, ()))
        assert check_changed(rewrite(before), before, values, LARGE[1:]) > 0, rewrite.__name__
    del values
    assert error(run(optimise(built), frames)[0], expected) <= TOLERANCE


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_in_order(variant, count_include_pad):
    plan = optimise(plan_of(variant, count_include_pad))
    assert set(kinds(plan)) == FUSED
    executable = eager.compile(plan, torch.float64)
    for size in SIZES:
        assert error(executable(frames_of(size)), reference(variant, count_include_pad, size)) <= TOLERANCE


# Number of ops of each kind by that of STDC modules, and what each rewrite does to it.
MODULES = {"stdc1": 6, "stdc2": 12}


def built(modules):
    counts = {"conv": 17 + 4 * modules, "norm": 14 + 4 * modules, "concat": 1 + modules, "pool": 3, "mean": 4}
    return counts | {"scale": 3, "add": 2, "resize": 2, "normalise": 1, "upsample": 1}


CHANGES = {
    fold_batch_norm: lambda modules: {"norm": -14 - 4 * modules},
    fold_normalisation: lambda _: {"normalise": -1, "conv": -1, "stem": 1},
    split_products: lambda _: {"concat": -1},
    concat_views: lambda modules: {"concat": -1 - modules},
    fuse_prologues: lambda _: {"scale": -3, "add": -2, "resize": -2},
    subpixel: lambda _: {"resize": -2},
    fuse_down: lambda _: {"conv": -6, "pool": -3, "down": 3},
    fuse_means: lambda _: {"mean": -4},
    fuse_gates: lambda _: {"conv": -2, "gate": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_built_has_the_ops_of_the_network(variant):
    assert kinds(plan_of(variant)) == built(MODULES[variant])
    assert len(convolutions(plan_of(variant), lambda op: op.depthwise)) == 3


@pytest.mark.parametrize("rewrite", ALONE, ids=names(ALONE))
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rewrite_changes_the_ops_it_is_for(variant, rewrite):
    before = after(plan_of(variant), FIRST.get(rewrite, ()))
    plan = rewrite(before)
    found = kinds(plan)
    found.subtract(kinds(before))
    assert {k: n for k, n in found.items() if n} == CHANGES[rewrite](MODULES[variant])
    assert set(plan.buffers) == {v.buffer for op in plan.ops for v in [*op.reads, *op.writes]}
    assert set(plan.weights) == {name for op in plan.ops for name in op.weights}


def convolutions(plan, condition):
    return [op for op in plan.ops if isinstance(op, Conv) and condition(op)]


def test_what_the_fields_say_afterwards():
    """The parts of a rewrite that do not show in the number of ops."""
    plan = plan_of("stdc1")
    folded = fold_batch_norm(plan)
    assert all(
        op.bias for op in convolutions(folded, lambda op: op.act == "relu" and "ffm.conv1" not in op.name)
    )
    assert not convolutions(plan, lambda op: op.bias)
    (stem,) = (op for op in fold_normalisation(plan).ops if op.kind == "stem")
    assert stem.offset == pytest.approx([123.675, 116.28, 103.53]) and stem.input == View("image", 0, 3)
    (fusion,) = convolutions(split_products(plan), lambda op: len(op.inputs) == 2)
    assert [v.channels for v in fusion.inputs] == [256, 128]
    prologues = fuse_prologues(plan)
    assert [(bool(op.scale), bool(op.add), op.up) for op in convolutions(prologues, lambda op: op.scale)] == [
        (True, True, True), (True, True, True), (True, False, False),
    ]  # fmt: skip
    small = convolutions(subpixel(plan), lambda op: op.kernel == 2)
    assert [op.name for op in small] == ["cp.conv_head32.conv", "cp.conv_head16.conv"]
    assert all(op.up and not op.scale and not op.add for op in small)
    assert [subpixel(plan).weights[op.weight].shape for op in small] == [(3, 3, 128, 128, 2, 2)] * 2
    down = [op for op in fuse_down(folded).ops if isinstance(op, Down)]
    assert all(op.pooled and op.bias and op.depthwise_bias and op.count_include_pad for op in down)
    means = fuse_means(concat_views(folded))
    # The four parts of the last module, two attentions and the fusion.
    assert len(convolutions(means, lambda op: op.mean)) == 7
    gates = [op for op in fuse_gates(folded).ops if op.kind == "gate"]
    assert [op.acts for op in gates] == [("relu",), ("sigmoid",), ("sigmoid",), ("relu", "sigmoid+1")]
    assert len(
        {op.output.buffer for op in concat_views(plan).ops if op.name.endswith("features.3.conv_list.3.bn")}
    )


def test_nothing_to_recognise():
    """What a rewrite is not for stays as it is."""
    plan = plan_of("stdc1")
    for rewrite in (fuse_down, fuse_means, drop_training):
        assert rewrite(plan).ops == plan.ops and rewrite(plan).weights == plan.weights


def test_gates_after_folding():
    plan = fold_batch_norm(plan_of("stdc1"))
    gates = fuse_gates(plan)
    assert kinds(gates)["gate"] == 4 and kinds(plan)["conv"] - kinds(gates)["conv"] == 5
    for size in SIZES[:4]:
        assert error(run(gates, frames_of(size))[0], reference("stdc1", True, size)) <= TOLERANCE


@pytest.mark.parametrize("rewrite", REWRITES, ids=names(REWRITES))
@pytest.mark.parametrize("first", [(), (fold_batch_norm, concat_views)], ids=["built", "folded"])
def test_pure(rewrite, first):
    """The plan that is given stays as it is: ops, buffers and outputs, weights by identity and value."""
    plan = after(build(random_network("stdc1", training_heads=True)), first)
    parts = plan.ops, dict(plan.buffers), plan.inputs, plan.outputs
    weights = dict(plan.weights)
    values = {name: weight.clone() for name, weight in weights.items()}
    changed = rewrite(plan)
    run(changed, frames_of((1, 32, 32)))
    assert (plan.ops, dict(plan.buffers), plan.inputs, plan.outputs) == parts
    assert list(plan.weights) == list(weights)
    for name, weight in plan.weights.items():
        assert weight is weights[name] and torch.equal(weight, values[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_heads(variant):
    """All outputs are the heads' own, whatever is rewritten; without them the main one is the same bits."""
    net = random_network(variant, training_heads=True, classifier_bias=True)
    plan = build(net)
    assert [v.channels for v in plan.outputs] == [1, 11, 11, 1]  # labels in place of logits
    frames = frames_of((2, 71, 103))
    expected = outputs(net, images.normalise(frames, torch.float64))
    assert min(e.std((0, 2, 3)).min() for e in expected) > 0.1
    built = run(plan, frames)
    for rewritten in (plan, *(r(plan) for r in ALONE), after(plan, ALONE)):
        for got, e in zip(run(rewritten, frames), expected, strict=True):
            assert error(got, e) <= TOLERANCE
    main = drop_training(plan)
    gone = kinds(plan) - kinds(main)
    assert gone == {"conv": 6, "norm": 3}
    assert not {v.buffer for v in plan.outputs[1:]} & set(main.buffers)
    assert not any("conv_out16" in n or "conv_out32" in n or "sp8" in n for n in main.weights)
    (got,) = run(main, frames)
    assert torch.equal(got, built[0])
    for first in (fold_batch_norm, concat_views, subpixel):
        assert torch.equal(run(drop_training(first(plan)), frames)[0], run(first(plan), frames)[0])


# Any sequence.


def seeds(count):
    """Eight have each kind of network; the others are wide."""
    return [seed if seed < 8 else pytest.param(seed, marks=pytest.mark.wide) for seed in range(count)]


@pytest.mark.parametrize("seed", seeds(24))
def test_any_sequence_composes(seed):
    """A random sequence with repeats, then all in order: the network's logits each time, and only fused kinds
    remain of "cat" modules.
    """
    rng = random.Random(seed)
    variant, module, frames = list(itertools.product(VARIANTS, ("cat", "add"), (True, False)))[seed % 8]
    net = random_network(variant, module, count_include_pad=seed % 3 > 0, seed=seed % 2)
    image = random_frames(rng.choice((1, 2)), rng.randint(32, 64), rng.randint(32, 96), seed=seed)
    normalised = images.normalise(image, torch.float64)
    expected = net.logits8(normalised)
    sequence = rng.choices(REWRITES, k=rng.randint(2, 14))
    x = image if frames else normalised
    plan = after(build(net, frames=frames), sequence)
    assert error(run(plan, x)[0], expected) <= TOLERANCE, names(sequence)
    last = optimise(plan)
    assert error(run(last, x)[0], expected) <= TOLERANCE, names(sequence)
    if module == "cat":
        assert last.primitives() == [], names(sequence)
    assert optimise(last).ops == optimise(optimise(last)).ops


def check_outputs(plan, rewritten, image, what):
    for got, e, view in zip(run(rewritten, image), run(plan, image), plan.outputs, strict=True):
        assert error(got, e) <= TOLERANCE, (str(view), what)


@pytest.mark.parametrize("rewrite", ALONE, ids=names(ALONE))
@pytest.mark.parametrize("who", [seen, spied])
def test_what_others_read_stays(rewrite, who):
    """A rewrite that would take maps away leaves those, all or every second of them, that are outputs too, or
    that another op reads.
    """
    before = after(plan_of("stdc1"), FIRST.get(rewrite, ()))
    left = {view for op in rewrite(before).ops for view in op.writes}
    gone = [view for op in before.ops for view in op.writes if view not in left]
    gone = gone or [op.output for op in before.ops if isinstance(op, Conv)][::3]
    for views in (gone, gone[::2]):
        plan = who(before, views)
        check_outputs(plan, rewrite(plan), frames_of((1, 40, 64)), rewrite.__name__)


@pytest.mark.parametrize("seed", seeds(16))
def test_what_others_read_stays_in_any_sequence(seed):
    rng = random.Random(100 + seed)
    plan = build(random_network(VARIANTS[seed % 2], ("cat", "add")[seed // 2 % 2]))
    views = rng.sample([v for op in plan.ops[:-2] for v in op.writes], rng.randint(1, 12))  # not the logits
    # Parts of a buffer too.
    parts = [dataclasses.replace(v, offset=v.channels // 4, channels=v.channels // 2) for v in views[::2]]
    plan = (seen, spied)[seed // 4 % 2](plan, [v for v in (*views, *parts) if v.channels])
    image = random_frames(1, rng.randint(32, 64), rng.randint(32, 96), seed=seed)
    for sequence in (rng.choices(ALONE, k=rng.randint(3, 14)), ALONE):
        check_outputs(plan, after(plan, sequence), image, names(sequence))


def chained(chain, **conv):
    """Steps of 4 channels before a convolution; maps of every stride and a vector come from the input."""
    stride = 2 ** chain.count("resize")
    buffers = [
        Buffer("x1", 4, 1),
        *(Buffer(f"x{s}", 4, s) for s in (2, 4, 8)),
        Buffer("vector", 4, 0, "float32"),
    ]
    whole = functools.partial(View, offset=0, channels=4)
    ops = [Pool(name=f"x{2 * s}", input=whole(f"x{s}"), output=whole(f"x{2 * s}")) for s in (1, 2, 4)]
    ops.append(Mean(name="vector", input=whole("x1"), output=whole("vector")))
    x = whole(f"x{stride}")
    for i, step in enumerate(chain):
        stride //= 2 if step == "resize" else 1
        y = whole(f"y{i}")
        buffers.append(Buffer(y.buffer, 4, stride))
        if step == "resize":
            ops.append(Resize(name=y.buffer, input=x, output=y))
        elif step == "scale":
            ops.append(Scale(name=y.buffer, input=x, scale=whole("vector"), output=y))
        else:
            ops.append(
                Add(
                    name=y.buffer, input=x, other=whole(f"x{stride}" if step == "map" else "vector"), output=y
                )
            )
        x = y
    buffers.append(Buffer("out", 4, conv["stride"]))
    ops.append(Conv(name="out", inputs=(x,), output=whole("out"), weight="w", **conv))
    shape = 4, 1 if conv.get("depthwise") else 4, conv["kernel"], conv["kernel"]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Plan("chain", {b.name: b for b in buffers}, tuple(ops), ("x1",), (whole("out"),), {"w": weight})


@pytest.mark.parametrize(
    "conv",
    [
        {"kernel": 3, "stride": 1},
        {"kernel": 1, "stride": 1},
        {"kernel": 3, "stride": 2},
        {"kernel": 3, "stride": 1, "depthwise": True},
    ],
    ids=str,
)
def test_prologues_in_any_order(conv):
    """Every chain of up to three steps before a convolution, also those that no prologue can express."""
    x = torch.randn(2, 4, 13, 18, dtype=torch.float64)
    fused = 0
    for n in (1, 2, 3):
        for chain in itertools.product(("scale", "vector", "map", "resize"), repeat=n):
            plan = chained(chain, **conv)
            (expected,) = run(plan, x)
            for rewrites in (
                [fuse_prologues],
                [subpixel],
                [subpixel, fuse_prologues],
                [fuse_prologues, subpixel],
            ):
                rewritten = after(plan, rewrites)
                fused += len(plan.ops) - len(rewritten.ops)
                assert error(run(rewritten, x)[0], expected) <= TOLERANCE, (chain, names(rewrites))
    assert (fused > 100) != conv.get("depthwise", False)


# The helpers, on their own.


def four_parities(x, weight, bias, height, width):
    """The sub-pixel convolution as its definition says, pixel by pixel."""
    padded = F.pad(x, (1, 1, 1, 1))

    def taps(y, size):
        """Set of weights, and the first of the two rows (or columns) in the padded map."""
        which = 1 if y % 2 else 2 if y == size - 1 else 0
        return which, y // 2 + (1 if y % 2 else 0)

    out = x.new_empty(len(x), len(bias), height, width)
    for y, z in itertools.product(range(height), range(width)):
        (row, top), (column, left) = taps(y, height), taps(z, width)
        patch = padded[:, :, top : top + 2, left : left + 2]
        out[:, :, y, z] = torch.einsum("ncij,ocij->no", patch, weight[row, column]) + bias
    return out


@pytest.mark.parametrize("h", [1, 2, 3, 5])
@pytest.mark.parametrize("w", [1, 2, 3, 5])
def test_subpixel_weights(h, w):
    """Nearest up-sampling to 2n and 2n - 1 rows and columns and a 3x3 convolution, on the small map."""
    torch.manual_seed(h + 10 * w)
    weight, bias = torch.randn(3, 4, 3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    x = torch.randn(2, 4, h, w, dtype=torch.float64)
    small = subpixel_weights(weight)
    assert small.shape == (3, 3, 3, 4, 2, 2) and small.dtype == torch.float64
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for height, width in itertools.product((2 * h, 2 * h - 1), (2 * w, 2 * w - 1)):
        expected = F.conv2d(doubled[:, :, :height, :width], weight, bias, padding=1)
        assert error(four_parities(x, small, bias, height, width), expected) <= 1e-12, (height, width)
