"""The processes of one training run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from stdc_fast import backends


@dataclasses.dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def processes(device: str) -> Iterator[Process]:
    """Join the group that torchrun started, if any: gloo on CPU, NCCL on GPUs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = backends.resolve_device(device)
    if world == 1:
        yield Process(0, 1, place)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if place.type == "cuda":
        place = backends.resolve_device(f"cuda:{local}")
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    log, level = logging.getLogger("stdc_fast"), logging.getLogger("stdc_fast").level
    if rank > 0:
        log.setLevel(logging.ERROR)  # All see the same data; one says what is to be said of it.
    try:
        yield Process(rank, world, place)
    finally:
        log.setLevel(level)
        dist.destroy_process_group()
