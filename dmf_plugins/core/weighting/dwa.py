"""Dynamic Weight Average: more weight to the terms that fell least from epoch to epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, PriorRule, Window, check_memory

if TYPE_CHECKING:
    from dmf_plugins.core.config import DMFConfig

_TINY = 1e-30


@WEIGHTINGS.register("dwa")
class DWA(PriorRule):  # the prior is not used; states of 0.2.0 have one
    """``w_i = exp(r_i / T) / sum_j exp(r_j / T)``, ``r_i`` the ratio of its last two epoch means.

    S. Liu, E. Johns, A. Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, Eq. 7.
    (There the weights sum to N.) The two epochs are the newer and the older half of the memory, so
    that with ``memory_size`` and ``min_history`` of two epochs the weights at the end of each epoch
    are the paper's; between, the halves slide.

    Args:
        temperature: T; larger makes the weights more alike.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def initial_state(self, config: DMFConfig) -> dict[str, Tensor]:
        check_memory(config, 2, "dwa compares its two halves")
        return super().initial_state(config)

    def forward(self, window: Window) -> Tensor:
        new, old = window.blocks(2)
        ratio = torch.where(old.abs() > _TINY, new / old, 1.0)
        return torch.where(old.isnan(), -torch.inf, ratio / self.temperature)
