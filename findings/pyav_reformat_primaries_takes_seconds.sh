#!/usr/bin/env bash
# PyAV's reformat takes seconds a frame once it is told other primaries or another transfer function.
#
# Expected: dst_color_primaries and dst_color_trc cost about as much as dst_colorspace, milliseconds a frame.
# Seen with av 18.1.0: they do convert colours, by swscale's lookup tables, which are made anew for each frame. A frame
# of 960x540 takes about a hundred times as long as without them. A way that converts HDR frames so falls to less than
# one frame a second, whatever their size is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cat > "$folder/reformat.py" <<'PYTHON'
import statistics
import sys
import time

import av
import numpy as np

picture = np.random.default_rng(0).integers(0, 256, (540, 960, 3), dtype=np.uint8)


def seconds(size: tuple[int, int] = (960, 540), **options: int) -> float:
    times = []
    for _ in range(3):
        # A new frame each time, as a decoder gives them.
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        source = frame.reformat(*size, format="yuv420p10le")
        start = time.perf_counter()
        source.reformat(format="rgb24", **options)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


plain = seconds()
print(f"960x540 to rgb24: {plain * 1e3:.1f} ms")
ratios = {}
for name, options in {"PQ": {"dst_color_trc": 16}, "BT.2020": {"dst_color_primaries": 9}}.items():
    large, small = seconds(**options), seconds((96, 54), **options)
    ratios[name] = large / plain
    print(f"to {name}: {large:.2f} s, {ratios[name]:.0f} times as long; of 96x54 {small:.2f} s")
sys.exit(0 if min(ratios.values()) > 20 else "it is fast now")
PYTHON
"$folder/env/bin/python" "$folder/reformat.py"
