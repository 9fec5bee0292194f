"""Scores and labels of one image by a protocol: views and windows, merged in bands of rows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stdc_fast.images import check_array, normalise
from stdc_fast.placement import on_cpu
from stdc_fast.postprocess import Rows, argmax, resized_rows, rows_of
from stdc_fast.protocol import Protocol, View, resize_bytes
from stdc_fast.reduction import reduced
from stdc_fast.reference.networks import upsample

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter

# Scores at the labels' size that are stored at once. A view larger than the image takes more, by its scale.
_BAND_BYTES = 32 << 20


class Scores:
    """What each class scores at each pixel of an image: logits of one view, mean softmax of several.

    Only the logits at 1/8 of each view are kept; rows are computed when asked for.

    Attributes:
        size: (H, W) of the image.
        num_classes: C.
        dtype, device: of the scores.
    """

    def __init__(self, views: list[Rows], size: tuple[int, int], sample: Tensor):
        self._views, self.size = views, size
        self.num_classes, self.dtype, self.device = sample.shape[1], sample.dtype, sample.device

    def rows(self, start: int, stop: int) -> Tensor:
        """Scores ``[1, C, stop - start, W]`` of some rows."""
        if len(self._views) == 1:
            return self._views[0](start, stop)
        total = self._views[0](start, stop).softmax(1)
        for view in self._views[1:]:
            total += view(start, stop).softmax(1)
        return total.div_(len(self._views))

    def labels(self) -> Tensor:
        """Class ids uint8 ``[H, W]``; of a tie the lowest."""
        height, width = self.size
        labels = torch.empty((1, height, width), dtype=torch.uint8, device=self.device)
        step = max(1, _BAND_BYTES // (self.num_classes * width * self.dtype.itemsize))
        for start in range(0, height, step):
            stop = min(start + step, height)
            argmax(self.rows(start, stop), labels[:, start:stop])
        return labels[0]


@on_cpu
@torch.inference_mode()
def scores(model: Segmenter, frame: np.ndarray | Tensor, protocol: Protocol) -> Scores:
    """Scores of an image, RGB uint8 ``[H, W, 3]``, on the model's device.

    Kept are ``C * H * W / 64`` numbers a view, times its scale squared and the overlap of its windows.
    UserError where a view is too small or too large for the network.
    """
    frame = _batch(model, frame)
    size = tuple(frame.shape[1:3])
    views = []
    for view in protocol.views(*size, model.input_size):
        windows = _windows(model, frame, protocol, view)
        seen = _averaged(windows, view, model.network.align_corners)
        views.append(resized_rows(seen, view.size, size, model.network.align_corners))
    return Scores(views, size, windows[0].logits)


@on_cpu
@torch.inference_mode()
def label(model: Segmenter, frame: np.ndarray | Tensor, protocol: Protocol) -> Tensor:
    """Class ids uint8 ``[H, W]`` of an image, RGB uint8 ``[H, W, 3]``, on the model's device.

    One view of the whole image goes through the backend as ``model.label`` does. UserError as for
    :func:`scores`.
    """
    if protocol.several or protocol.window:
        return scores(model, frame, protocol).labels()
    frame = _batch(model, frame)
    size = tuple(frame.shape[1:3])
    (view,) = protocol.views(*size, model.input_size)
    image = resize_bytes(frame, view.size) if protocol.name == "mmseg" else frame
    return model._labels(image, view.size, size)[0][0]


def _batch(model: Segmenter, frame: np.ndarray | Tensor) -> Tensor:
    """One frame uint8 ``[1, H, W, 3]`` on the model's device."""
    if isinstance(frame, np.ndarray):
        frame = torch.from_numpy(np.require(check_array(frame, "image"), requirements=["C", "W"]))
    return frame[None].to(model.device)


class _Window(NamedTuple):
    """A part of an image as it is seen: its first row and column, (H, W), and logits at 1/8 of that."""

    top: int
    left: int
    size: tuple[int, int]
    logits: Tensor


def _windows(model: Segmenter, frame: Tensor, protocol: Protocol, view: View) -> list[_Window]:
    """The windows of a view; the whole of it is one."""
    frame = resize_bytes(frame, view.size) if protocol.name == "mmseg" else reduced(frame, view.size)
    if protocol.window and frame.shape[1:3] != view.size:
        # The published code has no windows; as it resizes the normalised image, they are cut from that.
        network = model.network
        frame = upsample(normalise(frame, model.precision.sums, network.mean, network.std), view.size)
    across = 2 if frame.dtype == torch.uint8 else 3
    frame = frame.flip(across) if view.mirrored else frame
    if not protocol.window:
        return [_Window(0, 0, view.size, model._runs(frame).logits(frame, view.size))]
    found = []
    spans = (_spans(*each) for each in zip(view.size, protocol.window, protocol.stride, strict=True))
    for (top, height), (left, width) in itertools.product(*spans):
        part = frame.narrow(across - 1, top, height).narrow(across, left, width).contiguous()
        logits = model._runs(part).logits(part, (height, width))
        found.append(_Window(top, left, (height, width), logits))
    return found


def _spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """First element and length of each window along an axis; the last one is shifted back into it."""
    window = min(window, length)
    steps = -(-(length - window) // stride)
    return [(min(i * stride, length - window), window) for i in range(steps + 1)]


def _averaged(windows: list[_Window], view: View, align_corners: bool) -> Rows:
    """Rows of a view's logits ``[1, C, h, w]``, not mirrored: the mean of the windows that hold a pixel."""
    resized = [resized_rows(rows_of(w.logits), w.logits.shape[2:], w.size, align_corners) for w in windows]

    def band(start: int, stop: int) -> Tensor:
        if len(windows) == 1:
            return resized[0](start, stop)
        shape = stop - start, view.size[1]
        total = windows[0].logits.new_zeros((1, windows[0].logits.shape[1], *shape))
        count = total.new_zeros(shape)
        for window, rows in zip(windows, resized, strict=True):
            first, last = max(start, window.top), min(stop, window.top + window.size[0])
            if first < last:
                right = window.left + window.size[1]
                place = ..., slice(first - start, last - start), slice(window.left, right)
                total[place] += rows(first - window.top, last - window.top)
                count[place] += 1
        return total.div_(count)

    return (lambda start, stop: band(start, stop).flip(3)) if view.mirrored else band
