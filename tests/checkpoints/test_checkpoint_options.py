"""What a file says of its network beyond tensors: obeyed or refused, and told where it cannot be known."""

import json
import pickle
import re

import families
import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from checkpoint_files import canonical, read, refusal, relative_error, thin, weights, write
from torch import nn

from stdc_fast import checkpoints
from stdc_fast.errors import UserError
from stdc_fast.plan import build, optimise
from stdc_fast.postprocess import label_logits
from stdc_fast.reference import STDCSeg

# As mmengine 0.10.7 writes it into meta["cfg"], mmcv 1.7.2 into meta["config"]: literals and dict(...).
CONFIG = """\
crop_size = (512, 1024)
norm_cfg = dict(eps={eps}, requires_grad=True, type='SyncBN')
data_preprocessor = dict(
    bgr_to_rgb={rgb}, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], type='SegDataPreProcessor')
model = dict(
    backbone=dict(
        backbone_cfg=dict(act_cfg=dict(type='{act}'), in_channels=3, norm_cfg=dict(eps={eps}, type='SyncBN')),
        ffm_cfg=dict(in_channels=384, out_channels=256, scale_factor=4),
        norm_cfg=dict(eps={eps}, type='SyncBN'), upsample_mode='{mode}', type='STDCContextPathNet'),
    data_preprocessor=data_preprocessor,
    decode_head=dict(
        {head}in_index=3, norm_cfg=dict(eps={eps}, type='SyncBN'), num_classes=19, type='FCNHead'),
    pretrained=None, type='EncoderDecoder')
optimizer = dict(lr=-1e-2, type='SGD')
"""
USUAL = {"eps": 1e-5, "rgb": True, "act": "ReLU", "mode": "nearest", "head": "align_corners=True, "}


def mmseg_file(state, key="cfg", **settings):
    return {"meta": {key: CONFIG.format(**USUAL | settings)}, "state_dict": state}


@torch.inference_mode()
def agrees(loaded, theirs, **how):
    x = torch.randn(1, 3, 97, 131, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return relative_error(loaded.network(torch.float64)(x), theirs.double()(x)) <= 1e-12


@pytest.fixture
def mmseg():
    return families.build("mmseg", "stdc1", seed=5)


def test_a_usual_configuration_changes_nothing(tmp_path, mmseg):
    for key in ("cfg", "config"):
        loaded = read(tmp_path / "model.pth", mmseg_file(mmseg.state_dict(), key))
        assert loaded.metadata == {} and loaded.notes == () and agrees(loaded, mmseg)
        assert loaded.origins["align_corners"] == loaded.origins["eps"] == "its configuration"


def test_eps_of_the_configuration(tmp_path, mmseg):
    """The attention modules and the fusion keep 1e-5 whatever norm_cfg says (mmsegmentation 1.2.2)."""
    loaded = read(tmp_path / "model.pth", mmseg_file(mmseg.state_dict(), eps=1e-1))
    assert not agrees(loaded, mmseg)
    for name, module in mmseg.named_modules():
        own = ".arms." in f".{name}" or ".ffm." in f".{name}"
        if isinstance(module, nn.BatchNorm2d) and not own:
            module.eps = 1e-1
    assert agrees(loaded, mmseg)
    assert "eps=" in loaded.report and loaded.metadata["eps"]["arms"] == 1e-5


@pytest.mark.parametrize("head", ["align_corners=False, ", "align_corners=None, ", ""])
def test_align_corners_of_the_configuration(tmp_path, mmseg, head):
    """False where the decode head does not name it, as in mmsegmentation."""
    loaded = read(tmp_path / "model.pth", mmseg_file(mmseg.state_dict(), head=head))
    assert loaded.metadata == {"align_corners": False} and not agrees(loaded, mmseg)
    ours = loaded.network(torch.float64)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        low = ours.logits8(x)
        wanted = F.interpolate(low, (64, 96), mode="bilinear", align_corners=False)
        assert torch.equal(ours(x), wanted)
        labels, _ = label_logits(low, (64, 96), (160, 200), align_corners=False)
        wide = F.interpolate(wanted, (160, 200), mode="bilinear", align_corners=False)
        assert torch.equal(labels, wide.argmax(1).byte())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "bilinear"}, "model.backbone.upsample_mode='bilinear'"),
        ({"act": "LeakyReLU"}, "model.backbone.backbone_cfg.act_cfg='LeakyReLU'"),
        ({"head": "align_corners=True, act_cfg=None, "}, "model.decode_head.act_cfg=None"),
        ({"head": "align_corners=True, dilation=2, "}, "model.decode_head.dilation=2"),
        ({"head": "align_corners=choose(), "}, "align_corners must be true or false"),
        ({"eps": "two"}, "eps must be a number"),
        ({"eps": "[1e-5]"}, "eps must be a number"),
        ({"eps": "1e-5 if"}, "no Python"),
    ],
    ids=str,
)
def test_other_networks_are_refused(tmp_path, settings, said):
    path = write(tmp_path / "model.pth", mmseg_file(thin("mmseg"), **settings))
    assert said in refusal(path)


