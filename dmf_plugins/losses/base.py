"""Base of the loss terms and the table of their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmf_plugins.core.spec import plain
from dmf_plugins.losses.statistics import Mode, SegmentationStatistics, check_labels
from dmf_plugins.registry import Registry


class SegmentationLoss(nn.Module):
    """A term that is a function of :class:`SegmentationStatistics`.

    Usable alone, or by name inside :class:`~dmf_plugins.losses.DMFLoss`, which computes the
    statistics once for all its terms.

    Args:
        ignore_index: label of the pixels left out; None for none.
        mode: ``auto``, ``softmax`` or ``sigmoid``, see :class:`SegmentationStatistics`.

    Shape:
        - logits: ``[B, C, *spatial]``
        - target: ``[B, *spatial]``, ``[B, 1, *spatial]``, or ``[B, C, *spatial]`` for regions
        - output: 0-d float32 (float64 for float64 logits)
    """

    def __init__(self, *, ignore_index: int | None = None, mode: Mode = "auto") -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.mode = mode

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of ``logits`` against ``target``; ``mask`` is False for pixels to leave out."""
        with torch.autocast(logits.device.type, enabled=False):
            statistics = SegmentationStatistics(
                logits, target, mode=self.mode, ignore_index=self.ignore_index, mask=mask
            )
            check_labels(statistics.extremes, statistics.classes)
            return self.over_scales([statistics], [1.0])

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        """The term from shared statistics; zero, with a graph, when every pixel is ignored."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(statistics)")

    def over_scales(
        self, scales: Sequence[SegmentationStatistics], weights: Sequence[float]
    ) -> Tensor:
        """``sum_s weights_s compute(scale_s)``, 0-d; overridden where fewer operations do it."""
        values = [w * self.compute(scale) for w, scale in zip(weights, scales, strict=True)]
        return values[0] if len(values) == 1 else torch.stack(values).sum()

    @property
    def settings(self) -> dict[str, Any]:
        """Option -> value of everything that changes the term."""
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        own.pop("training")
        return {**own, **self._buffers}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={plain(value)!r}" for key, value in self.settings.items())


LOSSES: Registry[Any] = Registry("loss", "dmf_plugins.losses", type)
