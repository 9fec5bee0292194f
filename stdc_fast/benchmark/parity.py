"""The parity gate: who computes something else is not timed."""

from __future__ import annotations

import numpy as np
import torch

from stdc_fast.benchmark.workloads import Expected
from stdc_fast.numerics import label_agreement, relative_error, tolerance

#: Peers on random weights may be this many times as wrong as the emulation: they round more often than
#: ours do (before batch norm, say), which is not what they are timed for.
PEER_EMULATION = 3.0
#: The limit on float32's logits is one for trained weights; random ones reach 2.3e-5 in torch itself.
RANDOM_FLOAT32 = 10.0


def gate(
    outputs: dict[str, np.ndarray], dtype: str, want: Expected, trained: bool, ours: bool
) -> tuple[dict[str, float | None], list[str]]:
    """Compare a runner's logits and labels with the reference's, on a photo.

    Args:
        outputs: by scope, of the first and last image.
        dtype: whose limits of :data:`stdc_fast.numerics.TOLERANCES` hold.
        trained: limits on logits and agreement hold for trained weights only; with random ones the error is
            held against that of the emulation.
        ours: whether it is this library; see :data:`PEER_EMULATION`.

    Returns the relative error of the logits and the least agreement of labels (None where not asked for),
    and what breaks the limits, one line each.
    """
    limit, found = tolerance(dtype), []
    error = agreement = None
    if "logits" in outputs:
        logits = torch.from_numpy(outputs["logits"])
        if logits.shape != want.logits.shape:
            shapes = f"{list(logits.shape)} instead of {list(want.logits.shape)}"
            return {"logits": None, "labels": None}, [f"logits have the shape {shapes}"]
        error = relative_error(logits, want.logits)
        if not error <= (allowed := _allowed(dtype, want, trained, ours)):
            found.append(f"logits differ by {error:.1e}; {dtype} allows {allowed:.1e}")
    for scope, reference in want.labels.items():
        if scope not in outputs:
            continue
        labels = torch.from_numpy(outputs[scope])
        if labels.shape != reference.shape:
            shapes = f"{list(labels.shape)} instead of {list(reference.shape)}"
            found.append(f"labels of scope {scope} have the shape {shapes}")
            continue
        same = label_agreement(labels, reference)
        agreement = same if agreement is None else min(same, agreement)
        if trained and not same >= limit.agreement:
            found.append(f"labels of scope {scope} agree on {same:.3%}; {dtype} needs {limit.agreement:.2%}")
    return {"logits": error, "labels": agreement}, found


def _allowed(dtype: str, want: Expected, trained: bool, ours: bool) -> float:
    limit = tolerance(dtype)
    if trained or dtype not in want.emulated:
        if limit.logits is None:  # 8 bits
            return float("inf")
        return limit.logits * (1.0 if trained else RANDOM_FLOAT32)
    emulated = relative_error(want.emulated[dtype], want.logits)
    return emulated * (limit.emulation if ours else PEER_EMULATION)
