"""One picture's way through the service, within its limits; the HTTP around it is in ``app``."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.pipeline import default_workers
from stdc_fast.segmentation import Segmentation
from stdc_fast.segmenter import Segmenter
from stdc_fast.serve import bodies, outputs
from stdc_fast.serve.bodies import Refusal
from stdc_fast.serve.labeller import Labeller
from stdc_fast.serve.metrics import STAGES, Metrics
from stdc_fast.serve.settings import Settings
from stdc_fast.version import __version__

R = TypeVar("R")
_log = logging.getLogger(__name__)

#: Labelled before the first client's picture: weights are packed then, and the pace is known.
PHOTO = Path(images.__file__).parent / "assets" / "street.jpg"


@dataclasses.dataclass
class Answer:
    """Of one picture: the body, what was taken for granted, and seconds by stage."""

    body: bytes
    remarks: list[str]
    seconds: dict[str, float]


class Service:
    """Holds the model and counts who is where. Its methods are called in one event loop.

    ``arriving`` bodies are being read, ``held`` pictures are between their last byte and the end of their
    answer. Each is bounded by ``settings.queue``. Of those that are held, no more are decoded than the
    network and the pool need to be busy.
    """

    def __init__(self, model: Segmenter | Callable[[], Segmenter], settings: Settings):
        self.settings = settings
        self.segmenter: Segmenter | None = None
        self.failure: BaseException | None = None
        self.draining = False
        self.arriving = self.held = self._reading = 0
        self.metrics = Metrics(lambda: len(self._labeller or ()), lambda: self.held)
        self._model = model
        self._labeller: Labeller | None = None
        self._loader: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._room: asyncio.Semaphore | None = None

    # Its life.

    def start(self) -> None:
        """Load the model in a thread, unless that has begun."""
        if self._loader is None:
            self._loader = threading.Thread(target=self._load, name="stdc_fast loader", daemon=True)
            self._loader.start()

    def _load(self) -> None:
        try:
            segmenter = self._model if isinstance(self._model, Segmenter) else self._model()
            labeller = Labeller(segmenter, self.settings, self._coming, self._labelled)
            self._labeller = labeller  # for close(), if it does not get to the end of this
            photo = images.read_image(PHOTO)
            for _ in range(2):  # the first one packs the weights
                labeller.submit(photo).result()
                labeller.pace, pace = None, labeller.pace
            labeller.pace = pace
            workers = self.settings.workers or default_workers()
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="stdc_fast pictures")
            self._room = asyncio.Semaphore(2 * (labeller.most + workers))
            about = {"model": segmenter.name, "backend": segmenter.backend, "dtype": segmenter.precision.name}
            self.metrics.info.info({**about, "version": __version__})
            self.segmenter = segmenter
        except BaseException as error:
            if not isinstance(error, UserError):
                _log.exception("the model could not be loaded")
            self.failure = error

    def close(self) -> None:
        """End the threads."""
        self.draining = True
        if self._loader is not None:
            self._loader.join()
        if self._labeller is not None:
            self._labeller.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether it labels, or will."""
        return self.failure is None and (self.segmenter is None or self._labeller.alive)

    def why_not_ready(self) -> str | None:
        """Why no picture is taken now, in one line; None if one is."""
        if self.draining:
            return "shutting down"
        if self.failure is not None:
            return (
                str(self.failure).split("\n")[0]
                if isinstance(self.failure, UserError)
                else "the model could not be loaded"
            )
        if self.segmenter is None:
            return "the model is being loaded"
        return None if self._labeller.alive else "the thread that labels has ended; start the service again"

    async def drained(self) -> None:
        """Take no more pictures, and wait until those that were accepted are answered, or for the grace."""
        self.draining = True
        until = time.monotonic() + self.settings.grace
        while self.held and time.monotonic() < until:
            await asyncio.sleep(0.02)

    # One picture.

    def check_open(self) -> Segmenter:
        """Refusal with 503 unless pictures are taken."""
        if (reason := self.why_not_ready()) is not None:
            raise Refusal(
                503, reason, {"Retry-After": "1", **({"Connection": "close"} if self.draining else {})}
            )
        return self.segmenter

    def check_room(self, count: int) -> None:
        """Refusal with 429 where so many are too many."""
        if count >= self.settings.queue:
            raise Refusal(
                429, f"{count} pictures are being worked on, the limit here; try again later",
                {"Retry-After": str(self.retry_after())},
            )  # fmt: skip

    def retry_after(self) -> int:
        """Whole seconds, at least 1, in which those that are here are labelled, by the pace of late."""
        pace = self._labeller.pace if self._labeller is not None else None
        return max(1, math.ceil((pace or 0) * (self.held + self.arriving)))

    async def receive(self, request: Request) -> tuple[bytes, str, float]:
        """A picture's bytes, its name, and the seconds that its body took."""
        self.start()
        self.check_open()
        form = bodies.check_head(request, self.settings)
        self.check_room(max(self.held, self.arriving))
        began = time.perf_counter()
        with self._counted("arriving"):
            content, name = await bodies.read(request, self.settings, form)
        self.check_open()
        self.check_room(self.held)
        return content, name, time.perf_counter() - began

    async def answer(
        self, request: Request, content: bytes, name: str, wanted: outputs.Wanted, received: float
    ) -> Answer:
        """Decode, label and encode one picture, unless its client leaves or its time is up.

        The caller counts it as held, until the answer is sent.
        """
        work = asyncio.ensure_future(self._work(content, name, wanted, received))
        gone = asyncio.ensure_future(request.receive())  # after the body there is only the end
        try:
            both = {work, gone}
            await asyncio.wait(both, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise ClientDisconnect
            raise Refusal(
                503, f"{name}: not answered within {self.settings.timeout:g} seconds; try again later",
                {"Retry-After": str(self.retry_after())},
            )  # fmt: skip
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _work(self, content: bytes, name: str, wanted: outputs.Wanted, received: float) -> Answer:
        accepted, settings, segmenter = time.perf_counter(), self.settings, self.segmenter
        async with self._room:
            try:
                with self._counted("_reading"):
                    (image, remarks), began, read = await self._in_pool(
                        bodies.decode, content, name, settings
                    )
            finally:
                self._labeller.wake()
            del content
            try:
                target = segmenter.input_size.resolve(*image.shape[:2], settings.scale, settings.size)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            decoded = time.perf_counter()
            found = await asyncio.wrap_future(self._labeller.submit(image))
            result = Segmentation(found.labels, image, segmenter.classes, name, found.seconds, target)
            body, _, write = await self._in_pool(outputs.render, result, wanted, remarks, segmenter.name)
        waited = (began - accepted) + (found.began - decoded)
        seconds = dict(zip(STAGES, (received, read, waited, found.seconds, write), strict=True))
        for stage, took in seconds.items():
            self.metrics.seconds.labels(stage).observe(took)
        return Answer(body, remarks, seconds)

    async def _in_pool(self, work: Callable[..., R], *arguments: object) -> tuple[R, float, float]:
        """(result, when it began, seconds) of work in a thread of the pool."""

        def timed() -> tuple[R, float, float]:
            began = time.perf_counter()
            result = work(*arguments)
            return result, began, time.perf_counter() - began

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)

    @contextlib.contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        setattr(self, name, getattr(self, name) + 1)
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) - 1)

    def _coming(self) -> int:
        return self.arriving + self._reading

    def _labelled(self, pictures: int, seconds: float) -> None:
        if self.segmenter is not None:  # not those that warm up
            self.metrics.batches.observe(pictures)
