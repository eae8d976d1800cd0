"""How the auxiliary term fades out (Eq. 2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmf_plugins.core.constants import constant

if TYPE_CHECKING:
    from dmf_plugins.core.config import DMFConfig


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


class Decay:
    """The factor of the auxiliary term over a training, absolute or relative to its length.

    Args:
        config: with ``gamma0``, and either ``decay_end`` or ``decay_rate`` and ``decay_interval``.
    """

    def __init__(self, config: DMFConfig) -> None:
        self.config = config
        self.planned_steps: int | None = None

    def plan(self, steps: int) -> None:
        """Tell how many steps the whole training has.

        Raises:
            ValueError: ``steps`` is not positive.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.planned_steps = steps

    def factor(self, step: Tensor) -> Tensor:
        """Factor after ``step`` recorded steps, 0-d float32.

        Raises:
            RuntimeError: ``decay_end`` is set and no length was planned.
        """
        config = self.config
        if config.decay_end is None:
            return auxiliary_factor(step, config.gamma0, config.decay_rate, config.decay_interval)
        if self.planned_steps is None:
            raise RuntimeError(
                "decay_end is a share of the planned training; call plan(steps) before it begins"
            )
        rate = math.log(100) / (config.decay_end * self.planned_steps)
        return auxiliary_factor(step, config.gamma0, rate, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """Name -> value of what takes part."""
        absolute = ("decay_rate", "decay_interval")
        names = absolute if self.config.decay_end is None else ("decay_end",)
        return {name: getattr(self.config, name) for name in ("gamma0", *names)}

    def __str__(self) -> str:
        config = self.config
        if config.decay_end is not None:
            return f"{config.gamma0:g}, 1 % of it at {config.decay_end:.0%} of the training"
        rate, interval = config.decay_rate, config.decay_interval
        return f"{config.gamma0:g} exp(-{rate:g} t), t per {interval} steps"
