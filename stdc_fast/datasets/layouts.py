"""Where a data set's images and labels are, and which label file is of which image."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from stdc_fast.datasets.description import Description, read_text
from stdc_fast.datasets.known import camvid_split, is_camvid
from stdc_fast.errors import UserError
from stdc_fast.listing import is_image

log = logging.getLogger(__name__)

_IMAGES = ("images", "imgs", "image", "img", "JPEGImages")
_LABELS = ("labels", "masks", "annotations", "label", "mask", "SegmentationClass")
#: Folders of images and labels of a split; the first ones that are there are taken.
LAYOUTS = (
    ("leftImg8bit/{split}", "gtFine/{split}"),
    ("{split}", "{split}annot"),
    ("{split}", "{split}_labels"),
    *((f"{a}/{{split}}", f"{b}/{{split}}") for a in _IMAGES for b in _LABELS),
    *((f"{{split}}/{a}", f"{{split}}/{b}") for a in _IMAGES for b in _LABELS),
    *((a, b) for a in _IMAGES for b in _LABELS),
    ("701_StillsRaw_full", "LabeledApproved_full"),
)
#: What names of labels may have beyond those of images.
_ENDS = ("", "_mask", "_label", "_labels", "_L", "_P", "_gt", "_seg")
_CITYSCAPES_ENDS = ("_gtFine_labelTrainIds", "_gtFine_labelIds")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Image and label files of a split, in order, and what names of labels end in.

    ``names`` are those of the images without suffixes, relative to their folder.
    """

    names: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    label_suffix: str


def find(root: Path, split: str, about: Description) -> Pairs:
    """The pairs of a split. UserError if the layout is unknown, or a pair is not complete or not certain."""
    images_in, labels_in = _layout(root, split, about)
    named_by_split = "{split}" in images_in
    folder = _folder(root, about, split)
    if folder != split and "{split}" not in images_in + labels_in:
        raise UserError(
            f"{about.path}: splits has {folder!r} for {split}, but there is no such file with a list, and "
            f"{images_in}/ is one folder for all splits; name a file that has the images' names, one a line"
        )
    image_folder, label_folder = (root / f.format(split=folder) for f in (images_in, labels_in))
    for place in (image_folder, label_folder):
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; {about.path or root} says that files are there")
    cityscapes = images_in.startswith("leftImg8bit")
    image_end = about.word("image_suffix") or ("_leftImg8bit" if cityscapes else "")
    images = _files(image_folder, image_end)
    if not images:
        raise UserError(f"{image_folder}: holds no images" + (f" named *{image_end}" if image_end else ""))
    given = about.word("label_suffix")
    ends = (given,) if given else _CITYSCAPES_ENDS if cityscapes else _ENDS
    end, labels = _matching(images, label_folder, ends, cityscapes)
    relative = {name: Path(os.path.relpath(path, root)) for name, path in labels.items()}
    names = _chosen(root, split, about, images, relative, image_end, named_by_split)
    missing = [name for name in names if name not in labels]
    if missing:
        raise UserError(
            f"{label_folder}: no file for {missing[0] + end!r}, as for {len(missing)} of {len(names)} "
            "images; give all a label, or say label_suffix in data.yaml"
        )
    single = len(labels) - sum(name in labels for name in images)
    if single and ("{split}" in labels_in) == named_by_split:
        first = next(name for name in labels if name not in images)
        log.warning(
            "%s: %d label files have no image in %s and are left out, first %s",
            label_folder, single, image_folder, labels[first].name,
        )  # fmt: skip
    return Pairs(
        tuple(names), tuple(images[name] for name in names), tuple(labels[name] for name in names), end
    )


def _layout(root: Path, split: str, about: Description) -> tuple[str, str]:
    """Folders of images and labels, relative, with {split} where its name belongs."""
    given = about.word("images"), about.word("labels")
    if any(given):
        if not all(given):
            raise UserError(f"{about.path}: has images or labels alone; give the folders of both")
        for place in given:
            if "{" in place.replace("{split}", "") or "}" in place.replace("{split}", ""):
                raise UserError(f"{about.path}: {place!r}: only {{split}} may be in braces")
        return given
    folder = _folder(root, about, split)
    found = [pair for pair in LAYOUTS if all((root / place.format(split=folder)).is_dir() for place in pair)]
    if (root / "leftImg8bit").is_dir() and LAYOUTS[0] not in found:
        raise UserError(f"{root}: found no {' and '.join(LAYOUTS[0]).format(split=folder)}")
    # images/train and labels/train lie in images and labels.
    split_ones = [pair for pair in found if "{split}" in pair[0]]
    found = split_ones or found
    if len(found) > 1:
        both = " and ".join("/ with ".join(pair).format(split=folder) + "/" for pair in found[:2])
        raise UserError(f"{root}: found {both}; say in data.yaml which are images and labels")
    if not found:
        raise UserError(
            f"{root}: has neither {split}/ with {split}annot/ or {split}_labels/, nor images/ with labels/, "
            "nor leftImg8bit/; say in data.yaml which folders are images and labels"
        )
    return found[0]


def _split(about: Description, split: str) -> str | list[str] | None:
    """What data.yaml has for a split: a folder, a file with a list, or the list. UserError for all else."""
    splits = about.fields.get("splits") or {}
    written = splits.get(split) if isinstance(splits, dict) else 0
    if isinstance(written, list) and all(isinstance(line, str) for line in written):
        return written
    if written is not None and not (isinstance(written, str) and written):
        raise UserError(f"{about.path}: splits must have a list, a file or a folder for each name")
    return written


