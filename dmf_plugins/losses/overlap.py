"""Terms that compare regions: IoU (Eq. 17), Dice (Eq. 18), Tversky (Eq. 20), CB-Dice (Eq. 21-25).

Each is a row of coefficients of the same soft counts, ``c = (tp, predicted, true)``:
``(n . c + smooth) / (d . c + smooth)`` per class. :func:`region_losses` computes any number of them,
over all scales, images and classes, in one expression. Scores are averaged over the classes that
occur in the target: an absent class would add a constant without a useful gradient, and a jump to
the loss history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dmf_plugins.core.constants import constant
from dmf_plugins.losses.base import LOSSES, SegmentationLoss
from dmf_plugins.losses.statistics import SegmentationStatistics, stack_counts

_TINY = 1e-8  # keeps 0/0 out when smooth is 0
Row = tuple[float, float, float]


class OverlapLoss(SegmentationLoss):
    """One minus a score of each class, averaged over the classes present in the target.

    A subclass gives :attr:`numerator` and :attr:`denominator`, coefficients of tp, predicted and
    true pixels, or overrides :meth:`score`.

    Args:
        include_background: whether class 0 counts (the paper: yes; nnU-Net's Dice: no).
        batch_dice: pool the counts over the batch; otherwise score every image and average.
        smooth: added to numerator and denominator.
        **shared: arguments of :class:`SegmentationLoss`.

    Raises:
        ValueError: ``smooth`` is negative or not finite.
    """

    numerator: Row
    denominator: Row

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

    @property
    def pooled(self) -> bool:
        """Whether the batch is scored as one image."""
        return self.batch_dice

    @property
    def inverse_pixels(self) -> Literal["batch", "image"] | None:
        """Whose pixels the class weights are the inverse of; None weighs present classes alike."""
        return None

    def score(self, tp: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Score in [0, 1] of every class, from tp, tp + fp and tp + fn, of one shape."""
        (a, b, c), (d, e, f) = self.numerator, self.denominator
        return self.ratio(a * tp + b * predicted + c * true, d * tp + e * predicted + f * true)

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Smoothed quotient."""
        if self.smooth == 0:
            return numerator / denominator.clamp_min(_TINY)
        return (numerator + self.smooth) / (denominator + self.smooth)

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        return self.over_scales([statistics], [1.0])

    def over_scales(
        self, scales: Sequence[SegmentationStatistics], weights: Sequence[float]
    ) -> Tensor:
        return region_losses([self], scales, weights)[0]


def region_losses(
    terms: Sequence[OverlapLoss],
    scales: Sequence[SegmentationStatistics],
    weights: Sequence[float],
) -> Tensor:
    """Values of all region terms, ``[T]``, summed over the scales of a batch by their weights."""
    counts = stack_counts(scales)
    pooled = [term.pooled for term in terms]
    if len(set(pooled)) == 1:
        return _group(terms, counts, weights, pooled[0])
    order = sorted(range(len(terms)), key=lambda i: pooled[i])
    parts = [
        _group([t for t, p in zip(terms, pooled, strict=True) if p == way], counts, weights, way)
        for way in (False, True)
    ]
    return torch.cat(parts)[[order.index(i) for i in range(len(terms))]]


def _group(
    terms: Sequence[OverlapLoss], counts: Tensor, weights: Sequence[float], pooled: bool
) -> Tensor:
    """Values ``[T]`` of terms that pool the batch alike."""
    if pooled:
        counts = counts.sum(dim=2, keepdim=True)
    share = _class_weights(terms, counts.detach()[2])
    if list(weights) != [1.0]:
        share = share * constant(tuple(weights), share)[:, None, None, None]
    return (_class_losses(terms, counts) * share).flatten(1).sum(dim=1)


def _class_losses(terms: Sequence[OverlapLoss], counts: Tensor) -> Tensor:
    """One minus the score of every class, ``[T, S, G, R, K]``, from counts ``[3, S, G, R, K]``."""
    if any(type(term).score is not OverlapLoss.score for term in terms):
        return torch.stack([1 - term.score(*counts) for term in terms])
    # 1 - (n c + s) / (d c + s) = (d - n) c / (d c + s)
    bottom = [term.denominator for term in terms]
    top = [
        tuple(d - n for n, d in zip(term.numerator, term.denominator, strict=True))
        for term in terms
    ]
    smooth = [(0.0,)] * len(terms) + [(term.smooth or _TINY,) for term in terms]
    rows = constant((*top, *bottom), counts)
    sums = torch.addmm(constant(tuple(smooth), counts), rows, counts.flatten(1))
    numerator, denominator = sums.unflatten(1, counts.shape[1:]).chunk(2)
    return numerator / denominator


def _class_weights(terms: Sequence[OverlapLoss], true: Tensor) -> Tensor:
    """Weight of every class in the mean over classes, images and groups, ``[T, S, G, R, K]``.

    Args:
        terms: the terms.
        true: pixels of each class, ``[S, G, R, K]``.

    Returns:
        Weights of sum 1 for each term and scale; all zero where no class is present.
    """
    weight = (true > 0)[None]
    for whose in ("batch", "image"):
        power = tuple(-1.0 if term.inverse_pixels == whose else 0.0 for term in terms)
        if any(power):
            pixels = true.sum(dim=1, keepdim=True) if whose == "batch" else true
            weight = weight * pixels.clamp_min(1) ** constant(power, true).view(-1, 1, 1, 1, 1)
    if not all(term.include_background for term in terms):
        rest = (1.0,) * (true.shape[-1] - 1)
        keep = tuple((float(term.include_background), *rest) for term in terms)
        weight = weight * constant(keep, true)[:, None, None, None]
    total = weight.sum(dim=-1, keepdim=True, dtype=true.dtype)
    if total.shape[2] * total.shape[3] > 1:
        weight = weight / (total > 0).sum(dim=(2, 3), keepdim=True).clamp_min(1)
    return weight / total.clamp_min(torch.finfo(true.dtype).tiny)


@LOSSES.register("dice")
class DiceLoss(OverlapLoss):
    """Mean soft Dice loss, ``1 - 2 TP / (2 TP + FP + FN)`` (Eq. 18). Arguments: :class:`OverlapLoss`."""

    numerator = (2, 0, 0)
    denominator = (0, 1, 1)


@LOSSES.register("iou")
class IoULoss(OverlapLoss):
    """Mean soft IoU (Jaccard) loss, ``1 - TP / (TP + FP + FN)`` (Eq. 17). Arguments: :class:`OverlapLoss`."""

    numerator = (1, 0, 0)
    denominator = (-1, 1, 1)


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

    numerator = (1, 0, 0)

    @property
    def denominator(self) -> Row:  # type: ignore[override]
        return (1 - self.alpha - self.beta, self.alpha, self.beta)


@LOSSES.register("cb_dice")
class ClassBalancedDiceLoss(DiceLoss):
    """Class-balanced Dice loss, ``1 - sum_c w_c Dice_c`` (Eq. 21-25).

    ``w_c`` is the inverse of the share of labelled pixels that belong to class c, normalised over
    the classes present in the target, so that a rare lesion outweighs the background. (The text
    around Eq. 22 also speaks of one minus the ratio; the equation is followed.) Not to be confused
    with "cbDice", centerline boundary Dice (MICCAI 2024).

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

    @property
    def pooled(self) -> bool:
        return self.batch_dice and self.ratios == "batch"

    @property
    def inverse_pixels(self) -> Literal["batch", "image"]:
        return self.ratios