@pytest.mark.parametrize("mean", ["'red'", "[1, 2]", "None", "[1, [2], 3]"])
def test_a_mean_that_is_none(tmp_path, mean):
    config = CONFIG.format(**USUAL).replace("[123.675, 116.28, 103.53]", mean)
    path = write(tmp_path / "model.pth", {"meta": {"cfg": config}, "state_dict": thin("mmseg")})
    assert "not three numbers each" in refusal(path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        # mmsegmentation 0.30.0: Normalize(to_rgb=True) by default, within the pipeline or as a name.
        ("img_norm_cfg = dict(mean=[51, 51, 51], std=[51, 51, 51])", ([0.2] * 3, [0.2] * 3)),
        (
            "img_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6])\n"
            "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', transforms=["
            "dict(type='Resize'), dict(type='Normalize', mean=[51, 51, 51], std=[51, 51, 51])])]",
            ([0.2] * 3, [0.2] * 3),
        ),
        # mmsegmentation 1.2.2: SegDataPreProcessor without a mean normalises nothing.
        ("model['data_preprocessor']", None),
    ],
)
def test_where_configurations_normalise(tmp_path, text, wanted):
    head = "decode_head=dict(type='FCNHead', align_corners=True)"
    if wanted is None:
        text = f"model = dict({head}, data_preprocessor=dict(type='SegDataPreProcessor', bgr_to_rgb=True))"
        wanted = [0.0] * 3, [1 / 255] * 3
    else:
        text = f"model = dict({head})\n{text}"
    loaded = read(tmp_path / "model.pth", {"meta": {"cfg": text}, "state_dict": thin("mmseg")})
    assert loaded.metadata["mean"] == pytest.approx(wanted[0])
    assert loaded.metadata["std"] == pytest.approx(wanted[1])
    assert "channels of the first layer exchanged" not in loaded.report


@pytest.mark.parametrize(
    "part", ["data_preprocessor=dict(mean=[1, 2, 3], std=[1, 2, 3], bgr_to_rgb=f())", "data_preprocessor=f()"]
)
def test_what_a_configuration_computes_is_refused(tmp_path, part):
    text = f"model = dict(decode_head=dict(align_corners=True), {part})"
    path = write(tmp_path / "model.pth", {"meta": {"cfg": text}, "state_dict": thin("mmseg")})
    assert "its configuration computes" in refusal(path)


def test_a_configuration_is_never_run(tmp_path):
    config = CONFIG.format(**USUAL) + f"x = open({str(tmp_path / 'ran')!r}, 'w')\n"
    loaded = read(tmp_path / "model.pth", {"meta": {"cfg": config}, "state_dict": thin("mmseg")})
    assert loaded.metadata == {} and not (tmp_path / "ran").exists()


