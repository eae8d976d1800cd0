"""Dynamic Weight Average: more weight to the terms that fell least from epoch to epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Window

_TINY = 1e-30


@WEIGHTINGS.register("dwa")
def dwa(window: Window, temperature: float = 2.0) -> Tensor:
    """``w_i = exp(r_i / T) / sum_j exp(r_j / T)``, ``r_i`` the ratio of its last two epoch means.

    S. Liu, E. Johns, A. Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, Eq. 7.
    (There the weights sum to N.) The two epochs are the newer and the older half of the memory, so
    that with ``memory_size`` and ``min_history`` of two epochs the weights at the end of each epoch
    are the paper's; between, the halves slide.

    Args:
        window: the memory.
        temperature: T; larger makes the weights more alike.
    """
    new, old = window.blocks(2)
    ratio = torch.where(old.abs() > _TINY, new / old, 1.0)
    return torch.where(old.isnan(), -torch.inf, ratio / temperature)
