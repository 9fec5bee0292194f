"""Triton kernels, one file per op: what :mod:`stdc_fast.backends.triton` launches.

Maps are NHWC in one arena: a view of a buffer is a pointer to its first channel, and the channels of the
buffer are the pitch from pixel to pixel. Sums are float32, whatever the maps are.
"""

from stdc_fast.kernels.conv import conv
from stdc_fast.kernels.down import down
from stdc_fast.kernels.gate import gate
from stdc_fast.kernels.prologue import prologue
from stdc_fast.kernels.stem import stem
from stdc_fast.kernels.upsample import upsample

__all__ = ["conv", "down", "gate", "prologue", "stem", "upsample"]
