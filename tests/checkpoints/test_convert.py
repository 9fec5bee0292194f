"""Checkpoints written for other code bases: their names, their values, and what they cannot express."""

import ast
import dataclasses
import itertools

import families
import pytest
import torch
from checkpoint_files import DECODER_NORMS, canonical, relative_error, same, thin, weights, write
from torch import nn

from stdc_fast import checkpoints
from stdc_fast.checkpoints import writers
from stdc_fast.errors import UserError
from stdc_fast.reference.networks import STDCSeg

BIAS = "conv_out.conv_out.bias"
#: (source, target, variant)
PAIRS = [
    p
    for p in itertools.product(families.ROWS, writers.WRITERS, families.BLOCKS)
    if p[2] == "stdc1" or p[0] == p[1]
]


def content_of(path):
    """What is in a file: as much as torch gives without running anything."""
    content = torch.load(path, weights_only=True)
    return content, content.get("state_dict", content.get("net", content))


def inference(family, state):
    """Tensors of a state dict that inference uses."""
    only = families.ROWS[family].training_only
    return {k: v for k, v in state.items() if not k.startswith(only)}


def converted(tmp_path, checkpoint, to, name="out.pth"):
    """(the file, its state dict)."""
    writers.write(checkpoint, tmp_path / name, to)
    return tmp_path / name, content_of(tmp_path / name)[1]


def read_of(family, state):
    return checkpoints.from_state(families.ROWS[family].contents(state))


def without_bias(checkpoint):
    """The checkpoint with a classifier's bias of zeros, which any code base can express."""
    if BIAS not in checkpoint.state:
        return checkpoint
    bias = torch.zeros_like(checkpoint.state[BIAS])
    return dataclasses.replace(checkpoint, state={**checkpoint.state, BIAS: bias})


@pytest.mark.parametrize(("source", "to", "variant"), PAIRS)
def test_names_are_those_of_the_code_base(tmp_path, source, to, variant):
    checkpoint = without_bias(read_of(source, thin(source, variant)))
    _, state = converted(tmp_path, checkpoint, to)
    expected = inference(to, thin(to, variant))
    assert state.keys() == expected.keys()
    assert all(state[k].shape == expected[k].shape for k in expected)
    if to != "mmseg":  # super-gradients loads by order where names differ
        assert list(state) == list(expected)


@pytest.mark.parametrize(("source", "to", "variant"), PAIRS)
def test_reading_it_back_is_the_same_checkpoint(tmp_path, source, to, variant):
    checkpoint = without_bias(read_of(source, weights(source, variant)))
    path, _ = converted(tmp_path, checkpoint, to)
    back = checkpoints.read(path)
    wanted = dict(checkpoint.state)
    if to == "mmseg":
        wanted.setdefault(BIAS, torch.zeros(19))
    else:
        wanted.pop(BIAS, None)
    if to != "official" or source == "official":
        assert same(back.state, wanted)
        return
    # In-place batch norm has no negative weight: such channels have all three of these negated.
    assert back.state.keys() == wanted.keys()
    for name in DECODER_NORMS:
        negative = wanted[f"{name}.weight"] < 0
        assert negative.any() and not negative.all()
        conv = f"{name.replace('.bn_atten', '.conv_atten').removesuffix('.bn')}"
        conv = conv if conv.endswith("conv_atten") else f"{conv}.conv"
        for key in (f"{name}.weight", f"{name}.running_mean", f"{conv}.weight"):
            wanted[key] = wanted[key].clone()
            wanted[key][negative] *= -1
    assert same(back.state, wanted)


@pytest.mark.parametrize("family", families.ROWS)
@pytest.mark.parametrize("variant", families.BLOCKS)
def test_a_round_trip_keeps_every_bit(tmp_path, family, variant):
    state = weights(family, variant)
    _, back = converted(tmp_path, read_of(family, state), family)
    expected = {k: v for k, v in inference(family, state).items() if not k.endswith("num_batches_tracked")}
    counters = {k for k in back if k.endswith("num_batches_tracked")}
    assert {k for k in inference(family, state) if k.endswith("num_batches_tracked")} == counters
    for key, value in expected.items():
        # The sign is lost that in-place batch norm does not look at.
        value = (
            value.abs() if family == "official" and key.removesuffix(".weight") in DECODER_NORMS else value
        )
        assert torch.equal(back[key], value) and back[key].dtype == value.dtype, key