def test_channels_in_the_order_of_opencv(tmp_path, mmseg):
    loaded = read(tmp_path / "model.pth", mmseg_file(mmseg.state_dict(), rgb=False))
    mean, std = np.array([123.675, 116.28, 103.53])[::-1] / 255, np.array([58.395, 57.12, 57.375])[::-1] / 255
    np.testing.assert_allclose(loaded.metadata["mean"], mean, rtol=1e-9)
    frames = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    x = (frames.flip(3).double() / 255 - torch.tensor(mean[::-1].copy())) / torch.tensor(std[::-1].copy())
    ours = loaded.network(torch.float64)
    plan = optimise(build(ours))
    stem = plan.ops[0]
    assert stem.input.buffer == plan.inputs[0]
    with torch.inference_mode():
        wanted = mmseg.double()(x.permute(0, 3, 1, 2))
        ours_mean, ours_std = (torch.tensor(v, dtype=torch.float64) for v in (ours.mean, ours.std))
        rgb = (frames.double() / 255 - ours_mean) / ours_std
        assert relative_error(ours(rgb.permute(0, 3, 1, 2)), wanted) <= 1e-9


def test_the_last_convolution_of_the_backbone(tmp_path, mmseg):
    """mmsegmentation's with_final_conv: what its forward uses is not dropped."""
    state = mmseg.state_dict()
    last = nn.Sequential()
    last.conv, last.bn = nn.Conv2d(1024, 1024, 1, bias=False), nn.BatchNorm2d(1024)
    families.randomise(last, 1)
    state |= {f"backbone.backbone.final_conv.{k}": v for k, v in last.state_dict().items()}
    loaded = read(tmp_path / "model.pth", mmseg_file(state))
    assert loaded.metadata == {"conv_last": True} and "mapped 199 of 199" in loaded.report
    plain = mmseg.features
    last = last.double().eval()
    mmseg.features = lambda x: [*plain(x)[:4], F.relu(last(plain(x)[4]))]
    assert agrees(loaded, mmseg)


def official_last(value):
    state = dict(thin("official"))
    state["cp.backbone.conv_last.bn.num_batches_tracked"] = torch.tensor(value)
    return state


def test_conv_last_of_official_files(tmp_path):
    """It is in every file; its counter shows where it never ran, otherwise one must say."""
    assert read(tmp_path / "model.pth", official_last(3)).metadata == {}
    path = write(tmp_path / "model.pth", official_last(7))
    assert "7 batches; say conv_last=True" in refusal(path)
    used, unused = (checkpoints.read(path, conv_last=v) for v in (True, False))
    assert used.metadata == {"conv_last": True} and unused.metadata == {}
    assert len(used.state) == len(unused.state) + 5 == 198
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert not torch.equal(used.network()(x), unused.network()(x))
    stripped = {k: v for k, v in thin("official-plain").items() if "conv_last" not in k}
    path = write(tmp_path / "model.pth", stripped)
    with pytest.raises(UserError, match="has no conv_last"):
        checkpoints.read(path, conv_last=True)


def test_norms_without_counters(tmp_path):
    """Counters may be stripped; torch's note of the modules' versions tells the norms apart, or one must."""
    made = families.build("official-plain", "stdc1", seed=2)
    stripped = {k: v for k, v in made.state_dict().items() if "num_batches" not in k}
    path = write(tmp_path / "model.pth", stripped)
    assert "batch_norm='in-place' or 'plain'" in refusal(path)
    assert agrees(checkpoints.read(path, batch_norm="plain"), made)
    assert not agrees(checkpoints.read(path, batch_norm="in-place"), made)
    noted = made.state_dict()
    for key in [k for k in noted if "num_batches" in k]:
        del noted[key]
    loaded = read(tmp_path / "noted.pth", noted)
    assert agrees(loaded, made) and loaded.origins["batch_norm"] == "module versions"
    in_place = families.build("official", "stdc1", seed=2)
    noted = in_place.state_dict()
    for key in [k for k in noted if "num_batches" in k]:
        del noted[key]
    loaded = read(tmp_path / "noted.pth", {"state_dict": noted})
    assert agrees(loaded, in_place) and "in-place" in loaded.report
    with pytest.raises(UserError, match=r"says batch_norm='in-place', but batch_norm='plain' was asked for"):
        checkpoints.read(tmp_path / "noted.pth", batch_norm="plain")


