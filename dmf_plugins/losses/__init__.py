"""Differentiable segmentation losses and their fusion; needs torch only."""

from dmf_plugins.losses.base import LOSSES, SegmentationLoss
from dmf_plugins.losses.dmf import DMFLoss
from dmf_plugins.losses.overlap import (
    ClassBalancedDiceLoss,
    DiceLoss,
    IoULoss,
    OverlapLoss,
    TverskyLoss,
)
from dmf_plugins.losses.pixelwise import CrossEntropyLoss, FocalLoss

__all__ = [
    "LOSSES",
    "ClassBalancedDiceLoss",
    "CrossEntropyLoss",
    "DMFLoss",
    "DiceLoss",
    "FocalLoss",
    "IoULoss",
    "OverlapLoss",
    "SegmentationLoss",
    "TverskyLoss",
]
