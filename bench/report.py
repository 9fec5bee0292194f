"""Write docs/benchmarks.md and its plots from the committed records, and from nothing else.

    python -m bench.report            # after a run was added to bench/results
    python -m bench.report --check    # exit code 1 if that was forgotten

The same files give the same bytes, with the same matplotlib.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.document import document
from bench.measured import read, read_predictions
from bench.plots import Plot, draw
from stdc_fast.errors import UserError
from stdc_fast.files import write_atomic


def files(results: Path, predictions: Path, out: Path, images: Path) -> dict[Path, bytes]:
    """Everything that is to be on disk, by path."""
    devices, predicted = read(results), read_predictions(predictions)
    plots = draw(devices, predicted)

    def image(plot: Plot) -> str:
        return Path(os.path.relpath(images / plot.name, out.parent)).as_posix()

    wanted = {images / plot.name: plot.svg for plot in plots}
    return {out: document(devices, predicted, plots, image).encode(), **wanted}


def stale(wanted: dict[Path, bytes], images: Path) -> list[Path]:
    """Plots of records that are no more."""
    return [path for path in sorted(images.glob("benchmark_*.svg")) if path not in wanted]


def check(wanted: dict[Path, bytes], images: Path) -> str | None:
    """What is wrong on disk, if anything, in one line."""
    for path in stale(wanted, images):
        return f"{path}: no record gives this plot; run python -m bench.report"
    for path, content in wanted.items():
        if not path.is_file() or path.read_bytes() != content:
            return f"{path}: is not what the records give; run python -m bench.report"
    return None


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if ``--check`` finds a difference, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results", type=Path, default=Path("bench/results"), help="folder of *.jsonl records"
    )
    parser.add_argument("--predictions", type=Path, default=Path("bench/predictions.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument(
        "--images", type=Path, default=Path("docs/images"), help="its benchmark_*.svg are replaced or removed"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare with what is there")
    given = parser.parse_args(arguments)
    try:
        wanted = files(given.results, given.predictions, given.out, given.images)
        if given.check:
            wrong = check(wanted, given.images)
            if wrong:
                print(wrong, file=sys.stderr)
            return int(wrong is not None)
        for path, content in wanted.items():
            write_atomic(path, lambda p, content=content: p.write_bytes(content))
        for path in stale(wanted, given.images):
            path.unlink()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