@pytest.mark.parametrize("head", ["out_channels=1, threshold=0.6, ", "out_channels=1, "])
def test_one_output_and_a_threshold(tmp_path, head):
    made = families.build("mmseg", "stdc1", 1, seed=4)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        made.decode_head.conv_seg.bias -= made(x.float()).median()
    content = mmseg_file(made.state_dict(), head=f"align_corners=True, {head}")
    loaded = read(tmp_path / "model.pth", content)
    threshold = 0.6 if "threshold" in head else 0.3  # mmsegmentation's default
    assert loaded.num_classes == 2 and loaded.metadata == {"threshold": threshold}
    with torch.inference_mode():
        wanted = made.double()(x).sigmoid()[:, 0] > threshold
        assert 0.01 < wanted.double().mean() < 0.99
        assert torch.equal(loaded.network(torch.float64)(x).argmax(1).bool(), wanted)
    path = write(tmp_path / "bare.pth", made.float().state_dict())
    assert "one output" in refusal(path) and "threshold=0.3" in refusal(path)
    told = checkpoints.read(path, threshold=0.6)
    assert told.num_classes == 2
    ours = tmp_path / "ours.safetensors"
    checkpoints.save(told.state, ours, told.metadata)
    assert checkpoints.read(ours).num_classes == 2
    # Our own file has two outputs, of which a threshold still moves the first.
    bias = {t: checkpoints.read(ours, threshold=t).state["conv_out.conv_out.bias"] for t in (None, 0.6, 0.9)}
    assert torch.equal(bias[None], bias[0.6]) and torch.equal(bias[None][1:], bias[0.9][1:].float())
    assert torch.allclose(bias[0.9][0].sigmoid(), torch.tensor(0.9, dtype=torch.float64))
    with pytest.raises(UserError, match="has 19 classes, of which the most probable counts, but threshold=0"):
        checkpoints.read(write(tmp_path / "many.pth", thin("mmseg")), threshold=0.5)


@pytest.mark.parametrize("reverses", [False, True])
def test_normalisation_of_super_gradients(tmp_path, reverses):
    """super-gradients 3.7.1 keeps its processing as names and arguments, with arrays [1, 1, 3] of float32."""
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    arrays = {k: np.array(v, np.float32).reshape(1, 1, 3) for k, v in (("mean", mean), ("std", std))}
    steps = [{"StandardizeImage": {"max_value": 255}}, {"NormalizeImage": arrays}]
    steps = [{"ReverseImageChannels": {}}, *steps] if reverses else steps
    processing = {"image_processor": {"ComposeProcessing": {"processings": steps}}}
    state = thin("super-gradients")
    loaded = read(tmp_path / "model.pth", {"net": state, "processing_params": processing})
    wanted = {"mean": mean[::-1], "std": std[::-1]} if reverses else {"mean": mean, "std": std}
    assert loaded.metadata == wanted and loaded.origins["mean"] == "its processing_params"
    in_bytes = {"NormalizeImage": {"mean": [25.5, 51.0, 76.5], "std": [51.0, 51.0, 51.0]}}
    without = [*steps[:-2], in_bytes]
    processing["image_processor"]["ComposeProcessing"]["processings"] = without
    loaded = read(tmp_path / "model.pth", {"net": state, "processing_params": processing})
    assert loaded.metadata["std"] == pytest.approx([0.2] * 3)
    without[-1]["NormalizeImage"]["std"] = [1.0, 2.0]
    path = write(tmp_path / "model.pth", {"net": state, "processing_params": processing})
    assert "its NormalizeImage has [1.0, 2.0], not three numbers" in refusal(path)


