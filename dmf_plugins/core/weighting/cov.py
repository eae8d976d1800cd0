"""CoV-Weighting: more weight to the terms whose progress varies most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Rule, Window

if TYPE_CHECKING:
    from dmf_plugins.core.config import DMFConfig

_TINY = 1e-30
_MOST = 1e6  # a ratio beyond is no loss history; its square still fits float32


@WEIGHTINGS.register("cov")
class CoV(Rule):
    """``w_i = c_i / sum_j c_j`` with ``c_i = sigma(l_i) / mu(l_i)``, ``l_i = L_i / mean(L_i)``.

    R. Groenendijk, S. Karaoglu, T. Gevers, T. Mensink, "Multi-Loss Weighting with Coefficient of
    Variations", WACV 2021, Eq. 3 to 6. The loss ratio ``l_i(t)`` relates the loss to its mean over
    all earlier steps; its mean and deviation run over the whole training by Welford's recursion,
    not over the memory. The current step counts, as for every rule here; in the authors' code it
    first counts at the next step.
    """

    carry: Tensor  # [3, N]: mean of L, mean of l, sum of squared deviations of l

    def initial_state(self, config: DMFConfig) -> dict[str, Tensor]:
        return {"carry": torch.zeros(3, len(config.losses))}

    def update(self, window: Window) -> None:
        mean_loss, mean_ratio, squares = self.carry
        loss, t = window.history[-1], window.step
        known = (t > 1) & (mean_loss.abs() > _TINY)
        ratio = torch.where(known, loss / mean_loss, 1.0).clamp(-_MOST, _MOST)
        new_mean = mean_ratio + (ratio - mean_ratio) / t
        self.carry = torch.stack(
            (
                mean_loss * (1 - 1 / t) + loss / t,  # a difference could overflow
                new_mean,
                squares + (ratio - mean_ratio) * (ratio - new_mean),
            )
        )

    def forward(self, window: Window) -> Tensor:
        _, mean_ratio, squares = self.carry
        deviation = (squares.clamp_min(0) / window.step).sqrt()
        return deviation.log() - mean_ratio.abs().clamp_min(_TINY).log()
