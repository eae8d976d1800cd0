"""Decay of the auxiliary loss (Eq. 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmf_plugins.core.constants import constant


def auxiliary_factor(step: Tensor, gamma0: float, decay_rate: float, decay_interval: int) -> Tensor:
    """``gamma(t) = gamma0 * exp(-decay_rate * t)`` with ``t`` the completed decay intervals (Eq. 2).

    Args:
        step: 0-d integer tensor, recorded steps so far.
        gamma0: initial factor.
        decay_rate: tau in Eq. 2, per decay interval.
        decay_interval: steps in one interval.

    Returns:
        0-d float32 tensor on the device of ``step``.
    """
    intervals = step // decay_interval
    start = constant(math.log(gamma0) if gamma0 > 0 else -math.inf, step, torch.float32)
    return torch.sub(start, intervals, alpha=decay_rate).exp()
