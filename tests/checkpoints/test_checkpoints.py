"""Every family's checkpoints become one network, exactly."""

import itertools

import families
import pytest
import safetensors
import safetensors.torch
import torch
from checkpoint_files import (
    DECODER_NORMS,
    METADATA,
    canonical,
    logits_error,
    network,
    read,
    refusal,
    relative_error,
    same,
    thin,
    weights,
    write,
)

from stdc_fast import checkpoints
from stdc_fast.reference import STDCBackbone


def sizes_of_families():
    """Images of half a million pixels are wide."""
    for variant, (family, row) in itertools.product(families.BLOCKS, families.ROWS.items()):
        for large in (False, True):
            sizes = [size for size in row.sizes[variant] if (size[1] * size[2] > 1 << 18) == large]
            name = f"{variant}-{family}{', large' if large else ''}"
            if sizes:
                marks = pytest.mark.wide if large else ()
                yield pytest.param(family, variant, sizes, id=name, marks=marks)


@pytest.mark.parametrize("family, variant, sizes", list(sizes_of_families()))
def test_logits_are_the_familys(tmp_path, family, variant, sizes):
    row, made = families.ROWS[family], families.build(family, variant, seed=1)
    loaded = read(tmp_path / "model.pth", row.contents(made.state_dict()))
    assert (loaded.family, loaded.variant) == (family.removesuffix("-plain"), variant)
    assert (loaded.num_classes, loaded.module, loaded.metadata) == (19, "cat", {})
    assert logits_error(loaded, made, sizes) <= 1e-10


@pytest.mark.parametrize("classes", [2, 11])
def test_any_number_of_classes(tmp_path, classes):
    made = families.build("mmseg", "stdc1", classes)
    loaded = read(tmp_path / "model.pth", families.ROWS["mmseg"].contents(made.state_dict()))
    assert loaded.num_classes == classes
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(loaded.network(torch.float64)(x), made.double()(x)) <= 1e-10


def test_in_place_norm_takes_the_magnitude_in_the_decoder_only(tmp_path):
    state = weights("official")
    loaded = read(tmp_path / "model.pth", state)
    norms = [k.removesuffix(".running_var") for k in loaded.state if k.endswith(".running_var")]
    backbone = [k for k in norms if k.startswith("cp.backbone.")]
    assert sorted(norms) == sorted([*DECODER_NORMS, *backbone]) and len(backbone) == 29
    for name in DECODER_NORMS:
        gamma = state[f"{name}.weight"].double()
        assert (gamma < 0).any()
        assert torch.equal(loaded.state[f"{name}.weight"].double(), gamma.abs() + 1e-5)
    for name in backbone:
        assert torch.equal(loaded.state[f"{name}.weight"], state[f"{name}.weight"])
    assert any((state[f"{name}.weight"] < 0).any() for name in backbone)
    assert "in-place" in loaded.report


@pytest.mark.parametrize("family", ["official-plain", *families.RENAMED])
def test_plain_norm_keeps_its_sign(tmp_path, family):
    loaded = read(tmp_path / "model.pth", families.ROWS[family].contents(weights(family)))
    stored = sorted(v.sum().item() for k, v in loaded.state.items() if v.ndim == 1 and k.endswith(".weight"))
    wanted = sorted(
        m.weight.sum().item()
        for k, m in network(family).named_modules()
        if isinstance(m, torch.nn.BatchNorm2d) and not k.startswith(families.ROWS[family].training_only)
    )
    assert stored == wanted and len(stored) == 29 + len(DECODER_NORMS)
    for name in DECODER_NORMS:
        assert (loaded.state[f"{name}.weight"] < 0).any()
    assert "in-place" not in loaded.report


@pytest.mark.parametrize("family", families.RENAMED)
def test_absent_counters_mean_in_place_norm_only_in_official_files(tmp_path, family):
    state = {k: v for k, v in thin(family).items() if not k.endswith("num_batches_tracked")}
    loaded = read(tmp_path / "model.pth", families.ROWS[family].contents(state))
    for name in DECODER_NORMS:
        assert (loaded.state[f"{name}.weight"] < 0).all()


def test_the_tell_decides_the_result(tmp_path):
    # The same numbers, with and without the counters, are two different networks.
    plain = weights("official-plain")
    in_place = {k: v for k, v in plain.items() if k in weights("official")}
    assert len(plain) - len(in_place) == len(DECODER_NORMS) + 6  # six training heads have a norm each
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        a = read(tmp_path / "a.pth", plain).network()(x)
        b = read(tmp_path / "b.pth", in_place).network()(x)
        assert relative_error(a, b) > 0.1


