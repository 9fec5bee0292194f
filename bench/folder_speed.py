"""Times `stdc-fast predict` on a folder of photos, of two trees of this library in turns.

    python -m bench.folder_speed OLD NEW --out docs/results/predict_folder.json
    python -m bench.folder_speed OLD NEW --photos FOLDER --rounds 7

Each tree has a process of its own, which runs the command with its model's loading, but without the imports.
A round gives each way a turn, in an order that changes. A ratio is that of two turns of one round, and the
median counts, as the machine changes its speed within minutes. Photos are JPEG files of 2048x1024,
of those in a folder, by default the one that the library has, moved to the side from photo to photo.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import stdc_fast
from bench.turns import Tree
from stdc_fast import info
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_bytes
from stdc_fast.hardware import cpu

SIZE = (2048, 1024)

#: What is measured: the tree, and the command's options.
WAYS = {
    "old": ("old", ()),
    "new": ("new", ()),
    "new, nothing written": ("new", ("--no-overlay", "--no-labels")),
    "new, as PNG": ("new", ("--format", "png")),
}
#: Ratios of two ways' times.
RATIOS = (("old", "new"), ("new", "new, nothing written"), ("old", "new, as PNG"))

# The process of a tree: arguments a line, and seconds back: of the clock, and of all its processors.
_WORKER = """
import contextlib, io, json, sys, time
import stdc_fast
from stdc_fast import cli
print(stdc_fast.__file__, flush=True)
for line in sys.stdin:
    sys.argv = ["stdc-fast", *json.loads(line)]
    start, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.app(prog_name="stdc-fast")
        except SystemExit as end:
            if end.code:
                raise
    print(json.dumps([time.perf_counter() - start, time.process_time() - used]), flush=True)
"""


def make(folder: Path, count: int, photos: Path | None) -> None:
    """``count`` JPEG files in the folder."""
    own = Path(stdc_fast.__file__).parent / "assets" / "street.jpg"
    sources = [own] if photos is None else sorted(p for p in photos.rglob("*") if p.suffix.lower() == ".jpg")
    for i in range(count):
        with Image.open(sources[i % len(sources)]) as image:
            picture = np.array(image.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS))
        moved = np.roll(picture, 64 * (i // len(sources)), axis=1)
        Image.fromarray(moved).save(folder / f"{i:03}.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.folder_speed", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--photos", type=Path, help="folder with photos to take")
    parser.add_argument("--count", type=int, default=24, help="of photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    trees = {name: Tree(getattr(options, name).resolve(), _WORKER) for name in ("old", "new")}
    times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    loads = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        make(folder, options.count, options.photos)
        for i in range(-1, options.rounds):
            loads.append(os.getloadavg()[0])
            for way in WAYS if i % 2 else reversed(WAYS):
                tree, more = WAYS[way]
                arguments = ["predict", str(folder), "-o", str(Path(place) / way), "-q", *more]
                took = trees[tree].ask(arguments)
                if i >= 0:  # the first round warms up
                    times[way].append(took)
    about = {
        "cpu": cpu(),
        "cpus": os.cpu_count(),
        "commit": info.commit(),
        "photos": options.count,
        "size": SIZE,
        "rounds": options.rounds,
        "load_average": [round(min(loads), 1), round(max(loads), 1)],
        "seconds": {way: quantiles([wall for wall, _ in took]) for way, took in times.items()},
        "processor_seconds": {way: quantiles([used for _, used in took]) for way, took in times.items()},
        "ratios": {
            f"{a} / {b}": quantiles([x[0] / y[0] for x, y in zip(times[a], times[b], strict=True)])
            for a, b in RATIOS
        },
        "processor_ratios": {
            f"{a} / {b}": quantiles([x[1] / y[1] for x, y in zip(times[a], times[b], strict=True)])
            for a, b in RATIOS
        },
    }
    print(json.dumps(about, indent=1))
    if options.out:
        write_bytes(options.out, (json.dumps(about, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
