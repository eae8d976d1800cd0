"""Terms that average over pixels: cross-entropy (Eq. 16), its hardest pixels, and focal (Eq. 19)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmf_plugins.core.constants import constant
from dmf_plugins.losses.base import LOSSES, SegmentationLoss
from dmf_plugins.losses.statistics import SegmentationStatistics


@LOSSES.register("ce")
class CrossEntropyLoss(SegmentationLoss):
    """Categorical cross-entropy, mean over labelled pixels (Eq. 16).

    In sigmoid mode binary cross-entropy, mean over labelled pixels and channels. Shapes:
    :class:`SegmentationLoss`.

    Args:
        class_weights: weight of each class, as the ``weight`` of torch's own: the mean becomes
            ``sum_p w_y(p) nll(p) / sum_p w_y(p)``. In sigmoid mode background and foreground.
        **shared: arguments of :class:`SegmentationLoss`.

    Raises:
        ValueError: a weight is negative or not finite, all are zero, or there are too many or few.
    """

    def __init__(self, *, class_weights: Sequence[float] | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        weights = None if class_weights is None else tuple(float(w) for w in class_weights)
        if weights is not None and not (sum(weights) > 0 and math.isfinite(sum(weights))):
            raise ValueError(f"class_weights must be finite and not all zero, got {weights}")
        if weights is not None and min(weights) < 0:
            raise ValueError(f"class_weights must not be negative, got {weights}")
        self.class_weights = weights

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        if self.class_weights is None:
            return self.over_scales([statistics], [1.0])
        if len(self.class_weights) != statistics.classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} values, the logits "
                f"{statistics.classes} classes"
            )
        weight = constant(self.class_weights, statistics.loglik)[statistics.true_class]
        if statistics.ignored is not None:
            weight = weight.masked_fill(statistics.ignored, 0.0)
        total = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        return -(weight * statistics.loglik).sum() / total

    def over_scales(
        self, scales: Sequence[SegmentationStatistics], weights: Sequence[float]
    ) -> Tensor:
        if self.class_weights is not None:
            return super().over_scales(scales, weights)
        sums = [scale.loglik.sum() for scale in scales]
        factors = _per_pixel(scales, weights, like=sums[0])
        return sums[0] * factors[0] if len(sums) == 1 else torch.stack(sums) @ factors


def _per_pixel(
    scales: Sequence[SegmentationStatistics], weights: Sequence[float], like: Tensor
) -> Tensor:
    """Factor that makes a sum of log-likelihoods the mean loss per labelled pixel, ``[S]``."""
    numbers = [scale.num_labelled for scale in scales]
    if isinstance(numbers[0], int):
        return constant(tuple(-w / n for w, n in zip(weights, numbers, strict=True)), like)
    pixels = torch.stack([torch.as_tensor(number) for number in numbers]).clamp_min(1)
    return constant(tuple(-w for w in weights), like) / pixels


@LOSSES.register("topk")
class TopKLoss(SegmentationLoss):
    """Cross-entropy of the hardest pixels of the batch, mean over the ``k`` percent with the largest.

    Z. Wu, C. Shen, A. van den Hengel, "Bridging Category-level and Instance-level Semantic Image
    Segmentation", arXiv 1605.06885; nnU-Net's ``TopKLoss``. The percentage is of labelled pixels
    (in sigmoid mode of those of each channel), rounded down, at least one.

    Args:
        k: percentage of the pixels, in (0, 100].
        **shared: arguments of :class:`SegmentationLoss`.

    Raises:
        ValueError: ``k`` is out of range.
    """

    def __init__(self, *, k: float = 10.0, **shared: Any) -> None:
        super().__init__(**shared)
        if not 0 < k <= 100:
            raise ValueError(f"k must be a percentage in (0, 100], got {k!r}")
        self.k = float(k)

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        nll = -statistics.loglik.transpose(0, 1).flatten(1)  # [R, B P]
        most = max(1, int(nll.shape[1] * self.k / 100))
        hardest = nll.topk(most, dim=1).values
        if isinstance(statistics.labelled, int):
            return hardest.mean()
        # ignored pixels are the easiest
        wanted = (statistics.labelled.sum(dim=0) * self.k / 100).floor().clamp_min(1)[:, None]
        inside = torch.arange(most, device=nll.device) < wanted
        return (torch.where(inside, hardest, 0.0) / wanted).sum(dim=1).mean()


@LOSSES.register("focal")
class FocalLoss(SegmentationLoss):
    """Focal loss ``-alpha_c (1 - p)^gamma log p`` of the true class, mean over pixels (Eq. 19).

    Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Args:
        gamma: focusing exponent, at least 0.
        alpha: balance, one number for all classes or one for each class (each channel in sigmoid
            mode; for one sigmoid channel also ``(background, foreground)``).
        **shared: arguments of :class:`SegmentationLoss`.

    Raises:
        ValueError: ``gamma`` or ``alpha`` is negative or not finite, or ``alpha`` has the wrong length.
    """

    def __init__(
        self, *, gamma: float = 2.0, alpha: float | Sequence[float] = 0.25, **shared: Any
    ) -> None:
        super().__init__(**shared)
        values = [float(alpha)] if isinstance(alpha, (int, float)) else [float(a) for a in alpha]
        for name, value in [("gamma", gamma), *(("alpha", a) for a in values)]:
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        self.gamma = float(gamma)
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(values), persistent=False)

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        nll = -statistics.loglik
        # below the floor the term is zero to any precision, and for gamma < 1 its slope infinite
        miss = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)
        pixels = self._alpha_for(statistics) * miss.pow(self.gamma) * nll
        (factor,) = _per_pixel([statistics], [-1.0], like=nll)
        return pixels.sum() * factor

    def _alpha_for(self, statistics: SegmentationStatistics) -> Tensor:
        """Balance of every pixel, to broadcast over ``[B, R, P]``."""
        groups, classes = statistics.groups, statistics.classes
        alpha = self.alpha.to(statistics.loglik.dtype)
        if len(alpha) == 1:
            return alpha
        if groups > 1 and len(alpha) == groups:
            return alpha[:, None]
        if groups == 1 and len(alpha) == classes:
            return alpha[statistics.true_class]
        raise ValueError(
            f"alpha has {len(alpha)} values, the logits {max(groups, classes)} classes"
        )
