"""How far a backend may be from the reference, by dtype: one table, with the reason for each limit.

"Relative error" is always ``||a - b|| / ||b||`` over the whole tensor, in float64.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from stdc_fast.reference.networks import upsample


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Limits for one dtype.

    Attributes:
        op: relative error of one op's output to the eager backend's, which rounds where the backend rounds.
        logits: relative error of a trained network's logits to the float64 reference; in float64 of any
            network's. (Random ones with every norm randomised reach 2.3e-5 in float32, in torch itself.)
        emulation: how many times the error of the emulation (:mod:`stdc_fast.backends.eager.rounding`)
            that of a network may be, trained or not.
        agreement: least share of pixels with the reference's label, trained weights on real photos.
        reason: where the limits come from.
    """

    op: float
    logits: float | None
    emulation: float | None
    agreement: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-10, None, 1.0, "sums in another order; rewrites are exact"),
    "float32": Tolerance(
        2e-6, 1e-5, None, 0.9999, "up to 9216 products summed in another order, forty layers deep"
    ),
    "float16": Tolerance(
        2.0**-12, 3e-3, 1.5, 0.998, "half a unit roundoff an op: only sums near a tie round otherwise"
    ),
    "bfloat16": Tolerance(
        2.0**-9, 2e-2, 1.5, 0.990, "the same, with eight bits of mantissa in place of eleven"
    ),
    "int8": Tolerance(
        2.0**-8,
        3e-2,
        1.5,
        0.98,
        "255 steps over the range of a map, in all convolutions as peers have it; mIoU must stay within half "
        "a point. Ours is held to less, see docs/quantisation.md",
    ),
}


def tolerance(dtype: torch.dtype | str) -> Tolerance:
    """The limits for a dtype, or for "int8", whatever its other maps are in. KeyError for others."""
    return TOLERANCES[str(dtype).removeprefix("torch.").partition("+")[0]]


def relative_error(a: Tensor, b: Tensor) -> float:
    """``||a - b|| / ||b||`` in float64, where ``b`` is the reference; NaN if either has one."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if a.shape != b.shape:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} differ")
    return ((a - b).norm() / b.norm()).item()


def label_agreement(a: Tensor, b: Tensor) -> float:
    """Share of equal labels."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} differ")
    return (a.cpu() == b.cpu()).double().mean().item()


def unexplained(labels: Tensor, logits: Tensor, error: float) -> int:
    """Number of pixels whose label the error of the logits can not explain.

    A label may differ from the reference's only where its class is within twice the error of the best.

    Args:
        labels: ``[N, H, W]``.
        logits: of the reference at that size, ``[N, C, H, W]``.
        error: greatest absolute difference of the logits to the reference's.
    """
    best = logits.amax(1)
    taken = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    return int((~(best - taken <= 2 * error)).sum())  # NaN explains nothing


def failures(
    dtype: torch.dtype | str,
    logits: Tensor,
    reference: Tensor,
    labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    emulated: Tensor | None = None,
    trained: bool = True,
) -> list[str]:
    """What breaks the contract of a dtype, one line each; empty if all holds.

    Args:
        dtype: see :func:`tolerance`.
        logits, reference: of the network and of the float64 reference, same shape.
        labels, reference_labels: of the same frames at the labels' size, where there are any.
        emulated: logits of the eager backend rounding as this one does.
        trained: whether the weights are; if not, only float64's limits on logits and labels hold.
    """
    limit, found = tolerance(dtype), []
    error = relative_error(logits, reference)
    absolute = trained or limit is TOLERANCES["float64"]
    if absolute and limit.logits is not None and not error <= limit.logits:
        found.append(f"logits differ by {error:.2e}, {dtype} allows {limit.logits:.0e}")
    if emulated is not None and limit.emulation is not None:
        expected = relative_error(emulated, reference)
        if not error <= limit.emulation * expected:
            found.append(
                f"logits differ by {error:.2e}, the emulation of {dtype} only by {expected:.2e}; "
                f"{limit.emulation} times that is allowed"
            )
    if labels is not None:
        odd = unexplained(labels, upsample(reference, labels.shape[1:]), _largest(logits, reference))
        if odd:
            found.append(f"{odd} labels differ by more than the error of the logits explains")
    if labels is not None and reference_labels is not None and absolute:
        agreement = label_agreement(labels, reference_labels)
        if not agreement >= limit.agreement:
            found.append(f"labels agree on {agreement:.4%}, {dtype} needs {limit.agreement:.2%}")
    return found


def _largest(a: Tensor, b: Tensor) -> float:
    return (a.detach().double() - b.detach().double()).abs().max().item()