@pytest.mark.parametrize(("source", "to"), list(itertools.product(families.ROWS, writers.WRITERS)))
def test_the_code_base_computes_the_same(tmp_path, source, to):
    checkpoint = without_bias(read_of(source, weights(source)))
    _, state = converted(tmp_path, checkpoint, to)
    network = families.ROWS[to].network("stdc1", 19).double().eval()
    loaded = network.load_state_dict(state, strict=False)
    assert loaded.unexpected_keys == []
    assert all(k.startswith(families.ROWS[to].training_only) for k in loaded.missing_keys)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(network(x), checkpoint.network(torch.float64)(x)) <= 1e-12


def decoder_weights(checkpoint, value):
    """The checkpoint with this weight of the first channels of every decoder's norm."""
    state = dict(checkpoint.state)
    for name in DECODER_NORMS:
        state[f"{name}.weight"] = state[f"{name}.weight"].clone()
        state[f"{name}.weight"][:3] = value
    return dataclasses.replace(checkpoint, state=state)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-5, 9.9e-6, -1e-5, 3e-7, -1e-20, 1.9999e-5, 2e-5, 2.0**-10, 1e4]
)
def test_any_weight_has_an_in_place_equal(tmp_path, value):
    checkpoint = decoder_weights(read_of("super-gradients", weights("super-gradients")), value)
    path, state = converted(tmp_path, checkpoint, "official")
    network = families.ROWS["official"].network("stdc1", 19).double().eval()
    network.load_state_dict(state, strict=False)
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = checkpoint.network(torch.float64)(x)
        assert relative_error(network(x), expected) <= 1e-12
        assert relative_error(checkpoints.read(path).network(torch.float64)(x), expected) <= 1e-12


def test_a_weight_without_an_in_place_equal_is_refused(tmp_path):
    checkpoint = decoder_weights(read_of("super-gradients", weights("super-gradients")), 1e-45)
    half = {k: v.half() if v.ndim == 4 else v for k, v in checkpoint.state.items()}
    with pytest.raises(UserError, match=r"channel 0 has the norm weight 1.4e-45.*--to official-plain"):
        writers.write(dataclasses.replace(checkpoint, state=half), tmp_path / "out.pth", "official")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_our_file_survive_bit_by_bit(tmp_path):
    """float32 norm weights, which are no float32 number plus 1e-5."""
    state = canonical(thin("official"))
    single = {k: v.float() for k, v in state.items()}
    path, _ = converted(tmp_path, checkpoints.from_state(single, {}), "official")
    back = checkpoints.read(path).state
    assert same({k: v.float() for k, v in back.items()}, single)
    assert all(torch.equal(back[k].double(), single[k].double()) for k in single)


def test_aliases_take_no_room(tmp_path):
    path, state = converted(tmp_path, read_of("official", weights("official")), "official")
    features = [k for k in state if k.startswith("cp.backbone.features.")]
    for key in features:
        index = key.split(".")[3]
        (alias,) = (
            k for k in state if k.startswith("cp.backbone.x") and f".0.{key.split('features.')[1]}" in k
        )
        assert index in alias and state[alias].data_ptr() == state[key].data_ptr()
    unique = {v.data_ptr(): v.nbytes for v in state.values()}
    assert path.stat().st_size < 1.05 * sum(unique.values())


def test_a_part_of_a_larger_tensor_takes_its_own_room(tmp_path):
    state = {k: torch.stack([v, v])[0] for k, v in weights("super-gradients").items()}
    path, _ = converted(tmp_path, read_of("super-gradients", state), "super-gradients")
    used = sum(v.nbytes for v in inference("super-gradients", state).values())
    assert path.stat().st_size < 1.05 * used


def test_the_same_bytes_under_any_name(tmp_path):
    checkpoint = read_of("mmseg", thin("mmseg"))
    files = [converted(tmp_path, checkpoint, "mmseg", name)[0].read_bytes() for name in ("a.pth", "b.pth")]
    assert files[0] == files[1]


# ---------------------------------------------------------------- options, names


def described(**metadata):
    checkpoint = read_of("super-gradients", thin("super-gradients"))
    return dataclasses.replace(checkpoint, metadata=metadata)


def config_of(path):
    """The values of mmsegmentation's configuration."""
    text = content_of(path)[0]["meta"]["cfg"]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(text).body}


