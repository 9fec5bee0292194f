#!/usr/bin/env bash
# A lossless PNG optimiser changes the class ids that numpy and Pillow read from a label image.
#
# Expected: oxipng is lossless, so a grey PNG of class ids holds the same ids after it.
# Seen with pyoxipng 9.1.1 and Pillow 13.0.0: of a grey PNG with twelve levels it makes a palette image, whose entries
# are sorted as they compress best. Pillow opens it in mode "P", and np.array(Image.open(path)), which most loaders of
# segmentation labels use, gives the numbers of the palette: other classes, all of them valid. convert("L") gives the
# ids. So the pixels are the same colours, as the optimiser promises, and the labels are wrong without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pyoxipng==9.1.1 pillow==13.0.0 numpy==2.4.6
cat > "$folder/shrink.py" <<'PYTHON'
import sys

import numpy as np
import oxipng
from PIL import Image

folder = sys.argv[1]
classes = np.random.default_rng(0).integers(0, 12, (30, 40))
ids = np.kron(classes, np.ones((16, 16), int)).astype(np.uint8)
Image.fromarray(ids).save(f"{folder}/ids.png")
oxipng.optimize(f"{folder}/ids.png", f"{folder}/small.png")
with Image.open(f"{folder}/small.png") as image:
    numbers, levels = np.array(image), np.array(image.convert("L"))
    print(f"mode {image.mode}, palette {image.getpalette()[: 12 * 3 : 3]}")
same = (numbers == ids).mean()
print(f"np.array(Image.open(path)): {same:.1%} of the ids; convert('L'): {(levels == ids).mean():.1%}")
assert (levels == ids).all()
sys.exit(0 if same < 0.5 else "the ids are the same now")
PYTHON
"$folder/env/bin/python" "$folder/shrink.py" "$folder"
