"""DMFLoss behind nnU-Net's loss contract: deep supervision, regions, ignore channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dmf_plugins.losses.dmf import Batch, DMFLoss, Terms


class DeepSupervisionDMFLoss(nn.Module):
    """Combines the scales of each term first, then fuses and records once per step.

    ``L_i = sum_s d_s L_(i,s)`` with the scale weights ``d_s`` nnU-Net gives its own loss, so the
    memory holds one value per term and step. A scale of weight 0 is not computed. Without gradients
    (validation) nothing is recorded, whatever the mode.

    Args:
        loss: the loss of one scale.
        scale_weights: ``d_s``, the finest scale first; None for a network with one output.
        ignore_channel: whether the last target channel marks pixels to ignore (region training).

    Shape:
        - output: logits ``[B, C, *spatial]``, or a list of them from fine to coarse
        - target: labels ``[B, 1, *spatial]`` or regions ``[B, C (+1), *spatial]``, or a like list
        - returns: 0-d float32
    """

    def __init__(
        self, loss: DMFLoss, scale_weights: Sequence[float] | None, ignore_channel: bool = False
    ) -> None:
        super().__init__()
        self.loss = loss
        self.terms: Callable[..., Terms] = loss.terms_of_scales
        self.scale_weights = None if scale_weights is None else [float(w) for w in scale_weights]
        self.ignore_channel = ignore_channel

    def forward(
        self, output: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]
    ) -> Tensor:
        """Total loss; recorded in training mode when gradients are on."""
        if isinstance(output, Tensor):
            output = [output]
        if isinstance(target, Tensor):
            target = [target]
        weights = [1.0] if len(output) == 1 or self.scale_weights is None else self.scale_weights
        if not len(weights) == len(output) == len(target):
            raise ValueError(
                f"{len(output)} outputs and {len(target)} targets for {len(weights)} scale weights"
            )
        used = [i for i, weight in enumerate(weights) if weight != 0]
        scales = [self._split(output[i], target[i]) for i in used]
        terms = self.terms(scales, [weights[i] for i in used])
        if torch.is_grad_enabled() or not self.loss.training:
            return self.loss.fuse(terms)
        self.loss.eval()
        try:
            return self.loss.fuse(terms)
        finally:
            self.loss.train()

    def _split(self, output: Tensor, target: Tensor) -> Batch:
        if not self.ignore_channel:
            return output, target, None
        return output, target[:, :-1], target[:, -1:] == 0
