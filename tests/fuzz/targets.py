"""What each kind of file is given to: the library as people use it. Only UserError may come of it."""

import functools
import itertools
import os
import time
from pathlib import Path

import folders
import numpy as np
import torch

import stdc_fast
from stdc_fast import checkpoints, datasets
from tests.fuzz import seeds

#: Input of the network, so that what a large picture costs is its opening.
INPUT = (64, 96)
#: data.yaml of label files.
DESCRIBED = "names: [Sky, Wall, Road]\npalette: [[120, 170, 230], [130, 40, 30], [90, 90, 100]]\n"


@functools.cache
def model() -> stdc_fast.Segmenter:
    return stdc_fast.load("stdc1_camvid", device="cpu")


def image(path: Path) -> None:
    model().predict(path, size=INPUT)


def video(path: Path) -> None:
    with model().predict(str(path), stream=True, size=INPUT) as results:
        for _ in itertools.islice(results, 20):
            pass


def label(path: Path) -> None:
    """In a data set of one image: a description of colours for colour files, ids otherwise."""
    root = path.parent / "data"
    if not root.exists():
        for split in ("train", "val"):
            folders.save(_photo(), root / split / "a.png")
            (root / f"{split}annot").mkdir()
    (root / "data.yaml").write_text(DESCRIBED if path.name.startswith("colour") else DESCRIBED.split("\n")[0])
    for old in (root / "trainannot").iterdir():
        old.unlink()
    os.link(path, root / "trainannot" / f"a{path.suffix}")
    folder = datasets.open_folder(root, "train")
    datasets.check(folder, everything=True)
    folder.load(0)


def description(path: Path) -> None:
    """Of three images."""
    root = path.parent / "described"
    if not root.exists():
        folders.camvid(root, train=3, val=1, classes="")
        (root / "val.txt").write_text("f0\n")
    for old in ("data.yaml", "data.json", "classes.txt", "train.txt"):
        (root / old).unlink(missing_ok=True)
    if path.name == "train.txt":
        (root / "classes.txt").write_text("0 Sky\n1 Wall\n2 Road\n11 Void\n")
    os.link(path, root / path.name.replace("short", "data"))
    folder = datasets.open_folder(root, "train")
    datasets.check(folder, everything=True)
    folder.load(0)


def checkpoint(path: Path) -> None:
    """Zeros follow the header of a safetensors file, as large as the tensors of the sound one."""
    if path.suffix == ".safetensors":
        os.truncate(
            path, path.stat().st_size + seeds.WEIGHTS.stat().st_size - len(seeds.header(seeds.WEIGHTS))
        )
    read = checkpoints.read(path)
    read.network(torch.float32)


def broken(path: Path) -> None:
    """What targets must not do, for the test of that."""
    if path.name == "raise":
        raise ZeroDivisionError
    if path.name == "write":
        Path("left").touch()
    if path.name == "exit":
        os._exit(3)
    if path.name == "hang":
        time.sleep(60)


def _photo() -> np.ndarray:
    return folders.scene(np.random.default_rng(0), seeds.SIZE[1], seeds.SIZE[0])[0]


#: Kind of file: its sound ones, and what takes it.
TARGETS = {
    "image": (seeds.images, image),
    "label": (seeds.labels, label),
    "description": (seeds.descriptions, description),
    "video": (seeds.videos, video),
    "checkpoint": (seeds.checkpoints, checkpoint),
    "broken": (dict, broken),
}
