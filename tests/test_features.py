"""``create_model``: networks to train, and backbones with the interface of timm."""

import copy
import importlib.util
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stdc_fast
from bench import framework_models
from stdc_fast import UserError, checkpoints, create_model
from stdc_fast.classes import CAMVID, ClassSet
from stdc_fast.features import FeatureInfo
from stdc_fast.reference import STDCBackbone, STDCSeg


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- feature maps


@pytest.mark.parametrize("variant", ["stdc1", "stdc2"])
def test_maps_are_those_of_the_reference(variant):
    torch.manual_seed(0)
    backbone = create_model(variant, features_only=True)
    reference = STDCBackbone(variant)
    assert backbone.training
    reference.load_state_dict(backbone.state_dict())
    x = torch.randn(2, 3, 75, 101)
    for mode in (True, False):
        backbone.train(mode)
        reference.train(mode)
        with torch.no_grad():
            found, expected = backbone(x), reference(x)
        assert [y.shape[1] for y in found] == backbone.feature_info.channels()
        for y, one, stride in zip(found, expected, backbone.feature_info.reduction(), strict=True):
            assert y.shape[2:] == (-(-75 // stride), -(-101 // stride))
            assert torch.allclose(y, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("given", "channels", "reduction"),
    [
        ((2, 3, 4), [256, 512, 1024], [8, 16, 32]),
        ([0], [32], [2]),
        ((-1,), [1024], [32]),
        (3, [256, 512, 1024], [8, 16, 32]),
        ((4, 2), [1024, 256], [32, 8]),
    ],
)
def test_indices(given, channels, reduction):
    backbone = create_model(features_only=True, out_indices=given).eval()
    info = backbone.feature_info
    assert (info.channels(), info.reduction()) == (channels, reduction)
    names = dict(backbone.named_modules())
    assert all(name in names for name in info.module_name())
    assert len(backbone.features) == max(int(n.split(".")[1]) for n in info.module_name()) + 1
    with torch.no_grad():
        found = backbone(torch.zeros(1, 3, 64, 96))
    assert isinstance(found, list) and [y.shape[1] for y in found] == channels


@pytest.mark.parametrize("given", [(), (5,), (-6,), 0, 6, "01", True, (1.5,)])
def test_indices_that_are_none(given):
    with pytest.raises(UserError, match="out_indices must be numbers from 0 to 4"):
        create_model(features_only=True, out_indices=given)


def test_it_trains_in_a_neck():
    """A feature pyramid, as of detectors, built from what ``feature_info`` says."""

    class Pyramid(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
            self.sides = nn.ModuleList(nn.Conv2d(c, 16, 1) for c in backbone.feature_info.channels())

        def forward(self, x):
            maps = [side(y) for side, y in zip(self.sides, self.backbone(x), strict=True)]
            for i in range(len(maps) - 1, 0, -1):
                maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], maps[i - 1].shape[2:])
            return maps

    torch.manual_seed(0)
    model = Pyramid(create_model(features_only=True, out_indices=(2, 3, 4)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x = torch.randn(2, 3, 64, 64)
    losses = []
    for _ in range(5):
        loss = sum(y.square().mean() for y in model(x))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    plain = STDCBackbone("stdc1").eval()
    plain.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        for y, one in zip(model.backbone(x), plain(x)[2:], strict=True):
            assert torch.allclose(y, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_blocks_are_fast_ones():
    backbone = create_model("stdc1", features_only=True)
    assert {type(m) for m in backbone.features} == {stdc_fast.nn.ConvBNReLU, stdc_fast.nn.STDCModule}
    again = pickle.loads(pickle.dumps(copy.deepcopy(backbone)))
    assert same(again.state_dict(), backbone.state_dict())
    assert again.feature_info.channels() == backbone.feature_info.channels()


def test_input_channels(tiny_weights):
    stem = "features.0.conv.weight"
    three, one, four, six = (
        create_model("stdc1", tiny_weights, features_only=True, in_chans=n, out_indices=(0,)).state_dict()[
            stem
        ]
        for n in (3, 1, 4, 6)
    )
    assert torch.equal(one, three.sum(1, keepdim=True))
    assert torch.allclose(four, torch.cat([three, three[:, :1]], 1) * 3 / 4)
    assert torch.allclose(six, torch.cat([three, three], 1) / 2)


# ---------------------------------------------------------------- beside timm


@pytest.fixture(scope="module")
def timm():
    """The package, with a torchvision that may have been built for another torch."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed; see make test-ecosystem")
    framework_models.import_torchvision()
    import timm

    return timm


@pytest.fixture(scope="module")
def registered(timm):
    """It with our names, which it did not have."""
    assert not timm.is_model("stdc1")
    import stdc_fast.timm_models  # noqa: F401

    return timm


def test_in_the_registry_of_timm(registered, tiny_weights):
    assert registered.list_models("stdc*") == ["stdc1", "stdc2"]
    chosen = {"out_indices": (2, 4), "in_chans": 4, "features_only": True}
    backbone = registered.create_model("stdc1", pretrained=tiny_weights, **chosen)
    assert same(backbone.state_dict(), create_model("stdc1", tiny_weights, **chosen).state_dict())
    assert backbone.feature_info.reduction() == [8, 32]
    maps = registered.create_model("stdc2", features_only=True)(torch.randn(2, 3, 64, 96))
    assert [tuple(y.shape[1:]) for y in maps[3:]] == [(512, 4, 6), (1024, 2, 3)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "stdc1 in timm is a backbone and no classifier; add features_only=True"),
        ({"num_classes": 7}, "add features_only=True"),
        ({"features_only": True, "drop_rate": 0.1}, "has no drop_rate; it has in_chans, out_indices"),
        ({"features_only": True, "out_indices": (7,)}, "out_indices must be numbers from 0 to 4"),
    ],
)
def test_what_the_registry_refuses(registered, options, said):
    with pytest.raises(UserError, match=said):
        registered.create_model("stdc1", **options)


def test_as_timm_has_it(timm):
    from timm.models._features import FeatureInfo as Theirs

    info = create_model(features_only=True).feature_info.info
    public = {name for name in vars(Theirs) if not name.startswith("_")}
    assert public == {name for name in vars(FeatureInfo) if not name.startswith("_")}
    for given in (5, 2, (0, 2), (4, 1)):
        theirs = Theirs(copy.deepcopy(info), (0, 1)).from_other(given)
        ours = FeatureInfo(copy.deepcopy(info), (0, 1)).from_other(given)
        for name in ("channels", "reduction", "module_name", "get_dicts"):
            assert getattr(ours, name)() == getattr(theirs, name)()
        for name in ("channels", "reduction", "module_name"):
            for idx in (0, 3, [1, 2], (4,)):
                assert getattr(ours, name)(idx) == getattr(theirs, name)(idx)
        for keys, idx in ((["num_chs"], None), (["num_chs", "index"], 2), (None, [0, 1]), (["module"], [3])):
            assert ours.get_dicts(keys, idx) == theirs.get_dicts(keys, idx)
        assert ours.get("index", 2) == theirs.get("index", 2)
        assert (ours[1], len(ours)) == (theirs[1], len(theirs))


# ---------------------------------------------------------------- networks


def test_a_network_by_chance():
    torch.manual_seed(3)
    network = create_model("stdc2", num_classes=7, training_heads=True)
    torch.manual_seed(3)
    expected = STDCSeg("stdc2", 7, training_heads=True)
    assert type(network) is STDCSeg and network.training
    assert same(network.state_dict(), expected.state_dict())
    assert create_model().num_classes == 19


def test_a_whole_network(tiny_weights, tiny_network, caplog):
    network = create_model("stdc1", pretrained=tiny_weights)
    assert network.num_classes == len(CAMVID) and network.training
    state = checkpoints.inference_state(network)
    assert same(state, checkpoints.inference_state(tiny_network)) and not caplog.messages
    assert all(p.requires_grad for p in network.parameters())
    other = create_model("stdc1", tiny_weights, num_classes=3)
    (said,) = caplog.messages
    assert "has 11 classes, not 3, so the last layer starts anew" in said
    mine = checkpoints.inference_state(other)
    assert [k for k in mine if k not in state or not torch.equal(mine[k], state[k])] == [
        "conv_out.conv_out.weight"
    ]


def test_a_trained_network_becomes_a_model(tiny_weights, photo):
    network = create_model("stdc1", tiny_weights, num_classes=2)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    model = stdc_fast.Segmenter(network.eval().requires_grad_(False), ClassSet.from_names(("a", "b")))
    assert model.predict(photo()).labels.max() < 2


def test_backbones(tiny_weights, tiny_network, tmp_path):
    expected = tiny_network.cp.backbone.state_dict()
    backbone = create_model("stdc1", tiny_weights, features_only=True).state_dict()
    assert all(torch.equal(backbone[k], v) for k, v in expected.items() if not k.endswith("_tracked"))
    torch.save(expected, tmp_path / "backbone.pth")
    network = create_model("stdc1", tmp_path / "backbone.pth", num_classes=5)
    mine = network.cp.backbone.state_dict()
    assert all(torch.equal(mine[k], v) for k, v in expected.items() if not k.endswith("_tracked"))
    with pytest.raises(UserError, match=r"backbone\.pth: its backbone is not stdc2's"):
        create_model("stdc2", tmp_path / "backbone.pth", features_only=True)


def test_imagenet_is_not_fetched_silently(monkeypatch, tmp_path):
    monkeypatch.setenv("STDC_FAST_HOME", str(tmp_path))
    monkeypatch.delenv("STDC_FAST_MIRROR", raising=False)
    with pytest.raises(UserError, match=r"stdc2_in1k\.mmseg is not on this machine.*download=True"):
        create_model("stdc2", pretrained=True)
    monkeypatch.setenv("STDC_FAST_OFFLINE", "1")
    with pytest.raises(UserError, match="STDC_FAST_OFFLINE forbids"):
        create_model("stdc2", pretrained=True, download=True)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("stdc3", {}, "unknown network 'stdc3'; choose one of stdc1, stdc2"),
        (["stdc1"], {}, r"unknown network \['stdc1'\]; choose one of stdc1, stdc2"),
        ("stdc1_camvid", {}, r"is a name of weights; create_model\('stdc1', pretrained='stdc1_camvid'\)"),
        ("stdc1", {"num_classes": 0}, "num_classes must be a whole number from 1 on, not 0"),
        ("stdc1", {"in_chans": 1}, "add features_only=True"),
        ("stdc1", {"out_indices": (1,)}, "add features_only=True"),
        ("stdc1", {"features_only": True, "num_classes": 3}, "a backbone has no classes"),
        (
            "stdc2",
            {"pretrained": "stdc1_camvid"},
            r"from the stdc2 .*; call create_model\('stdc1', \.\.\.\)$",
        ),
        ("stdc1", {"pretrained": "stdc1_camvit"}, "did you mean stdc1_camvid"),
    ],
)
def test_what_does_not_fit(name, given, said):
    with pytest.raises(UserError, match=said) as caught:
        create_model(name, **given)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_a_network_of_other_options_is_refused_with_the_way_to_it(tiny_weights, tmp_path):
    found, path = checkpoints.read(tiny_weights), tmp_path / "pad.safetensors"
    checkpoints.save(found.state, path, found.metadata | {"count_include_pad": False})
    with pytest.raises(UserError, match=r"first at count_include_pad; load.* is that network$") as caught:
        create_model("stdc1", path)
    stated = str(caught.value).partition("; ")[2].removesuffix(" is that network")
    network = eval(stated, {"load": stdc_fast.load})
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert not network.cp.backbone.features[2].skip.count_include_pad
