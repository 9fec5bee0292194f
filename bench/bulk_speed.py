"""Times `stdc-fast label` beside the engine alone and beside a loop without overlap, in turns.

    python -m bench.bulk_speed PICTURES --out docs/results/bulk_speed.json

PICTURES are photos, which become JPEGs of 2048x1024. A turn of "engine" labels frames that are decoded
already. A turn of a job reads, decodes, labels, encodes and writes them. "loop" does the same one after
another, by `predict` and `save`. A ratio is that of two turns of one round, and the median counts, as the
machine's speed changes within minutes. "core_ms" is what all cores together spend on a frame, which counts
where others use them as well: a machine whose cores are all busy can do no more.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import stdc_fast
from stdc_fast import bulk, images, info, listing
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu

SIZE = (2048, 1024)
INPUT = (512, 1024)


def make(pictures: Path, folder: Path, count: int) -> list[Path]:
    """So many JPEGs of :data:`SIZE`, quality 90, each picture as often as needed."""
    sources = [path for path in sorted(pictures.iterdir()) if listing.is_image(path)]
    made = []
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < len(sources):
            with Image.open(sources[i]) as image:
                image.convert("RGB").resize(SIZE).save(path, quality=90)
        else:
            os.link(made[i % len(sources)], path)
        made.append(path)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bulk_speed", description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of photos")
    parser.add_argument("--frames", type=int, default=40, help="of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="stdc1_camvid")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kinds", nargs="+", default=["png", "webdataset"], help="of outputs")
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    model = stdc_fast.load(options.model, device=options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        paths = make(options.pictures, folder / "photos", options.frames)
        frames = [images.read_image(path) for path in paths[: min(8, len(paths))]]
        number = iter(range(10**6))
        busy: dict[str, list[bulk.Summary]] = {}

        def engine() -> None:
            for i in range(options.frames):
                model.label(frames[i % len(frames)][None], size=INPUT).cpu()

        def loop() -> None:
            out = folder / str(next(number))
            out.mkdir()
            for path in paths:
                model.predict(path, size=INPUT).save(out / f"{path.stem}.png")

        def job(kind: str) -> Callable[[], None]:
            def run() -> None:
                out = folder / str(next(number))
                found = bulk.label(model, folder / "photos", out, to=kind, size=INPUT)
                busy.setdefault(kind, []).append(found)

            return run

        ways = {"engine": engine, "loop": loop} | {kind: job(kind) for kind in options.kinds}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for way in ways.values():  # packs weights, and warms caches
            way()
        busy.clear()
        for i in range(options.rounds):
            for way in ways if i % 2 else reversed(ways):
                start, cores = time.perf_counter(), time.process_time()
                ways[way]()
                rates[way].append(options.frames / (time.perf_counter() - start))
                spent[way].append(1000 * (time.process_time() - cores) / options.frames)
    rows = []
    for way in ways:
        shares = [rate / own for rate, own in zip(rates[way], rates["engine"], strict=True)]
        row = {"way": way, "frames_per_second": quantiles(rates[way]), "share_of_engine": quantiles(shares)}
        row["core_ms"] = quantiles(spent[way])
        if way in busy:
            for stage in ("reading", "labelling", "writing"):
                row[f"{stage}_ms"] = quantiles(
                    [1e3 * getattr(one, stage) / one.labelled for one in busy[way]]
                )
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.out:
        about = {
            "cpu": cpu(), "threads": torch.get_num_threads(), "cpus": os.cpu_count(),
            "numpy": np.__version__, "model": options.model, "reason": model.reason,
            "frame": [SIZE[1], SIZE[0]], "input": list(INPUT), "frames": options.frames,
            "rounds": options.rounds, "load_average": round(os.getloadavg()[0], 1), "commit": info.commit(),
            "rows": rows,
        }  # fmt: skip
        write_atomic(options.out, lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))


if __name__ == "__main__":
    main()
