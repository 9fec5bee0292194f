"""Detail aggregation and the losses of STDC-Seg (paper section 3.3), plain PyTorch.

Labels are int64 ``[N, H, W]`` with 255 for pixels that do not count; logits are ``[N, C, h, w]`` at
any size and are resized bilinearly (align_corners=True) to where they are compared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdc_fast.reference.networks import TrainingOutput, upsample

IGNORE = 255


class DetailAggregation(nn.Module):
    """Binary detail ground truth from a label map (paper section 3.3, figure 5, equation 2).

    The Laplacian of the class ids (zero-padded, negative values dropped) at strides 1, 2 and 4,
    each thresholded and brought back to full size (nearest), summed with weights 0.6, 0.3 and 0.1
    and thresholded again. The weights are constants: the paper calls them learnable, but its own
    code never trains them. Comparisons are strict, as published, so an edge that only stride 4
    sees (0.1) is not one.

    Shape: labels ``[N, H, W]`` to float32 0/1 ``[N, 1, H, W]``.
    """

    strides = (1, 2, 4)
    weights = (0.6, 0.3, 0.1)
    threshold = 0.1

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.full((1, 1, 3, 3), -1.0)
        kernel[0, 0, 1, 1] = 8.0
        self.register_buffer("laplacian", kernel, persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        x = labels.unsqueeze(1).to(self.laplacian.dtype)
        total = torch.zeros_like(x)
        for stride, weight in zip(self.strides, self.weights, strict=True):
            edges = F.conv2d(x, self.laplacian, stride=stride, padding=1) > self.threshold
            total += weight * F.interpolate(edges.to(x.dtype), x.shape[2:], mode="nearest")
        return (total > self.threshold).to(x.dtype)


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss of a binary map (paper equation 4): mean over N of
    ``1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)`` with ``p = sigmoid(logits)``.

    Shapes: both ``[N, ...]``, equal. Returns a scalar.
    """
    p = logits.sigmoid().flatten(1)
    t = target.flatten(1)
    ratio = (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)
    return (1 - ratio).mean()


