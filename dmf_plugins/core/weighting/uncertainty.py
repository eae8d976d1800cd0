"""Uncertainty weighting: the weights are learned with the network."""

from __future__ import annotations

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Window


@WEIGHTINGS.register("uncertainty")
class Uncertainty:
    """``L = sum_i exp(-s_i) L_i + s_i`` with learned log-variances ``s_i``.

    A. Kendall, Y. Gal, R. Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
    Geometry and Semantics", CVPR 2018, Eq. 7, up to constant factors. ``s_i`` is the parameter
    ``log_variance`` of the fusion and belongs into the optimizer; the reported weights are the
    factors ``exp(-s_i)`` normalised to sum 1. Where a framework builds its optimizer before the loss
    (nnU-Net) the rule is refused.
    """

    learned = True

    def __call__(self, window: Window) -> Tensor:
        # nothing to learn from the memory
        return torch.full_like(window.log_prior, -torch.inf)
