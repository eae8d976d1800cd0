"""The paper's own rules (Eq. 3-8) and its baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from dmf_plugins.core.scaling import EPS
from dmf_plugins.core.weighting.base import WEIGHTINGS, Window


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
