"""A node of ROS 2 that labels a camera: python3 label_node.py --ros-args -r image:=/camera/image_raw"""

import json
import signal
import sys
import threading

import rclpy
from conversions import Newest, checked, fill, frame_of, frame_of_compressed
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

import stdc_fast
from stdc_fast.errors import UserError

#: Of sensor data: what is lost is lost, and only the newest frame counts.
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
#: Who comes later gets the last message, too.
KEPT = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class LabelNode(Node):
    """Labels until ``ended`` is set, and sets it where it ``failed``."""

    def __init__(self, ended: threading.Event) -> None:
        super().__init__("stdc_fast")
        model = self.declare_parameter("model", "stdc1_camvid").value
        device = self.declare_parameter("device", "auto").value
        dtype = self.declare_parameter("dtype", "auto").value
        size = self.declare_parameter("size", "").value  # HEIGHTxWIDTH or native
        self._encoding = self.declare_parameter("encoding", "").value
        self._alpha = self.declare_parameter("alpha", 0.55).value
        compressed = self.declare_parameter("compressed", False).value
        self._read = frame_of_compressed if compressed else self._frame
        self._size = checked(size, self._alpha, self._encoding, compressed)
        self._model = stdc_fast.load(model, device=device, dtype=dtype)
        self._newest, self._ended, self.failed = Newest(), ended, False
        self._labels = self.create_publisher(Image, "~/labels", SENSOR)
        self._overlay = self.create_publisher(Image, "~/overlay", SENSOR)
        self._classes = self.create_publisher(String, "~/classes", KEPT)
        classes = self._model.classes
        named = [{"name": n, "colour": c} for n, c in zip(classes.names, classes.shown, strict=True)]
        self._classes.publish(String(data=json.dumps(named)))
        kind = CompressedImage if compressed else Image
        self.create_subscription(kind, "image", self._newest.put, SENSOR)
        self.get_logger().info(f"{self._model.name}: {self._model.reason}")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _frame(self, message: Image):
        return frame_of(message, self._encoding)

    def _run(self) -> None:
        """Beside the thread that receives. A node that labels no more must not live on."""
        try:
            self._label()
        except BaseException:
            self.failed = True
            raise
        finally:
            self._ended.set()

    def _label(self) -> None:
        """The newest frame, one after the other."""
        while not self._ended.is_set():
            message = self._newest.take(0.2)
            if message is None:
                continue
            try:
                result = self._model.predict(self._read(message), size=self._size)
            except UserError as error:
                self.get_logger().error(str(error), throttle_duration_sec=5.0)
                continue
            self._labels.publish(fill(Image(), result.labels, message.header))
            if self._overlay.get_subscription_count():
                self._overlay.publish(fill(Image(), result.overlay(self._alpha), message.header))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.get_logger().info(f"{self._newest.dropped} frames were replaced by newer ones")


def main() -> None:
    # Its own handlers would end the context while a frame is being labelled.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    ended = threading.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: ended.set())
    try:
        node = LabelNode(ended)
    except UserError as error:
        print(f"label_node: {error}", file=sys.stderr)
        sys.exit(2)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.2)
    node.close()
    node.destroy_node()
    rclpy.shutdown()
    sys.exit(int(node.failed))


if __name__ == "__main__":
    main()