def test_averaged_weights_are_preferred(tmp_path):
    state = thin("super-gradients")
    content = families.ROWS["super-gradients"].contents(state)
    key, ours = "segmentation_head.0.seg_head.2.weight", "conv_out.conv_out.weight"
    loaded = read(tmp_path / "both.pth", content)
    assert torch.equal(loaded.state[ours], state[key]) and "(ema_net)" in loaded.report
    del content["ema_net"]
    loaded = read(tmp_path / "net.pth", content)
    assert torch.equal(loaded.state[ours], state[key] + 1) and "(net)" in loaded.report


@pytest.mark.parametrize("family", families.ROWS)
@pytest.mark.parametrize(("variant", "tensors"), [("stdc1", 193), ("stdc2", 313)])
def test_report_counts(tmp_path, family, variant, tensors):
    row, state = families.ROWS[family], thin(family, variant)
    if family == "official":
        # The entries of the published files: the number that shows the stand-in to be the real layout.
        assert len(state) == {"stdc1": 445, "stdc2": 733}[variant]
    mapped = tensors + row.classifier_bias
    report = read(tmp_path / "model.pth", row.contents(state)).report
    assert report.startswith(family.removesuffix("-plain"))
    assert f"mapped {mapped} of {mapped} tensors, dropped {row.dropped} training-only ones" in report
    assert "\n" not in report
    pruned = {k: v for k, v in state.items() if not k.startswith(row.training_only)}
    report = read(tmp_path / "pruned.pth", row.contents(pruned)).report
    assert f"mapped {mapped} of {mapped} tensors, dropped 0 training-only ones" in report


@pytest.mark.parametrize("absent", [r"cp.backbone.x", r"cp.backbone.features."])
@pytest.mark.parametrize("variant", ["stdc1", "stdc2"])
def test_either_name_of_a_backbone_tensor_is_enough(tmp_path, absent, variant):
    full = thin("official", variant)
    state = {k: v for k, v in full.items() if not k.startswith(absent)}
    assert len(state) == len(full) - {"stdc1": 174, "stdc2": 318}[variant]
    loaded = read(tmp_path / "model.pth", state)
    assert loaded.family == "official" and loaded.variant == variant
    assert same(loaded.state, canonical(full))


@pytest.mark.parametrize("change", [lambda t: t * 1.001, lambda t: t[:-1]])
def test_differing_aliases_are_refused(tmp_path, change):
    state = thin("official")
    alias = "cp.backbone.x8.0.2.conv_list.1.conv.weight"
    state[alias] = change(state[alias])
    message = refusal(write(tmp_path / "model.pth", state))
    assert alias in message and "cp.backbone.features.2.conv_list.1.conv.weight" in message
    assert "differ" in message


@pytest.mark.parametrize(
    ("name", "prefix", "options"),
    [
        ("STDC1-Seg.tar", "", {}),
        ("model.safetensors", "", {}),  # content counts, not the name
        ("model", "", {}),
        ("legacy.pth", "", {"_use_new_zipfile_serialization": False}),
        ("legacy.tar", "module.", {"_use_new_zipfile_serialization": False}),
        ("parallel.pth", "module.", {}),
        ("compiled.pth", "_orig_mod.", {}),
        ("both.pth", "_orig_mod.module.", {}),
        ("both.pth", "module._orig_mod.", {}),
    ],
)
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_containers_and_prefixes(tmp_path, name, prefix, options, key):
    state = thin("official")
    content = {prefix + k: v for k, v in state.items()}
    content = {key: content, "epoch": 3} if key else content
    assert same(read(tmp_path / name, content, **options).state, canonical(state))


