"""Exported files in their real runtimes: the reference's logits and labels at every size, or no file."""

import ast
import copy
import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from folders import save
from paths import ROOT

import stdc_fast
from stdc_fast import UserError, _native, checkpoints
from stdc_fast.exporters import FORMATS, Settings, graph, parity, runners, writers
from stdc_fast.exporters.converters import quiet
from stdc_fast.exporters.source import Source
from stdc_fast.exporters.torch_graph import GraphModule
from stdc_fast.images import normalise
from stdc_fast.reference.networks import STDCSeg, upsample

GRAPHS = [f for f in FORMATS.values() if f.graph]
#: The least one, one of a 1x2 map at 1/32, and one whose maps are odd at 1/8, 1/16 and 1/32.
SIZES = [(32, 32), (32, 64), (97, 131)]


def there(form):
    if form.missing:
        pytest.skip(f"{', '.join(form.missing)} not installed: make test-exports")
    return form


@pytest.fixture(scope="module")
def source(tiny_weights):
    return Source.of(tiny_weights)


def sizes_of_forms():
    """By default the last one, and all where a file takes less than a second."""
    for form in GRAPHS:
        for size in SIZES:
            usual = size == SIZES[-1] or form.name == "onnx"
            yield pytest.param(form, size, id=f"{form.name}-{size}", marks=() if usual else pytest.mark.wide)


@pytest.mark.parametrize("form, size", list(sizes_of_forms()))
def test_one_size(form, size, tiny_model, tmp_path):
    path = tmp_path / f"a{there(form).suffix}"
    done = stdc_fast.export(tiny_model, path, size=size)
    assert [(row.height, row.width) for row in done.rows] == [size]
    assert done.error < 1e-3 and done.agreement > 0.999 and not done.rows[0].unexplained
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *(f"a{s}" for s in form.beside)])


@pytest.mark.parametrize(
    "how", [{}, {"input": "nhwc", "output": "labels", "batch": 2}], ids=["plain", "raw frames"]
)
def test_int8_by_onnx_runtime(how, embedded, photo, tmp_path):
    import onnx
    import onnxruntime

    path, size = tmp_path / "a.onnx", (97, 131)
    pictures = [photo(90, 130), photo(64, 200)]
    done = stdc_fast.export(embedded, path, dtype="int8", size=size, calibrate=pictures, **how)
    assert done.agreement > 0.9 and not done.rows[0].unexplained and os.listdir(tmp_path) == ["a.onnx"]
    graph = onnx.load(path).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 30
    assert {made[node.input[i]] for node in convolutions for i in (0, 1)} == {"DequantizeLinear"}
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"])[0] == "Sky"
    assert session.get_inputs()[0].shape == ([2, *size, 3] if how else [1, 3, *size])


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([np.zeros((40, 50, 3), np.uint8)], "is of one colour, which gives no ranges"),
        ([torch.zeros(3, 40, 50)], "is normalised; exports in 8 bits are calibrated on pictures"),
        (["none.jpg"], "none.jpg: no such file"),
    ],
)
def test_pictures_that_give_no_ranges(pictures, said, tiny_model, tmp_path):
    with pytest.raises(UserError, match=said):
        stdc_fast.export(tiny_model, tmp_path / "a.onnx", dtype="int8", size=(32, 64), calibrate=pictures)
    assert os.listdir(tmp_path) == []


def test_names_in_capitals_and_a_second_export(tiny_model, tmp_path):
    there(FORMATS["openvino"])
    for _ in range(2):
        assert stdc_fast.export(tiny_model, tmp_path / "A.XML", size=(32, 64)).error < 1e-3
        assert sorted(os.listdir(tmp_path)) == ["A.XML", "A.bin"]
    assert runners.run_openvino(tmp_path / "A.XML", Settings())(np.zeros((1, 3, 32, 64), np.float32)).any()


@pytest.mark.parametrize("form", [f for f in GRAPHS if f.any_size], ids=lambda f: f.name)
def test_every_size(form, tiny_model, tmp_path):
    done = stdc_fast.export(tiny_model, tmp_path / f"a{there(form).suffix}", batch=None)
    seen = [(row.batch, row.height, row.width) for row in done.rows]
    assert (1, form.least, form.least) in seen and (2, 97, 131) in seen and len(seen) == 5
    assert done.error < 1e-5