def test_paddles_files(tmp_path):
    """A pickle of arrays. Biases before norms, pools that leave the padding out, images in -1..1.

    PaddleSeg 2.8: AvgPool2D has exclusive=True, Normalize has mean and std of 0.5 where nothing is said.
    """
    made = families.build("official-plain", "stdc1", 21, seed=6)
    for module in made.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            name = next(n for n, m in made.named_modules() if m is module)
            if not name.startswith("cp.backbone."):
                module.bias = nn.Parameter(torch.randn(module.out_channels))
    arrays = {}
    for key, value in made.state_dict().items():
        if (
            "num_batches" in key
            or ".x" in key
            or re.match(r"conv_out32|cp\.backbone\.(conv_last|fc|bn|linear)", key)
        ):
            continue
        if not key.startswith("cp.backbone."):
            key = key.replace(".conv.weight", "._conv.weight").replace(".conv.bias", "._conv.bias")
            key = key.replace(".bn.", "._batch_norm.")
        arrays[key.replace("running_mean", "_mean").replace("running_var", "_variance")] = value.numpy()
    whole = {**arrays, "StructuredToParameterName@@": {k: f"p_{i}" for i, k in enumerate(arrays)}}
    path = tmp_path / "model.pdparams"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(whole, protocol))
        loaded = checkpoints.read(path)
        assert (loaded.family, loaded.num_classes) == ("paddle", 21)
        wanted = {"count_include_pad": False, "mean": [0.5] * 3, "std": [0.5] * 3}
        assert loaded.metadata == wanted and "ffm.conv1.bias" in loaded.state
        ours = loaded.network(torch.float64)
        assert not ours.cp.backbone.features[2].skip.count_include_pad and ours.mean == (0.5,) * 3
        for block in ours.cp.backbone.features[2:]:
            if hasattr(block, "skip"):
                block.skip.count_include_pad = True  # as in the imitation
        x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
        with torch.inference_mode():
            assert relative_error(ours(x), made.double()(x)) <= 1e-12
        made.float()


def test_told_options(tmp_path):
    path = write(tmp_path / "model.pth", thin("mmseg"))
    assert checkpoints.read(path, align_corners=False, eps=1e-3).metadata == {
        "align_corners": False,
        "eps": 1e-3,
    }
    loaded = checkpoints.read(path, mean=(0, 0, 0), std=(1, 1, 1), count_include_pad=False)
    assert loaded.network().mean == (0, 0, 0) and loaded.origins["mean"] == "argument"
    for wrong, said in (
        ({"colour": 1}, "no option 'colour'"),
        ({"eps": -1}, "eps must be"),
        ({"eps": {"legs": 1e-3}}, "eps must be"),
        ({"mean": 0.5}, "three numbers"),
        ({"align_corners": "no"}, "true or false"),
        ({"batch_norm": "fancy"}, "'plain' or 'in-place'"),
        ({"threshold": 1}, "between 0 and 1"),
        ({"batch_norm": "in-place"}, "has plain norms, as mmseg has"),
    ):
        with pytest.raises(UserError, match=said):
            checkpoints.read(path, **wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"eps": 1e-3},
        {"align_corners": False},
        {"mean": [0.5, 0.5, 0.5]},
        {"conv_last": True},
        {"eps": {"head": 0.1}},
    ],
    ids=str,
)
def test_our_files_keep_options_and_older_versions_refuse_them(tmp_path, options):
    network = STDCSeg("stdc1", 3, conv_last="conv_last" in options).eval()
    families.randomise(network, 0)
    state = checkpoints.inference_state(network)
    path = tmp_path / "model.safetensors"
    checkpoints.save(state, path, {"variant": "stdc1", **options})
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "stdc_fast 2"
        assert json.loads(file.metadata()[next(iter(options))]) == next(iter(options.values()))
    loaded = checkpoints.read(path)
    assert {k: loaded.metadata[k] for k in options} == options
    plain = checkpoints.from_state(state, {}).network() if "conv_last" not in options else network
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        same = torch.equal(loaded.network()(x), plain(x))
        assert same == (next(iter(options)) in ("mean", "conv_last"))


