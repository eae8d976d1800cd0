"""SoftAdapt: more weight to the terms that fall least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Rule, Window, check_memory

if TYPE_CHECKING:
    from dmf_plugins.core.config import DMFConfig

_TINY = 1e-30


@WEIGHTINGS.register("softadapt")
class SoftAdapt(Rule):
    """``w_i = exp(beta s_i) / sum_j exp(beta s_j)``, with ``s_i`` the slope of term i.

    A. A. Heydari, C. A. Thompson, A. Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting of
    Neural Networks with Multi-Part Loss Functions", 2019, sections 3.1.1 to 3.1.3.

    The slope is the backward finite difference, of the highest order, over ``points`` values. They
    are means over equal blocks of the memory, since the values of single batches are mostly noise;
    with ``memory_size`` equal to ``points`` every value is one step, as in the paper. (The authors'
    package takes the forward difference at the oldest value instead.)

    Args:
        variant: ``original``; ``loss_weighted``, ``w_i`` proportional to ``f_i exp(beta s_i)`` with
            ``f_i`` the mean of the values; or ``normalized``, slopes divided by the sum of their
            magnitudes.
        beta: positive favours the terms that do worst, negative those that do best.
        points: values the slope is taken over, at least 2.

    Raises:
        ValueError: ``variant`` is unknown, or ``points`` too small or more than the memory holds.
    """

    def __init__(
        self,
        variant: Literal["original", "loss_weighted", "normalized"] = "original",
        beta: float = 0.1,
        points: int = 5,
    ) -> None:
        super().__init__()
        if variant not in ("original", "loss_weighted", "normalized"):
            raise ValueError(
                f"softadapt variant must be original, loss_weighted or normalized, got {variant!r}"
            )
        if points < 2:
            raise ValueError(f"softadapt needs at least 2 points, got {points}")
        self.variant = variant
        self.beta = float(beta)
        self.coefficients = backward_difference(points)

    def initial_state(self, config: DMFConfig) -> dict[str, Tensor]:
        points = len(self.coefficients)
        check_memory(config, points, f"softadapt takes the slope over points={points}")
        return {}

    def forward(self, window: Window) -> Tensor:
        values = window.blocks(len(self.coefficients))
        slope = torch.stack(
            [c * row for c, row in zip(self.coefficients, values, strict=True)]
        ).sum(dim=0)
        if self.variant == "normalized":
            slope = slope / (slope.abs().sum() + _TINY)
        score = self.beta * slope
        if self.variant == "loss_weighted":
            score = score + values.mean(dim=0).clamp_min(_TINY).log()
        return score


def backward_difference(points: int) -> list[float]:
    """Coefficients of the first derivative at the first of ``points`` values, newest first.

    They make the derivative of every polynomial of degree below ``points`` exact, such as
    ``[3/2, -2, 1/2]`` for three.
    """
    offsets = -torch.arange(points, dtype=torch.float64)
    powers = torch.stack([offsets**k for k in range(points)])
    first = torch.zeros(points, dtype=torch.float64)
    first[1] = 1
    return torch.linalg.solve(powers, first).tolist()
