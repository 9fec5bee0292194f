"""A replay in one call: what it asks of the CUDA runtime, with one that only writes that down."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = """\
# copies
copy 0x10 0x30 100 on 0xc
launch 0xa on 0xc
copy 0x40 0x20 50 on 0xc
record 0xb on 0xc
1
# captured
0
# another device
device 1
copy 0x10 0x30 100 on 0xc
launch 0xa on 0xc
copy 0x40 0x20 50 on 0xc
record 0xb on 0xc
device 0
back on 0
# places
set as captured
set as captured
launch 0xa on 0xc, 0x30 0x11, 0x12 0x40
record 0xb on 0xc
set as captured
launch 0xa on 0xc, 0x30 0x11, 0x12 0x50
record 0xb on 0xc
set as captured
set as captured
launch 0xa on 0xc, 0x10 0x11, 0x12 0x20
record 0xb on 0xc
captured 1
# a place that is not taken
set as captured
set fails
error another place of a node: invalid argument
set as captured
set as captured
launch 0xa on 0xc, 0x30 0x11, 0x12 0x40
record 0xb on 0xc
# no such place
error a node has its place 0 times
# a place twice
error a node has its place 2 times
# one node
error a replay has two nodes or none
# no graph
error a replay lacks its graph
# a captured node
1
error a stream that is captured has 0 last nodes
"""


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is absent; it compiles the code with a fake CUDA"
)
def test_what_a_replay_asks_of_the_runtime(tmp_path):
    here, program = ROOT / "tests" / "native", tmp_path / "replay"
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-DSTDC_FAKE_CUDA", "-I", here / "fake_cuda"]
    command += ["-I", ROOT / "csrc" / "include", "-I", ROOT / "csrc" / "cuda", "-o", program]
    subprocess.run(
        [*command, "-x", "c++", here / "replay.cpp", ROOT / "csrc" / "cuda" / "replay.cu"], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == EXPECTED.splitlines()
