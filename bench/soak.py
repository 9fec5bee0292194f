"""Labels ever the same frames and watches the memory: a leak shows as a line that rises.

    python -m bench.soak --out docs/results/soak.json --plot docs/images/soak.svg

A job of 10,000 frames, linked to few pictures, runs through `stdc_fast.bulk`: read, decoded, labelled,
encoded, written. Resident memory is noted every 50 frames. The rise is the slope of a line through the second
half, times its frames.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import stdc_fast
from stdc_fast import bulk, info
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu
from stdc_fast.viewer.save import save_figure

EVERY = 50


def resident() -> float:
    """Resident memory of this process in MB."""
    if os.path.exists("/proc/self/statm"):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def make(folder: Path, frames: int, size: tuple[int, int], pictures: int = 16) -> None:
    """Smooth random JPEGs, and links to them."""
    chance = np.random.default_rng(0)
    for i in range(frames):
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i < pictures:
            coarse = chance.integers(0, 256, (9, 17, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            first = i % pictures
            os.link(folder / "000" / f"{first:06d}.jpg", path)


def draw(frames: list[int], memory: list[float], title: str):
    """The memory over the frames, as a figure."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(7, 3), layout="constrained")
    axes = page.add_subplot()
    axes.plot(frames, memory, color="#c8452b", lw=1.4)
    axes.set(xlabel="frames labelled", ylabel="resident memory, MB", ylim=(0, 1.25 * max(memory)))
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(color="#e4e4e4", lw=0.7)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--frame", default="512x1024", help="HEIGHTxWIDTH of the pictures")
    parser.add_argument("--size", default="256x512", help="HEIGHTxWIDTH for the network; smaller is sooner")
    parser.add_argument("--model", default="stdc1_camvid")
    parser.add_argument("--to", default="webdataset")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    options = parser.parse_args()
    frame, size = (tuple(map(int, text.split("x"))) for text in (options.frame, options.size))
    model = stdc_fast.load(options.model, device=options.device)
    frames, memory = [], []
    count, start = 0, time.perf_counter()

    def on_frame() -> None:
        nonlocal count
        count += 1
        if count % EVERY == 0:
            frames.append(count)
            memory.append(round(resident(), 2))

    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name) / "photos").mkdir()
        make(folder, options.frames, frame)
        summary = bulk.label(model, folder, Path(name) / "out", to=options.to, size=size, on_frame=on_frame)
    half = len(frames) // 2
    slope = np.polyfit(frames[half:], memory[half:], 1)[0] if len(frames) - half > 1 else float("nan")
    rise = slope * (frames[-1] - frames[half]) if len(frames) - half > 1 else float("nan")
    row = {
        "frames": summary.labelled, "failed": summary.failed, "frame": list(frame),
        "input": list(size),
        "to": options.to, "model": options.model, "reason": model.reason, "cpu": cpu(),
        "commit": info.commit(),
        "seconds": round(time.perf_counter() - start, 1),
        "rise_mb": round(float(rise), 2), "least_mb": min(memory[half:]), "most_mb": max(memory[half:]),
        "at": frames, "resident_mb": memory,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in row.items() if key not in ("at", "resident_mb")}))
    if options.out:
        write_atomic(options.out, lambda path: path.write_text(json.dumps(row) + "\n"))
    if options.plot:
        title = f"{summary.labelled} frames: {rise:+.1f} MB over the second half"
        save_figure(options.plot, lambda: draw(frames, memory, title))


if __name__ == "__main__":
    main()
