"""What a service counts, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

#: Stages of one picture, in their order: the body, decoding, waiting, the network, encoding.
STAGES = ("receive", "read", "queue", "label", "write")
#: From a thumbnail on a GPU to a photo on a small CPU.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Of one service, so that several live in one process."""

    def __init__(self, queued: Callable[[], int], held: Callable[[], int]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "stdc_fast_requests", "Answers, by path and status; 499 where the client left before.",
            ["path", "status"], registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "stdc_fast_stage_seconds", "Seconds of a picture in each stage.",
            ["stage"], buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batches = Histogram(
            "stdc_fast_batch_pictures", "Pictures that were labelled at once.",
            buckets=_BATCHES, registry=self.registry,
        )  # fmt: skip
        queue = Gauge(
            "stdc_fast_queue_pictures", "Pictures that wait to be labelled.", registry=self.registry
        )
        queue.set_function(queued)
        accepted = Gauge(
            "stdc_fast_accepted_pictures", "Pictures between their last byte and the end of their answer.",
            registry=self.registry,
        )  # fmt: skip
        accepted.set_function(held)
        self.info = Info("stdc_fast_model", "What labels.", registry=self.registry)
        for stage in STAGES:
            self.seconds.labels(stage)  # there from the start, with zeros

    def text(self) -> bytes:
        return generate_latest(self.registry)
