"""Rules that turn a memory of loss values into weights (Eq. 3-8).

A rule is a function ``Window -> Tensor[N]`` that returns one *log score* per term; the weights are
their softmax, so a rule need not normalise. ``-inf`` stands for weight zero. When no score is
finite, or any is NaN, the statistics are degenerate and the fusion keeps its last valid weights.
To add a rule, write such a function here (or anywhere) and register it::

    @WEIGHTINGS.register("range")
    def range_rule(window):
        '''w_i proportional to the range of the raw history.'''
        return (window.high() - window.low()).log()

Rules must not branch on tensor values: they run inside the training step, on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmf_plugins.core.scaling import EPS, scale_history
from dmf_plugins.registry import Registry


@dataclass(frozen=True)
class Window:
    """What a rule sees of the memory at one step.

    Attributes:
        history: ``[M, N]`` float32 raw loss values, oldest first, the current step last.
        valid: ``[M, 1]`` bool; False for rows at the top that no step has filled yet.
        log_prior: ``[N]`` log of the weights the rule gave last (the prior at first). With
            ``min_weight`` set, the bounded weights.
    """

    history: Tensor
    valid: Tensor
    log_prior: Tensor

    def count(self) -> Tensor:
        """Number of valid rows, 0-d int64."""
        return self.valid.sum()

    def low(self) -> Tensor:
        """Smallest valid value of each term, ``[N]``."""
        return torch.where(self.valid, self.history, torch.inf).amin(dim=0)

    def high(self) -> Tensor:
        """Largest valid value of each term, ``[N]``."""
        return torch.where(self.valid, self.history, -torch.inf).amax(dim=0)

    def scaled(self) -> Tensor:
        """History after Eq. 10 and Eq. 9, ``[M, N]``; zero in rows that are not valid."""
        return scale_history(self.history, self.valid)


Rule = Callable[[Window], Tensor]
WEIGHTINGS: Registry[Rule] = Registry("weighting")


def masked_median(values: Tensor, valid: Tensor) -> Tensor:
    """Median of each column over valid rows; mean of the two middle values for an even count.

    Args:
        values: ``[M, N]``.
        valid: ``[M, 1]`` bool with at least one True.

    Returns:
        ``[N]``.
    """
    ordered = torch.where(valid, values, torch.inf).sort(dim=0).values
    count = valid.sum()
    middle = torch.stack(((count - 1) // 2, count // 2)).clamp_min(0)
    return ordered.index_select(0, middle).mean(dim=0)


def variance_of(scaled: Tensor, valid: Tensor) -> Tensor:
    """Population variance of each column over valid rows (Eq. 3), ``[N]``."""
    count = valid.sum().clamp_min(1)
    mean = torch.where(valid, scaled, 0.0).sum(dim=0) / count
    return torch.where(valid, scaled - mean, 0.0).square().sum(dim=0) / count


def mad_of(scaled: Tensor, valid: Tensor) -> Tensor:
    """Median absolute deviation of each column over valid rows (Eq. 5), ``[N]``."""
    return masked_median((scaled - masked_median(scaled, valid)).abs(), valid)


def inverse_score(spread: Tensor) -> Tensor:
    """Log of ``1 / (spread + eps)``; all ``-inf`` when every spread is zero and nothing can be told."""
    score = -(spread + EPS).log()
    return torch.where((spread > 0).any(), score, -torch.inf)


@WEIGHTINGS.register("fixed")
def fixed(window: Window) -> Tensor:
    """``w_i`` stays at its initial value: the paper's baseline."""
    return torch.full_like(window.log_prior, -torch.inf)


@WEIGHTINGS.register("variance")
def variance(window: Window) -> Tensor:
    """``w_i = Var(H_i) / sum_j Var(H_j)`` (Eq. 3-4): terms that still move get more weight."""
    return variance_of(window.scaled(), window.valid).log()


@WEIGHTINGS.register("mad")
def mad(window: Window) -> Tensor:
    """``w_i`` proportional to ``1 / MAD(H_i)`` (Eq. 5-6): steady terms get more weight."""
    return inverse_score(mad_of(window.scaled(), window.valid))


@WEIGHTINGS.register("bayesian")
def bayesian(window: Window) -> Tensor:
    """``w_i`` proportional to ``p_i / MAD(H_i)`` (Eq. 7-8), the posterior becoming the next prior.

    Log space lets the posterior saturate at (0, ..., 1, ..., 0) instead of underflowing;
    ``min_weight`` keeps every term alive.
    """
    return window.log_prior + inverse_score(mad_of(window.scaled(), window.valid))
