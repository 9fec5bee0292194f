#!/usr/bin/env bash
# WebDataset's own writer takes keys with dots, and its own reader makes one sample of all of them.
#
# Expected: samples that TarWriter wrote come back from WebDataset as they were, or one of both refuses the key. Frames
# of driving logs often have such names, as "drive.000001".
# Seen with webdataset 1.0.2: three samples of keys "drive.000001" to "drive.000003" are written without a word. One
# sample of key "drive" is read, with fields "000001.png", "000002.png" and "000003.png": all up to the first dot is the
# key. So the number of frames is another one, and no error or warning says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2 braceexpand==0.1.7 numpy==2.4.6 pyyaml==6.0.4
cat > "$folder/keys.py" <<'PYTHON'
import sys
import warnings

import webdataset

warnings.simplefilter("error", UserWarning)
path = f"{sys.argv[1]}/a.tar"
with webdataset.TarWriter(path) as writer:
    for i in (1, 2, 3):
        writer.write({"__key__": f"drive.{i:06d}", "png": b"picture"})
found = [
    (sample["__key__"], sorted(name for name in sample if not name.startswith("__")))
    for sample in webdataset.WebDataset(path, shardshuffle=False)
]
print(found)
merged = [("drive", ["000001.png", "000002.png", "000003.png"])]
sys.exit(0 if found == merged else "it is other now")
PYTHON
"$folder/env/bin/python" "$folder/keys.py" "$folder"
