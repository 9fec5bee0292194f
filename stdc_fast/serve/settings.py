"""Limits and batches of a service, and what an answer may hold."""

from __future__ import annotations

import dataclasses

from stdc_fast import images
from stdc_fast.errors import UserError
from stdc_fast.input_size import check_request


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a service treats its clients.

    Attributes:
        scale, size: at which size the network sees pictures, as for :meth:`stdc_fast.Segmenter.predict`.
        max_batch: pictures of one size that are labelled at once; None for 8 on a GPU and 1 on a CPU, where
            a batch takes as long as its pictures one after the other.
        max_wait: seconds that the first picture of a batch waits for others that are being read.
        queue: pictures that are accepted at once, from their last byte to the end of their answer. As many
            more may be on their way in.
        workers: threads that decode and encode; None for one a processor, at most 8.
        max_bytes: of a request's body.
        max_pixels: of a picture.
        read_timeout: seconds in which a body has to arrive, and in which an answer has to be taken.
        timeout: seconds from a picture's last byte to its answer.
        grace: seconds after SIGTERM in which accepted pictures are finished.
    """

    scale: float | None = None
    size: str | tuple[int, int] | None = None
    max_batch: int | None = None
    max_wait: float = 0.0
    queue: int = 32
    workers: int | None = None
    max_bytes: int = 32 << 20
    max_pixels: int = 32_000_000
    read_timeout: float = 20.0
    timeout: float = 60.0
    grace: float = 30.0

    def __post_init__(self) -> None:
        check_request(self.scale, self.size)
        for name, most in (("max_batch", 256), ("queue", 65_536), ("workers", 256), ("max_bytes", 512 << 20)):
            value = getattr(self, name)
            if value is None and name in ("max_batch", "workers"):
                continue
            if type(value) is not int or not 1 <= value <= most:
                raise UserError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if type(self.max_pixels) is not int or not 1 <= self.max_pixels <= images.MAX_PIXELS:
            raise UserError(
                f"max_pixels must be a whole number from 1 to {images.MAX_PIXELS}, not {self.max_pixels!r}"
            )
        for name, least, most in (
            ("max_wait", 0.0, 10.0), ("read_timeout", 0.01, 3600.0), ("timeout", 0.01, 3600.0),
            ("grace", 0.0, 3600.0),
        ):  # fmt: skip
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and least <= value <= most):
                raise UserError(f"{name} must be {least:g} to {most:g} seconds, not {value!r}")

    def batch_on(self, device: str) -> int:
        """:attr:`max_batch` on a kind of device, "cpu" or "cuda"."""
        return self.max_batch or (1 if device == "cpu" else 8)
