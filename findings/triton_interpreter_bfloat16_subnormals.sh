#!/usr/bin/env bash
# Triton's interpreter (TRITON_INTERPRET=1) gives wrong numbers for float32 subnormals that are cast to bfloat16.
#
# Expected: bfloat16 has float32's exponents, so a subnormal keeps its sign, its exponent and its leading bits.
# Seen with triton 3.7.1: 2^-127 becomes 0, 1.5 * 2^-127 becomes 2^-127, and the largest number below 2^-133 becomes
# 1.17e-38, 127 times as large. torch casts all of them to within a unit in the last place. So a kernel that adds
# half a unit to the bits before the cast, since the interpreter cuts off where a GPU rounds, turns an exact zero
# into 1.2e-38.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 triton==3.7.1 numpy==2.4.6
cat > "$folder/cast.py" <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


numbers = [1.0, 2.0**-126, 2.0**-127, 1.5 * 2.0**-127, 2.0**-133 - 2.0**-149, -(2.0**-127), 0.0, -0.0]
x = torch.tensor(numbers)
y = torch.empty(len(numbers), dtype=torch.bfloat16)
cast[(1,)](x, y, len(numbers))
expected = x.to(torch.bfloat16)
print(f"triton {triton.__version__}, torch {torch.__version__}")
for number, got, want in zip(numbers, y.tolist(), expected.tolist()):
    print(f"{number:.9g}: interpreter {got:.9g}, torch {want:.9g}")
normal = [i for i, n in enumerate(numbers) if abs(n) >= 2.0**-126 or n == 0]
assert torch.equal(y[normal], expected[normal]), "normal numbers and zeros changed"
wrong = sum(a != b for a, b in zip(y.tolist(), expected.tolist()))
sys.exit(0 if wrong == 4 else f"{wrong} numbers differ, not the 4 that were seen")
PYTHON
TRITON_INTERPRET=1 "$folder/env/bin/python" "$folder/cast.py"
