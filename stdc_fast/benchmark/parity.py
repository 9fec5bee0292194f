"""The parity check: a runner that computes something else is not timed."""

from __future__ import annotations

import numpy as np
import torch

from stdc_fast.benchmark.workloads import Expected, argmax
from stdc_fast.numerics import label_agreement, relative_error, tolerance


def check(
    outputs: dict[str, np.ndarray], dtype: str, want: Expected
) -> tuple[dict[str, float | None], list[str]]:
    """Compare a runner's logits and labels with the float64 reference's, on a photo.

    Args:
        outputs: by scope, of the first and last image of the batch.
        dtype: whose limits of :data:`stdc_fast.numerics.TOLERANCES` hold, for ours and for peers.

    Returns the relative error of the logits and the least agreement of labels (None where there are none),
    and what breaks the limits, one line each.
    """
    limit, found = tolerance(dtype), []
    error = agreement = None
    outputs = dict(outputs)
    if "logits" in outputs:
        logits = torch.from_numpy(outputs["logits"])
        if logits.shape != want.logits.shape:
            shapes = f"{list(logits.shape)} instead of {list(want.logits.shape)}"
            return {"logits": None, "labels": None}, [f"logits have the shape {shapes}"]
        error = relative_error(logits, want.logits)
        if limit.logits is not None and not error <= limit.logits:
            found.append(f"logits differ by {error:.1e}; {dtype} allows {limit.logits:.0e}")
        if len(outputs) == 1:  # nobody asked for labels: these are what the logits say
            outputs["labels"] = argmax(logits, want.labels["labels"].shape[1:], want.align_corners).numpy()
    for scope, reference in want.labels.items():
        if scope not in outputs:
            continue
        labels = torch.from_numpy(outputs[scope])
        if labels.shape != reference.shape:
            found.append(f"{scope} gives {list(labels.shape)} labels instead of {list(reference.shape)}")
            continue
        same = label_agreement(labels, reference)
        agreement = same if agreement is None else min(same, agreement)
        if not same >= limit.agreement:
            found.append(f"labels of scope {scope} agree on {same:.3%}; {dtype} needs {limit.agreement:.2%}")
    # NaN is no number in a record.
    return {"logits": error if error == error else None, "labels": agreement}, found
