"""Blocks of every kind: the drop-in module, its reference and its op, with the same random weights."""

import pytest
import torch
from plans import error, randomise_norms

import stdc_fast.library  # noqa: F401 - torch.ops.stdc_fast
from stdc_fast import nn as fast
from stdc_fast.numerics import tolerance
from stdc_fast.reference import layers

NHWC = torch.channels_last
# Arguments, shapes of the inputs, and the path of the first convolution and of some batch norm.
BLOCKS = {
    "conv": ("ConvBNReLU", (5, 7), {}, [(2, 5, 9, 7)], "conv", "bn"),
    "conv, 1x1, stride 2": (
        "ConvBNReLU", (5, 7), {"kernel_size": 1, "stride": 2}, [(2, 5, 9, 7)], "conv", "bn",
    ),
    "stdc": ("STDCModule", (6, 16), {}, [(2, 6, 9, 7)], "conv_list.0.conv", "conv_list.2.bn"),
    "stdc, stride 2": (
        "STDCModule", (6, 16), {"blocks": 3, "stride": 2, "count_include_pad": False}, [(2, 6, 9, 7)],
        "conv_list.1.conv", "avd_layer.1",
    ),
    "attention": ("AttentionRefinement", (6, 8), {}, [(2, 6, 5, 7)], "conv.conv", "bn_atten"),
    "fusion": ("FeatureFusion", (9, 8), {}, [(2, 4, 5, 7), (2, 5, 5, 7)], "convblk.conv", "convblk.bn"),
    "head": ("SegHead", (6, 8, 3), {"bias": True}, [(2, 6, 5, 7)], "conv.conv", "conv.bn"),
}  # fmt: skip
every_block = pytest.mark.parametrize("name", BLOCKS)
# Where the kind of block hardly matters.
some_blocks = pytest.mark.parametrize("name", ["conv", "stdc, stride 2", "fusion"])


def pair(name, frozen=True, seed=0):
    """(drop-in, reference) with the same random weights in eval mode, and inputs."""
    kind, arguments, options, shapes, *_ = BLOCKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = getattr(layers, kind)(*arguments, **options)
        inputs = [torch.randn(shape) for shape in shapes]
    randomise_norms(reference, *inputs, seed=seed)
    module = getattr(fast, kind)(*arguments, **options).eval()
    module.load_state_dict(reference.state_dict())
    return module.requires_grad_(not frozen), reference.requires_grad_(not frozen), inputs


def convolution(name, module):
    return module.get_submodule(BLOCKS[name][4])


def norm(name, module):
    return module.get_submodule(BLOCKS[name][5])


def nhwc(inputs):
    return [x.contiguous(memory_format=NHWC) for x in inputs]


def assert_same(module, reference, inputs):
    got, expected = module(*inputs), reference(*inputs)
    assert got.dtype == expected.dtype
    assert error(got, expected) < tolerance(got.dtype).op


FORMATS = {
    "nchw": lambda x: x,
    "nhwc": lambda x: x.contiguous(memory_format=NHWC),
    "one image, nhwc": lambda x: x[:1].contiguous(memory_format=NHWC),
    "one pixel": lambda x: x[..., :1, :1],
    "one row": lambda x: x[:, :, :1].contiguous(memory_format=NHWC),
    "every second column": lambda x: x[..., ::2],
    "every second row, nhwc": lambda x: x.contiguous(memory_format=NHWC)[:, :, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "expanded rows": lambda x: x[:, :, :1].expand(-1, -1, 4, -1),
    "cut of more channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "no image": lambda x: x[:0],
}

# Ops.

# The op of each block, and what it has between weights and eps.
OPS = {
    "conv": ("conv_bn_relu", (1,)),
    "conv, 1x1, stride 2": ("conv_bn_relu", (2,)),
    "stdc": ("stdc_module", (1, True)),
    "stdc, stride 2": ("stdc_module", (2, False)),
    "attention": ("attention_refinement", ()),
    "fusion": ("feature_fusion", ()),
    "head": ("seg_head", ()),
}


def weights_of(module):
    return [v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")]


def call(name, inputs, weights, *eps):
    op, settings = OPS[name]
    return getattr(torch.ops.stdc_fast, op)(*inputs, weights, *settings, *eps)
