"""STDC-Seg real-time segmentation: load a checkpoint of any known family, label images.

import stdc_fast
model = stdc_fast.load("stdc1_camvid")
model.predict("street.jpg").overlay().save("overlay.png")
"""

from stdc_fast import library, nn, source_tree  # library registers torch.ops.stdc_fast
from stdc_fast.calibration.record import Calibration
from stdc_fast.calibration.run import calibrate
from stdc_fast.classes import ClassSet
from stdc_fast.datasets import open_folder
from stdc_fast.errors import UserError
from stdc_fast.evaluation import evaluate
from stdc_fast.exporters import export
from stdc_fast.features import create_model
from stdc_fast.live import AccelerateReport, accelerate, accelerated, acceleration, restore
from stdc_fast.protocol import Protocol
from stdc_fast.segmenter import BatchError, InputSize, Segmentation, Segmenter
from stdc_fast.version import __version__
from stdc_fast.zoo import list_models, load, model_info

__all__ = [
    "AccelerateReport",
    "BatchError",
    "Calibration",
    "ClassSet",
    "InputSize",
    "Protocol",
    "Segmentation",
    "Segmenter",
    "UserError",
    "__version__",
    "accelerate",
    "accelerated",
    "acceleration",
    "calibrate",
    "create_model",
    "evaluate",
    "export",
    "library",
    "list_models",
    "load",
    "model_info",
    "nn",
    "open_folder",
    "restore",
]

source_tree.register()
