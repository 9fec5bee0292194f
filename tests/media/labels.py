"""Label images and folders of labelled data as real tools write them, and the class ids that are read."""

import functools
import json
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

import stdc_fast
from tests.media.case import Case

STREET = Path(stdc_fast.__file__).parent / "assets" / "street.jpg"
NAMES = [
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
    "Bicyclist",
]  # fmt: skip
PALETTE = [
    [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [0, 0, 192], [128, 128, 0],
    [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
]  # fmt: skip
NUMBERED = "".join(f"{i} {name}\n" for i, name in enumerate([*NAMES, "Void"]))
BY_COLOURS = {"names": NAMES, "palette": PALETTE}


@functools.cache
def photo() -> Image.Image:
    return Image.open(STREET).resize((384, 256))


@functools.cache
def ids() -> np.ndarray:
    """What the embedded weights see in a photo: shapes as labels have them."""
    return stdc_fast.load("stdc1_camvid", device="cpu", dtype="float32").predict(photo()).labels


def colours() -> np.ndarray:
    return np.array(PALETTE, np.uint8)[ids()]


def tool(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def convert(*options: str):
    """Makes a label file of a PNG by ImageMagick."""
    return lambda source, target: tool("convert", source, *options, target)


def shrink(source: Path, target: Path) -> None:
    """What a lossless optimiser makes of a PNG: a palette image."""
    import oxipng

    oxipng.optimize(source, target)


def ffmpeg(*options: str):
    return lambda source, target: tool("ffmpeg", "-v", "error", "-i", source, *options, target)


def laid(root: Path, make, stored: np.ndarray, suffix: str = ".png", name: str = "a", described=None) -> Path:
    """A folder in CamVid's layout whose label files ``make`` wrote of ``stored``; it returns the folder."""
    plain = root / "plain.png"
    Image.fromarray(stored).save(plain)
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        photo().save(root / split / f"{name}.png")
        make(plain, root / f"{split}annot" / f"{name}{suffix}")
    if isinstance(described, str):
        (root / "classes.txt").write_text(described)
    elif described:
        (root / "data.json").write_text(json.dumps(described))
    return root


def read(root: Path, expected: np.ndarray) -> float | str:
    """Share of equal class ids, or the refusal."""
    try:
        found = stdc_fast.open_folder(root, "val").load_labels(0)
    except stdc_fast.UserError as error:
        return str(error)
    return float((found == expected).mean())


def case(name: str, by: str, make, stored, target, suffix=".png", described=NUMBERED, expected=ids) -> Case:
    def measure(root: Path) -> float | str:
        return read(laid(root, make, stored(), suffix, described=described), expected())

    return Case(f"labels: {name}", by, measure, target)


def copy(source: Path, target: Path) -> None:
    Image.open(source).save(target)


def trained(root: Path, described: str, stored: np.ndarray) -> str:
    """How a short training ends."""
    from stdc_fast.train import TrainConfig, train

    laid(root, copy, stored, described=described)
    config = TrainConfig(iterations=1, batch=2, crop=(64, 64), warmup=0, val_every=1, amp="off")
    try:
        return f"best mIoU {train(config, root, root / 'run', device='cpu', quiet=True):.2%}"
    except stdc_fast.UserError as error:
        return str(error)


def two_of_one_name(root: Path) -> float | str:
    laid(root, copy, ids(), described=NUMBERED)
    photo().rotate(180).save(root / "val" / "a.jpg")
    return read(root, ids())


def kaggle(root: Path) -> float | str:
    """CamVid's frames by the names, labels and list of colours that Kaggle's copy has."""
    for split in ("train", "val"):
        (root / split).mkdir()
        (root / f"{split}_labels").mkdir()
        photo().save(root / split / "0016E5_07961.png")
        Image.fromarray(colours()).save(root / f"{split}_labels" / "0016E5_07961_L.png")
    return read(root, ids())


def in_utf16(root: Path) -> float | str:
    laid(root, copy, ids())
    (root / "classes.txt").write_bytes(NUMBERED.encode("utf-16"))
    return read(root, ids())


def in_cityscapes_folders(root: Path) -> str:
    for kind, end, picture in (("leftImg8bit", "leftImg8bit", photo()),
                               ("gtFine", "gtFine_labelIds", Image.fromarray(ids()))):  # fmt: skip
        place = root / kind / "val" / "town"
        place.mkdir(parents=True)
        picture.save(place / f"town_0_{end}.png")
    (root / "classes.txt").write_text(NUMBERED)
    return ", ".join(stdc_fast.open_folder(root, "val").classes.names)


def person() -> np.ndarray:
    return np.where(ids() == NAMES.index("Car"), 255, 0).astype(np.uint8)


def wrong_road() -> np.ndarray:
    return np.where(ids() == NAMES.index("Road"), 77, ids()).astype(np.uint8)


TWO = {"names": {"0": "background", "255": "car"}}
MASK = "labels: masks of 0 and 255, background and car in classes.txt"

CASES = (
    case("8-bit grey ids", "Pillow", copy, ids, 1.0),
    case("8-bit ids as 16-bit PNG", "convert", convert("-define", "png:bit-depth=16"), ids, 1.0),
    case("8-bit ids as gray16", "ffmpeg", ffmpeg("-pix_fmt", "gray16be"), ids, 1.0),
    case("ids as RGB PNG", "ffmpeg", ffmpeg("-pix_fmt", "rgb24"), ids, 1.0),
    case("ids as lossless WebP", "convert", convert("-define", "webp:lossless=true"), ids, 1.0, ".webp"),
    case("ids as TIFF", "convert", convert("-compress", "lzw"), ids, 1.0, ".tif"),
    case("colours as RGB PNG", "Pillow", copy, colours, 1.0, described=BY_COLOURS),
    case(
        "colours as palette PNG", "convert", convert("-type", "Palette"), colours, 1.0, ".png",
        BY_COLOURS | {"coding": "colours"},
    ),
    case(
        "colours as palette PNG, ids possible", "convert", convert("-type", "Palette"), colours,
        "coding: ids or coding: colours", ".png", BY_COLOURS,
    ),
    case("colours without names of them", "Pillow", copy, colours, "no colours of classes are known"),
    case(
        "two values as 1-bit PNG", "convert", convert("-type", "bilevel"), person, 1.0, ".png", TWO,
        lambda: person() // 255,
    ),
    case("ids, shrunk by oxipng", "pyoxipng", shrink, ids, "write coding: greys"),
    case(
        "ids, shrunk by oxipng, coding: greys", "pyoxipng", shrink, ids, 1.0, ".png",
        {"names": NAMES, "coding": "greys"},
    ),
    case("ids as JPEG, quality 95", "convert", convert("-quality", "95"), ids, "lossy JPEG", ".jpg"),
    case("ids as WebP, quality 95", "ffmpeg", ffmpeg("-quality", "95"), ids, "lossy WEBP", ".webp"),
    case("77 for road", "Pillow", copy, wrong_road, "have the value 77"),
    case("eleven values without names", "Pillow", copy, ids, "no file names the classes", ".png", None),
    Case(MASK, "Pillow", lambda root: trained(root, "0 background\n1 car\n", person()), "only background"),
    Case("labels: a.png beside a.jpg", "Pillow", two_of_one_name, "is there, too"),
    Case("labels: CamVid as on Kaggle", "Pillow", kaggle, 1.0),
    Case("labels: classes.txt in UTF-16", "Pillow", in_utf16, "is no UTF-8 text"),
    Case("labels: classes.txt beside Cityscapes' folders", "Pillow", in_cityscapes_folders, "Sky, Building"),
)  # fmt: skip
