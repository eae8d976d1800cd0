"""Terms that compare regions: IoU (Eq. 17), Dice (Eq. 18), Tversky (Eq. 20), CB-Dice (Eq. 21-25).

All come from the same soft counts. Scores are averaged over the classes that occur in the target:
an absent class would add a constant without a useful gradient, and a jump to the loss history.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from dmf_plugins.losses.base import LOSSES, SegmentationLoss
from dmf_plugins.losses.statistics import SegmentationStatistics, class_mean_weights

_TINY = 1e-8  # keeps 0/0 out when smooth is 0


class OverlapLoss(SegmentationLoss):
    """One minus a score of each class, averaged over the classes present in the target.

    Args:
        include_background: whether class 0 counts (the paper: yes; nnU-Net's Dice: no).
        batch_dice: pool the counts over the batch; otherwise score every image and average.
        smooth: added to numerator and denominator.
        **shared: arguments of :class:`SegmentationLoss`.

    Raises:
        ValueError: ``smooth`` is negative or not finite.
    """

    def __init__(
        self,
        *,
        include_background: bool = True,
        batch_dice: bool = True,
        smooth: float = 1e-5,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if not math.isfinite(smooth) or smooth < 0:
            raise ValueError(f"smooth must be finite and not negative, got {smooth!r}")
        self.include_background = include_background
        self.batch_dice = batch_dice
        self.smooth = smooth

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        counts = statistics.pooled(self.batch_dice, self.include_background)
        weight = statistics.presence(self.batch_dice, self.include_background)
        return mean_loss(self.score(*counts), weight)

    def score(self, hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Score in [0, 1] of every class, from TP, TP + FP and TP + FN."""
        raise NotImplementedError(f"{type(self).__name__} must define score(hits, predicted, true)")

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Smoothed quotient."""
        if self.smooth == 0:
            return numerator / denominator.clamp_min(_TINY)
        return (numerator + self.smooth) / (denominator + self.smooth)


def mean_loss(score: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of ``1 - score``, from weights of :func:`~.statistics.class_mean_weights`, 0-d."""
    return ((1 - score) * weight).sum()


@LOSSES.register("dice")
class DiceLoss(OverlapLoss):
    """Mean soft Dice loss, ``1 - 2 TP / (2 TP + FP + FN)`` (Eq. 18). Arguments: :class:`OverlapLoss`."""

    def score(self, hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return self.ratio(2 * hits, predicted + true)


@LOSSES.register("iou")
class IoULoss(OverlapLoss):
    """Mean soft IoU (Jaccard) loss, ``1 - TP / (TP + FP + FN)`` (Eq. 17). Arguments: :class:`OverlapLoss`."""

    def score(self, hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return self.ratio(hits, predicted + true - hits)


@LOSSES.register("tversky")
class TverskyLoss(OverlapLoss):
    """Mean soft Tversky loss, ``1 - TP / (TP + alpha FP + beta FN)`` (Eq. 20).

    Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep
    networks", MLMI 2017.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives.
        **shared: arguments of :class:`OverlapLoss`.

    Raises:
        ValueError: ``alpha`` or ``beta`` is negative or not finite, or both are zero.
    """

    def __init__(self, *, alpha: float = 0.7, beta: float = 0.3, **shared: Any) -> None:
        super().__init__(**shared)
        if not all(math.isfinite(v) and v >= 0 for v in (alpha, beta)) or alpha + beta == 0:
            raise ValueError(
                f"alpha and beta must not be negative or both zero, got {alpha}, {beta}"
            )
        self.alpha = alpha
        self.beta = beta

    def score(self, hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        wrong = self.alpha * (predicted - hits) + self.beta * (true - hits)
        return self.ratio(hits, hits + wrong)


@LOSSES.register("cb_dice")
class ClassBalancedDiceLoss(DiceLoss):
    """Class-balanced Dice loss, ``1 - sum_c w_c Dice_c`` (Eq. 21-25).

    ``w_c`` is the inverse of the share of labelled pixels that belong to class c, normalised over
    the classes present in the target, so that a rare lesion outweighs the background. (The text
    around Eq. 22 also speaks of one minus the ratio; the equation is followed.)

    Args:
        ratios: ``batch`` takes the shares from the whole batch; ``image`` from each image, which
            is then scored by itself whatever ``batch_dice`` says.
        **shared: arguments of :class:`OverlapLoss`.

    Raises:
        ValueError: ``ratios`` is neither.
    """

    def __init__(self, *, ratios: Literal["batch", "image"] = "batch", **shared: Any) -> None:
        super().__init__(**shared)
        if ratios not in ("batch", "image"):
            raise ValueError(f"ratios must be 'batch' or 'image', got {ratios!r}")
        self.ratios = ratios

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        pooled = self.batch_dice and self.ratios == "batch"
        hits, predicted, true = statistics.pooled(pooled, self.include_background)
        pixels = true.sum(dim=0, keepdim=True) if self.ratios == "batch" else true
        weight = (true > 0) / pixels.clamp_min(1)
        return mean_loss(self.score(hits, predicted, true), class_mean_weights(weight))
