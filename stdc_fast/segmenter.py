"""The model as users hold it: :class:`Segmenter` labels images, batches, videos and streams of frames."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from stdc_fast import backends, forks, images, video
from stdc_fast.backends.base import Executable
from stdc_fast.classes import ClassSet
from stdc_fast.compiled import CompiledCalls, check_frames
from stdc_fast.errors import BatchError, UserError
from stdc_fast.flight import Ring, in_turn
from stdc_fast.freshness import Watched, traced
from stdc_fast.input_size import InputSize, check_request
from stdc_fast.levels import Levels
from stdc_fast.module_ops import opaque
from stdc_fast.placement import on_cpu
from stdc_fast.plan import Plan, build, optimise
from stdc_fast.postprocess import label_logits
from stdc_fast.precision import Like, Precision, precision_of
from stdc_fast.pretrained import Pretrained
from stdc_fast.published import Published
from stdc_fast.reduction import factors, reduced
from stdc_fast.reference.networks import STDCSeg, check_input, upsample
from stdc_fast.samples import check_normalised, check_range
from stdc_fast.segmentation import Segmentation
from stdc_fast.stream import Stream, open_stream

_log = logging.getLogger(__name__)

#: Kinds of frames that :meth:`Segmenter.label` remembers.
WAYS = 64


@dataclasses.dataclass(frozen=True)
class _Way:
    """How frames of one shape were labelled: what ran them, at which size the network saw them, and why so.

    Packed weights that are not needed any more are not kept by it.
    """

    runs: weakref.ref[Executable]
    state: weakref.ref
    seen: tuple[int, int]
    input_size: InputSize
    precision: Precision


class Segmenter(Pretrained, Levels, CompiledCalls):
    """STDC-Seg for inference, as :func:`stdc_fast.load` returns it.

    As a module it maps a normalised float ``[N, 3, H, W]`` to float32 logits ``[N, C, H, W]`` at the same
    size. :meth:`label` and :meth:`predict` take raw RGB and give class ids.

    Attributes:
        network: the reference network; its state-dict keys are the canonical ones.
        classes: names and colours of the classes.
        input_size: what :meth:`label` and :meth:`predict` resize to by default.
        precision: what the network runs in. Its own parameters stay float32 below that, unless they are cast
            (``model.half()``): weights are folded in float64 and rounded once.
        calibration: ranges of the network's maps, which int8 needs, or None.
        name: name of the weights.
        report: what loading mapped and dropped.

    Where a gradient is asked for, in training, and with hooks inside of the network, the reference network
    runs instead of the backend, in the dtype of its parameters.
    """

    def __init__(
        self,
        network: STDCSeg,
        classes: ClassSet,
        input_size: InputSize | None = None,
        backend: str = "auto",
        name: str = "stdc",
        dtype: Like | None = None,
        why_dtype: str = "",
        memory: str = "fast",
    ):
        super().__init__()
        if len(classes) != network.num_classes:
            raise UserError(f"{len(classes)} class names for a network of {network.num_classes} classes")
        if len(classes) == 1:
            said = "%s: has one output, so every pixel is %s; load its state dict with threshold=VALUE"
            _log.warning(said, name, classes.names[0])
        forks.guard()
        self.network = network.to(memory_format=torch.channels_last)
        self.classes = classes
        self.input_size = input_size or InputSize()
        self._asked = backend
        self.name = name
        self.report = ""
        self.eval()
        self.precision = precision_of(dtype or next(network.parameters()).dtype)
        self.why_precision = why_dtype or ("asked for" if dtype else "as its parameters")
        self._watched = Watched(self.network)
        self.memory = memory
        self._decided: tuple[tuple[torch.device, Precision], backends.Decision] | None = None
        self._ways: dict[tuple, _Way] = {}

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def memory(self) -> str:
        """ "fast" or "small", see :func:`stdc_fast.load`; setting it packs the weights anew."""
        return "small" if self._small else "fast"

    @memory.setter
    def memory(self, memory: str) -> None:
        if not isinstance(memory, str) or memory not in ("fast", "small"):
            raise UserError(f'memory must be "fast" or "small", not {memory!r}')
        self._small = memory == "small"
        self.repack()  # both together would be larger than either

    @property
    def decision(self) -> backends.Decision:
        """The backend that runs this network, in this precision on this device, and why.

        UserError where the one that was asked for does not, which may come of a cast or a move.
        """
        decided = self._decided
        if decided is None or decided[0] != (self.device, self.precision):
            return self.decide(environment=False)  # that counts when a model is loaded
        return decided[1]

    def decide(self, environment: bool = True) -> backends.Decision:
        """:attr:`decision`, made now: with ``environment`` by STDC_FAST_BACKEND where none was asked for."""
        key = self.device, self.precision
        chosen = backends.select(self._plan_to_decide(), *reversed(key), self._asked, environment)
        self._decided = key, chosen
        if chosen.asked:
            self._asked = chosen.name
        return chosen

    def _plan_to_decide(self) -> Plan | None:
        """None where there is no plan of the network as it is now, so that it runs as it is."""
        if self._watched.snapshot(self.network) is not None:
            return self.kept_plan()
        try:
            return self.plan()
        except (ValueError, KeyError, AttributeError):  # of submodules that were exchanged
            return None

    def __getstate__(self) -> dict:
        # Another machine, or a later version, decides for itself.
        return {**self.__dict__, "_decided": None, "_ways": {}}

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self.decision.name

    @property
    def reason(self) -> str:
        """Why this backend and this precision, and what it does for speed or memory where it can choose."""
        decision = self.decision
        memory = decision.backend.memory(self._small)
        last = f"; {self.memory}: {memory}" if memory else ""
        last = self._said_of_levels() + last
        return f"{decision.name}: {decision.reason}; {self.precision}: {self.why_precision}{last}"

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def extra_repr(self) -> str:
        try:
            backend = self.backend
        except UserError:
            backend = "none"
        return f"name={self.name}, classes={self.num_classes}, backend={backend}, dtype={self.precision}"

    @on_cpu
    def plan(self, frames: bool = True) -> Plan:
        """The network as the backend gets it, for raw frames or for normalised images."""
        return optimise(build(self.network, frames=frames))

    def repack(self) -> None:
        """Forget packed weights; needed only after writing to ``tensor.data``, which torch does not count."""
        self._watched.clear()

    def kept_plan(self) -> Plan:
        """:meth:`plan` of raw frames, kept until something is packed or the network changes."""
        snapshot = self._watched.snapshot(self.network)
        plan = None if snapshot is None else snapshot.made.get(Plan)
        if plan is None:
            plan = self.plan()
            if snapshot is not None and not snapshot.made:
                snapshot.made[Plan] = plan
        return plan

    def _apply(self, fn, recurse: bool = True):
        # half(), double(), to(dtype) and so on: what gives two dtypes the same one asks for it.
        probes = (torch.empty(0, dtype=d, device=self.device) for d in (torch.float32, torch.float64))
        asked = {fn(probe).dtype for probe in probes}
        cast = precision_of(asked.pop()) if len(asked) == 1 else None  # before anything is changed
        super()._apply(fn, recurse)
        if cast is not None:
            self.precision, self.why_precision = cast, "cast after loading"
        return self

    @on_cpu
    def forward(self, x: Tensor) -> Tensor:
        """Normalised float ``[N, 3, H, W]``, H, W >= 32, to logits ``[N, C, H, W]``.

        Logits are float32, or float64 if the model was loaded so.
        """
        if not isinstance(x, Tensor):
            raise UserError(
                f"expected a normalised float tensor [N, 3, H, W], got {type(x).__name__}; files and "
                "pictures go to predict()"
            )
        if not x.is_floating_point():
            raise UserError(
                f"expected a normalised float tensor [N, 3, H, W], got {x.dtype}; raw frames go to label()"
            )
        check_input(x)
        size = tuple(x.shape[2:])
        logits = self._compiled_logits(x) if torch.compiler.is_compiling() else None
        if logits is None:
            logits = self._runs(x).logits(x, size)
        return upsample(logits, size, self.network.align_corners)

    def _runs(self, image: Tensor) -> Executable | Published:
        """What runs the network on such images: the backend, or the network itself where it must."""
        # Left to a compiler as it is: what the eager backend does by hand, it does itself.
        compiling = torch.compiler.is_compiling()
        if not compiling:
            forks.settle()
        state = None if compiling else self._watched.state(self.network, (image,))
        if state is None:
            return Published(self.network, self.precision)
        frames = image.dtype == torch.uint8
        key = self.precision, frames
        if key not in state.made:
            backend, plan = self.decision.backend, self.compiled_plan(frames)
            state.made[key] = backend.compile(plan, self.precision, self.device, self._small)
            state.made.pop(Plan, None)  # it is as large as the network in float64
        return state.made[key]

    def label(
        self,
        frames: Tensor | np.ndarray,
        *,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
    ) -> Tensor:
        """Raw uint8 RGB frames ``[N, H, W, 3]`` to class ids uint8 ``[N, H, W]``, on the model's device.

        ``scale`` and ``size`` are as for :meth:`predict`, which gives the same labels. On a GPU they may be
        there later, as results of torch's own operations are.
        """
        if torch.compiler.is_compiling():
            return self._compiled_labels(frames, scale, check_request(scale, size))
        if type(frames) is Tensor and self._ways:
            size = check_request(scale, size)
            way = self._ways.get((frames.shape, scale, size))
            if way is not None and (labels := self._again(frames, way)) is not None:
                return labels
        return self._label(frames, scale, size)

    def _again(self, frames: Tensor, way: _Way) -> Tensor | None:
        """Labels of frames like earlier ones; None where something else has changed, or may have."""
        if way.input_size is not self.input_size or way.precision is not self.precision or traced():
            return None
        runs, state = way.runs(), way.state()
        labels = None if runs is None else runs.again(frames, None, way.seen)
        # The GPU is busy meanwhile. Labels by weights that are no longer the network's are given to nobody.
        fresh = labels is not None and state is not None and self._watched.holds(state, self.network)
        return labels if fresh else None

    @on_cpu
    def _label(self, frames: Tensor | np.ndarray, scale: float | None, size: object) -> Tensor:
        if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
            frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
        check_frames(frames)
        height, width = frames.shape[1:3]
        images.check_size(height, width, f"frames {list(frames.shape)}")
        target = self.input_size.resolve(height, width, scale, size)
        forks.settle()
        with torch.inference_mode():
            labels = self._labels(frames, target, (height, width))[0]
        state = self._watched.current
        runs = None if state is None else state.made.get((self.precision, True))
        if runs is not None and runs.repeats and factors((height, width), target) == (1, 1):
            if len(self._ways) >= WAYS:
                self._ways.clear()
            made = weakref.ref(runs), weakref.ref(state)
            key = frames.shape, scale, check_request(scale, size)
            self._ways[key] = _Way(*made, target, self.input_size, self.precision)
        # An ordinary tensor again: it is the caller's, to write to and to train with.
        return labels.clone() if labels.is_inference() else labels

    @opaque
    def predict(
        self,
        source: object,
        *,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
        bgr: bool = False,
        range: tuple[float, float] | None = None,
        confidence: bool = False,
        stream: bool = False,
    ) -> Segmentation | list[Segmentation] | Iterator[Segmentation]:
        """Label images, at their own size.

        Args:
            source: a path, folder, glob or http(s) address; an image file's bytes, or one open for them; a
                PIL image; an array ``[H, W, 3]``, ``[N, H, W, 3]`` (RGB) or ``[H, W]`` (grey); a tensor (see
                :func:`stdc_fast.images.tensor_images`); or a list of these. Or a video file or camera (0), as
                for :meth:`stream`; without ``stream`` all its frames are kept, 4 bytes a pixel with labels.
            scale: the network sees the image times this factor, rounded down.
            size: the network sees exactly (height, width), or "native" for the image's own size. With
                neither, the weights' own default (:attr:`input_size`) holds.
            bgr: arrays have their channels as OpenCV does.
            range: values of black and white in pictures, arrays and tensors, e.g. (0, 1) or (0, 4095). None
                takes those that are certain or likely (:func:`stdc_fast.samples.to_bytes`).
            confidence: also give the probability of each pixel's class.
            stream: return an iterator, so that memory does not grow with the number of images.

        Returns one :class:`Segmentation`, or a list of them (an iterator with ``stream``) for a folder,
        glob, list or batch. EXIF orientation is applied to files and PIL images.

        Raises UserError for one bad image; for several, :class:`BatchError` at the end, when all others
        are done.
        """
        check_request(scale, size)
        range = None if range is None else check_range(range)
        several, source = True, images.opened(source)
        if video.is_video(source):
            if not stream and video.is_camera(source):
                raise UserError(f"camera {source} has no end; use stream=True")
            results = self.stream(source, scale=scale, size=size, range=range, confidence=confidence)
        else:
            items, several = images.iterate(source, bgr, range)
            results = self._stream(images.ahead(source, items, range), scale, size, bgr, range, confidence)
        if stream:
            return results
        if not several:
            return self._item(None, *next(items), bgr, range, scale, size, confidence)()
        done = []
        try:
            done.extend(results)
        except BatchError as error:
            error.results = done
            raise
        except UserError as error:  # of a video, for what is left of it
            raise BatchError(done, [(str(source), str(error))], len(done) + 1) from None
        return done

    @opaque
    def stream(
        self,
        frames: Iterable | str | os.PathLike | int,
        *,
        scale: float | None = None,
        size: str | tuple[int, int] | None = None,
        bgr: bool = False,
        range: tuple[float, float] | None = None,
        confidence: bool = False,
        ahead: int = 2,
        latest: bool | None = None,
    ) -> Stream:
        """Label frames one after the other, while a thread gets the next ones from their source.

        Args:
            frames: any iterable, also without end, of what :func:`stdc_fast.stream.open_frame` takes; or a
                video file or camera, opened at once (see :func:`stdc_fast.video.read`).
            scale, size, bgr, range, confidence: as for :meth:`predict`; videos have no ``range``.
            ahead: number of frames that may wait; memory is bounded by it. On a GPU one more is on its way.
            latest: of the frames that wait keep the newest only, for live sources faster than the network,
                whose frames it drops; None does so for cameras only.

        Returns an iterator over a :class:`Segmentation` for each frame. What the source raises is raised in
        that frame's place, as is UserError, with its number, for a frame that can not be labelled; either
        ends the stream. ``close()``, leaving a ``with`` block and forgetting the iterator close the source.
        """
        check_request(scale, size)
        range = None if range is None else check_range(range)
        ring = self._ring()

        def begin(name, image, time):
            return self._begin(ring, name, lambda: image, scale, size, confidence, time)

        return open_stream(frames, begin, bgr, range, ahead, latest, ring.depth if ring else 1)

    def _ring(self) -> Ring | None:
        """For several frames on a GPU."""
        return Ring(self.device) if self.device.type == "cuda" else None

    def _stream(self, items, scale, size, bgr, range, confidence) -> Iterator[Segmentation]:
        failures, total, ring = [], 0, self._ring()

        def begin(named):
            return self._item(ring, *named, bgr, range, scale, size, confidence)

        for (name, _), result in in_turn(items, begin, ring.depth if ring else 1):
            total += 1
            if isinstance(result, UserError):
                failures.append((name, str(result)))
            else:
                yield result
        if failures:
            raise BatchError([], failures, total)

    def _item(self, ring, name, item, bgr, range, *how) -> Callable[[], Segmentation]:
        opened = functools.partial(images.open_item, item, name, bgr, range)
        return self._begin(ring, name, opened, *how, spent=images.seconds_of(item))

    def _begin(self, ring, name, opened, *how, spent=0.0) -> Callable[[], Segmentation]:
        """What waits for one image's labels, and gives them; with a ring those of frames are on their way."""
        with images.memory_errors(name):
            start = time.perf_counter() - spent
            image = opened()
            read = time.perf_counter() - start
            finish = self._segment(ring, name, image, *how)

        def finished() -> Segmentation:
            with images.memory_errors(name):
                (result,) = finish()
            result.read_seconds = read
            return result

        return finished

    @on_cpu
    @torch.inference_mode()
    def _segment(self, ring, name, image, scale, size, confidence, at=None) -> Callable[[], list]:
        # A Segmentation of an image, or one each of frames [N, H, W, 3].
        forks.settle()
        frame = isinstance(image, np.ndarray)
        given = torch.from_numpy(np.require(image, requirements=["C", "W"])) if frame else image.detach()
        # Which may pack the weights: that is no part of a frame's time. They are where the image is to be.
        runs = self._runs(given if given.device == self.device else given.new_empty(0, device=self.device))
        start = time.perf_counter()
        if not frame:
            height, width = image.shape[1:]
            check_normalised(image, name, self.network.mean, self.network.std)
            x = image[None].to(self.device, self.precision.sums)
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            height, width = image.shape[-3:-1]
            x = given if image.ndim == 4 else given[None]
        target = self._target(name, height, width, scale, size)

        def compute(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return self._labels(x, target, (height, width), confidence, runs)

        shown = image if frame else images.denormalise(image, self.network.mean, self.network.std)
        if ring is not None and frame:
            fetch = ring.start(reduced(x, target), compute)
        else:
            found = [one if one is None else one.cpu().numpy() for one in compute(x)]
            fetch = functools.partial(list, found)

        def finish() -> list[Segmentation]:
            labels, chosen = fetch()
            seconds = (time.perf_counter() - start) / len(labels)
            chosen = [None] * len(labels) if chosen is None else chosen
            each = zip(labels, shown if shown.ndim == 4 else [shown], chosen, strict=True)
            return [Segmentation(a, b, self.classes, name, seconds, target, c, at) for a, b, c in each]

        return finish

    def _target(self, name, height, width, scale, size) -> tuple[int, int]:
        try:
            return self.input_size.resolve(height, width, scale, size)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None

    def _labels(
        self,
        image: Tensor,
        seen: tuple[int, int],
        size: tuple[int, int],
        confidence: bool = False,
        runs: Executable | Published | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Labels, and their confidence if asked for, by the published protocol.

        ``image`` is a frame uint8 ``[N, h, w, 3]`` or normalised ``[N, 3, h, w]``, on any device.
        """
        image = reduced(image, seen).to(self.device)
        runs = runs or self._runs(image)
        if confidence:
            return label_logits(runs.logits(image, seen), seen, size, True, self.network.align_corners)
        return runs.labels(image, size, seen=seen), None
