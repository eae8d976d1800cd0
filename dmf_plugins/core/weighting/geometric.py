"""Weights by the inverse of each term's size: the gradient of the geometric mean of the terms."""

from __future__ import annotations

from torch import Tensor

from dmf_plugins.core.weighting.base import WEIGHTINGS, Window

_TINY = 1e-30


@WEIGHTINGS.register("geometric")
def geometric(window: Window) -> Tensor:
    """``w_i`` proportional to ``1 / |mean(H_i)|``, so that all terms contribute alike.

    With a memory of one step it is the direction of the gradient of the geometric mean of the terms:
    S. Chennupati, G. Sistu, S. Yogamani, S. A. Rawashdeh, "MultiNet++: Multi-Stream Feature
    Aggregation and Geometric Loss Strategy for Multi-Task Learning", CVPR Workshops 2019.
    The mean over the memory keeps one odd batch from moving the weights.
    """
    return -window.blocks(1)[0].abs().clamp_min(_TINY).log()
