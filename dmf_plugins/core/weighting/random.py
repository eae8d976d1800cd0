"""Random weights: the null model that a dynamic weighting has to beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Window

_BITS = 23  # as many as leave a float32 strictly between 0 and 1


@WEIGHTINGS.register("random")
def random_rule(window: Window, seed: int = 0) -> Tensor:
    """Random Loss Weighting: ``w = softmax(z)``, ``z`` drawn anew from N(0, 1) at each step.

    B. Lin, F. Ye, Y. Zhang, I. W. Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus
    Test for Multi-Task Learning", TMLR 2022, arXiv 2111.10603. The draw is a hash of seed and step,
    so that every GPU draws alike and a resumed training goes on with the same numbers.

    Args:
        window: the memory; only its step counts.
        seed: another one gives other draws.
    """
    n = window.history.shape[1]
    bits = window.step * n + torch.arange(n, device=window.step.device)
    for extra in (seed & 0xFFFF_FFFF, 0):  # an integer mixer, within 64 bits throughout
        bits = (bits + extra) & 0xFFFF_FFFF
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFF_FFFF
    bits = (bits ^ (bits >> 16)) >> (32 - _BITS)
    uniform = (bits.to(window.history.dtype) + 0.5) / 2**_BITS
    return math.sqrt(2) * torch.erfinv(2 * uniform - 1)
