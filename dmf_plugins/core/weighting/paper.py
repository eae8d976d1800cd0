"""The paper's own rules (Eq. 3-8) and its baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from dmf_plugins.core.constants import constant
from dmf_plugins.core.scaling import EPS, scale_history
from dmf_plugins.core.weighting.base import WEIGHTINGS, PriorRule, Rule, Window


def variance_of(scaled: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Population variance of each column over its ``count`` valid rows (Eq. 3), ``[N]``."""
    share = (valid / count).T
    mean = share @ scaled
    return (share @ (scaled - mean).square())[0]


def mad_of(scaled: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Median absolute deviation of each column over its ``count`` valid rows (Eq. 5), ``[N]``.

    The median of an even number is the mean of the two in the middle.
    """
    # sorted, the two in the middle (any while there is none); rows that are not valid are infinitely far away
    middle = ((count - constant((1, 0), count)) // 2).clamp_min(0)
    scaled = torch.where(valid, scaled, torch.inf)
    median = scaled.sort(dim=0).values.index_select(0, middle).mean(dim=0)
    distance = (scaled - median).abs()
    return distance.sort(dim=0).values.index_select(0, middle).mean(dim=0)


def inverse_score(spread: Tensor) -> Tensor:
    """Log of ``1 / (spread + eps)``; all ``-inf`` when every spread is zero and nothing can be told."""
    score = -(spread + EPS).log()
    return torch.where((spread > 0).any(), score, -torch.inf)


def _scaled(window: Window) -> Tensor:
    return scale_history(window.history, window.valid)


@WEIGHTINGS.register("fixed")
class Fixed(Rule):
    """``w_i`` stays at its initial value: the paper's baseline."""

    adapts = False


@WEIGHTINGS.register("variance")
class Variance(Rule):
    """``w_i = Var(H_i) / sum_j Var(H_j)`` (Eq. 3-4): terms that still move get more weight."""

    def forward(self, window: Window) -> Tensor:
        return variance_of(_scaled(window), window.valid, window.count()).log()


@WEIGHTINGS.register("mad")
class MAD(Rule):
    """``w_i`` proportional to ``1 / MAD(H_i)`` (Eq. 5-6): steady terms get more weight."""

    def forward(self, window: Window) -> Tensor:
        return inverse_score(mad_of(_scaled(window), window.valid, window.count()))


@WEIGHTINGS.register("bayesian")
class Bayesian(PriorRule):
    """``w_i`` proportional to ``p_i / MAD(H_i)`` (Eq. 7-8), the posterior becoming the next prior.

    Log space lets the posterior saturate at (0, ..., 1, ..., 0) instead of underflowing, as it does
    within a few hundred steps. ``forgetting`` or ``min_weight`` keeps every term alive.

    Args:
        forgetting: power on the old posterior, in (0, 1]: ``p_i ** forgetting / MAD(H_i)``. 1 is the
            paper; below 1 a step counts for about ``1 / (1 - forgetting)`` steps.

    Raises:
        ValueError: ``forgetting`` is out of range.
    """

    def __init__(self, forgetting: float = 1.0) -> None:
        super().__init__()
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must lie in (0, 1], got {forgetting!r}")
        self.forgetting = forgetting

    def forward(self, window: Window) -> Tensor:
        mad = mad_of(_scaled(window), window.valid, window.count())
        old = self.log_prior if self.forgetting == 1 else self.forgetting * self.log_prior
        return old + inverse_score(mad)
