"""Model folders for Triton Inference Server: their configuration, and the model as its backend calls it."""

import importlib.util
import io
import json
import os
import sys

import numpy as np
import pytest
import triton_server as pb
from PIL import Image

from stdc_fast.classes import CAMVID
from stdc_fast.errors import UserError
from stdc_fast.exporters.triton import repository


@pytest.fixture
def config_of():
    """Reads config.pbtxt by the message that the server's clients publish; an unknown field is an error."""
    text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf is not installed")
    messages = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2",
        reason="tritonclient is not installed: make test-triton",
    )

    def read(folder):
        return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())

    return read


def tensors(items):
    def kind(one):
        return one.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[one.data_type].name

    return [(one.name, kind(one), list(one.dims)) for one in items]


class Server:
    """A model folder as the Python backend runs it."""

    def __init__(self, folder, **parameters):
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        self.model = made.TritonPythonModel()
        config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
        self.model.initialize(
            {
                "model_config": json.dumps(config), "model_instance_kind": "CPU",
                "model_instance_device_id": "0", "model_repository": str(folder), "model_version": "1",
                "model_name": folder.name,
            }
        )  # fmt: skip

    def ask(self, *requests):
        responses = self.model.execute(list(requests))
        assert len(responses) == len(requests)
        return [
            (one.error().code(), one.error().message())
            if one.has_error()
            else one.output_tensors()[0].as_numpy()
            for one in responses
        ]


def frames(*arrays):
    return pb.InferenceRequest([pb.Tensor("IMAGE", np.stack(arrays))])


def encoded(*arrays):
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        files.append([file.getvalue()])
    return pb.InferenceRequest([pb.Tensor("ENCODED", np.array(files, dtype=np.object_))])


@pytest.fixture(scope="module")
def folder(tiny_weights, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    done = repository(tiny_weights, place / "repository", dtype="float32")
    assert os.listdir(place) == ["repository"]  # nothing is left beside it
    assert done.error == 0 and done.path == place / "repository" / "tiny" / "1" / "model.safetensors"
    return place / "repository" / "tiny"


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb.module())
    return Server(folder, dtype="float32")


def test_the_configuration_of_the_python_backend(folder, config_of):
    config = config_of(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 8)
    assert tensors(config.input) == [("IMAGE", "TYPE_UINT8", [-1, -1, 3]), ("ENCODED", "TYPE_STRING", [1])]
    assert all(one.optional for one in config.input)
    assert tensors(config.output) == [("LABELS", "TYPE_UINT8", [-1, -1])]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert config.parameters["dtype"].string_value == "float32" and "size" not in config.parameters


def test_every_request_gets_its_own_labels(server, model, photo):
    """Of mixed sizes and kinds, in one call of the server, labelled in batches of one size."""
    seen, label = [], server.model._model.label
    server.model._model.label = lambda frames, **how: seen.append(frames.shape[:3]) or label(frames, **how)
    a, b, c, d = photo(64, 96, 1), photo(96, 64, 2), photo(64, 96, 3), photo(64, 96, 4)
    answers = server.ask(frames(a), encoded(b), encoded(c), frames(d, a))
    for answer, arrays in zip(answers, ([a], [b], [c], [d, a]), strict=True):
        assert answer.dtype == np.uint8
        assert np.array_equal(answer, np.stack([model.predict(array).labels for array in arrays]))
    assert seen == [(4, 64, 96), (1, 96, 64)]


def test_bad_requests_do_not_harm_the_others(server, model, photo):
    good = photo()
    answers = server.ask(
        pb.InferenceRequest([pb.Tensor("ENCODED", np.array([[b"no picture"]], dtype=np.object_))]),
        frames(good),
        pb.InferenceRequest([]),
        encoded(photo(64, 64), photo(64, 96)),
        frames(np.zeros((16, 16, 3), np.uint8)),
        pb.InferenceRequest(frames(good).inputs(), cancelled=True),
        pb.InferenceRequest([*frames(good).inputs(), *encoded(good).inputs()]),
    )
    assert np.array_equal(answers.pop(1)[0], model.predict(good).labels)
    invalid, cancelled = pb.TritonError.INVALID_ARG, pb.TritonError.CANCELLED
    assert [code for code, _ in answers] == [invalid, invalid, invalid, invalid, cancelled, invalid]
    for (_, message), words in zip(
        answers,
        ("not an image", "IMAGE or ENCODED", "several sizes", "too small", "cancelled", "not both"),
        strict=True,
    ):
        assert words in message and "\n" not in message