@pytest.mark.parametrize(
    "form",
    [FORMATS["onnx"], pytest.param(FORMATS["openvino"], marks=pytest.mark.wide)],
    ids=lambda f: f.name,
)
def test_720x960(form, tiny_model, tmp_path):
    """23 rows at 1/32, 45 at 1/16, 90 at 1/8: one map is odd, the other is not."""
    done = stdc_fast.export(tiny_model, tmp_path / f"a{there(form).suffix}", size=(720, 960))
    assert done.error < 1e-5 and done.agreement > 0.9999


@pytest.mark.parametrize("form", [f for f in GRAPHS if f.frames], ids=lambda f: f.name)
def test_raw_frames_to_labels(form, tiny_model, tmp_path):
    """Resized in the graph, both ways."""
    done = stdc_fast.export(
        tiny_model, tmp_path / f"a{there(form).suffix}", size=(64, 96), frame=(97, 131), input="nhwc",
        output="labels", batch=2,
    )  # fmt: skip
    (row,) = done.rows
    assert (row.batch, row.height, row.width, row.error) == (2, 97, 131, None)
    assert row.agreement > 0.999 and row.unexplained == 0


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(f, id=f.name, marks=pytest.mark.wide if f.name == "openvino" else ())
        for f in GRAPHS
        if "float16" in f.dtypes
    ],
)
def test_float16(form, tiny_model, tmp_path):
    path = tmp_path / f"a{there(form).suffix}"
    whole = stdc_fast.export(tiny_model, path, size=(64, 96)).to_dict()["bytes"]
    done = stdc_fast.export(tiny_model, path, size=(64, 96), dtype="float16")
    assert done.to_dict()["bytes"] < 0.6 * whole
    assert 1e-5 < done.error < 2e-2  # it is not float32


@pytest.mark.parametrize("size", [(33, 45), pytest.param(None, marks=pytest.mark.wide)], ids=str)
def test_compiled(size, tiny_model, tmp_path):
    """By AOTInductor. What torch.export reads is another file with the same suffix."""
    from torch._inductor import aoti_load_package, cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler: {error}")
    path = tmp_path / "a.pt2"
    done = stdc_fast.export(tiny_model, path, size=size, batch=None if size is None else 1, compiled=True)
    last = done.rows[-1]
    assert (last.batch, last.height, last.width) == ((2, 97, 131) if size is None else (1, *size))
    assert done.error < 1e-5 and done.settings.compiled and os.listdir(tmp_path) == [path.name]
    package = aoti_load_package(str(path))
    said = json.loads(package.get_metadata()["metadata.json"])
    assert said["classes"] == list(tiny_model.classes.names)
    with pytest.raises(RuntimeError), quiet():
        torch.export.load(path)


def test_no_compiler(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "none"),))
    with pytest.raises(UserError, match=r"a\.pt2: not written, as torch .*: .*ompiler") as caught:
        stdc_fast.export(tiny_model, tmp_path / "a.pt2", size=(64, 96), compiled=True)
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_plans(tiny_model, tmp_path):
    done = stdc_fast.export(tiny_model, tmp_path / "a.plan")
    assert (tmp_path / "a.plan").read_bytes().startswith(b"stdc-plan 2\n")
    if reason := _native.why_not():
        assert done.unchecked == reason and done.rows == ()
        pytest.skip(reason)
    assert done.agreement > 0.9999 and len(done.rows) == 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors(dtype, tiny_model, tmp_path):
    path = tmp_path / "a.safetensors"
    done = stdc_fast.export(tiny_model, path, dtype=dtype)
    assert done.error == 0 if dtype == "float32" else 0 < done.error < 2e-2
    again = stdc_fast.load(path, device="cpu")
    assert again.classes == tiny_model.classes and again.input_size == tiny_model.input_size


@pytest.mark.parametrize(
    "options",
    [
        {"align_corners": False, "mean": (0.5, 0.4, 0.3), "classifier_bias": True, "fusion_bias": True},
        {"module": "add", "conv_last": True},
        {"count_include_pad": False, "training_heads": True},
    ],
    ids=str,
)
def test_other_networks(options, tmp_path):
    """What a plan of such a network is optimised to has no fused kernels, but a graph."""
    torch.manual_seed(3)
    network = STDCSeg("stdc2" if "module" in options else "stdc1", 5, **options).eval()
    classes = stdc_fast.ClassSet.from_names(tuple("abcde"))
    model = stdc_fast.Segmenter(network.requires_grad_(False), classes, backend="eager")
    pytest.importorskip("onnxruntime")
    assert stdc_fast.export(model, tmp_path / "a.onnx").error < 1e-5
    assert stdc_fast.export(model, tmp_path / "b.onnx", size=(97, 131), input="nchw").error < 1e-5


