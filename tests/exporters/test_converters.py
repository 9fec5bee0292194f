"""Running converters of other people: without their output, and with an error where they write nothing."""

import ctypes
import os
import sys

import pytest

from stdc_fast.exporters import converters


def test_hushed(capfd):
    libc = ctypes.CDLL(None)
    with converters.hushed():
        libc.puts(b"from C")
        os.write(1, b"from the system\n")
    libc.puts(b"afterwards")
    libc.fflush(None)
    assert capfd.readouterr().out == "afterwards\n"


def test_a_converter_that_fails(tmp_path):
    fails = [sys.executable, "-c", "print('no such layer'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="pnnx can not convert the network: no such layer"):
        converters.convert("pnnx", fails, tmp_path / "network.bin")
    writes_nothing = [sys.executable, "-c", "print('done')"]
    with pytest.raises(RuntimeError, match="can not convert the network: done"):
        converters.convert("pnnx", writes_nothing, tmp_path / "network.bin")