def test_mmseg_keeps_names_and_options(tmp_path):
    names, colours = [f"c{i}" for i in range(19)], [[i, 2, 3] for i in range(19)]
    eps = {"backbone": 1e-3, "context": 2e-3, "fusion": 3e-3, "head": 4e-3}
    options = {"align_corners": False, "eps": eps, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    checkpoint = described(classes=names, palette=colours, short_side=512, **options)
    path, _ = converted(tmp_path, checkpoint, "mmseg")
    meta, config = content_of(path)[0]["meta"], config_of(path)
    assert meta["dataset_meta"] == {"classes": names, "palette": colours}
    assert (meta["CLASSES"], meta["PALETTE"]) == (names, colours)
    model, head = config["model"], config["model"]["decode_head"]
    assert model["data_preprocessor"]["mean"] == [127.5, 102.0, 76.5]
    assert model["data_preprocessor"]["std"] == [51.0, 63.75, 76.5]
    assert model["data_preprocessor"]["bgr_to_rgb"] is True
    assert (head["align_corners"], head["num_classes"], head["in_index"]) == (False, 19, 3)
    stages = model["backbone"]["backbone_cfg"]
    assert (stages["stdc_type"], stages["bottleneck_type"]) == ("STDCNet1", "cat")
    assert stages["with_final_conv"] is False
    found = [stages, model["backbone"], model["backbone"]["ffm_cfg"], head]
    assert [part["norm_cfg"]["eps"] for part in found] == [1e-3, 2e-3, 3e-3, 4e-3]
    assert config["test_pipeline"][1]["scale"][1] == 512
    back = checkpoints.read(path).metadata
    assert back == {"classes": names, "palette": colours, **options, "eps": {**eps, "arms": 1e-5}}


def test_mmseg_without_names_or_options(tmp_path):
    path, _ = converted(tmp_path, described(), "mmseg")
    assert content_of(path)[0]["meta"].keys() == {"cfg"}
    model = config_of(path)["model"]
    assert "eps" not in model["decode_head"]["norm_cfg"] and model["decode_head"]["align_corners"] is True
    assert model["data_preprocessor"]["mean"] == [123.675, 116.28, 103.53]
    assert model["data_preprocessor"]["std"] == [58.395, 57.12, 57.375]


def test_super_gradients_keeps_names(tmp_path):
    names = [f"c{i}" for i in range(19)]
    checkpoint = described(classes=names, palette=[[1, 2, 3]] * 19, mean=[0.5, 0.4, 0.3])
    notes = writers.write(checkpoint, tmp_path / "out.pth", "super-gradients")
    assert any("no place for palette" in note for note in notes)
    params = content_of(tmp_path / "out.pth")[0]["processing_params"]
    assert params["class_names"] == names
    steps = params["image_processor"]["ComposeProcessing"]["processings"]
    order = [name for step in steps for name in step]
    # Its own preset for Cityscapes has these two in the wrong order.
    assert order.index("StandardizeImage") < order.index("NormalizeImage")
    assert {"NormalizeImage": {"mean": [0.5, 0.4, 0.3], "std": [0.229, 0.224, 0.225]}} in steps


def test_official_says_what_it_loses(tmp_path):
    checkpoint = described(classes=[f"c{i}" for i in range(19)], short_side=512, std=[1, 1, 1])
    notes = writers.write(checkpoint, tmp_path / "out.pth", "official")
    assert any("no place for classes, short_side" in n for n in notes)
    assert any("deviation [1, 1, 1]" in n for n in notes)
    assert any("strict=False" in n for n in notes)


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        ({"align_corners": False}, {"official", "official-plain", "super-gradients"}),
        ({"eps": 1e-3}, {"official", "official-plain", "super-gradients", "mmseg"}),
        ({"eps": {"head": 1e-3}}, {"official", "official-plain", "super-gradients"}),
        ({"count_include_pad": False}, set(writers.WRITERS)),
        ({"count_include_pad": True, "align_corners": True, "eps": 1e-5}, set()),
    ],
)
@pytest.mark.parametrize("to", writers.WRITERS)
def test_what_a_code_base_can_not_express_is_refused(tmp_path, to, metadata, refused):
    path = tmp_path / "out.pth"
    if to not in refused:
        writers.write(described(**metadata), path, to)
        return
    with pytest.raises(UserError) as caught:
        writers.write(described(**metadata), path, to)
    (name,) = metadata
    said = str(caught.value)
    assert "\n" not in said and name in said and "--to safetensors" in said
    assert not path.exists()