def test_the_form_without_nearest_is_exact_in_float64():
    """Of even maps: 2x2 convolutions of the small map, shuffled and cropped."""
    weight, bias = torch.randn(5, 3, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    double = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    want = torch.nn.functional.conv2d(double, weight, bias, padding=1)
    small, wide = graph.shuffled(weight, bias)
    got = torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(x, small, wide, padding=1), 2)
    assert torch.allclose(got[:, :, 1:-1, 1:-1], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [None, (64, 96), (97, 131)], ids=str)
def test_no_graph_has_nearest(size, source):
    pytest.importorskip("onnx")
    model = writers.onnx_model(source, Settings(size=size))
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    modes = [a.s for node in resizes for a in node.attribute if a.name == "mode"]
    assert modes == [b"linear"]  # of the logits
    kernels = [list(a.ints) for n in model.graph.node for a in n.attribute if a.name == "kernel_shape"]
    # Maps of a free size are doubled by a shuffle of copies, so that their 3x3 stay.
    assert kernels.count([2, 2]) == (0 if size is None else 2)


def test_the_dynamic_output_follows_the_input(source, tmp_path):
    """torch's exporter made a constant size of int(size * 0.5), and reported success."""
    runtime = pytest.importorskip("onnxruntime")
    writers.write_onnx(source, Settings(batch=None, input="nhwc", output="labels"), tmp_path / "a.onnx")
    session = runtime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    for shape in ((1, 40, 56), (2, 71, 33)):
        (labels,) = session.run(None, {"image": np.zeros((*shape, 3), np.uint8)})
        assert labels.shape == shape and labels.dtype == np.uint8


def test_onnx_says_what_it_is(source, tmp_path):
    onnx = pytest.importorskip("onnx")
    writers.write_onnx(source, Settings(size=(64, 96), input="nchw", output="labels"), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["classes"]) == list(source.classes.names)
    assert json.loads(said["palette"])[0] == list(source.classes.palette[0])
    assert (
        json.loads(said["mean"]) == list(source.network.mean) and said["stdc_fast"] == stdc_fast.__version__
    )
    assert said["input"] == "raw frames, uint8 RGB [N, 3, H, W]" and json.loads(said["short_side"]) == 64
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["labels"]
    assert model.opset_import[0].version == 18


