"""Ways to decode a JPEG, in turns: python -m bench.jpeg_decoding PHOTO... --out FILE.json

Times are those of the processor, of one thread. "half" decodes at half the size in the DCT. Its labels are
compared with those of the whole photo, at a network input of half the photo and of a quarter of it, in
float32. simplejpeg needs to be installed for its rows.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import stdc_fast
from stdc_fast import images
from stdc_fast.hardware import cpu

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


def pillow(content: bytes, half: bool = False) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    if half:
        image.draft("RGB", (image.width // 2, image.height // 2))
    return np.asarray(image.convert("RGB"))


def ways() -> dict:
    found = {
        "read_image": images.read_image,
        "Pillow": pillow,
        "Pillow, half": lambda content: pillow(content, True),
    }
    if simplejpeg is not None:
        found["simplejpeg"] = simplejpeg.decode_jpeg
        found["simplejpeg, half"] = lambda c: simplejpeg.decode_jpeg(
            c, min_height=1, min_width=1, min_factor=2
        )
    return found


def milliseconds(content: bytes, rounds: int) -> dict[str, dict[str, float]]:
    """Of each way the median and the spread; a turn is three pictures, after one that does not count."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, decode in ways().items():
            decode(content)
            start = time.thread_time()
            for _ in range(3):
                decode(content)
            times.setdefault(name, []).append((time.thread_time() - start) / 3e-3)
    return {
        name: {"median": round(statistics.median(t), 2), "least": round(min(t), 2), "most": round(max(t), 2)}
        for name, t in times.items()
    }


def agreement(content: bytes, model) -> dict[str, float]:
    """Share of labels that half decoding leaves as they are, by the network's share of the photo."""
    whole, half = pillow(content), pillow(content, True)
    height, width = whole.shape[:2]
    found = {}
    for share in (2, 4):
        size = height // share, width // share
        expected = model.predict(whole, size=size).labels
        frame = torch.from_numpy(half.copy())[None]
        labels = model._labels(frame, size, (height, width))[0][0].numpy()
        found[f"1/{share}"] = round(float((labels == expected).mean()), 6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = stdc_fast.load("stdc1_camvid", dtype="float32")
    rows = []
    for photo in options.photos:
        content = photo.read_bytes()
        same = None
        if simplejpeg is not None:
            same = bool(np.array_equal(simplejpeg.decode_jpeg(content), pillow(content)))
        with Image.open(photo) as image:
            size = list(image.size)
        row = {"photo": photo.name, "width_height": size, "bytes": len(content)}
        row |= {"simplejpeg_gives_the_same_pixels": same, "labels_agree": agreement(content, model)}
        rows.append(row | {"milliseconds": milliseconds(content, options.rounds)})
        print(rows[-1])
    facts = {"cpu": cpu(), "pillow": Image.__version__,
             "simplejpeg": getattr(simplejpeg, "__version__", None)}  # fmt: skip
    options.out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
