"""STDC-Seg real-time segmentation: load a checkpoint of any known family, label images.

import stdc_fast
model = stdc_fast.load("stdc1_camvid")
model.predict("street.jpg").overlay().save("overlay.png")
"""

from pathlib import Path

from stdc_fast import library, nn  # library registers torch.ops.stdc_fast
from stdc_fast.classes import ClassSet
from stdc_fast.errors import UserError
from stdc_fast.segmenter import BatchError, InputSize, Segmentation, Segmenter
from stdc_fast.version import __version__
from stdc_fast.zoo import list_models, load, model_info

__all__ = [
    "BatchError",
    "ClassSet",
    "InputSize",
    "Segmentation",
    "Segmenter",
    "UserError",
    "__version__",
    "library",
    "list_models",
    "load",
    "model_info",
    "nn",
]

# The folder kernels/ is installed as stdc_fast.kernels, and lies beside this package in a source tree: found
# there, so that the tree also runs by PYTHONPATH, without an installation.
_tree = Path(__file__).resolve().parent.parent
if all((_tree / name).is_file() for name in ("setup.py", "kernels/conv.py")):
    __path__.append(str(_tree))
del Path