def _listing(root: Path, about: Description, split: str) -> Path | None:
    """The file that data.yaml has with the images of a split, if it has one."""
    written = _split(about, split)
    if isinstance(written, str) and (written.endswith(".txt") or os.path.isfile(root / written)):
        return root / written
    return None


def _folder(root: Path, about: Description, split: str) -> str:
    """What the folders of a split are called."""
    written = _split(about, split)
    return written if isinstance(written, str) and not _listing(root, about, split) else split


def _files(folder: Path, end: str) -> dict[str, Path]:
    """Image files in a folder and below it by name, without suffix and ``end``. UserError for equal names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not is_image(path) or not path.stem.endswith(end) or any(p.startswith(".") for p in inside.parts):
            continue
        name = inside.as_posix().removesuffix(path.suffix).removesuffix(end)
        if name in found:
            raise UserError(
                f"{path}: {found[name].name} is there, too, so it is not certain which is meant; keep one"
            )
        found[name] = path
    return found


def _matching(
    images: Iterable[str], folder: Path, ends: tuple[str, ...], cityscapes: bool
) -> tuple[str, dict[str, Path]]:
    """The ending with which all images, or else the most, have labels, and those by name."""
    images, found, problem = set(images), {}, None
    for end in ends:
        try:
            labels = _files(folder, end)
        except UserError as error:
            problem = error
        else:
            found[end] = labels, len(images & labels.keys())
    most = max((count for _, count in found.values()), default=0)
    if problem and not most:
        raise problem
    best = [end for end, (_, count) in found.items() if count == most]
    if cityscapes and 0 < found.get(ends[0], ({}, 0))[1] < len(images):
        raise UserError(
            f"{folder}: {found[ends[0]][1]} of {len(images)} images have {ends[0].rpartition('_')[2]}; "
            "make them of all or of none"
        )
    if len(best) > 1 and most and not cityscapes:
        raise UserError(
            f"{folder}: names of labels end in {best[0]!r} as well as in {best[1]!r}; say which is meant as "
            "label_suffix in data.yaml"
        )
    return best[0], found[best[0]][0]


def _chosen(
    root: Path,
    split: str,
    about: Description,
    images: dict[str, Path],
    labels: dict[str, Path],
    end: str,
    named_by_split: bool,
) -> list[str]:
    """Names of the images of a split: those that a list has, else all where folders are a split's."""
    written = _split(about, split)
    given = _listing(root, about, split)
    listing = given or root / f"{split}.txt"
    if isinstance(written, list):
        return _listed(about.path, written, images, labels, end)
    if given or listing.is_file():
        lines = read_text(listing).splitlines()
        return _listed(listing, [line.strip() for line in lines if line.strip()], images, labels, end)
    if named_by_split:
        return list(images)
    if is_camvid(images):
        names = [name for name in images if camvid_split(name) == split]
        if names:
            return names
    raise UserError(
        f"{root}: says nowhere which images are {split}; write their names into {split}.txt, one a line"
    )


def _listed(
    listing: Path, lines: list[str], images: dict[str, Path], labels: dict[str, Path], end: str
) -> list[str]:
    """Names of images by lines: name or path of an image, with or without suffix, and maybe its label's.

    UserError for other names, and where the label is not the one in ``labels``, relative to the root.
    """
    short: dict[str, list[str]] = {}
    for name in images:
        short.setdefault(name.rpartition("/")[2], []).append(name)

    def name_of(text: str) -> str | None:
        text = text.replace("\\", "/")
        stem, dot, suffix = text.rpartition(".")
        for plain in (text, stem if dot and is_image(Path(f"x.{suffix}")) else ""):
            plain = plain.removesuffix(end)
            parts = [part for part in plain.split("/") if part]
            for i in range(len(parts)):
                if (rest := "/".join(parts[i:])) in images:
                    return rest
            if parts and len(short.get(parts[-1], ())) == 1:
                return short[parts[-1]][0]
        return None

    def of_line(line: str) -> str | None:
        whole, others = name_of(line), []
        for gap in re.finditer(r"[\s,]+", line):
            image, label = line[: gap.start()], line[gap.end() :].replace("\\", "/")
            name = name_of(image)
            if name is None or not label:
                continue
            if name in labels and _ends(labels[name], label):
                return name
            stem = name.rpartition("/")[2]
            if is_image(Path(image)) or "/" in label or label.startswith(stem):
                others.append((name, label))
        # A name with a blank is no image and its label.
        if others and not (whole and re.search(r"[\s,]", whole)):
            name, label = others[0]
            taken = f"takes {labels[name]}" if name in labels else "has none"
            raise UserError(
                f"{listing}: has {line!r}, whose label would be {label!r}, but {name!r} {taken}; mend the "
                "line, or say in data.yaml which labels and label_suffix are meant"
            )
        return whole

    names = []
    for line in lines:
        name = line if line in images else of_line(line)
        if name is None:
            raise UserError(f"{listing}: has {line!r}, but there is no file for it among the images")
        names.append(name)
    if not names:
        raise UserError(f"{listing}: holds no images; write their names into it, one a line")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{listing}: has {repeated!r} twice; keep one of them")
    return names


def _ends(path: Path, text: str) -> bool:
    """Whether a path may be what a text means: the parts that both have are the same, the suffix if given."""
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    if not parts:
        return False
    mine = [part for part in (path if is_image(Path(text)) else path.with_suffix("")).parts if part != ".."]
    return all(a == b for a, b in zip(reversed(parts), reversed(mine), strict=False))
