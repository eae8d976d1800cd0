"""CoV-Weighting: more weight to the terms whose progress varies most."""

from __future__ import annotations

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Window

_TINY = 1e-30
_MOST = 1e6  # a ratio beyond is no loss history; its square still fits float32


@WEIGHTINGS.register("cov")
class CoV:
    """``w_i = c_i / sum_j c_j`` with ``c_i = sigma(l_i) / mu(l_i)``, ``l_i = L_i / mean(L_i)``.

    R. Groenendijk, S. Karaoglu, T. Gevers, T. Mensink, "Multi-Loss Weighting with Coefficient of
    Variations", WACV 2021, Eq. 3 to 6. The loss ratio ``l_i(t)`` relates the loss to its mean over
    all earlier steps; its mean and deviation run over the whole training by Welford's recursion,
    not over the memory. The current step counts, as for every rule here; in the authors' code it
    first counts at the next step.
    """

    carry_rows = 3  # mean of L, mean of l, sum of squared deviations of l

    def update(self, window: Window) -> Tensor:
        if window.carry is None:
            raise ValueError("cov needs the running sums of a fusion")
        mean_loss, mean_ratio, squares = window.carry
        loss, t = window.history[-1], window.steps()
        known = (t > 1) & (mean_loss.abs() > _TINY)
        ratio = torch.where(known, loss / mean_loss, 1.0).clamp(-_MOST, _MOST)
        new_mean = mean_ratio + (ratio - mean_ratio) / t
        return torch.stack(
            (
                mean_loss + (loss - mean_loss) / t,
                new_mean,
                squares + (ratio - mean_ratio) * (ratio - new_mean),
            )
        )

    def __call__(self, window: Window) -> Tensor:
        if window.carry is None:
            raise ValueError("cov needs the running sums of a fusion")
        _, mean_ratio, squares = window.carry
        deviation = (squares.clamp_min(0) / window.steps()).sqrt()
        return deviation.log() - mean_ratio.abs().clamp_min(_TINY).log()
