"""``stdc-fast label``: very many frames into one folder; a job that goes on where it was stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from stdc_fast.cli.options import (
    Backend,
    Device,
    Dtype,
    Json,
    Memory,
    Model,
    Quiet,
    Range,
    Scale,
    Size,
    note,
    parse_range,
    parse_size,
    remark,
)
from stdc_fast.errors import UserError


def label(
    sources: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="SRC...", help="Pictures, videos, WebDataset tars, Parquet, folders and globs of these."
        ),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Folder for the results.")] = None,
    model: Model = "stdc1_camvid",
    to: Annotated[
        str, typer.Option(help="png (a tree of label PNGs), webdataset (tars) or parquet.")
    ] = "png",
    shard: Annotated[int, typer.Option(min=1, help="Frames of a shard, which is done or not.")] = 1000,
    rle: Annotated[bool, typer.Option("--rle", help="Add COCO's run-length encoded masks.")] = False,
    label_ids: Annotated[
        bool,
        typer.Option("--label-ids", help="Pixels of label PNGs are Cityscapes' labelIds, as 7 for road."),
    ] = False,
    retry_failures: Annotated[
        bool, typer.Option("--retry-failures", help="Label frames anew that failed before.")
    ] = False,
    status: Annotated[
        Optional[Path], typer.Option(metavar="DST", help="Say where the job in this folder stands.")
    ] = None,
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Threads that read, and threads that write.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Frames of one size that go through the network together, for GPUs.")
    ] = 1,
    ray: Annotated[
        Optional[str],
        typer.Option(
            metavar="ADDRESS", help="Label by actors of a Ray cluster; auto, or local for this machine."
        ),
    ] = None,
    ray_actors: Annotated[
        Optional[int], typer.Option(help="Actors at most. Default: as many as there is room for.")
    ] = None,
    ray_cpus: Annotated[Optional[int], typer.Option(help="CPUs of an actor. Default: 2.")] = None,
    ray_gpus: Annotated[
        Optional[float], typer.Option(help="GPUs of an actor. Default: 1 where the cluster has some.")
    ] = None,
    scale: Scale = None,
    size: Size = None,
    range: Range = None,
    matrix: Annotated[
        Optional[str], typer.Option(help="Of videos' colours: bt601, bt709 or bt2020. Default: as they say.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    memory: Memory = "fast",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label all frames of the sources into one folder. The same command goes on where it was stopped.

    Frames that can not be labelled are listed in failures.jsonl, and the exit code is 1. Ctrl-C and SIGTERM
    end it after the frames at hand, with 130 and 143.

    Examples: stdc-fast label photos/ --out labels; stdc-fast label --status labels
    """
    from stdc_fast import bulk
    from stdc_fast.input_size import check_request

    if status is not None:
        if sources or out or retry_failures:
            raise UserError("--status only says where a job stands; leave out all but --json")
        _print_status(bulk.status(status), as_json)
        return
    if ray is None and not (ray_actors is ray_cpus is ray_gpus is None):
        raise UserError("--ray-actors, --ray-cpus and --ray-gpus are about actors of --ray; leave them out")
    if not sources or out is None:
        raise UserError("name the sources and a folder: stdc-fast label SRC... --out DST")
    options = {
        "to": to, "shard": shard, "rle": rle, "label_ids": label_ids, "scale": scale,
        "size": parse_size(size), "range": parse_range(range), "matrix": matrix,
    }  # fmt: skip
    check_request(scale, options["size"])
    loading = {"device": device, "dtype": dtype, "backend": backend, "memory": memory}
    how = {"retry_failures": retry_failures, "workers": workers, "batch": batch, "signals": True}
    with _Bar(quiet) as bar:
        try:
            if ray is None:
                summary = _here(model, loading, sources, out, options, how, bar, quiet)
            else:
                from stdc_fast.bulk import cluster

                where = cluster.Cluster(ray, ray_actors, 2 if ray_cpus is None else ray_cpus, ray_gpus)
                summary = cluster.label(
                    model,
                    loading,
                    sources,
                    out,
                    where,
                    options,
                    on_begin=bar.begin,
                    on_frames=bar.update,
                    **how,
                )
        except bulk.OutputError as error:
            bar.close()
            if not (out / "job.json").exists():  # that could not be written either
                raise
            shards = bulk.status(out)["shards"]
            done = shards.count("done")
            print(f"stdc-fast: {error}; {done} of {len(shards)} shards are done and stay; mend that, and the "
                  "same command goes on", file=sys.stderr)  # fmt: skip
            raise typer.Exit(1 if done else 2) from None
    state = bulk.status(out)
    if as_json:
        print(json.dumps({"run": vars(summary), **state}))
    else:
        print(f"{out}: {summary}")
    _end(state, summary.signal, out)


class _Bar:
    """A progress bar that begins when it is known how much there is to do."""

    def __init__(self, quiet: bool):
        self._quiet, self._bar = quiet, None

    def begin(self, frames: int, done: int) -> None:
        from tqdm import tqdm

        if done:
            note(f"stdc-fast: {done} shards are done already", self._quiet)
        self._bar = tqdm(None, "label", frames, unit="frame", disable=self._quiet or None)

    def update(self, frames: int = 1) -> None:
        self._bar.update(frames)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _here(model, loading, sources, out, options, how, bar, quiet):
    """The job on this machine."""
    import stdc_fast
    from stdc_fast import bulk

    segmenter = stdc_fast.load(model, **loading)
    remark(segmenter.report, quiet)
    remark("listing the frames; those of videos are counted by decoding them", quiet)
    with bulk.Job(out, sources, bulk.about(segmenter), options, how.pop("retry_failures")) as job:
        pending = job.pending()
        bar.begin(sum(map(job.listing.length, pending)), len(job.listing.shards) - len(pending))
        return bulk.run(job, segmenter, pending, on_frame=bar.update, **how)


def _end(state: dict, signal: int | None, out: Path) -> None:
    done, total = state["shards"].count("done"), len(state["shards"])
    if state["failed"]:
        failed = f"{state['failed']} of {state['labelled'] + state['failed']} frames failed"
        print(f"stdc-fast: {failed}; {out / 'failures.jsonl'} says why, --retry-failures tries them again",
              file=sys.stderr)  # fmt: skip
    if signal is not None:
        print(f"stdc-fast: interrupted; {done} of {total} shards are done, and the same command goes on",
              file=sys.stderr)  # fmt: skip
        raise typer.Exit(128 + signal)
    if state["failed"]:
        raise typer.Exit(1 if state["labelled"] else 2)


def _print_status(state: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(state))
        return
    done, total = state["shards"].count("done"), len(state["shards"])
    print(f"{state['source']} by {state['model']} to {state['to']}: {done} of {total} shards done, "
          f"{state['labelled']} of {state['frames']} frames labelled, {state['failed']} failed"
          + (", running" if state["running"] else ""))  # fmt: skip
