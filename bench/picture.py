"""Write the README's picture: a photo beside its overlay, as JPEG.

    python -m bench.picture street_18.jpg --box 180,120,1380,700 --out docs/images/street_side_by_side.jpg

The photo is of the repository toffanetto/STDC-Seg, see NOTICE; the box leaves its edges out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import stdc_fast
from stdc_fast.files import write_atomic

WIDTH, GAP = 1400, 8


def beside(photo: Image.Image, overlay: Image.Image) -> Image.Image:
    """Both as wide as the page allows, the photo on the left."""
    width = (WIDTH - GAP) // 2
    height = round(photo.height * width / photo.width)
    page = Image.new("RGB", (WIDTH, height), "white")
    for image, left in ((photo, 0), (overlay, WIDTH - width)):
        page.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, 0))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--box", help="left,top,right,bottom of the part that is shown and labelled")
    parser.add_argument("--out", type=Path, default=Path("docs/images/street_side_by_side.jpg"))
    options = parser.parse_args()
    photo = Image.open(options.photo).convert("RGB")
    if options.box:
        photo = photo.crop(tuple(map(int, options.box.split(","))))
    page = beside(photo, stdc_fast.load("stdc1_camvid", dtype="float32").predict(photo).overlay())
    write_atomic(options.out, lambda path: page.save(path, "JPEG", quality=88, optimize=True))


if __name__ == "__main__":
    main()