@pytest.mark.parametrize("key", [BIAS, "ffm.conv1.bias", "ffm.conv2.bias"])
@pytest.mark.parametrize("to", writers.WRITERS)
def test_biases(tmp_path, to, key):
    checkpoint = described()
    channels = len(checkpoint.state[key.replace("bias", "weight")])
    for value in (0.0, 0.5):
        state = {**checkpoint.state, key: torch.full((channels,), value)}
        biased = dataclasses.replace(checkpoint, state=state)
        if (value and to in ("official", "super-gradients")) or (value and to == "mmseg" and key != BIAS):
            with pytest.raises(UserError, match=f"bias.*{key}"):
                writers.write(biased, tmp_path / "out.pth", to)
            continue
        notes = writers.write(biased, tmp_path / "out.pth", to)
        _, stored = content_of(tmp_path / "out.pth")
        if to == "official-plain":
            assert (key in stored) == bool(value) == any("bias" in n for n in notes)
        elif to == "mmseg" and key == BIAS:
            assert torch.equal(stored["decode_head.conv_seg.bias"], state[key])


def test_one_output_with_a_threshold(tmp_path):
    """It is kept as two outputs, of which the first is log(p / (1 - p))."""
    state = dict(thin("super-gradients"))
    checkpoint = read_of("super-gradients", state)
    weight = torch.randn(1, 256, 1, 1)
    two = {
        "conv_out.conv_out.weight": torch.cat([torch.zeros_like(weight), weight]),
        BIAS: torch.tensor([torch.logit(torch.tensor(0.3, dtype=torch.float64)), 0.25], dtype=torch.float64),
    }
    checkpoint = dataclasses.replace(
        checkpoint, state={**checkpoint.state, **two}, num_classes=2, metadata={"threshold": 0.3}
    )
    path, stored = converted(tmp_path, checkpoint, "mmseg")
    assert torch.equal(stored["decode_head.conv_seg.weight"], weight)
    assert stored["decode_head.conv_seg.bias"].tolist() == [0.25]
    assert stored["decode_head.conv_seg.bias"].dtype == weight.dtype
    head = config_of(path)["model"]["decode_head"]
    assert (head["num_classes"], head["out_channels"], head["threshold"]) == (2, 1, 0.3)
    back = checkpoints.read(path)
    assert (back.num_classes, back.metadata) == (2, {"threshold": 0.3})
    assert all(torch.equal(back.state[k].double(), v.double()) for k, v in two.items())


def test_conv_last(tmp_path):
    last = {
        f"cp.backbone.conv_last.{k}": v
        for k, v in families.parts.unit(1024, 1024, 1).state_dict().items()
        if v.ndim
    }
    checkpoint = described(conv_last=True)
    checkpoint = dataclasses.replace(checkpoint, state={**checkpoint.state, **last})
    path, stored = converted(tmp_path, checkpoint, "mmseg")
    assert config_of(path)["model"]["backbone"]["backbone_cfg"]["with_final_conv"] is True
    final = {k.split("final_conv.")[1] for k in stored if "final_conv" in k}
    assert final == families.parts.unit(1024, 1024, 1).state_dict().keys()
    assert checkpoints.read(path).metadata == {"conv_last": True}
    path, stored = converted(tmp_path, checkpoint, "official")
    assert last.keys() < stored.keys()
    # Readers tell by its counter that it was used.
    counters = [v.item() for k, v in stored.items() if k.endswith("num_batches_tracked")]
    assert set(counters) == {1}
    with pytest.raises(UserError, match="conv_last"):
        checkpoints.read(path)
    back = checkpoints.read(path, conv_last=True)
    assert all(torch.equal(back.state[k], v) for k, v in last.items())
    with pytest.raises(UserError, match="conv_last"):
        writers.write(checkpoint, tmp_path / "out.pth", "super-gradients")


# ---------------------------------------------------------------- the "add" form


@pytest.fixture(scope="module")
def added():
    torch.manual_seed(0)
    network = STDCSeg("stdc1", 5, "add").eval()
    families.randomise(network, 3)
    return checkpoints.from_state(network.state_dict())


@pytest.mark.parametrize("to", ["official", "official-plain"])
def test_add_of_the_official_code(tmp_path, added, to):
    notes = writers.write(added, tmp_path / "out.pth", to)
    assert any('type="add"' in n for n in notes)
    back = checkpoints.read(tmp_path / "out.pth")
    assert back.module == "add" and back.state.keys() == added.state.keys()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(back.network(torch.float64)(x), added.network(torch.float64)(x)) <= 1e-12


