"""Which GPU backend "auto" asks first: the fastest on a class of GPUs, as measured, else by the models.

Both are whole networks of one size, in ``stdc_fast/tables/gpu_backends.json``, which
``python -m bench.gpu_backends`` writes. Nothing is predicted here.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from stdc_fast.backends.gpu.model import device_class
from stdc_fast.backends.gpu.tables import FOLDER
from stdc_fast.precision import Precision

FILE = FOLDER / "gpu_backends.json"


@functools.cache
def table() -> dict[str, Any]:
    """The shipped table.

    Keys: "network", "images" and "size", (H, W), of what was timed; "predicted_us" and "measured_us",
    microseconds by class, precision and backend; "measured_on", by class what was measured where.
    """
    return json.loads(FILE.read_text())


def fastest_first(capability: tuple[int, int], precision: Precision) -> tuple[list[str], str]:
    """(Names of backends, the fastest first, and why in one line) on GPUs of a capability.

    No names where no two are known in that precision.
    """
    known, key = table(), device_class(capability).key
    found = {
        kind: known[f"{kind}_us"].get(key, {}).get(precision.name, {}) for kind in ("measured", "predicted")
    }
    times = found["measured"] if len(found["measured"]) > 1 else found["predicted"]
    if len(times) < 2:
        return [], ""
    order = sorted(times, key=times.get)
    height, width = known["size"]
    said = ", ".join(f"{name} {times[name]:.0f} us" for name in order)
    said += f" for {known['network']} at {height}x{width}"
    if times is found["measured"]:
        return order, f"measured on {known['measured_on'][key]['device']}, {key}: {said}"
    return order, f"not measured on {key}; the models: {said}"
