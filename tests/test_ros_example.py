"""examples/ros2 without ROS: messages as plain objects with the fields that sensor_msgs has."""

import array
import functools
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from types import SimpleNamespace

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from stdc_fast.errors import UserError

_SPEC = importlib.util.spec_from_file_location("conversions", ROOT / "examples/ros2/conversions.py")
conversions = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(conversions)


def message(pixels, encoding, padding=0, big=False, cut=0, **changes):
    """A sensor_msgs/Image as a driver makes it: rows with so many bytes after each."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big else "<u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    data = rows.tobytes()[: rows.size - cut]
    fields = {
        "height": pixels.shape[0], "width": pixels.shape[1], "encoding": encoding,
        "is_bigendian": int(big), "step": rows.shape[1], "data": memoryview(data), "header": "a stamp",
    }  # fmt: skip
    return SimpleNamespace(**fields | changes)


#: Channels of RGBA in the order of each encoding.
ORDERS = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2, 3], "bgra": [2, 1, 0, 3]}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("padding", [0, 3])
def test_colours(photo, name, padding):
    rgb = photo(40, 50)
    rgba = np.dstack([rgb, np.full((40, 50), 7, np.uint8)])
    given = message(rgba[:, :, ORDERS[name]], f"{name}8", padding)
    assert np.array_equal(conversions.frame_of(given), rgb)


@pytest.mark.parametrize("big", [False, True])
def test_sixteen_bits_in_either_order_of_bytes(photo, big):
    rgb = photo(40, 50)
    deep = rgb.astype(np.uint16) * 257
    assert np.array_equal(conversions.frame_of(message(deep[:, :, ::-1], "bgr16", 2, big)), rgb)
    grey = conversions.frame_of(message(deep[:, :, 0], "mono16", big=big))
    assert np.array_equal(grey, np.dstack([rgb[:, :, 0]] * 3))
    twelve = message(rgb[:, :, 0].astype(np.uint16) * 16, "mono16", big=big)
    with pytest.raises(UserError, match="range"):
        conversions.frame_of(twelve)
    assert np.array_equal(conversions.frame_of(twelve, range=(0, 4080)), grey)


def test_grey(photo):
    grey = photo(40, 50)[:, :, 1]
    assert np.array_equal(conversions.frame_of(message(grey, "mono8", 14)), np.dstack([grey] * 3))


def test_the_last_row_may_be_without_padding(photo):
    rgb = photo(40, 50)
    assert np.array_equal(conversions.frame_of(message(rgb, "rgb8", 10, cut=10)), rgb)


def test_an_encoding_that_stands_in(photo):
    rgb = photo(40, 50)
    assert np.array_equal(conversions.frame_of(message(rgb[:, :, ::-1], "8UC3"), "bgr8"), rgb)


@pytest.mark.parametrize(
    ("encoding", "changes", "words"),
    [
        ("bayer_rggb8", {}, "debayer"),
        ("8UC3", {}, "set the parameter encoding"),
        ("yuv422_yuy2", {}, "'yuv422_yuy2' is not taken"),
        ("", {}, "'' is not taken"),
        ("rgb8", {"step": 149}, "step 149"),
        ("rgb8", {"step": 0}, "step 0"),
        ("rgb8", {"height": 41}, "no 50x41 picture"),
        ("rgb8", {"height": 39}, "no 50x39 picture"),
        ("rgba8", {}, "200 bytes a row"),
        ("rgb8", {"width": 0}, "no 0x40 picture"),
    ],
)
def test_refused(photo, encoding, changes, words):
    with pytest.raises(UserError, match=words) as told:
        conversions.frame_of(message(photo(40, 50), encoding, **changes), name="/camera")
    assert str(told.value).startswith("/camera: ") and "\n" not in str(told.value)


def test_compressed(photo):
    file = io.BytesIO()
    Image.fromarray(photo(40, 50)).save(file, "PNG")
    given = SimpleNamespace(format="bgr8; png compressed bgr8", data=file.getvalue())
    assert np.array_equal(conversions.frame_of_compressed(given), photo(40, 50))
    for bad, words in ((given.data[:50], "can not be decoded"), (b"", "0 bytes")):
        with pytest.raises(UserError, match=words):
            conversions.frame_of_compressed(SimpleNamespace(format="jpeg", data=bad))
    with pytest.raises(UserError, match="is depth"):
        conversions.frame_of_compressed(SimpleNamespace(format="16UC1; compressedDepth png", data=b"x"))


def test_labels_and_overlays_go_out_as_they_came_in(photo):
    for picture in (photo(40, 50), photo(40, 50)[:, :, 0]):
        sent = conversions.fill(SimpleNamespace(), picture, "a stamp")
        assert (sent.header, sent.encoding) == ("a stamp", "rgb8" if picture.ndim == 3 else "mono8")
        assert np.array_equal(
            conversions.frame_of(sent)[:, :, : 3 if picture.ndim == 3 else 1].squeeze(), picture
        )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("64x", 0.5, "", False), "size must be HEIGHTxWIDTH"),
        (("large", 0.5, "", False), "size must be HEIGHTxWIDTH"),
        (("8x8", 0.5, "", False), "size 8x8: both sides must be at least"),
        (("", 2.0, "", False), "alpha must lie between 0 and 1, not 2.0"),
        (("", float("nan"), "", False), "alpha must lie between 0 and 1"),
        (("", 0.5, "bgr8", True), "encoding is for raw images"),
        (("", 0.5, "yuv422", False), "the encoding 'yuv422' is not taken"),
    ],
)
def test_parameters_that_would_fail_with_each_frame(values, words):
    with pytest.raises(UserError, match=words):
        conversions.checked(*values)


def test_parameters():
    assert conversions.checked("", 0.5, "", True) is None
    assert conversions.checked("native", 0.0, "bgr8", False) == "native"
    assert conversions.checked("512x1024", 1.0, "", False) == (512, 1024)


class Stub:
    """Stands in for a class of rclpy or of its messages: attributes, and methods that do nothing."""

    def __init__(self, *_, **fields):
        vars(self).update(fields)

    def __getattr__(self, name):
        return lambda *_, **__: Stub()


@pytest.fixture
def label_node(monkeypatch):
    """label_node.py with stand-ins for ROS."""
    for name in ("rclpy", "rclpy.executors", "rclpy.node", "rclpy.qos", "rclpy.signals", "sensor_msgs",
                 "sensor_msgs.msg", "std_msgs", "std_msgs.msg"):  # fmt: skip
        module = types.ModuleType(name)
        module.__getattr__ = lambda name: type(name, (Stub,), {"BEST_EFFORT": 0, "TRANSIENT_LOCAL": 0})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "conversions", conversions)
    spec = importlib.util.spec_from_file_location("label_node", ROOT / "examples/ros2/label_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_node_that_labels_no_more_ends(label_node, photo, tiny_weights, monkeypatch):
    given = {"model": str(tiny_weights), "device": "cpu", "dtype": "float32"}
    monkeypatch.setattr(
        label_node.LabelNode,
        "declare_parameter",
        lambda self, name, value: SimpleNamespace(value=given.get(name, value)),
        raising=False,
    )
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ended = threading.Event()
    node = label_node.LabelNode(ended)
    node._model.predict = None  # no UserError
    node._newest.put(message(photo(40, 50), "rgb8"))
    assert ended.wait(30)
    node.close()
    assert node.failed


def test_the_newest_frame_counts():
    newest = conversions.Newest()
    assert newest.take(0) is None
    for i in range(1, 4):
        newest.put(i)
    assert (newest.take(0), newest.dropped, newest.take(0)) == (3, 2, None)
    threading.Timer(0.05, newest.put, [4]).start()
    assert newest.take(30) == 4


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="rclpy is not installed: make test-ros")
def test_in_ros(tiny_weights, model, photo, monkeypatch):
    """The node as a program of its own; this process is the camera, and sees what comes."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_DOMAIN_ID", str(os.getpid() % 100))
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image as Picture
    from std_msgs.msg import String

    command = [sys.executable, "label_node.py", "--ros-args", "-r", "image:=/camera"]
    for parameter in (f"model:={tiny_weights}", "dtype:=float32", "device:=cpu", "alpha:=0.4"):
        command += ["-p", parameter]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    node = subprocess.Popen(
        command, cwd=ROOT / "examples/ros2", env=environment, stderr=subprocess.PIPE, text=True
    )
    rclpy.init()
    try:
        camera, seen = rclpy.create_node("camera"), {}
        sensor = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        kept = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        out = camera.create_publisher(Picture, "/camera", sensor)
        for topic, kind, how in (
            ("labels", Picture, sensor),
            ("overlay", Picture, sensor),
            ("classes", String, kept),
        ):
            keep = functools.partial(seen.__setitem__, topic)
            camera.create_subscription(kind, f"/stdc_fast/{topic}", keep, how)
        sent = Picture(height=40, width=50, encoding="bgr8", step=154)
        sent.data = array.array(
            "B", np.pad(photo(40, 50)[:, :, ::-1].reshape(40, 150), ((0, 0), (0, 4))).tobytes()
        )
        sent.header.frame_id = "front"
        end = time.monotonic() + 90
        while len(seen) < 3:
            assert time.monotonic() < end and node.poll() is None, seen
            out.publish(sent)
            rclpy.spin_once(camera, timeout_sec=0.1)
        node.send_signal(signal.SIGINT)
        _, err = node.communicate(timeout=60)
    finally:
        node.kill()
        rclpy.shutdown()
    want = model.predict(photo(40, 50))
    assert seen["labels"].header.frame_id == "front"
    assert bytes(seen["labels"].data) == want.labels.tobytes()
    assert bytes(seen["overlay"].data) == want.overlay(0.4).tobytes()
    assert [one["name"] for one in json.loads(seen["classes"].data)] == list(want.classes.names)
    assert node.returncode == 0 and "Traceback" not in err, err
