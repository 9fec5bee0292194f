#!/usr/bin/env bash
# PyAV does not open a sound video whose title is in another encoding than UTF-8.
#
# Expected: frames can be decoded whatever the title is; RIFF says nothing of the encoding of an AVI file's texts, and
# programs on Windows write their code page.
# Seen with av 18.1.0: av.open(path) decodes all metadata as UTF-8 and raises UnicodeDecodeError, which is neither
# FFmpegError nor OSError, so that it passes by handlers of files that can not be opened. metadata_errors="replace"
# opens the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cat > "$folder/title.py" <<'PYTHON'
import sys
from pathlib import Path

import av
import numpy as np

path = Path(sys.argv[1], "film.avi")
with av.open(str(path), "w") as container:
    container.metadata["title"] = "Strasse"
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
content = path.read_bytes()
assert content.count(b"Strasse") == 1
path.write_bytes(content.replace(b"Strasse", "Straße ".encode("latin-1")))
with av.open(str(path), metadata_errors="replace") as container:
    print(f"with metadata_errors='replace': {sum(1 for _ in container.decode(video=0))} frame")
try:
    av.open(str(path)).close()
except UnicodeDecodeError as error:
    print(f"without: {type(error).__name__}: {error}")
    assert not isinstance(error, (av.FFmpegError, OSError))
else:
    sys.exit("it is opened now")
PYTHON
"$folder/env/bin/python" "$folder/title.py" "$folder"
