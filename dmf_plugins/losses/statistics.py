"""What every loss term needs, from one pass over the logits.

All terms are functions of a few sums per image and class, so they are computed once here and shared.
Counts have the shape ``[B, R, K]``: K classes that compete for a pixel, in R independent groups.
Softmax logits ``[B, C, ...]`` are one group of C classes (R=1, K=C). In sigmoid mode each channel
is a group of its own with two classes, background and foreground (R=C, K=2), so that one sigmoid
channel ``z`` gives exactly what the two softmax channels ``[0, z]`` give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dmf_plugins.core.constants import constant, traced
from dmf_plugins.losses.kernels import SigmoidCounts, SoftmaxCounts, sigmoid_counts, softmax_counts

Mode = Literal["auto", "softmax", "sigmoid"]
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch has hardly an operation for them


class SegmentationStatistics:
    """Soft counts and log-likelihoods of one batch.

    Args:
        logits: ``[B, C, *spatial]`` floating point; half types are computed in float32.
        target: labels ``[B, *spatial]`` or ``[B, 1, *spatial]`` in softmax mode and for one sigmoid
            channel, or 0/1 ``[B, C, *spatial]`` for C sigmoid channels (regions). Any dtype that
            holds whole numbers.
        mode: ``auto`` means sigmoid when C is 1 or the target has one channel for each of C > 1
            logit channels, else softmax.
        ignore_index: label of the pixels left out of everything.
        mask: bool ``[B, 1, *spatial]``, False for further pixels to leave out.

    Attributes:
        batch: logits and target as given.
        sigmoid: whether the logits are read through a sigmoid.
        binary: whether each channel, or the difference of the only two, decides by itself.
        ignored: bool ``[B, 1, P]``, True for pixels to leave out; None where there are none.
        loglik: ``[B, R, P]`` log-probability of the true class of each pixel, zero where ignored.
        labelled: labelled pixels per image and group, ``[B, R]``; a plain number where none can be
            ignored.
        extremes: smallest and largest label, 0-d each; empty where none can be out of range.

    Raises:
        ValueError: shapes do not fit, or there is no pixel.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        mode: Mode = "auto",
        ignore_index: int | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.batch = (logits, target)
        self.sigmoid = resolve_mode(logits, target, mode)
        if target.ndim == logits.ndim - 1:
            target = target[:, None]
        if target.dtype in _UNSIGNED:
            target = target.long()
        _check_shapes(logits, target, mask, self.sigmoid)
        ignored = None if mask is None else ~mask
        if ignore_index is not None:
            unlabelled = target == ignore_index
            ignored = unlabelled if ignored is None else ignored | unlabelled
        self.binary = self.sigmoid or logits.shape[1] == 2
        self.classes = 2 if self.binary else logits.shape[1]
        self.groups = logits.shape[1] if self.sigmoid else 1
        logits = (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)
        self.ignored = None if ignored is None else ignored.flatten(2)
        target = target.flatten(2)
        if self.ignored is not None:
            target = target.masked_fill(self.ignored, 0)
        # bools cannot be out of range, nor regions
        self.extremes: tuple[Tensor, ...] = ()
        if self.groups == 1 and target.dtype != torch.bool:
            self.extremes = tuple(target.aminmax())
        self._read(logits, target)

    def _read(self, logits: Tensor, target: Tensor) -> None:
        counts: SigmoidCounts | SoftmaxCounts
        if self.binary:
            self._target = (target != 0 if self.groups > 1 else target).to(logits.dtype)
            counts = sigmoid_counts(logits, self._target, self.ignored, pair=not self.sigmoid)
        else:
            self._target = target.to(logits.dtype)
            if self.ignored is not None:
                self._target = self._target.masked_fill(self.ignored, -1)
            counts = softmax_counts(logits, self._target, self.ignored)
        self.loglik, *self.sums = counts
        self.labelled: Tensor | int = logits.shape[2]
        if self.ignored is not None:
            kept = (~self.ignored).sum(dim=-1).to(logits.dtype)
            self.labelled = kept.expand(-1, self.groups)

    @property
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """True positives, predicted mass and true pixels, each ``[B, R, K]``.

        ``tp = sum p y``, ``predicted = sum p = tp + fp``, ``true = sum y = tp + fn``.
        """
        tp, predicted, true = stack_counts([self])[:, 0]
        return tp, predicted, true

    @property
    def num_labelled(self) -> Tensor | int:
        """Labelled pixels, counted once for each group; 0-d."""
        if isinstance(self.labelled, int):
            return self.labelled * self.loglik.shape[0] * self.groups
        return self.labelled.sum()

    @property
    def any_labelled(self) -> Tensor | None:
        """0-d bool, False when the whole batch is ignored; None when nothing can be ignored."""
        return None if isinstance(self.labelled, int) else self.labelled.sum() > 0

    @property
    def true_class(self) -> Tensor:
        """Label of each pixel within its group, int64 ``[B, R, P]``; 0 where ignored."""
        return self._target.clamp_min(0).long()


