"""Labelled data sets on disk: layouts, descriptions, label files, and checks before work begins.

Images are RGB uint8 ``[H, W, 3]``, labels uint8 ``[H, W]`` with 255 for pixels that do not count.
"""

from stdc_fast.datasets.checks import check, check_training, histograms
from stdc_fast.datasets.folder import SegmentationFolder, open_folder, open_folders

__all__ = ["SegmentationFolder", "check", "check_training", "histograms", "open_folder", "open_folders"]
