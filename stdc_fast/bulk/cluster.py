"""A job on many machines by Ray Data: an actor labels a shard at a time, and Ray alone schedules."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch

from stdc_fast import exchange, zoo
from stdc_fast.bulk.job import Job, about
from stdc_fast.bulk.machine import Summary, run
from stdc_fast.bulk.outputs import OutputError
from stdc_fast.errors import UserError
from stdc_fast.pipeline import until_interrupted

#: Parts that Ray cuts the list of shards into, at most; each is a task.
TASKS = 4096


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where and how actors run.

    Attributes:
        address: of a Ray cluster, "auto" for the one this machine is in, or "local" for this machine.
        actors: their number at most; None takes as many as the cluster has GPUs or CPUs for.
        cpus, gpus: of an actor; a share of a GPU is possible. None takes a GPU where the cluster has some,
            unless the device is "cpu".
    """

    address: str = "local"
    actors: int | None = None
    cpus: int = 2
    gpus: float | None = None

    def __post_init__(self):
        if self.actors is not None and self.actors < 1:
            raise UserError(f"--ray-actors is a number from 1 on, not {self.actors}")
        if self.cpus < 1 or (self.gpus is not None and self.gpus < 0):
            raise UserError(
                f"an actor has CPUs from 1 on and GPUs from 0 on, not {self.cpus} and {self.gpus}"
            )


def package(module: str = "ray") -> ModuleType:
    """Ray, or a module of it; UserError with the remedy where it is not installed."""
    return exchange.package("Ray", module, "ray")


def label(
    model: str,
    loading: Mapping[str, object],
    sources: Sequence[str],
    out: str,
    cluster: Cluster,
    options: Mapping[str, object],
    *,
    retry_failures: bool = False,
    workers: int | None = None,
    batch: int = 1,
    on_begin: Callable[[int, int], object] = lambda frames, done: None,
    on_frames: Callable[[int], object] = lambda frames: None,
    signals: bool = False,
) -> Summary:
    """As :func:`stdc_fast.bulk.label`, by actors of a Ray cluster.

    Args:
        model, loading: name or file of weights, and what else :func:`stdc_fast.load` takes in each actor.
        sources, out: on a file system that all machines have at the same place.
        cluster: where.
        on_begin: called with the frames that are pending and the shards that are done.
        on_frames: called with the number of frames of each shard that is done.
        signals: end at the first Ctrl-C or SIGTERM; shards at hand are then dropped.

    Ray starts actors anew that were lost, also with their machine, and gives their shards to others. A shard
    is recorded by the actor that wrote it, so that one which is done is not done twice. UserError and
    OutputError as there, also for machines whose backend or dtype would give other labels.
    """
    ray, start = package(), time.perf_counter()
    data = package("ray.data")
    with contextlib.ExitStack() as stack:
        # Ray prints there what it starts anew, and a command's output may be JSON.
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not ray.is_initialized():
            try:
                ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, ValueError) as error:
                reason = str(error).split("\n")[0]
                raise UserError(
                    f"--ray {cluster.address}: no cluster answers ({reason}); start it first"
                ) from None
            stack.callback(ray.shutdown)
        gpus, most = _size(cluster, ray.cluster_resources(), str(loading.get("device", "auto")))
        # Asked of where actors run, for this machine may have no GPU.
        asked = ray.remote(num_cpus=cluster.cpus, num_gpus=gpus, max_retries=3)(_about)
        described = ray.get(asked.remote(model, dict(loading)))
        if isinstance(described, str):
            raise UserError(described)
        job = stack.enter_context(Job(out, sources, described, options, retry_failures))
        pending = job.pending()
        on_begin(sum(map(job.listing.length, pending)), len(job.listing.shards) - len(pending))
        summary = Summary()
        if pending:
            interrupted = stack.enter_context(until_interrupted() if signals else contextlib.nullcontext([]))
            actors = min(most, len(pending))
            arguments = model, dict(loading), str(job.out), retry_failures, workers, batch, cluster.cpus
            data.DataContext.get_current().enable_progress_bars = False
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            rows = data.from_items(
                [{"shard": shard} for shard in pending], override_num_blocks=min(len(pending), TASKS)
            ).map_batches(
                # Ray Data starts actors anew, and gives their tasks to them again, without end.
                _Labeller,
                batch_size=1,
                fn_constructor_args=arguments,
                compute=data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
                num_cpus=cluster.cpus,
                num_gpus=gpus,
            ).iter_rows()  # fmt: skip
            for row in rows:
                if row["error"]:
                    raise OutputError(row["error"])
                for name in ("labelled", "failed", "reading", "labelling", "writing"):
                    setattr(summary, name, getattr(summary, name) + row[name])
                on_frames(row["frames"])
                if interrupted:
                    break
            job.refresh()
            if interrupted:
                summary.signal = interrupted[0]
    summary.seconds = time.perf_counter() - start
    return summary


def _size(cluster: Cluster, resources: Mapping[str, float], device: str) -> tuple[float, int]:
    """GPUs of an actor, and actors at most. UserError where the cluster has no room for one."""
    there = resources.get("GPU", 0.0)
    gpus = cluster.gpus if cluster.gpus is not None else float(there >= 1 and device != "cpu")
    room = int(resources.get("CPU", 0) // cluster.cpus)
    if gpus:
        room = min(room, int(there // gpus))
    if not room:
        cpus = resources.get("CPU", 0.0)
        raise UserError(
            f"--ray {cluster.address}: an actor needs {cluster.cpus} CPUs and {gpus:g} GPUs, and the cluster "
            f"has {cpus:g} and {there:g}; ask for fewer by --ray-cpus and --ray-gpus"
        )
    return gpus, min(room, cluster.actors or room)


def _about(model: str, loading: dict) -> dict[str, object] | str:
    """What a machine of the cluster says of the model, or why it can not load it."""
    try:
        return about(zoo.load(model, **loading))
    except UserError as error:
        return str(error)


class _Labeller:
    """An actor: the model, loaded once, and the job."""

    def __init__(self, model, loading, out, retry_failures, workers, batch, cpus):
        torch.set_num_threads(cpus)
        self._how = {"workers": workers, "batch": batch}
        self._failure, self._job, self._model = "", None, None
        try:
            self._job = Job.part(out, retry_failures)
            self._model = zoo.load(model, **loading)
            self._check()
        except UserError as error:  # an actor that can not be made would be made for ever
            self._failure = str(error)

    def _check(self) -> None:
        own = about(self._model)
        for name, value in self._job.model.items():
            if name != "name" and own.get(name) != value:
                import socket

                raise UserError(
                    f"{socket.gethostname()} has a model of {name} {own.get(name)}, the job one of {value}; "
                    "give --backend and --dtype, or use machines of one kind"
                )

    def __call__(self, batch: dict) -> dict:
        rows = [self._label(int(shard)) for shard in batch["shard"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _label(self, shard: int) -> dict[str, object]:
        summary, error, frames = Summary(), self._failure, 0
        if not error:
            frames = self._job.listing.length(shard)
            try:
                if not self._job.done(shard):
                    summary = run(self._job, self._model, [shard], **self._how)
            except UserError as problem:
                error = str(problem)
        found = {
            name: getattr(summary, name) for name in ("labelled", "failed", "reading", "labelling", "writing")
        }
        return {"shard": shard, "frames": frames, "error": error, **found}
