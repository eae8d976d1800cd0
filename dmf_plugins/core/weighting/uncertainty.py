"""Uncertainty weighting: the weights are learned with the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmf_plugins.core.weighting.base import WEIGHTINGS, Rule

if TYPE_CHECKING:
    from dmf_plugins.core.config import DMFConfig


@WEIGHTINGS.register("uncertainty")
class Uncertainty(Rule):
    """``L = sum_i exp(-s_i) L_i + s_i`` with learned log-variances ``s_i``.

    A. Kendall, Y. Gal, R. Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics", CVPR 2018, Eq. 7, up to constant factors. ``s_i`` is the
    rule's parameter ``log_variance`` and belongs into the optimizer; the reported weights are the
    factors ``exp(-s_i)`` normalised to sum 1. Where a framework builds its optimizer before the loss
    (nnU-Net) the rule is refused.
    """

    adapts = False
    log_variance: nn.Parameter

    def initial_state(self, config: DMFConfig) -> dict[str, Tensor]:
        if config.min_weight > 0 or config.weight_ema is not None:
            raise ValueError(
                "'uncertainty' weights are learned: min_weight and weight_ema do not apply"
            )
        initial = config.initial_distribution(len(config.losses))
        if min(initial) == 0:
            raise ValueError(f"initial_weights must be positive for 'uncertainty', got {initial}")
        # equal weights start at factor 1, as in Kendall's total
        return {"log_variance": nn.Parameter(-(len(initial) * torch.tensor(initial)).log())}

    def factors(self, weights: Tensor) -> Tensor:
        return (-self.log_variance).exp()

    def penalty(self) -> Tensor:
        return self.log_variance.sum()
