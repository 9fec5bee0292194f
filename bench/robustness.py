"""mIoU under fixed changes of light, camera and size, and on photos of other places, as JSON.

    python -m bench.robustness A.safetensors B.safetensors --data CAMVID --out docs/results/robustness.json

A stand-in for data that is not at hand: the shifts are made from the same photos, and training may have seen
such shifts, so the figures rank weights and do not say how good they are elsewhere. With --comma10k there
also are real photos of other places and cameras, in the three classes that both data sets have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

import stdc_fast
from stdc_fast import appearance, files, info
from stdc_fast.datasets import SegmentationFolder, open_folder
from stdc_fast.evaluation import Confusion, evaluate
from stdc_fast.images import read_image
from stdc_fast.reference.losses import IGNORE

Shift = Callable[[Image.Image, np.random.Generator], Image.Image]


def _contrast(factor: float) -> Shift:
    return lambda image, rng: ImageEnhance.Contrast(image).enhance(factor)


def _tone(warmth: float = 0.0, gamma: float = 1.0, gain: float = 1.0) -> Shift:
    gains = tuple(gain * g for g in appearance.white_balance(warmth))
    return lambda image, rng: appearance.tone(image, gains, gamma)


SHIFTS: dict[str, Shift] = {
    "darker": _tone(gamma=1.8),
    "brighter": _tone(gamma=0.6),
    "exposure": _tone(gain=1.4),
    "warm": _tone(warmth=0.35),
    "cool": _tone(warmth=-0.35),
    "hue": lambda image, rng: appearance.rotate_hue(image, float(rng.choice([-0.06, 0.06]))),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "low contrast": _contrast(0.5),
    "high contrast": _contrast(1.6),
    "blur": lambda image, rng: image.filter(ImageFilter.GaussianBlur(1.0)),
    "noise": lambda image, rng: appearance.add_noise(image, 0.05, rng),
    "jpeg": lambda image, rng: appearance.compress(image, 25),
}
SIZES = {"smaller": 0.75, "larger": 4 / 3}
# comma10k's colours, and what the 11 classes of CamVid are among them: 0 road, 1 undrivable, 2 movable.
COMMA10K = {(64, 32, 32): 0, (255, 0, 0): 0, (128, 128, 96): 1, (0, 255, 102): 2, (204, 0, 255): IGNORE}
MERGED = {"Road": 0, "Car": 2, "Pedestrian": 2, "Bicyclist": 2}


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A folder whose photos are changed; photo i always by the same random numbers."""

    folder: SegmentationFolder
    shift: Shift

    def __getattr__(self, name: str):
        return getattr(self.folder, name)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.folder.load(index)
        return np.asarray(self.shift(Image.fromarray(image), np.random.default_rng([0, index]))), labels


def robustness(model, folder: SegmentationFolder, indices: range) -> dict[str, object]:
    """mIoU of every shift, their mean, and the mean IoU of each class over them."""
    rows = {name: evaluate(model, Shifted(folder, s), indices=indices) for name, s in SHIFTS.items()}
    height, width = folder.load_image(indices[0]).shape[:2]
    usual = model.input_size.resolve(height, width)[0] / height
    for name, factor in SIZES.items():
        rows[name] = evaluate(model, folder, scale=usual * factor, indices=indices)
    iou = np.mean([c.iou() for c in rows.values()], axis=0)
    clean = evaluate(model, folder, indices=indices)
    return {
        "clean": clean.miou(),
        "shifted": float(np.mean([c.miou() for c in rows.values()])),
        "by_shift": {name: c.miou() for name, c in rows.items()},
        "clean_iou": dict(zip(folder.classes.names, clean.iou().tolist(), strict=True)),
        "shifted_iou": dict(zip(folder.classes.names, iou.tolist(), strict=True)),
    }


def elsewhere(model, root: Path) -> dict[str, object]:
    """IoU of road, undrivable and movable on comma10k photos; own car and other colours do not count."""
    merged = np.array([MERGED.get(name, 1) for name in model.classes.names], np.uint8)
    confusion, images = Confusion(3), sorted((root / "imgs").iterdir())
    for path in images:
        colours = read_image(root / "masks" / path.name)
        labels = np.full(colours.shape[:2], IGNORE, np.uint8)
        for colour, value in COMMA10K.items():
            labels[(colours == colour).all(-1)] = value
        confusion.update(labels, merged[model.label(read_image(path)[None])[0].cpu().numpy()])
    iou = dict(zip(("road", "undrivable", "movable"), confusion.iou().tolist(), strict=True))
    return {"images": len(images), "miou": confusion.miou(), "iou": iou}


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="embedded names or checkpoint files")
    parser.add_argument("--data", type=Path, required=True, help="CamVid folder")
    parser.add_argument("--split", default="val")
    parser.add_argument("--comma10k", type=Path, help="folder with imgs and masks")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image only")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folder = open_folder(arguments.data, arguments.split)
    indices = range(0, len(folder), arguments.every)
    rows = {}
    for name in arguments.models:
        model = stdc_fast.load(name, device=arguments.device, dtype=arguments.dtype)
        rows[model.name] = robustness(model, folder, indices)
        if arguments.comma10k is not None:
            rows[model.name]["comma10k"] = elsewhere(model, arguments.comma10k)
        print(model.name, json.dumps(_rounded(rows[model.name])), flush=True)
        result = {
            "what": "mIoU on the split as it is, under each shift, and on photos of other places",
            "split": arguments.split,
            "images": len(indices),
            "dtype": str(model.dtype).removeprefix("torch."),
            "commit": info.commit(),
            "versions": info.versions(),
            "rows": _rounded(rows),
        }
        files.write_atomic(arguments.out, lambda p, r=result: p.write_text(json.dumps(r, indent=1) + "\n"))


if __name__ == "__main__":
    main()
