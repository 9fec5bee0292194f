"""Decoding of JPEG files and its labels: by Pillow, by simplejpeg, and by simplejpeg at half the size.

    python -m bench.jpeg_decode PICTURES --out docs/results/jpeg_decode.json

PICTURES are photos, which become JPEGs of 2048x1024; the network sees 512x1024, so that a decoder can leave
half of each side out. Core milliseconds are those of all threads. "agreement" is the share of pixels, at the
photo's size, whose label is that of Pillow's pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import simplejpeg
import torch

import stdc_fast
from bench.bulk_speed import INPUT, SIZE, make
from stdc_fast import images, info, jpeg
from stdc_fast.benchmark.run import quantiles
from stdc_fast.files import write_atomic
from stdc_fast.hardware import cpu


def by_pillow(content: bytes) -> np.ndarray:
    with mock.patch.object(jpeg, "pixels", lambda image: None):
        return images.read_image(content)


def half(content: bytes) -> np.ndarray:
    height, width = INPUT
    return simplejpeg.decode_jpeg(content, min_height=height, min_width=width, min_factor=1)


WAYS = {"pillow": by_pillow, "simplejpeg": images.read_image, "simplejpeg at half the size": half}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.jpeg_decode", description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of photos")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    model = stdc_fast.load(device="cpu", dtype="float32")
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    same: dict[str, list[float]] = {way: [] for way in WAYS}
    pixels: dict[str, list[bool]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        count = sum(1 for path in options.pictures.iterdir() if path.is_file())
        contents = [path.read_bytes() for path in make(options.pictures, Path(name), count)]
    for i in range(options.rounds):
        for way, decode in WAYS.items():
            start = time.process_time()
            decode(contents[i % len(contents)])
            spent[way].append(1000 * (time.process_time() - start))
    for content in contents:
        plain = by_pillow(content)
        want = label(model, plain)
        for way, decode in WAYS.items():
            image = decode(content)
            pixels[way].append(np.array_equal(image, plain))
            same[way].append(float((label(model, image) == want).mean()))
    rows = [
        {"way": way, "core_ms": quantiles(spent[way]), "equal_pixels": all(pixels[way]),
         "agreement": {"least": min(same[way]), "mean": float(np.mean(same[way]))}, "pictures": len(contents)}
        for way in WAYS
    ]  # fmt: skip
    for row in rows:
        print(json.dumps(row))
    if options.out:
        about = {
            "cpu": cpu(), "frame": [SIZE[1], SIZE[0]], "input": list(INPUT), "commit": info.commit(),
            "rows": rows,
        }  # fmt: skip
        write_atomic(options.out, lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))


def label(model: stdc_fast.Segmenter, image: np.ndarray) -> np.ndarray:
    """Labels at the photo's size, whatever the size at which it was decoded."""
    frame = torch.from_numpy(np.ascontiguousarray(image))[None]
    with torch.inference_mode():
        return model._labels(frame, INPUT, (SIZE[1], SIZE[0]))[0][0].numpy()


if __name__ == "__main__":
    main()
