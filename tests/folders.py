"""Makes small CamVid and Cityscapes folders with learnable scenes."""

from pathlib import Path

import numpy as np
from PIL import Image

from stdc_fast.classes import CAMVID

#: classes.txt of CamVid's usual release.
ELEVEN = "".join(f"{i} {name}\n" for i, name in enumerate((*CAMVID.names, "Void")))
COLOURS = np.array([(120, 170, 230), (130, 40, 30), (90, 90, 100)], np.uint8)


def scene(rng: np.random.Generator, height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Three flat regions with noise: RGB ``[H, W, 3]`` and ids 0..2 ``[H, W]``."""
    labels = np.zeros((height, width), np.uint8)
    labels[rng.integers(height // 3, height // 2) :] = 1
    left = rng.integers(0, width // 2)
    labels[height // 2 :, left : left + width // 2] = 2
    noise = rng.integers(-10, 11, (height, width, 3))
    return np.clip(COLOURS[labels].astype(int) + noise, 0, 255).astype(np.uint8), labels


def camvid(
    root: Path, train: int = 4, val: int = 2, classes: str = "0 Sky\n1 Wall\n2 Road\n11 Void\n"
) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for i in range(count):
            image, labels = scene(rng)
            labels[:2] = 11
            Image.fromarray(image).save(root / split / f"f{i}.png")
            Image.fromarray(labels).save(root / f"{split}annot" / f"f{i}.png")
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def cityscapes(root: Path, train_ids: bool = False) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind / split / "town").mkdir(parents=True)
        image, labels = scene(rng)
        stored = labels if train_ids else np.array([7, 8, 11], np.uint8)[labels]
        stored[:2] = 255 if train_ids else 4
        name = "LabelTrainIds" if train_ids else "LabelIds"
        name = name[0].lower() + name[1:]
        Image.fromarray(image).save(root / "leftImg8bit" / split / "town" / "town_0_leftImg8bit.png")
        Image.fromarray(stored).save(root / "gtFine" / split / "town" / f"town_0_gtFine_{name}.png")
    return root


def save(array: np.ndarray, path: Path) -> None:
    """Write an image, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
