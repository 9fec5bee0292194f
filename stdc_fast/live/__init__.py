"""Live models of other code bases, made fast in place: :func:`accelerate` and :func:`restore`."""

from stdc_fast.live.accelerate import accelerate, accelerated, acceleration, restore
from stdc_fast.live.report import AccelerateReport, Part

__all__ = ["AccelerateReport", "Part", "accelerate", "accelerated", "acceleration", "restore"]