def stack_counts(scales: Sequence[SegmentationStatistics]) -> Tensor:
    """Counts of several scales (or one) of a batch, ``[3, S, B, R, K]``: tp, predicted, true."""
    found = torch.stack([count for scale in scales for count in scale.sums])  # [3 S, B, channels]
    found = found.unflatten(0, (len(scales), 3)).transpose(0, 1)
    if not scales[0].binary:
        return found[..., None, :]
    found = torch.cat((found, _labelled(scales, found).expand_as(found[:1])))
    both = constant(_FROM_BINARY, found) @ found.flatten(1)
    return both.unflatten(0, (3, 2)).unflatten(2, found.shape[1:]).movedim(1, -1)


# tp, predicted and true of background and foreground, from fn, fn + fp, true and labelled pixels
_FROM_BINARY = (
    *((1, -1, -1, 1), (-1, 0, 1, 0)),  # tp: labelled - true - fp, and true - fn
    *((2, -1, -1, 1), (-2, 1, 1, 0)),
    *((0, 0, -1, 1), (0, 0, 1, 0)),
)


def _labelled(scales: Sequence[SegmentationStatistics], like: Tensor) -> Tensor:
    """Labelled pixels, ``[1, S, B, R]`` or, where none can be ignored, ``[1, S, 1, 1]``."""
    numbers = [scale.labelled for scale in scales]
    if isinstance(numbers[0], int):
        return constant(tuple(numbers), like)[None, :, None, None]
    return torch.stack([torch.as_tensor(number) for number in numbers])[None]


def check_labels(extremes: Sequence[Tensor], classes: int) -> None:
    """Raise ``ValueError`` where one of ``extremes`` lies outside ``0..classes-1``.

    On the CPU at once; on a GPU, where a look would stop the pipeline, by an assertion on the device,
    as indexing with the label would. A compiled graph can do neither (inductor drops the assertion),
    so whoever calls it checks what it returns.
    """
    if not extremes or traced(extremes[0]):
        return
    if extremes[0].device.type != "cpu":
        found = torch.stack(tuple(extremes))
        torch._assert_async(((found >= 0) & (found < classes)).all())
        return
    labels: list[Any] = [label.tolist() for label in extremes]
    smallest, largest = int(min(labels)), int(max(labels))
    if smallest < 0 or largest >= classes:
        raise ValueError(
            f"target holds labels from {smallest} to {largest}, but the logits have {classes} "
            f"channels; relabel to 0..{classes - 1}, or name the label to leave out as ignore_index"
        )


def resolve_mode(logits: Tensor, target: Tensor, mode: Mode) -> bool:
    """Whether the logits are to be read through a sigmoid; raises ``ValueError`` on a bad mode."""
    if logits.ndim < 3:
        raise ValueError(f"logits must be [B, C, *spatial], got shape {tuple(logits.shape)}")
    channels = logits.shape[1]
    if mode == "auto":
        regions = target.ndim == logits.ndim and channels > 1 and target.shape[1] == channels
        return channels == 1 or regions
    if mode not in ("softmax", "sigmoid"):
        raise ValueError(f"mode must be 'auto', 'softmax' or 'sigmoid', got {mode!r}")
    if mode == "softmax" and channels == 1:
        raise ValueError("softmax needs at least two logit channels; use mode='sigmoid' for one")
    return mode == "sigmoid"


def _check_shapes(logits: Tensor, target: Tensor, mask: Tensor | None, sigmoid: bool) -> None:
    if logits.numel() == 0:
        raise ValueError(f"logits {tuple(logits.shape)} hold no pixel; leave out an empty batch")
    single = (logits.shape[0], 1, *logits.shape[2:])
    expected = tuple(logits.shape) if sigmoid else single
    if target.shape != expected:
        raise ValueError(
            f"target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}: expected "
            f"{expected} for {'sigmoid' if sigmoid else 'softmax'} mode"
        )
    if mask is not None and mask.shape != single:
        raise ValueError(
            f"mask {tuple(mask.shape)} does not fit logits {tuple(logits.shape)}: expected {single}"
        )
