"""Speed of the way from a 1080p file to labels, beside frames that FFmpeg's fast conversion gives.

    python -m bench.video_path --out docs/results/video.jsonl

Both in turns, in one process: `read` is the library's reader, `fast path` is PyAV's `to_ndarray`, which was
the library's before. A row has medians over the turns: milliseconds a frame, of labels and of decoding alone.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

import stdc_fast
from stdc_fast import _native, video

SIZE = (1920, 1080)
INPUT = (512, 1024)


def make(path: Path, frames: int) -> None:
    with Image.open(Path(stdc_fast.__file__).parent / "assets" / "street.jpg") as image:
        picture = np.array(image.convert("RGB").resize(SIZE))
    with video.Writer(path) as writer:
        for i in range(frames):
            writer.write(np.roll(picture, 8 * i, axis=1))


def fast(path: Path):
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def milliseconds(items) -> float:
    """A frame, after the first."""
    items = iter(items)
    next(items)
    start = time.perf_counter()
    count = sum(1 for _ in items)
    return 1000 * (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON Lines, a row a way")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    model = stdc_fast.load("stdc1_camvid", device="cpu")
    ways = {"read": video.read, "fast path": fast}
    found = {name: {"labels": [], "decoding": []} for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        make(path, arguments.frames)
        for _ in range(arguments.turns):
            for name, way in ways.items():
                found[name]["decoding"].append(milliseconds(way(path)))
                found[name]["labels"].append(milliseconds(model.stream(way(path), size=INPUT)))
    rows = [
        {
            "way": name,
            **{f"{what}_ms": round(statistics.median(times), 2) for what, times in by_what.items()},
            "turns": arguments.turns,
            "frames": arguments.frames,
            "isa": _native.isa(),
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
        }
        for name, by_what in found.items()
    ]
    for row in rows:
        print(json.dumps(row))
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
