"""Bulk jobs: very many frames, labelled into one folder, exactly once each, whatever happens in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stdc_fast.bulk.job import Job, about, status
from stdc_fast.bulk.machine import Summary, run
from stdc_fast.bulk.outputs import OutputError

if TYPE_CHECKING:
    from stdc_fast.segmenter import Segmenter

__all__ = ["Job", "OutputError", "Summary", "about", "label", "run", "status"]


def label(
    model: Segmenter,
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    retry_failures: bool = False,
    workers: int | None = None,
    batch: int = 1,
    on_frame: Callable[[], object] = lambda: None,
    **options: object,
) -> Summary:
    """Label all frames of files, folders and globs into a folder, or go on with that.

    Args:
        model: as :func:`stdc_fast.load` returns it.
        sources: pictures, videos, tars in WebDataset's layout, Parquet files, folders and globs of these.
        out: an empty folder, or that of the same job.
        retry_failures: label frames anew that failed before.
        workers: threads that read, and threads that write; None takes one a processor, at most 8.
        batch: frames of one size that go through the network together; more than 1 is for GPUs.
        on_frame: called after each frame.
        options: ``to`` ("png", "webdataset" or "parquet"), ``shard`` (frames of one), ``rle``, ``label_ids``,
            and ``scale``, ``size``, ``range`` and ``matrix`` as for :meth:`Segmenter.predict`.

    Frames that can not be labelled are lines of failures.jsonl. Raises UserError where the folder holds
    another job, or a process works on it, and OutputError where results can not be written.
    """
    with Job(out, sources, about(model), options, retry_failures) as job:
        return run(job, model, workers=workers, batch=batch, on_frame=on_frame)
