"""Videos and cameras: :func:`read` gives their frames, :class:`Writer` writes them; with PyAV (``av``)."""

from stdc_fast.video.reader import Reader, read
from stdc_fast.video.sources import USUAL_RATE, is_camera, is_url, is_video, stem
from stdc_fast.video.writer import OUTPUT_SUFFIXES, Writer

__all__ = [
    "OUTPUT_SUFFIXES",
    "USUAL_RATE",
    "Reader",
    "Writer",
    "is_camera",
    "is_url",
    "is_video",
    "read",
    "stem",
]
