"""What a plan refuses, what can be built, and single blocks against their modules in float64."""

import dataclasses
import itertools

import pytest
import torch
from plans import error, one_thread, randomise_norms
from torch import nn

from stdc_fast.backends import eager
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.plan.ops import (
    Add,
    Buffer,
    Concat,
    Conv,
    Down,
    Gate,
    Mean,
    Norm,
    Pool,
    Resize,
    Scale,
    Stem,
    Upsample,
    View,
)
from stdc_fast.reference import (
    AttentionRefinement,
    ContextPath,
    FeatureFusion,
    SegHead,
    STDCAddModule,
    STDCBackbone,
    STDCModule,
    STDCSeg,
)
from stdc_fast.reference.layers import ConvBNReLU


@pytest.fixture(autouse=True, scope="module")
def threads():
    with one_thread():
        yield


# The plan's own checks. All broken plans are made of these buffers and weights and of one op or two.

BUFFERS = {
    name: Buffer(name, channels, stride, store)
    for name, channels, stride, store in (
        ("x", 4, 1, "act"), ("y", 8, 1, "act"), ("z", 4, 1, "act"), ("half", 8, 2, "act"),
        ("pool", 8, 2, "act"), ("v", 4, 0, "float32"), ("w", 8, 0, "float32"), ("image", 3, 1, "uint8"),
        ("logits", 5, 8, "float32"), ("labels", 1, 1, "uint8"), ("coarse", 4, 2, "act"),
    )
}  # fmt: skip
INPUTS = ("x", "v", "image", "coarse", "logits")
X, Y, Z, V, W = View("x", 0, 4), View("y", 0, 8), View("z", 0, 4), View("v", 0, 4), View("w", 0, 8)
HALF, POOL, COARSE = View("half", 0, 8), View("pool", 0, 8), View("coarse", 0, 4)
SHAPES = {
    "1x1": (8, 4, 1, 1), "3x3": (8, 4, 3, 3), "second": (8, 4, 3, 3), "same": (4, 4, 3, 3), "bias": (8,),
    "bias4": (4,), "depthwise": (4, 1, 3, 3), "depthwise8": (8, 1, 3, 3), "stem": (8, 3, 3, 3),
    "subpixel": (3, 3, 8, 4, 2, 2), "subpixel4": (3, 3, 4, 4, 2, 2), "layer": (8, 4, 1, 1),
    "layer2": (8, 8, 1, 1), "mean": (4,), "var": (4,),
}  # fmt: skip


