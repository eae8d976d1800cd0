"""Normalisation of a loss history before its statistics are taken (Eq. 9 and 10)."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7


def symlog(history: Tensor) -> Tensor:
    """Symmetric logarithm, ``sign(h) * log(1 + |h|)`` (Eq. 10)."""
    return history.abs().log1p().copysign(history)


def minmax(history: Tensor, valid: Tensor, eps: float = EPS) -> Tensor:
    """Scale every column of ``history`` to [0, 1] over its valid rows (Eq. 9).

    Args:
        history: ``[M, N]`` values.
        valid: ``[M, 1]`` bool, True for rows that hold a recorded step; the last one does.
        eps: added to the range, so that a constant column becomes zeros rather than NaN.

    Returns:
        ``[M, N]``; rows that are not valid hold anything finite.
    """
    # a valid row in the place of the others leaves minimum and maximum alone
    known = torch.where(valid, history, history[-1])
    low, high = known.aminmax(dim=0)
    return (known - low) / (high - low + eps)


def scale_history(history: Tensor, valid: Tensor) -> Tensor:
    """Eq. 10 followed by Eq. 9, the order the paper prescribes in section 4.6.

    The result does not change under a positive affine map of ``symlog(history)``, that is under
    ``h -> k * (1 + h) ** a - 1`` for non-negative losses (up to ``eps``). Plain rescaling
    ``h -> k * h`` is *not* neutral, because Eq. 10 comes first.
    """
    return minmax(symlog(history), valid)