@pytest.mark.parametrize("family", families.RENAMED)
def test_prefix_in_the_other_families(tmp_path, family):
    state = thin(family)
    bare = read(tmp_path / "bare.pth", families.ROWS[family].contents(state))
    prefixed = families.ROWS[family].contents({f"module.{k}": v for k, v in state.items()})
    assert same(read(tmp_path / "prefixed.pth", prefixed).state, bare.state)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata):
    state = thin("official")
    # This format has no aliases, only copies.
    copies = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    path = tmp_path / "model.bin"
    safetensors.torch.save_file(copies, path, metadata=metadata)
    loaded = checkpoints.read(path)
    assert loaded.family == "official" and "(safetensors)" in loaded.report and loaded.metadata == {}
    assert same(loaded.state, canonical(state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_files_dtype_is_kept(tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in thin("mmseg").items()}
    loaded = read(tmp_path / "model.pth", families.ROWS["mmseg"].contents(state))
    assert {v.dtype for v in loaded.state.values()} == {dtype}
    assert {v.dtype for v in loaded.network().state_dict().values() if v.ndim} == {torch.float32}


def outputs_agree(backbone_state, family_network):
    ours = STDCBackbone("stdc1")
    ours.load_state_dict(backbone_state, strict=False)
    missing = ours.state_dict().keys() - backbone_state.keys()
    assert all(k.endswith("num_batches_tracked") for k in missing)
    assert backbone_state.keys() <= ours.state_dict().keys()
    ours = ours.double().eval()
    x = torch.randn(1, 3, 97, 128, dtype=torch.float64)
    with torch.inference_mode():
        pairs = list(zip(ours(x), family_network.double().features(x), strict=True))
    assert len(pairs) == 5
    return all(relative_error(a, b) <= 1e-10 for a, b in pairs)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_backbone_of_a_classifier(tmp_path, prefix):
    made = families.build("official", "stdc1", seed=3)
    state = made.cp.backbone.state_dict()
    assert {k.split(".")[0] for k in state} >= {"features", "x8", "conv_last", "fc", "bn", "linear"}
    content = {"state_dict": {prefix + k: v for k, v in state.items()}, "epoch": 300}
    loaded = checkpoints.read_backbone(write(tmp_path / "STDCNet813M_73.91.tar", content))
    assert same(loaded, {k: v for k, v in state.items() if k.startswith("features.")})
    assert outputs_agree(loaded, made)


@pytest.mark.parametrize("family", families.ROWS)
def test_backbone_of_a_segmentation_network(tmp_path, family):
    made = families.build(family, "stdc1", seed=3)
    content = families.ROWS[family].contents(made.state_dict())
    loaded = checkpoints.read_backbone(write(tmp_path / "model.pth", content))
    assert len(loaded) == 29 * 5 and all(k.startswith("features.") for k in loaded)
    assert outputs_agree(loaded, made)


def test_backbone_of_our_file(tmp_path):
    state = canonical(thin("official"))
    checkpoints.save(state, tmp_path / "model.safetensors", METADATA)
    loaded = checkpoints.read_backbone(tmp_path / "model.safetensors")
    prefix = "cp.backbone."
    assert same(loaded, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def test_a_backbone_is_no_segmentation_network(tmp_path):
    state = network("official").cp.backbone.state_dict()
    message = refusal(write(tmp_path / "model.pth", {"state_dict": state}))
    assert "classification backbone" in message and "train --backbone" in message


@pytest.mark.parametrize(
    ("family", "prefix"), [("mmseg", "backbone.backbone."), ("super-gradients", "cp.")], ids=str
)
@pytest.mark.parametrize("wrapped", ["", "model."])
def test_backbone_files_of_other_families(tmp_path, family, prefix, wrapped):
    whole = families.build(family, "stdc1", seed=3)
    state = {
        k.removeprefix(prefix): v
        for k, v in whole.state_dict().items()
        if k.startswith(prefix) and ("backbone." in k)
    }
    if family == "mmseg":  # what its converter leaves of an official file's second names
        state["x8.0.2.layers.0.conv.weight"] = torch.ones(1)
    path = write(tmp_path / "stdc1.pth", {wrapped + k: v for k, v in state.items()})
    loaded = checkpoints.read_backbone(path)
    assert same(loaded, checkpoints.read_backbone(write(tmp_path / "whole.pth", whole.state_dict())) | {
        k: v for k, v in loaded.items() if k.endswith("num_batches_tracked")
    })  # fmt: skip
    assert outputs_agree(loaded, whole)
    assert "--backbone" in refusal(path)


def test_backbone_of_an_incomplete_segmentation_network(tmp_path):
    state = thin("official")
    del state["ffm.conv1.weight"]
    assert "1 missing (ffm.conv1.weight)" in refusal(
        write(tmp_path / "model.pth", state), checkpoints.read_backbone
    )


def test_counters_in_half_precision(tmp_path):
    """A whole official file in fp16 has counters of inf after 65,504 batches."""
    state = {k: v.half() for k, v in thin("official").items()}
    for key in state:
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(float("inf"), dtype=torch.float16)
    path = write(tmp_path / "model.pth", state)
    loaded = checkpoints.read(path)
    assert loaded.family == "official"


def test_names_that_no_network_has(tmp_path):
    state = {**thin("mmseg"), "a." * 1000 + "weight": torch.zeros(1)}
    assert "a tensor whose name has 2006 characters" in refusal(write(tmp_path / "model.pth", state))


def test_a_backbone_needs_no_word_about_the_rest(tmp_path, caplog):
    state = thin("official")
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = write(tmp_path / "model.pth", state)
    assert "batch_norm" in refusal(path)
    assert checkpoints.read_backbone(path)["features.0.conv.weight"].shape == (32, 3, 3, 3)
    parts = "decode_head=dict(align_corners=True), backbone=dict(backbone_cfg=dict(norm_cfg=dict(eps=.1)))"
    text = f"model = dict({parts})"
    path = write(tmp_path / "mmseg.pth", {"meta": {"cfg": text}, "state_dict": thin("mmseg")})
    checkpoints.read_backbone(path)
    assert "its backbone expects eps=" in caplog.text
