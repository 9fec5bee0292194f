#!/usr/bin/env bash
# Importing MNN's converter, or running its command mnnconvert, has pip install a package, into whatever Python's pip
# is the first on PATH, and not into the environment that MNN is in.
#
# Expected: a converter converts files. Its wheel requires numpy only.
# Seen with MNN 3.6.1: `import MNN.tools` runs `pip install -U aliyun-log-python-sdk` through a shell, without asking.
# With the environment not activated that changed another Python: nine packages more, and typing_extensions replaced.
# Here a stand-in for pip writes down how it was called, and installs nothing. `_tools.mnnconvert` converts without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check MNN==3.6.1 numpy==2.4.6
mkdir "$folder/bin"
printf '#!/bin/sh\necho "pip $*" >> "%s/calls"\n' "$folder" > "$folder/bin/pip"
chmod +x "$folder/bin/pip"
touch "$folder/calls"
PATH="$folder/bin:$PATH" "$folder/env/bin/python" -c "import _tools" > /dev/null
echo "MNN 3.6.1, import _tools: $(wc -l < "$folder/calls") calls of pip"
test ! -s "$folder/calls"
PATH="$folder/bin:$PATH" "$folder/env/bin/python" -c "import MNN.tools.mnnconvert" > /dev/null
echo "MNN 3.6.1, import MNN.tools.mnnconvert: $(sort -u "$folder/calls")"
test "$(sort -u "$folder/calls")" = "pip install -U aliyun-log-python-sdk"
