"""Messages of sensor_msgs as frames and back; without ROS: objects with the same fields will do."""

from __future__ import annotations

import array
import threading
import time
from typing import Any

import numpy as np

from stdc_fast import images
from stdc_fast.cli.options import parse_size
from stdc_fast.errors import UserError

#: Channels of an encoding, and which of them are red, green and blue.
COLOURS = {
    "rgb": (3, (0, 1, 2)),
    "bgr": (3, (2, 1, 0)),
    "rgba": (4, (0, 1, 2)),
    "bgra": (4, (2, 1, 0)),
    "mono": (1, None),
}
ENCODINGS = tuple(f"{name}{bits}" for name in COLOURS for bits in (8, 16))


def checked(size: str, alpha: float, encoding: str, compressed: bool) -> tuple[int, int] | str | None:
    """A node's ``size`` as :meth:`stdc_fast.Segmenter.predict` takes it.

    UserError for parameters with which each frame would fail, or that would do nothing.
    """
    network = size if size == "native" else parse_size(size or None, "size")
    if isinstance(network, tuple) and not images.is_possible(*network):
        raise UserError(f"size {size}: {images.LIMITS}; choose another size")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie between 0 and 1, not {alpha}")
    if encoding and compressed:
        raise UserError("encoding is for raw images; leave it out, or compressed")
    if encoding and encoding not in ENCODINGS:
        raise UserError(_why_not(encoding))
    return network


def frame_of(
    message: Any, encoding: str = "", range: tuple[float, float] | None = None, name: str = "image"
) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a sensor_msgs/Image.

    Args:
        message: with height, width, encoding, is_bigendian, step and data.
        encoding: stands in for the message's, where that does not say the order of channels, as "8UC3".
        range: values of black and white in 16 bits, as for :meth:`stdc_fast.Segmenter.predict`.
        name: of the topic in messages.

    Rows may be padded. An alpha channel is left out. UserError for other encodings, such as Bayer mosaics,
    and for data that height, width and step contradict.
    """
    encoding = encoding or message.encoding
    if encoding not in ENCODINGS:
        raise UserError(f"{name}: {_why_not(encoding)}")
    bits = 16 if encoding.endswith("16") else 8
    channels, order = COLOURS[encoding.removesuffix(str(bits))]
    height, width, step = int(message.height), int(message.width), int(message.step)
    row, size = width * channels * bits // 8, len(message.data)
    # The last row may be without its padding.
    if not (height and row and step >= row and step * (height - 1) + row <= size <= step * height):
        raise UserError(
            f"{name}: {size} bytes with step {step} are no {width}x{height} picture in {encoding}, which has "
            f"{row} bytes a row; mend the driver"
        )
    images.check_size(height, width, name)
    kind = np.dtype("u1" if bits == 8 else ">u2" if message.is_bigendian else "<u2")
    given = np.frombuffer(message.data, np.uint8)
    rows = np.lib.stride_tricks.as_strided(given, (height, row), (step, 1), writeable=False)
    pixels = np.ascontiguousarray(rows).view(kind).reshape(height, width, channels)
    pixels = pixels[:, :, 0] if order is None else pixels[:, :, order]
    return images.check_array(np.ascontiguousarray(pixels.astype(kind.newbyteorder("="))), name, range=range)


def frame_of_compressed(
    message: Any, range: tuple[float, float] | None = None, name: str = "image"
) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a sensor_msgs/CompressedImage: JPEG, PNG and others that Pillow decodes.

    UserError for depth, and for data that can not be decoded.
    """
    if "compressedDepth" in message.format:
        raise UserError(f"{name}: {message.format!r} is depth; subscribe to a picture")
    return images.read_image(bytes(message.data), range, name, images.FROM_STRANGERS)


def _why_not(encoding: str) -> str:
    if encoding.startswith("bayer_"):
        return f"{encoding} is a sensor's mosaic; let image_proc's debayer node make rgb8 of it"
    if encoding[:1].isdigit():  # OpenCV's names
        return f"{encoding} does not say what its channels are; set the parameter encoding, as to bgr8"
    return f"the encoding {encoding!r} is not taken; convert it to one of {', '.join(ENCODINGS)}"


def fill(message: Any, picture: np.ndarray, header: Any) -> Any:
    """A sensor_msgs/Image with a picture in it: uint8 ``[H, W]`` is mono8, ``[H, W, 3]`` rgb8."""
    picture = np.ascontiguousarray(picture, np.uint8)
    message.header = header
    message.height, message.width = picture.shape[:2]
    message.encoding = "mono8" if picture.ndim == 2 else "rgb8"
    message.is_bigendian = 0
    message.step = picture.strides[0]
    message.data = array.array("B", picture.tobytes())  # other kinds of data are checked byte by byte
    return message


class Newest:
    """Room for one frame: a newer one takes its place, and ``dropped`` counts those that nobody saw."""

    def __init__(self) -> None:
        self.dropped = 0
        self._item: Any = None
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify_all()

    def take(self, seconds: float) -> Any:
        """The frame, or None if there is none in so many seconds."""
        until = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None, max(0.0, until - time.monotonic()))
            item, self._item = self._item, None
            return item