def test_the_example_of_the_document(tiny_model, photo, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    text = (ROOT / "docs/export.md").read_text().split("ONNX Runtime, raw frames to labels:")[1]
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    save(photo(), tmp_path / "street.png")
    os.rename("street.png", "street.jpg")  # told apart by content
    how = {"size": (512, 1024), "input": "nhwc", "output": "labels"}
    stdc_fast.export(tiny_model, "s1.onnx", check=False, **how)
    exec(compile(code, "docs/export.md", "exec"), {})
    shown = ast.literal_eval(capsys.readouterr().out)
    assert list(shown) == list(tiny_model.classes.names) and sum(shown.values()) == 512 * 1024


# A file that computes something else.


def spoiled(monkeypatch, spoil):
    def write(source, settings, path):
        network = spoil(source.network)
        writers.write_safetensors(dataclasses.replace(source, network=network), settings, path)

    monkeypatch.setitem(writers.WRITERS, "safetensors", write)


def other_eps(network):
    """What careless conversion does."""
    state = checkpoints.inference_state(network)
    copied = STDCSeg(network.variant, network.num_classes)
    copied.load_state_dict(state, strict=False)
    with torch.no_grad():
        copied.conv_out.conv_out.weight[0] *= 1.05
    return copied.eval()


def test_a_wrong_file_is_not_left(monkeypatch, tiny_model, tmp_path):
    spoiled(monkeypatch, other_eps)
    path, report = tmp_path / "a.safetensors", tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(UserError, match=r"a\.safetensors: not written, .* logits differ by .* allows 1e-03"):
        stdc_fast.export(tiny_model, path, report=report)
    assert path.read_text() == "before" and os.listdir(tmp_path) == [path.name]
    done = stdc_fast.export(tiny_model, path, check=False)
    assert done.unchecked == "not asked for" and done.rows == () and done.error is None


def test_norms_of_other_parts_may_have_another_eps(tiny_model, tmp_path):
    """As mmsegmentation has them: a file can say so."""
    model = copy.deepcopy(tiny_model)
    for name, m in model.network.named_modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eps = 1e-3 if name.startswith("cp.backbone.") else 1e-5
    for name in ("a.safetensors", "a.onnx"):
        assert stdc_fast.export(model, tmp_path / name).error < 1e-5


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda n: setattr(n, "ffm", torch.nn.Identity()),
            "ffm is not what its weights would be loaded into",
        ),
        (
            lambda n: torch.nn.utils.parametrizations.weight_norm(n.conv_out.conv_out),
            "conv_out.conv_out is not",
        ),
        (
            lambda n: setattr(n.ffm.convblk.conv, "padding_mode", "reflect"),
            "ffm.convblk.conv is not what its",
        ),
        (lambda n: setattr(n.cp.arm16, "forward", lambda x: x), "cp.arm16 has a forward in the place of its"),
    ],
    ids=["submodule", "parametrization", "setting", "method"],
)
@pytest.mark.parametrize("name", ["a.onnx", "a.safetensors", "a.plan"])
def test_a_network_that_was_changed_is_no_file_of_it(name, spoil, said, tiny_model, tmp_path):
    """Also where nothing would notice, without a check."""
    model = copy.deepcopy(tiny_model)
    spoil(model.network)
    for check in (True, False):
        with pytest.raises(UserError, match=f"^{said}"):
            stdc_fast.export(model, tmp_path / name, check=check)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "around",
    [torch.autocast("cpu", torch.bfloat16), torch.device("meta")],
    ids=["autocast", "default device"],
)
@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", "a.plan"])
def test_what_the_caller_computes_in_is_no_part_of_a_file(name, around, tiny_model, tmp_path):
    size = {} if name == "a.plan" else {"size": (64, 96)}
    with around:
        done = stdc_fast.export(tiny_model, tmp_path / name, **size)
        dtype = (torch.ones(1, 1, device="cpu") @ torch.ones(1, 1, device="cpu")).dtype
    assert done.agreement == 1 and (done.error or 0) < 1e-5
    assert dtype == (torch.float32 if isinstance(around, torch.device) else torch.bfloat16)


def test_the_size_of_files_behind_a_link(tiny_model, tmp_path):
    there(FORMATS["openvino"])
    os.symlink(tmp_path / "there.xml", tmp_path / "a.xml")
    done = stdc_fast.export(tiny_model, tmp_path / "a.xml", size=(32, 64))
    sizes = [(tmp_path / name).stat().st_size for name in ("there.xml", "there.bin")]
    assert done.to_dict()["bytes"] == sum(sizes)


def test_hooks_are_no_part_of_a_file(tiny_model, tmp_path, caplog):
    model = copy.deepcopy(tiny_model)
    model.network.ffm.register_forward_hook(lambda *_: None)
    stdc_fast.export(model, tmp_path / "a.safetensors", check=False)
    assert caplog.messages == ["ffm has a forward hook, which is not in the file"]


def test_files_of_a_loaded_model_say_what_its_own_says(embedded, tmp_path, caplog):
    """Its terms above all; but no accuracy that other weights had."""
    model = stdc_fast.load(embedded)
    stdc_fast.export(model, tmp_path / "a.safetensors")
    stdc_fast.export(embedded, tmp_path / "b.safetensors")
    found, expected = (
        checkpoints.read(tmp_path / name).metadata for name in ("a.safetensors", "b.safetensors")
    )
    assert found == expected and {"terms", "source", "miou", "miou_split"} <= found.keys()
    with torch.no_grad():
        model.network.conv_out.conv_out.weight.mul_(2)
    stdc_fast.export(model, tmp_path / "a.safetensors")
    found = checkpoints.read(tmp_path / "a.safetensors").metadata
    assert found["terms"] == expected["terms"] and not {"miou", "miou_split"} & found.keys()
    assert found["source"].startswith("changed after loading") and "were changed after loading" in caplog.text
    assert "of other weights, and are left out" in caplog.messages[-1]  # its ranges for int8


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    network = STDCSeg("stdc1", 300).eval()
    model = stdc_fast.Segmenter(network, stdc_fast.ClassSet.from_names([f"class {i}" for i in range(300)]))
    with pytest.raises(UserError) as caught:
        stdc_fast.export(model, tmp_path / "a.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'}: has 300 classes")
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="300 classes: labels are bytes, so at most 256"):
        model.predict(np.zeros((32, 32, 3), np.uint8), size="native")


