#!/usr/bin/env bash
# PyAV gives frames of an AVI file with B-frames the times of other frames.
#
# Expected: decoded frames come in the order in which they are shown, and frame.time grows.
# Seen with av 18.1.0: frames do come in that order, but of H.264 with B-frames in AVI pts and time are those of the
# packets, in the order in which they were stored: 0.04, 0.16, 0.12, 0.20, 0.08, ... AVI stores no time of showing.
# The same stream in MP4 has growing times. So what seeks, samples or measures by frame.time takes wrong frames.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cat > "$folder/times.py" <<'PYTHON'
import sys

import av
import numpy as np

options = {"bf": "3", "b_strategy": "0", "sc_threshold": "0", "g": "24"}
found = {}
for kind in ("mp4", "avi"):
    path = f"{sys.argv[1]}/film.{kind}"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(12):
            picture = np.full((48, 64, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(path) as container:
        frames = [(round(f.to_ndarray(format="rgb24").mean() / 20), f.time) for f in container.decode(video=0)]
    numbers, times = zip(*frames, strict=True)
    print(f"{kind}: pictures {list(numbers)}, times {list(times)}")
    assert list(numbers) == list(range(12)), "the pictures are in another order"
    found[kind] = list(times) == sorted(times)
sys.exit(0 if found == {"mp4": True, "avi": False} else f"times that grow: {found}")
PYTHON
"$folder/env/bin/python" "$folder/times.py" "$folder"
