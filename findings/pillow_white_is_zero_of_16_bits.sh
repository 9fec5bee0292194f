#!/usr/bin/env bash
# Pillow inverts a grey TIFF whose white is zero if it has 8 bits, and does not if it has 16.
#
# Expected: PhotometricInterpretation 0, WhiteIsZero, means the same in every depth: scanners and X-ray and infrared
# cameras write it with 16 bits.
# Seen with Pillow 13.0.0 and tifffile 2026.3.3: the 8-bit file is opened as it looks. The 16-bit file of the same
# picture is opened as its negative, in mode "I;16", and nothing but tag 262 tells.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cat > "$folder/white.py" <<'PYTHON'
import sys

import numpy as np
import tifffile
from PIL import Image

picture = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # black on the left
found = {}
for dtype in (np.uint8, np.uint16):
    most = np.iinfo(dtype).max
    shown = (picture.astype(np.uint32) * most // 255).astype(dtype)
    path = f"{sys.argv[1]}/{np.dtype(dtype).name}.tif"
    tifffile.imwrite(path, most - shown, photometric="miniswhite")
    with Image.open(path) as image:
        values = np.array(image)
        found[image.mode] = "as shown" if np.array_equal(values, shown) else "negative"
        assert found[image.mode] == "as shown" or np.array_equal(values, most - shown)
print(found)
sys.exit(0 if found == {"L": "as shown", "I;16": "negative"} else "it is other now")
PYTHON
"$folder/env/bin/python" "$folder/white.py" "$folder"