def test_names_and_colours_of_other_families(tmp_path):
    names, colours = [f"thing {i}" for i in range(19)], [[i, 0, 255] for i in range(19)]
    state = thin("mmseg")
    for meta in (
        {"dataset_meta": {"classes": tuple(names), "palette": colours}},
        {"CLASSES": names, "PALETTE": np.array(colours, np.uint8)},
        {"CLASSES": tuple(names), "PALETTE": [tuple(c) for c in colours]},
    ):
        loaded = read(tmp_path / "model.pth", {"meta": meta, "state_dict": state})
        assert loaded.metadata == {"classes": names, "palette": colours}
    sg = families.ROWS["super-gradients"].contents(thin("super-gradients"))
    loaded = read(tmp_path / "model.pth", {**sg, "processing_params": {"class_names": names}})
    assert loaded.metadata == {"classes": names}
    for wrong in (["a"] * 19, ["a", "b"], "names", 5, [1] * 19):
        loaded = read(tmp_path / "model.pth", {"meta": {"CLASSES": wrong}, "state_dict": state})
        assert loaded.metadata == {} and "passed over" in loaded.report


CONTAINERS = {
    "lightning": lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}, "epoch": 1},
    "a criterion beside": lambda s: {
        "state_dict": {"criterion.weight": torch.ones(19), **{f"model.{k}": v for k, v in s.items()}}
    },
    "our model": lambda s: {f"network.{k}": v for k, v in s.items()},
    "several wrappers": lambda s: {f"module._orig_mod.model.{k}": v for k, v in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(9), **{f"module.{k}": v for k, v in s.items()}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.1},
    "model_state": lambda s: {"model_state": s, "cur_itrs": 1},
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params": {k: v + 1 for k, v in s.items()}, "params_ema": s},
    "another name": lambda s: {"checkpoint_of_mine": s, "epoch": 1},
    "nested": lambda s: {"model": {"state_dict": s}, "optimizer": {}},
}


@pytest.mark.parametrize("family", ["official", "mmseg", "super-gradients"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(family, container):
    state = thin(family)
    loaded = checkpoints.from_state(CONTAINERS[container](state))
    wanted = checkpoints.from_state(state)
    assert loaded.family == wanted.family
    assert all(torch.equal(loaded.state[k], v) for k, v in wanted.state.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            lambda s: {
                **{f"student.{k}": v for k, v in s.items()},
                **{f"teacher.{k}": v for k, v in s.items()},
            },
            r"several networks \(student, teacher\)",
        ),
        (
            lambda s: {**{f"net.{k}": v for k, v in s.items()}, "head2.weight": torch.ones(1)},
            r"under 'net' and other tensors beside it \(head2.weight\)",
        ),
        (lambda s: {"generator": s, "other": s}, r"several state dicts \(generator, other\)"),
    ],
    ids=["two networks", "a second head", "two state dicts"],
)
def test_what_is_not_certain_is_refused(content, said):
    with pytest.raises(UserError, match=said):
        checkpoints.from_state(content(thin("official")))


def test_the_reference_takes_the_options():
    assert weights("official") and canonical(thin("official"))
    network = STDCSeg("stdc1", 3, conv_last=True, fusion_bias=True, align_corners=False).eval()
    families.randomise(network, 3)
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        _, _, _, _, last = network.cp.backbone(image)
        network.cp.backbone.uses_conv_last = False
        assert not torch.equal(network.cp.backbone(image)[4], last)
