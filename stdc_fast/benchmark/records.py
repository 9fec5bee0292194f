"""Records of measurements: one JSON object a line, appended to a file.

A record has ``schema`` (1), ``id``, ``time`` (UTC), ``kind`` ("latency" or "scaling"), ``header`` (machine,
versions, commit, threads, clocks, load), ``limits`` (:func:`stdc_fast.benchmark.limits.measure`), ``rows``
(:func:`stdc_fast.benchmark.run.rows`) and, of scaling, ``fits``. ``python -m bench.report`` reads them.
"""

from __future__ import annotations

import json
from pathlib import Path

from stdc_fast.checkpoints import write_atomic, write_errors


def append(record: dict[str, object], path: Path) -> None:
    """Add a record to a file, which is whole before and after. UserError if it can not be written."""
    with write_errors(path):
        old = path.read_text() if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    write_atomic(path, lambda p: p.write_text(old + json.dumps(record, allow_nan=False) + "\n"))
