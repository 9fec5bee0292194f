"""Eager STDC networks and losses: plain PyTorch, float64-able, the oracle of every backend."""

from stdc_fast.reference.layers import (
    AttentionRefinement,
    ConvBNReLU,
    FeatureFusion,
    SegHead,
    STDCAddModule,
    STDCModule,
)
from stdc_fast.reference.losses import (
    DetailAggregation,
    LossTerms,
    OhemCrossEntropy,
    SegmentationLoss,
    detail_loss,
    dice_loss,
    soft_jaccard_loss,
)
from stdc_fast.reference.networks import (
    ContextPath,
    STDCBackbone,
    STDCClassifier,
    STDCSeg,
    TrainingOutput,
)

__all__ = [
    "AttentionRefinement",
    "ContextPath",
    "ConvBNReLU",
    "DetailAggregation",
    "FeatureFusion",
    "LossTerms",
    "OhemCrossEntropy",
    "STDCAddModule",
    "STDCBackbone",
    "STDCClassifier",
    "STDCModule",
    "STDCSeg",
    "SegHead",
    "SegmentationLoss",
    "TrainingOutput",
    "detail_loss",
    "dice_loss",
    "soft_jaccard_loss",
]
