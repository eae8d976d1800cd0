"""Base of the loss terms and the table of their names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dmf_plugins.core.spec import plain
from dmf_plugins.losses.statistics import Mode, SegmentationStatistics
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
        return self.compute(
            SegmentationStatistics(
                logits, target, mode=self.mode, ignore_index=self.ignore_index, mask=mask
            )
        )

    def compute(self, statistics: SegmentationStatistics) -> Tensor:
        """The term from shared statistics; zero, with a graph, when every pixel is ignored."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(statistics)")

    @property
    def settings(self) -> dict[str, Any]:
        """Option -> value of everything that changes the term."""
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        own.pop("training")
        return {**own, **self._buffers}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={plain(value)!r}" for key, value in self.settings.items())


LOSSES: Registry[Any] = Registry("loss")