def test_a_server_that_misreads_arrays_is_refused(folder, monkeypatch):
    """As those before 24.11 do with NumPy 2: all values are the first one."""

    class Misread(pb.Tensor):
        def as_numpy(self):
            return np.full_like(self._array, self._array.flat[0])

    broken = pb.module()
    broken.Tensor = Misread
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", broken)
    with pytest.raises(RuntimeError, match="install numpy<2"):
        Server(folder)


def test_the_fault_of_one_of_a_batch(server, model, photo):
    label, bad = server.model._model.label, photo(seed=5)

    def fails(frames, **how):
        if any(np.array_equal(frame, bad) for frame in frames):
            raise RuntimeError("the device is gone")
        return label(frames, **how)

    server.model._model.label = fails
    first, second = server.ask(frames(photo(seed=1)), frames(bad))
    assert np.array_equal(first[0], model.predict(photo(seed=1)).labels)
    assert second == (pb.TritonError.INTERNAL, "RuntimeError: the device is gone")


def test_the_size_that_the_network_sees(tiny_weights, model, photo, tmp_path, monkeypatch, config_of):
    repository(tiny_weights, tmp_path, name="small", dtype="float32", size=(64, 128), max_batch=2)
    config = config_of(tmp_path / "small")
    assert (config.max_batch_size, config.parameters["size"].string_value) == (2, "64x128")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb.module())
    (answer,) = Server(tmp_path / "small", dtype="float32", size="64x128").ask(frames(photo()))
    assert np.array_equal(answer[0], model.predict(photo(), size=(64, 128)).labels)


def test_onnx(model, photo, tmp_path, config_of):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    done = repository(model, tmp_path, kind="triton-onnx")
    config = config_of(tmp_path / "tiny_onnx")
    assert (config.name, config.platform, config.max_batch_size) == ("tiny_onnx", "onnxruntime_onnx", 8)
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    for ours, theirs in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [one.name for one in ours] == [one.name for one in theirs]
        assert len(ours[0].dims) + 1 == len(theirs[0].shape)  # the server adds the batch
    batch = np.stack([photo(seed=1), photo(seed=2)])
    labels = session.run(None, {"image": batch})[0]
    assert (labels == model.label(batch, size="native").numpy()).mean() > 0.999


def test_onnx_of_logits_at_one_size(model, tmp_path, config_of):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    repository(model, tmp_path, kind="triton-onnx", size=(64, 96), output="logits8", input="normalised")
    config = config_of(tmp_path / "tiny_onnx")
    assert tensors(config.input) == [("image", "TYPE_FP32", [3, 64, 96])]
    assert tensors(config.output) == [("logits", "TYPE_FP32", [len(CAMVID), 8, 12])]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"kind": "tensorrt"}, "kind must be"),
        ({"max_batch": 0}, "max_batch must be"),
        ({"dtype": "float12"}, "dtype must be auto or"),
        ({"output": "labels"}, "output is for kind triton-onnx"),
        ({"name": "a/b"}, "choose another"),
        ({"size": "large"}, "size must be"),
    ],
)
def test_what_is_refused(tiny_weights, tmp_path, how, words):
    with pytest.raises(UserError, match=words):
        repository(tiny_weights, tmp_path, **how)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_there_stays(tiny_weights, folder):
    before = sorted(os.listdir(folder.parent))
    with pytest.raises(UserError, match="is there already"):
        repository(tiny_weights, folder.parent)
    assert sorted(os.listdir(folder.parent)) == before


def test_by_the_command(tiny_weights, tmp_path, run_cli, model):
    done = run_cli(
        "export", tiny_weights, "--format", "triton", "--out", tmp_path / "r", "--batch", 4, "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["path"] == str(tmp_path / "r" / "tiny" / "1" / "model.safetensors")
    assert "max_batch_size: 4" in (tmp_path / "r" / "tiny" / "config.pbtxt").read_text()
    for arguments, words in (
        ((), "give --out REPOSITORY"),
        (("--out", "r", "--batch", "any"), "number of images"),
    ):
        done = run_cli("export", tiny_weights, "--format", "triton", *arguments)
        assert done.code == 2 and words in done.err
