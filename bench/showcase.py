"""Pictures of the documents that show results in other libraries: python -m bench.showcase --out docs/images.

A notebook's display needs the packages nbconvert and ipykernel, and Chromium as ``chromium``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import stdc_fast

CELL = """import stdc_fast

model = stdc_fast.load("stdc1_camvid")
model.predict({photo!r})"""


def coco(photo: Path, target: Path) -> None:
    """A COCO file of one photo: on the left pycocotools reads and draws it, on the right supervision does."""
    import supervision as sv
    from matplotlib import pyplot as plt
    from pycocotools.coco import COCO

    result = stdc_fast.load("stdc1_camvid").predict(photo)
    height, width = result.labels.shape
    annotations = [
        row | {"id": i, "image_id": 1} for i, row in enumerate(result.to_coco_rle(image_id=1), start=1)
    ]
    document = {
        "images": [{"id": 1, "file_name": photo.name, "height": height, "width": width}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(result.classes.names)],
        "annotations": annotations,
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_text(json.dumps(document))
        read = COCO(str(path))
        left.imshow(result.image)
        plt.sca(left)
        read.showAnns(read.loadAnns(read.getAnnIds(imgIds=[1])))
        left.set_title(f"pycocotools: {len(annotations)} annotations of {photo.name}")
        Image.open(photo).convert("RGB").save(Path(folder, photo.name))
        data = sv.DetectionDataset.from_coco(folder, str(path), force_masks=True)
        _, image, found = next(iter(data))
        drawn = sv.MaskAnnotator(opacity=0.55).annotate(image.copy(), found)
        names = [data.classes[i] for i in found.class_id]
        drawn = sv.LabelAnnotator().annotate(drawn, found, labels=names)
        right.imshow(np.ascontiguousarray(drawn[:, :, ::-1]))
        right.set_title(f"supervision: {len(found)} detections")
    same = all((found.mask[k] == (result.labels == i)).all() for k, i in enumerate(found.class_id))
    if not same:
        sys.exit("masks that supervision read are not the labels")
    for axes in (left, right):
        axes.axis("off")
    figure.savefig(target, dpi=90, pil_kwargs={"quality": 85})
    print(f"{target}: written; {len(found)} masks are the labels, pixel by pixel")


def notebook(photo: Path, target: Path) -> None:
    """A cell that ends in a result, run by Jupyter, as a browser shows it."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(photo=str(photo)))])
    ExecutePreprocessor(timeout=120).preprocess(book)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(book)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        path.write_text(page)
        shot = Path(folder, "shot.png")
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}",
             "--window-size=1000,760", path.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(shot).convert("RGB").save(target, quality=85)
    print(f"{target}: written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", type=Path, default=Path("stdc_fast/assets/street.jpg"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--only", choices=["coco", "notebook"])
    options = parser.parse_args()
    for draw in (coco, notebook):
        if options.only in (None, draw.__name__):
            draw(options.photo, options.out / f"shown_by_{draw.__name__}.jpg")


if __name__ == "__main__":
    main()