def plan(*ops, outputs=None, inputs=INPUTS):
    weights = {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    return Plan("broken", BUFFERS, ops, inputs, outputs or tuple(ops[-1].writes[:1]), weights)


def conv(name="first", **changes):
    fields = {"inputs": (X,), "output": Y, "weight": "3x3", "kernel": 3}
    return Conv(name=name, **{**fields, **changes})


def other_conv(weight, **changes):
    return conv("other", output=HALF, stride=2, weight=weight, **changes)


def up(**changes):
    return conv(**{"inputs": (COARSE,), "up": True, **changes})


def down(**changes):
    fields = {"input": X, "output": HALF, "pooled": POOL, "weight": "1x1", "depthwise_weight": "depthwise8"}
    return Down(name="first", **{**fields, **changes})


def gate(**changes):
    fields = {"input": V, "output": W, "layers": ("layer",), "biases": (None,), "acts": ("relu",)}
    return Gate(name="first", **{**fields, **changes})


def gate2(**changes):
    fields = {"layers": ("layer", "layer2"), "biases": (None, "bias"), "acts": ("relu", "sigmoid")}
    return gate(**{**fields, **changes})


def norm(**changes):
    fields = {"input": X, "output": Z, "mean": "mean", "var": "var", "eps": 1e-5}
    return Norm(name="first", **{**fields, **changes})


def stem(**changes):
    fields = {"input": View("image", 0, 3), "output": HALF, "weight": "stem"}
    return Stem(name="first", **{**fields, **changes})


def pool(**changes):
    return Pool(name="first", **{"input": X, "output": View("half", 0, 4), **changes})


SOUND = {
    "conv": lambda: conv(),
    "conv1": lambda: conv(kernel=1, weight="1x1", bias="bias"),
    "conv of stride 2": lambda: conv(stride=2, output=HALF),
    "depthwise": lambda: conv(depthwise=True, weight="depthwise", output=Z),
    "two inputs": lambda: conv(inputs=(View("x", 0, 1), View("x", 1, 3))),
    "scale": lambda: conv(scale=V, mean=W),
    "add": lambda: conv(add=V),
    "add a map": lambda: conv(add=X),
    "up": lambda: up(),
    "subpixel": lambda: up(kernel=2, weight="subpixel"),
    "stem": lambda: stem(bias="bias", offset=(1.0, 2.0, 3.0)),
    "down": lambda: down(),
    "down without pool": lambda: down(pooled=None),
    "gate": lambda: gate(),
    "gate of two": lambda: gate2(),
    "norm": lambda: norm(),
    "pool": lambda: pool(),
    "mean": lambda: Mean(name="first", input=X, output=View("w", 4, 4)),
    "resize": lambda: Resize(name="first", input=COARSE, output=Z),
    "concat": lambda: Concat(name="first", inputs=(X, X), output=Y),
    "product": lambda: Scale(name="first", input=X, scale=V, output=Z),
    "sum": lambda: Add(name="first", input=X, other=V, output=Z),
    "labels": lambda: Upsample(name="first", input=View("logits", 0, 5), output=View("labels", 0, 1)),
}


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_sound_plans(make):
    """What the broken ones below are made of is accepted."""
    assert plan(make()).ops == (make(),)


def reads_y():
    return dataclasses.replace(pool(input=Y, output=HALF), name="p")


def part(name="first", offset=0):
    weight = "depthwise" if offset else "same"
    return conv(name, weight=weight, depthwise=offset > 0, output=View("y", offset, 4))


BROKEN = [
    # Reading and writing.
    (lambda: plan(conv(inputs=(Z,))), r"first reads z\[0:4\].* not been"),
    (lambda: plan(part(), reads_y()), r"p reads y\[0:8\].* not been"),
    (lambda: plan(reads_y(), conv()), r"p reads y\[0:8\].* not been"),
    (lambda: plan(conv(inputs=(Z,), output=Z, weight="same")), r"first reads z\[0:4\]"),
    (lambda: plan(conv(), conv("other", weight="second")), r"other writes y\[0:8\], which"),
    (lambda: plan(part(), part("b", 3)), r"b writes y\[3:7\], which"),
    (lambda: plan(conv(output=X, weight="same")), r"first writes x\[0:4\], which"),
    (lambda: plan(down(pooled=HALF)), r"first writes half\[0:8\], which"),
    # Views.
    (lambda: plan(conv(inputs=(View("q", 0, 4),))), r"first: q\[0:4\] is of no buffer"),
    (lambda: plan(conv(output=View("q", 0, 8))), r"first: q\[0:8\] is of no buffer"),
    (lambda: plan(conv(inputs=(View("x", 1, 4),))), r"first: x\[1:5\] is outside"),
    (lambda: plan(conv(inputs=(View("x", 2, 0),))), r"first: x\[2:2\] is outside"),
    # Weights.
    (lambda: plan(conv(weight="gone")), "first: there is no weight gone"),
    (lambda: plan(conv(bias="gone")), "first: there is no weight gone"),
    (lambda: plan(conv(), other_conv("3x3")), "other: weight 3x3 is also of first"),
    (lambda: plan(conv(bias="bias"), other_conv("second", bias="bias")), "other: .* bias is also of first"),
    (lambda: plan(conv(weight="1x1")), r"first: .*1, 1\], expected \[8, 4, 3, 3\]"),
    (lambda: plan(conv(kernel=1)), r"first: .*3, 3\], expected \[8, 4, 1, 1\]"),
    (lambda: plan(conv(inputs=(X, X))), r"first: .*expected \[8, 8, 3, 3\]"),
    (lambda: plan(up(kernel=2)), r"first: .*expected \[3, 3, 8, 4, 2, 2\]"),
    (lambda: plan(up(weight="subpixel")), r"first: .*\[3, 3, 8"),
    (lambda: plan(conv(depthwise=True, weight="same", output=Z)), r"first: .*expected \[4, 1, 3, 3\]"),
    (lambda: plan(conv(depthwise=True, weight="depthwise8")), "first: .*8.* 4"),
    (lambda: plan(conv(bias="bias4")), "first: .*bias4"),
    # Forms, strides.
    (lambda: plan(conv(kernel=5)), "first: .*kernel 5"),
    (lambda: plan(conv(kernel=2, weight="subpixel")), "first: .*kernel 2"),
    (lambda: plan(up(kernel=1, weight="1x1")), "first: .*kernel 1"),
    (lambda: plan(conv(up=True, stride=2)), "first: .*stride 2"),
    (lambda: plan(conv(stride=2)), r"first: .*y\[0:8\].* stride"),
    (lambda: plan(conv(output=HALF)), r"first: .*half\[0:8\].* stride"),
    (lambda: plan(conv(up=True)), r"first: .*y\[0:8\].* stride"),
    (lambda: plan(conv(inputs=(X, COARSE))), "first: .*stride"),
    # Activations.
    (lambda: plan(conv(act="gelu")), "first: unknown activation.*gelu"),
    (lambda: plan(stem(act="silu")), "first: unknown activation.*silu"),
    (lambda: plan(norm(act="tanh")), "first: unknown activation.*tanh"),
    (lambda: plan(gate(acts=("tanh",))), "first: unknown activation.*tanh"),
    # Prologues and epilogues.
    (lambda: plan(gate(), conv("c", scale=W)), r"c: .*w\[0:8\]"),
    (lambda: plan(conv(scale=X)), r"first: .*x\[0:4\]"),
    (lambda: plan(gate(), conv("c", add=W)), r"c: .*w\[0:8\]"),
    (lambda: plan(conv(add=COARSE)), r"first: .*coarse\[0:4\]"),
    (lambda: plan(conv(mean=View("w", 0, 4))), r"first: .*w\[0:4\]"),
    (lambda: plan(conv(mean=HALF)), r"first: .*half\[0:8\]"),
    # Other kinds.
    (lambda: plan(stem(weight="3x3")), r"first: .*expected \[8, 3, 3, 3\]"),
    (lambda: plan(stem(bias="bias4")), "first: .*bias4"),
    (lambda: plan(stem(output=Y)), r"first: .*y\[0:8\]"),
    (lambda: plan(stem(offset=(1.0, 2.0))), "first: .*offset"),
    (lambda: plan(down(output=Y)), r"first: .*y\[0:8\].* stride"),
    (lambda: plan(down(output=View("half", 0, 4))), r"first: .*\[8, 4, 1, 1\]"),
    (lambda: plan(down(pooled=View("pool", 0, 4))), r"first: .*pool\[0:4\]"),
    (lambda: plan(down(pooled=Y)), r"first: .*y\[0:8\].* stride"),
    (lambda: plan(down(input=View("x", 0, 3))), r"first: .*expected \[8, 3, 1, 1\]"),
    (lambda: plan(down(depthwise_weight="depthwise")), r"first: .*expected \[8, 1, 3, 3\]"),
    (lambda: plan(down(bias="bias4")), "first: .*bias4"),
    (lambda: plan(gate(acts=())), "first: .*activations"),
    (lambda: plan(gate(biases=())), "first: .*biases"),
    (lambda: plan(gate(layers=(), biases=(), acts=())), "first: 0 layers"),
    (lambda: plan(gate(input=X)), r"first: .*x\[0:4\]"),
    (lambda: plan(gate(layers=("3x3",))), "first: .*3x3"),
    (lambda: plan(gate2(layers=("layer", "1x1"))), r"first: .*expected \[8, 8, 1, 1\]"),
    (lambda: plan(gate(output=View("w", 0, 5))), r"first: .*w\[0:5\]"),
    (lambda: plan(gate(biases=("bias4",))), "first: .*bias4"),
    (lambda: plan(norm(output=View("z", 0, 3))), r"first: .*z\[0:3\]"),
    (lambda: plan(norm(mean="bias")), "first: .*bias"),
    (lambda: plan(norm(output=View("half", 0, 4))), r"first: .*half\[0:4\]"),
    (lambda: plan(pool(output=HALF)), r"first: .*half\[0:8\]"),
    (lambda: plan(pool(output=Z)), r"first: .*z\[0:4\]"),
    (lambda: plan(Mean(name="first", input=X, output=Z)), r"first: .*z\[0:4\]"),
    (lambda: plan(Resize(name="first", input=X, output=Z)), r"first: .*z\[0:4\]"),
    (lambda: plan(Concat(name="first", inputs=(X,), output=Y)), r"first: .*y\[0:8\]"),
    (lambda: plan(Concat(name="first", inputs=(X, COARSE), output=Y)), "first: .*stride"),
    (lambda: plan(Scale(name="first", input=X, scale=X, output=Z)), r"first: .*x\[0:4\]"),
    (lambda: plan(Scale(name="first", input=X, scale=View("v", 0, 3), output=Z)), r"first: .*v\[0:3\]"),
    (lambda: plan(Add(name="first", input=X, other=View("v", 0, 3), output=Z)), r"first: .*v\[0:3\]"),
    (lambda: plan(Add(name="first", input=X, other=COARSE, output=Z)), r"first: .*coarse\[0:4\]"),
    (lambda: plan(Upsample(name="first", input=View("logits", 0, 5), output=Y)), r"first: .*y\[0:8\]"),
    # Outputs.
    (lambda: plan(conv(), outputs=(Z,)), r"output z\[0:4\] has not been"),
    (lambda: plan(part(), outputs=(Y,)), r"output y\[0:8\] has not been"),
    (lambda: plan(conv(), outputs=(View("y", 4, 8),)), r"output y\[4:12\]"),
    (lambda: plan(conv(), conv(output=HALF)), "same name"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN)
def test_broken_plans(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ODD = {
    "negative offset": lambda: plan(conv(inputs=(View("x", -1, 4),))),
    "no inputs": lambda: plan(conv(inputs=())),
    "input of no buffer": lambda: plan(conv(), inputs=("x", "gone")),
    "output of no buffer": lambda: plan(conv(), outputs=(View("gone", 0, 1),)),
    "several names": lambda: plan(conv(), conv(output=HALF)),
    "depthwise sub-pixel": lambda: plan(up(kernel=2, weight="subpixel4", depthwise=True, output=Z)),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_broken_plans(make):
    with pytest.raises(ValueError, match=r"first|gone"):
        make()


# What can be built.


def conv_block(conv=None, norm=None):
    block = ConvBNReLU(4, 4)
    block.conv, block.bn = conv or block.conv, norm or block.bn
    return block


def dilated_network():
    net = STDCSeg("stdc1", 3)
    net.cp.arm16.conv.conv = nn.Conv2d(512, 128, 3, 1, 2, dilation=2, bias=False)
    return net


def with_skip(pool):
    block = STDCModule(4, 16, stride=2)
    block.skip = pool
    return block


REFUSED = {
    "dilated": (lambda: conv_block(nn.Conv2d(4, 4, 3, 1, 2, dilation=2)), r"conv: there is no op.*dilation"),
    "dilated inside a network": (dilated_network, r"cp.arm16.conv.conv: there is no op.*dilation=\(2, 2\)"),
    "unpadded": (lambda: conv_block(nn.Conv2d(4, 4, 3)), "conv: there is no op"),
    "padded too far": (lambda: conv_block(nn.Conv2d(4, 4, 1, padding=1)), "conv: there is no op"),
    "padding by name": (lambda: conv_block(nn.Conv2d(4, 4, 3, padding="same")), "conv: there is no op"),
    "reflected": (lambda: conv_block(nn.Conv2d(4, 4, 3, 1, 1, padding_mode="reflect")), "conv: .*reflect"),
    "5x5": (lambda: conv_block(nn.Conv2d(4, 4, 5, padding=2)), r"conv: there is no op.*\(5, 5\)"),
    "3x1": (lambda: conv_block(nn.Conv2d(4, 4, (3, 1), padding=(1, 0))), r"conv: there is no op.*\(3, 1\)"),
    "stride 3": (lambda: conv_block(nn.Conv2d(4, 4, 3, 3, 1)), r"conv: there is no op.*stride=\(3, 3\)"),
    "stride 2x1": (lambda: conv_block(nn.Conv2d(4, 4, 3, (2, 1), 1)), "conv: there is no op"),
    "two groups": (lambda: conv_block(nn.Conv2d(4, 4, 3, 1, 1, groups=2)), "conv: there is no op.*groups=2"),
    "depthwise that widens": (lambda: conv_block(nn.Conv2d(4, 8, 3, 1, 1, groups=4)), "conv: there is no op"),
    "no statistics": (
        lambda: conv_block(norm=nn.BatchNorm2d(4, track_running_stats=False)),
        "bn: a batch norm without stored statistics",
    ),
    "linear": (lambda: nn.Linear(3, 3), "no plan for a Linear"),
    "sequential": (lambda: nn.Sequential(ConvBNReLU(3, 4)), "no plan for a Sequential"),
    "backbone": (STDCBackbone, "no plan for a STDCBackbone"),
    "context path": (ContextPath, "no plan for a ContextPath"),
    "no norm": (lambda: conv_block(norm=nn.Identity()), "bn"),
    "group norm": (lambda: conv_block(norm=nn.GroupNorm(2, 4)), "bn"),
    "fusion of unknown widths": (lambda: FeatureFusion(6, 8), "channels"),
    "max pool": (lambda: with_skip(nn.MaxPool2d(3, 2, 1)), "skip"),
    "pool 2x2": (lambda: with_skip(nn.AvgPool2d(2, 2)), "skip"),
    "pool that divides by 1": (lambda: with_skip(nn.AvgPool2d(3, 2, 1, divisor_override=1)), "skip"),
}


@pytest.mark.parametrize(
    ("make", "message"),
    [pytest.param(*case, id=name) for name, case in REFUSED.items()],
)
def test_build_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        build(make().eval())


def test_fusion_of_other_widths():
    with pytest.raises(ValueError, match=r"convblk.conv: .*\[8, 12, 1, 1\], expected \[8, 9, 1, 1\]"):
        build(FeatureFusion(12, 8), channels=(5, 4))


def test_state_in_place_of_the_modules_own():
    module, other = (randomise_norms(ConvBNReLU(4, 4), torch.randn(2, 4, 5, 5), seed=s) for s in (0, 1))
    x = torch.randn(1, 4, 6, 7)
    found = build(module, other.state_dict())
    assert all(w.dtype == torch.float64 for w in found.weights.values())
    assert error(eager.compile(optimise(found), torch.float64)(x), other.double()(x.double())) <= 1e-12


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
    ],
)
def test_a_plan_keeps_its_weights(dtype):
    """Training goes on, say, while a plan made before is running."""
    module = randomise_norms(ConvBNReLU(4, 4, 1), torch.randn(2, 4, 5, 5)).to(dtype)
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    found = build(module)
    executable = eager.compile(found, torch.float64)
    before = executable(x).clone()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)
    assert torch.equal(executable(x), before)
    assert torch.equal(eager.compile(found, torch.float64)(x), before)


# Blocks.


def with_bias():
    block = ConvBNReLU(5, 8)
    block.conv = nn.Conv2d(5, 8, 3, 1, 1)
    return block


def with_norms(module, **changes):
    """The module with other norms."""
    for m in list(module.modules()):
        for name, child in m.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(m, name, nn.BatchNorm2d(child.num_features, **changes))
    return module


BLOCKS = {
    f"conv {k}x{k} stride {s}": lambda k=k, s=s: ConvBNReLU(5, 8, k, s)
    for k, s in itertools.product((1, 3), (1, 2))
}
BLOCKS |= {
    f"stdc of {b} stride {s}": lambda b=b, s=s: STDCModule(6, 32, b, s)
    for b, s in itertools.product((2, 3, 4, 5), (1, 2))
}
BLOCKS |= {
    "stdc of 1 channel each": lambda: STDCModule(3, 8, 4, 2),
    "stdc of a depthwise of 1": lambda: STDCModule(3, 2, 2, 2),
    "stdc by what is inside": lambda: STDCModule(6, 16, 4, 2, count_include_pad=False),
    "stdc from 1 channel": lambda: STDCModule(1, 16, 4, 2),
    "add stride 1": lambda: STDCAddModule(16, 16),
    "add stride 2": lambda: STDCAddModule(6, 16, stride=2),
    "add of 2": lambda: STDCAddModule(6, 16, 2, 2),
    "attention": lambda: AttentionRefinement(6, 8),
    "fusion": lambda: FeatureFusion(12, 8),
    "head": lambda: SegHead(6, 8, 3),
    "head with bias": lambda: SegHead(6, 8, 3, bias=True),
    "head of 1 class": lambda: SegHead(6, 8, 1),
    "eps": lambda: with_norms(STDCModule(6, 16, 4, 2), eps=0.3),
    "eps of attention": lambda: with_norms(AttentionRefinement(6, 8), eps=1e-3),
    "not affine": lambda: with_norms(STDCModule(6, 16, 4, 2), affine=False),
    "attention not affine": lambda: with_norms(AttentionRefinement(6, 8), affine=False, eps=0.1),
    "convolution with bias": with_bias,
}
BLOCK_SIZES = ((1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (6, 4), (17, 33))


def first_convolution(module):
    return next(m for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and "skip" not in n)


def layouts(x):
    """The same numbers in NCHW, channels_last, every second column of something wider, turned around."""
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "NCHW": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "every second": wide[..., ::2],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": x[:1].expand(len(x), -1, -1, -1),
    }


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_blocks(make):
    """As built and with all rewrites: the module, at any size, batch and layout of the input."""
    torch.manual_seed(5)
    module = make().double()
    widths = (5, 7) if isinstance(module, FeatureFusion) else [first_convolution(module).in_channels]
    randomise_norms(module, *(torch.randn(3, n, 17, 33, dtype=torch.float64) for n in widths), seed=5)
    built = build(module, channels=widths)
    assert [v.channels for v in map(built.whole, built.inputs)] == list(widths)
    executables = [eager.compile(p, torch.float64) for p in (built, optimise(built))]
    assert optimise(built).ops != built.ops
    for size, batch in itertools.product(BLOCK_SIZES, (1, 3)):
        inputs = [torch.randn(batch, n, *size, dtype=torch.float64) for n in widths]
        for layout, executable in itertools.product(layouts(inputs[0]), executables):
            given = [layouts(x)[layout] for x in inputs]
            with torch.no_grad():
                expected = module(*(x.contiguous() for x in given))
            got = executable(*given)
            assert got.dtype == torch.float64
            assert error(got, expected) <= 1e-12, (size, batch, layout)


def test_blocks_that_leave_only_core_kinds():
    for module in (ConvBNReLU(5, 8, 1), ConvBNReLU(5, 8, 3, 2), STDCModule(6, 32), STDCModule(6, 32, 5, 2)):
        assert optimise(build(module.eval())).primitives() == []
    assert optimise(build(SegHead(6, 8, 3))).primitives() == []
    # Their last step is a product with the gate, which is nobody's prologue.
    assert optimise(build(AttentionRefinement(6, 8))).primitives() == ["scale"]
    assert optimise(build(FeatureFusion(9, 8), channels=(4, 5))).primitives() == ["scale"]
    assert optimise(build(STDCAddModule(6, 32, stride=2))).primitives() == ["add"]


def test_shapes_and_dtypes_of_blocks():
    """Maps in the plan's dtype, logits in float32 at least."""
    x = torch.randn(2, 6, 9, 13)
    for dtype in (torch.float32, torch.float64):
        module = eager.compile(optimise(build(STDCModule(6, 16, 4, 2).eval())), dtype)
        assert module(x).dtype == dtype and module(x).shape == (2, 16, 5, 7)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for p in (build(SegHead(6, 8, 3).eval()), optimise(build(SegHead(6, 8, 3).eval()))):
            logits = eager.compile(p, dtype)(x)
            assert logits.dtype == torch.float32 and logits.shape == (2, 3, 9, 13)


def test_sizes_of_buffers_round_up():
    with torch.device("meta"):
        network, backbone = STDCSeg("stdc1", 3).eval(), STDCBackbone("stdc1").eval()
    buffers = build(network, {n: torch.zeros(w.shape) for n, w in network.state_dict().items()}).buffers
    for size in ((32, 32), (33, 47), (720, 960), (71, 103)):
        features = backbone(torch.empty(1, 3, *size, device="meta"))
        shapes = {2 << i: feature.shape[2:] for i, feature in enumerate(features)}
        shapes |= {1: size, 0: (1, 1)}
        assert {b.stride for b in buffers.values()} == set(shapes)
        found = plan(conv())
        for buffer in buffers.values():
            found = dataclasses.replace(found, buffers={**BUFFERS, "b": buffer})
            assert found.size("b", *size) == shapes[buffer.stride]