def test_add_of_mmseg(tmp_path, added):
    path, stored = converted(tmp_path, added, "mmseg")
    assert config_of(path)["model"]["backbone"]["backbone_cfg"]["bottleneck_type"] == "add"
    block = {k.removeprefix("backbone.backbone.stages.2.0.") for k in stored if ".stages.2.0." in k}
    conv = ["conv.weight", *(f"bn.{k}" for k in nn.BatchNorm2d(1).state_dict())]
    # Its first layer is a chain of two, the second of which has a name of its own.
    modules = (
        "layers.0.0",
        "layers.0.1",
        "downsample",
        "layers.1",
        "layers.2",
        "layers.3",
        "skip.0",
        "skip.1",
    )
    assert block == {f"{m}.{k}" for m in modules for k in conv}
    second = "backbone.backbone.stages.2.0.{}.conv.weight"
    aliases = [stored[second.format(m)].data_ptr() for m in ("layers.0.1", "downsample")]
    assert aliases[0] == aliases[1]
    assert "backbone.backbone.stages.2.1.layers.0.conv.weight" in stored
    back = checkpoints.read(path)
    assert back.module == "add" and same({k: v for k, v in back.state.items() if k != BIAS}, added.state)


def test_super_gradients_has_no_add(tmp_path, added):
    with pytest.raises(UserError, match="'add'"):
        writers.write(added, tmp_path / "out.pth", "super-gradients")


# ---------------------------------------------------------------- backbones


def backbone_of(family, state):
    """The code base's names of the backbone alone."""
    prefix = {"official": "cp.backbone.", "mmseg": "backbone.backbone.", "super-gradients": "cp."}[family]
    wanted = (
        f"{prefix}{'features' if family == 'official' else 'stages' if family == 'mmseg' else 'backbone'}."
    )
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(wanted)}


@pytest.mark.parametrize("family", ["official", "mmseg", "super-gradients"])
@pytest.mark.parametrize("variant", families.BLOCKS)
def test_backbones(tmp_path, family, variant):
    source = write(tmp_path / "in.tar", {"state_dict": backbone_of("official", weights("official", variant))})
    assert writers.holds_backbone(source)
    state = checkpoints.read_backbone(source)
    notes = writers.write_backbone(state, tmp_path / "out.pth", family)
    assert variant in notes[0]
    _, stored = content_of(tmp_path / "out.pth")
    expected = backbone_of(family, thin(family, variant))
    assert list(stored) == list(expected)
    assert all(stored[k].shape == expected[k].shape for k in expected)
    # The values in the right places: those of a segmentation network under the code base's names.
    checkpoint = read_of("official", weights("official", variant))
    _, whole = converted(tmp_path, checkpoint, family, "whole.pth")
    for key, value in backbone_of(family, whole).items():
        assert key.endswith("num_batches_tracked") or torch.equal(stored[key], value)


@pytest.mark.parametrize("family", ["official", "mmseg", "super-gradients"])
def test_the_backbone_of_any_network(tmp_path, family):
    path = write(tmp_path / "model.pth", families.ROWS[family].contents(weights(family)))
    assert not writers.holds_backbone(path)
    state = checkpoints.read_backbone(path)
    writers.write_backbone(state, tmp_path / "out.tar", "official")
    content = torch.load(tmp_path / "out.tar", weights_only=True)
    assert content.keys() == {"state_dict"}
    back = checkpoints.read_backbone(tmp_path / "out.tar")
    assert all(torch.equal(back[k], v) for k, v in state.items())


def test_a_backbone_as_safetensors(tmp_path):
    state = backbone_of("official", weights("official"))
    writers.write_backbone(state, tmp_path / "out.safetensors", "safetensors")
    back = checkpoints.read_backbone(tmp_path / "out.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in back.items()) and len(back) >= 145


def test_backbones_that_are_none(tmp_path):
    state = backbone_of("official", thin("official"))
    short = {k: v for k, v in state.items() if not k.startswith("features.7.")}
    with pytest.raises(UserError, match="7 blocks"):
        writers.write_backbone(short, tmp_path / "out.pth", "mmseg")
    del state["features.3.conv_list.1.bn.bias"]
    with pytest.raises(UserError, match=r"lacks features.3.conv_list.1.bn.bias"):
        writers.write_backbone(state, tmp_path / "out.pth", "mmseg")
    assert list(tmp_path.iterdir()) == []