def test_the_command_line_fails_loudly(run_cli, monkeypatch, tiny_weights, tmp_path):
    path = tmp_path / "a.safetensors"
    done = run_cli("export", tiny_weights, "--out", path, "--report", tmp_path / "a.json")
    assert done.code == 0 and "97x131, batch 1: logits differ by 0.0e+00" in done.out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["rows"][0]["agreement"] == 1 and found["bytes"] == path.stat().st_size
    path.unlink()
    spoiled(monkeypatch, other_eps)
    done = run_cli("export", tiny_weights, "--out", path)
    assert done.code == 2 and len(done.messages) == 1 and not path.exists()
    done = run_cli("export", tiny_weights, "--out", path, "--no-check", "--json")
    assert done.code == 0 and path.exists() and json.loads(done.out)["unchecked"] == "not asked for"
    done = run_cli("export", tiny_weights, "--out", path, "--no-check")
    assert f"{path}: unchecked: not asked for" in done.err


def test_what_is_compared():
    want = torch.zeros(1, 3, 2, 2)
    want[:, 1] = 4
    limit = parity.Limit(1e-2, "")
    near = want.clone()
    near[0, 0, 0, 0] = 0.02
    row = parity.compare(near.numpy(), want, limit, (1, 16, 16))
    assert (row.error, row.agreement, row.unexplained) == (pytest.approx(0.005), 1, 0)
    labels = np.ones((1, 2, 2), np.uint8)
    labels[0, 1, 1] = 2
    row = parity.compare(labels, want, limit, (1, 16, 16))
    assert (row.error, row.agreement, row.unexplained) == (None, 0.75, 1)
    close = want.clone()
    close[0, 2, 1, 1] = 3.95
    assert parity.compare(labels, close, limit, (1, 16, 16)).unexplained == 0  # a near tie
    near[0, 2, 0, 0] = float("nan")  # which argmax would show as a class
    with pytest.raises(ValueError, match="not finite"):
        parity.compare(near.numpy(), want, limit, (1, 16, 16))
    with pytest.raises(ValueError, match=r"gives logits \[1, 3, 2, 1\] instead of"):
        parity.compare(near[..., :1].numpy(), want, limit, (1, 16, 16))
    with pytest.raises(ValueError, match=r"gives labels \[1, 2, 1\] instead of"):
        parity.compare(labels[..., :1], want, limit, (1, 16, 16))


def test_float16_that_overflows_is_refused(tiny_weights, tmp_path):
    """Runtimes that compute in float32 would hide it."""
    model = stdc_fast.load(tiny_weights, device="cpu", dtype="float32")
    with torch.no_grad():
        model.network.cp.backbone.features[0].bn.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"float16 would overflow: .* export float32"):
        stdc_fast.export(model, tmp_path / "a.safetensors", dtype="float16")


# Models under torch's own exporters.


@pytest.fixture(scope="module")
def low(tiny_weights):
    return stdc_fast.load(tiny_weights, device="cpu", dtype="bfloat16")


@pytest.mark.parametrize("dynamo", [True, False])
def test_torch_onnx_export_of_a_model_in_bfloat16(dynamo, low, source, tmp_path):
    """It was in bfloat16 as "auto" chose for this machine, which ONNX Runtime refuses."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = normalise(parity.probe(1, 64, 96)).contiguous()
    path = tmp_path / "a.onnx"
    with torch.no_grad(), quiet():
        torch.onnx.export(low, (x,), str(path), dynamo=dynamo, input_names=["image"], verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": x.numpy()})
    with torch.no_grad():
        want = source.network(x)
    assert np.abs(got - want.numpy()).max() < 1e-4 * want.abs().max()


def test_the_module_is_what_the_reference_is(source):
    x = normalise(parity.probe(1, 97, 131)).contiguous()
    for settings in (Settings(), Settings(size=(97, 131)), Settings(output="logits8")):
        module = GraphModule(graph.plan_of(source.network, settings), settings)
        with torch.no_grad():
            want = source.network.logits8(x)
            want = want if settings.output == "logits8" else upsample(want, (97, 131))
            assert torch.allclose(module(x), want, atol=1e-4)
