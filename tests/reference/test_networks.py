"""The reference networks against the published facts, and their behaviour at any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stdc_fast.reference import (
    AttentionRefinement,
    ContextPath,
    FeatureFusion,
    SegHead,
    STDCAddModule,
    STDCBackbone,
    STDCClassifier,
    STDCModule,
    STDCSeg,
    TrainingOutput,
)

VARIANTS = ("stdc1", "stdc2")


def gmacs(network: nn.Module, *shape: int) -> float:
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 2e9


def on_meta(cls, *args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return cls(*args, **kwargs).eval()


# Convolution weights are what the published 8.26 M / 12.29 M count; with norm weights and biases it is
# 8.275 M / 12.306 M (19 classes).
@pytest.mark.parametrize(
    ("variant", "convolutions", "everything"), [("stdc1", 8.26, 8.275), ("stdc2", 12.29, 12.306)]
)
def test_parameter_counts(variant, convolutions, everything):
    network = on_meta(STDCSeg, variant, 19)
    total = sum(p.numel() for p in network.parameters())
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert round((total - norms) / 1e6, 2) == convolutions
    assert round(total / 1e6, 3) == everything


@pytest.mark.parametrize(
    ("variant", "size", "expected"),
    [
        ("stdc1", (512, 1024), 16.86),
        ("stdc2", (512, 1024), 23.46),
        ("stdc1", (768, 1536), 37.94),
        ("stdc2", (768, 1536), 52.78),
        ("stdc1", (720, 960), 22.31),
        ("stdc2", (720, 960), 31.03),
    ],
)
def test_multiply_adds(variant, size, expected):
    assert round(gmacs(on_meta(STDCSeg, variant, 19), 1, 3, *size), 2) == expected


@pytest.mark.parametrize(("variant", "expected"), [("stdc1", 7.86), ("stdc2", 14.46)])
def test_backbone_multiply_adds(variant, expected):
    assert round(gmacs(on_meta(STDCBackbone, variant), 1, 3, 512, 1024), 2) == expected


def test_training_heads_never_run_in_eval():
    plain, with_heads = on_meta(STDCSeg), on_meta(STDCSeg, training_heads=True)
    assert gmacs(plain, 1, 3, 64, 64) == gmacs(with_heads, 1, 3, 64, 64)


@pytest.mark.parametrize(("variant", "tensors"), [("stdc1", 193), ("stdc2", 313)])
def test_number_of_inference_tensors(variant, tensors):
    state = on_meta(STDCSeg, variant).state_dict()
    assert sum(not k.endswith("num_batches_tracked") for k in state) == tensors


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("module", ["cat", "add"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (720, 960)])
def test_feature_sizes_round_up(variant, module, size):
    backbone = on_meta(STDCBackbone, variant, module)
    features = backbone(torch.empty(2, 3, *size, device="meta"))
    for stride, channels, feature in zip((2, 4, 8, 16, 32), backbone.channels, features, strict=True):
        assert feature.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("classes", [1, 11, 19, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_have_the_input_size(classes, dtype):
    network = STDCSeg("stdc1", classes).to(dtype).eval()
    logits = network(torch.randn(2, 3, 45, 61, dtype=dtype))
    assert logits.shape == (2, classes, 45, 61)
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("module", ["cat", "add"])
def test_training_output_and_gradients(module):
    network = STDCSeg("stdc1", 5, module, training_heads=True).train()
    output = network(torch.randn(2, 3, 64, 96))
    assert isinstance(output, TrainingOutput)
    assert output.main.shape == (2, 5, 8, 12)
    assert output.aux16.shape == (2, 5, 8, 12)
    assert output.aux32.shape == (2, 5, 4, 6)
    assert output.detail.shape == (2, 1, 8, 12)
    sum(o.square().sum() for o in output).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_stdc_module_against_its_definition():
    """The concatenation, written out without modules."""
    torch.manual_seed(0)
    module = STDCModule(8, 32, stride=2).double().eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)

    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    def conv(x, m, padding):
        return norm(F.conv2d(x, m.conv.weight, padding=padding), m.bn).clamp(min=0)

    x = torch.randn(2, 8, 13, 18, dtype=torch.float64)
    first = conv(x, module.conv_list[0], 0)
    down = norm(
        F.conv2d(first, module.avd_layer[0].weight, stride=2, padding=1, groups=16), module.avd_layer[1]
    )
    second = conv(down, module.conv_list[1], 1)
    third = conv(second, module.conv_list[2], 1)
    fourth = conv(third, module.conv_list[3], 1)
    pooled = F.conv2d(
        first, torch.full((16, 1, 3, 3), 1 / 9, dtype=torch.float64), stride=2, padding=1, groups=16
    )
    expected = torch.cat([pooled, second, third, fourth], 1)
    assert [t.shape[1] for t in (pooled, second, third, fourth)] == [16, 8, 4, 4]
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_add_module_against_its_definition():
    torch.manual_seed(0)
    module = STDCAddModule(16, 16).double().eval()
    x = torch.randn(1, 16, 9, 7, dtype=torch.float64)
    y, parts = x, []
    for conv in module.conv_list:
        y = conv(y)
        parts.append(y)
    torch.testing.assert_close(module(x), torch.cat(parts, 1) + x)
    with pytest.raises(ValueError, match="keeps its channels: 8 != 16"):
        STDCAddModule(8, 16)


def test_count_include_pad_changes_the_border_only():
    torch.manual_seed(0)
    module = STDCModule(8, 32, stride=2).eval()
    other = STDCModule(8, 32, stride=2, count_include_pad=False).eval()
    other.load_state_dict(module.state_dict())
    x = torch.rand(1, 8, 16, 16) + 1
    a, b = module(x)[:, :16], other(x)[:, :16]
    assert torch.equal(a[:, :, 1:, 1:], b[:, :, 1:, 1:])
    # Along the top edge six of nine taps lie inside, in the corner four.
    torch.testing.assert_close(a[:, :, 0, 1:] * 9 / 6, b[:, :, 0, 1:])
    torch.testing.assert_close(a[:, :, 0, 0] * 9 / 4, b[:, :, 0, 0])
    network = on_meta(STDCSeg, count_include_pad=False)
    assert not any(m.count_include_pad for m in network.modules() if isinstance(m, nn.AvgPool2d))


def test_attention_and_fusion_gates():
    """Both are 0..1 gates per channel: constant over the image, and half open with zero weights."""
    arm = AttentionRefinement(8, 4).eval()
    nn.init.zeros_(arm.conv_atten.weight)
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(arm(x), arm.conv(x) * 0.5)
    ffm = FeatureFusion(6, 8).eval()
    nn.init.zeros_(ffm.conv2.weight)
    a, b = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6)
    torch.testing.assert_close(ffm(a, b), ffm.convblk(torch.cat([a, b], 1)) * 1.5)


def test_context_path_at_sizes_that_do_not_halve():
    path = ContextPath().eval()
    spatial, context8, context16 = path(torch.randn(1, 3, 180, 236))
    assert spatial.shape == (1, 256, 23, 30)
    assert context8.shape == (1, 128, 23, 30)
    assert context16.shape == (1, 128, 12, 15)


def test_classifier_squares_and_pools():
    torch.manual_seed(0)
    network = STDCClassifier("stdc1", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    features = STDCBackbone.forward(network, x)[-1]
    hidden = network.conv_last(features).pow(2).mean((2, 3))
    expected = network.linear(torch.relu(network.fc(hidden)))
    torch.testing.assert_close(network(x), expected)
    assert {"conv_last.conv.weight", "fc.weight", "bn.weight", "linear.weight"} <= set(network.state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: STDCSeg("stdc3"), "unknown network 'stdc3'; choose one of stdc1, stdc2"),
        (lambda: STDCSeg("stdc1", 0), "num_classes must be at least 1, not 0"),
        (lambda: STDCSeg("stdc1", module="sum"), "unknown STDC module 'sum'"),
        (lambda: STDCModule(8, 30), "can not be halved 3 times"),
        (lambda: STDCModule(8, 32, stride=3), "is 1 or 2, not 3"),
        (lambda: STDCModule(8, 32, blocks=1), "at least 2 blocks, not 1"),
        (lambda: STDCSeg("stdc1")(torch.zeros(1, 3, 31, 64)), "31x64 .* at least 32"),
        (lambda: STDCSeg("stdc1")(torch.zeros(3, 64, 64)), r"\[N, 3, H, W\], got \[3, 64, 64\]"),
    ],
)
def test_errors_state_the_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_head_bias_is_optional():
    assert "conv_out.bias" not in SegHead(8, 8, 3).state_dict()
    assert SegHead(8, 8, 3, bias=True).state_dict()["conv_out.bias"].shape == (3,)