def detail_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of the detail head (paper equation 3).

    ``logits`` ``[N, 1, h, w]`` are first resized to ``target`` ``[N, 1, H, W]``.
    """
    logits = upsample(logits.float(), target.shape[2:])
    return F.binary_cross_entropy_with_logits(logits, target), dice_loss(logits, target)


class OhemCrossEntropy(nn.Module):
    """Cross-entropy over the hard pixels only (online hard example mining, arXiv 1604.03540).

    Pixels are hard where the true class has less than ``threshold`` probability; if these are fewer
    than ``min_kept`` of all pixels, the hardest ``min_kept`` are taken. The result is their mean,
    weighted by class if ``class_weights`` are given. A batch without a labelled pixel gives 0.

    Args:
        threshold: probability in (0, 1).
        min_kept: share of all pixels in [0, 1]; 1 keeps every labelled pixel (plain cross-entropy).
        class_weights: ``[C]`` or None.
        ignore_index: label that does not count.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: float = 1 / 16,
        class_weights: Tensor | None = None,
        ignore_index: int = IGNORE,
    ):
        super().__init__()
        if not 0 < threshold < 1 or not 0 <= min_kept <= 1:
            raise ValueError(
                f"threshold must lie in (0, 1) and min_kept in [0, 1], not {threshold}, {min_kept}"
            )
        self.loss_threshold = -math.log(threshold)
        self.min_kept = min_kept
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``logits`` ``[N, C, H, W]``, ``labels`` ``[N, H, W]``; returns a scalar."""
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="none").flatten()
        labels = labels.flatten()
        with torch.no_grad():
            valid = labels != self.ignore_index
            kept = valid & (losses > self.loss_threshold)
            wanted = min(int(self.min_kept * labels.numel()), int(valid.sum()))
            if int(kept.sum()) < wanted:
                ranked = losses.masked_fill(~valid, -1.0)
                kept = torch.zeros_like(valid)
                kept[ranked.topk(wanted).indices] = True
            weights = kept.to(losses.dtype)
            if self.class_weights is not None:
                weights *= self.class_weights.to(losses.dtype)[labels.where(kept, 0)]
        return (losses * weights).sum() / weights.sum().clamp_min(1e-12)


def soft_jaccard_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """One minus the soft intersection over union, averaged over the classes present in the batch.

    ``sum(p t) / (sum(p) + sum(t) - sum(p t))`` by class over all labelled pixels of the batch, with p the
    softmax. Cross-entropy weighs every pixel; this weighs every class as the metric does, so that thin
    ones are not given up. A batch without a labelled pixel gives 0.

    Shapes: ``[N, C, H, W]`` and ``[N, H, W]``; returns a scalar.
    """
    valid = (labels != ignore_index).unsqueeze(1)
    p = logits.softmax(1) * valid
    index = labels.unsqueeze(1).where(valid, 0)
    hit = p.gather(1, index).flatten()
    zeros = p.new_zeros(p.shape[1])
    hits = zeros.index_add(0, index.flatten(), hit)
    true = zeros.index_add(0, index.flatten(), valid.flatten().to(p.dtype))
    iou = hits / (p.sum((0, 2, 3)) + true - hits).clamp_min(1e-6)
    present = (true > 0).to(p.dtype)
    return ((1 - iou) * present).sum() / present.sum().clamp_min(1)


class LossTerms(NamedTuple):
    """Scalars of one batch; ``total`` is the weighted sum that is minimised."""

    total: Tensor
    main: Tensor
    aux16: Tensor
    aux32: Tensor
    detail_bce: Tensor
    detail_dice: Tensor
    jaccard: Tensor


class SegmentationLoss(nn.Module):
    """The whole training loss: OHEM cross-entropy of three heads, BCE and dice of the detail head.

    Args:
        ohem: the cross-entropy of main and auxiliary heads.
        aux_weight: weight of each auxiliary head (1 in the paper's code).
        detail_weight: weight of the detail terms.
        jaccard_weight: weight of :func:`soft_jaccard_loss` on the main head; the paper has none.
        stride: compare the class heads on every stride-th row and column only. At 8x up-sampled logits
            neighbours say nearly the same, and on a CPU full size takes half of the training time.
    """

    def __init__(
        self,
        ohem: OhemCrossEntropy | None = None,
        aux_weight: float = 1.0,
        detail_weight: float = 1.0,
        jaccard_weight: float = 0.0,
        stride: int = 1,
    ):
        super().__init__()
        self.ohem = ohem or OhemCrossEntropy()
        self.detail = DetailAggregation()
        self.aux_weight = aux_weight
        self.detail_weight = detail_weight
        self.jaccard_weight = jaccard_weight
        self.stride = stride

    def forward(self, output: TrainingOutput, labels: Tensor) -> LossTerms:
        size = [-(-n // self.stride) for n in labels.shape[1:]]
        picked = labels
        for dim, n in enumerate(size, start=1):
            # Where align_corners=True puts the n samples, to the nearest label.
            where = torch.linspace(0, labels.shape[dim] - 1, n, device=labels.device)
            picked = picked.index_select(dim, where.round().long())
        logits = [upsample(x.float(), size) for x in output[:3]]
        main, aux16, aux32 = (self.ohem(x, picked) for x in logits)
        bce, dice = detail_loss(output.detail, self.detail(labels))
        total = main + self.aux_weight * (aux16 + aux32) + self.detail_weight * (bce + dice)
        jaccard = torch.zeros_like(main)
        if self.jaccard_weight:
            jaccard = soft_jaccard_loss(logits[0], picked)
            total = total + self.jaccard_weight * jaccard
        return LossTerms(total, main, aux16, aux32, bce, dice, jaccard)
