"""What every loss term needs, from one pass over the logits.

All terms are functions of a few sums per image and class, so they are computed once here and shared.
Every sum has shape ``[B, R, K]``: K classes that compete for a pixel, in R independent groups.
Softmax logits ``[B, C, ...]`` are one group of C classes (R=1, K=C). In sigmoid mode each channel
is a group of its own with two classes, background and foreground (R=C, K=2), so that one sigmoid
channel ``z`` gives exactly what the two softmax channels ``[0, z]`` give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dmf_plugins.losses.kernels import (
    BinaryCounts,
    SoftmaxCounts,
    binary_counts,
    softmax_counts,
)

Mode = Literal["auto", "softmax", "sigmoid"]


def once(compute: Callable[[Any], Any]) -> Any:
    """Property computed on first use; unlike functools', without the lock torch.compile rejects."""
    key = compute.__name__

    def get(self: SegmentationStatistics) -> Any:
        if key not in self._computed:
            self._computed[key] = compute(self)
        return self._computed[key]

    return property(get, doc=compute.__doc__)


class SegmentationStatistics:
    """Soft counts and log-likelihoods of one batch, each computed on first use and kept.

    Args:
        logits: ``[B, C, *spatial]`` floating point; half types are computed in float32.
        target: labels ``[B, *spatial]`` or ``[B, 1, *spatial]`` in softmax mode and for one sigmoid
            channel, or 0/1 ``[B, C, *spatial]`` for C sigmoid channels (regions). Any dtype that
            holds whole numbers.
        mode: ``auto`` means sigmoid when C is 1 or the target has one channel for each of C > 1
            logit channels, else softmax.
        ignore_index: label of the pixels left out of everything.
        mask: bool ``[B, 1, *spatial]``, False for further pixels to leave out.

    Raises:
        ValueError: shapes do not fit, or (where it costs nothing to tell) a label is out of range.
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
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        self.sigmoid = resolve_mode(logits, target, mode)
        if target.ndim == logits.ndim - 1:
            target = target[:, None]
        expected = logits.shape if self.sigmoid else (logits.shape[0], 1, *logits.shape[2:])
        if target.shape != expected:
            raise ValueError(
                f"target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}: expected "
                f"{tuple(expected)} for {'sigmoid' if self.sigmoid else 'softmax'} mode"
            )
        if mask is not None and mask.shape != (logits.shape[0], 1, *logits.shape[2:]):
            raise ValueError(
                f"mask {tuple(mask.shape)} does not fit logits {tuple(logits.shape)}: expected "
                f"{(logits.shape[0], 1, *logits.shape[2:])}"
            )
        if ignore_index is not None:
            labelled = target != ignore_index
            mask = labelled if mask is None else labelled & mask
        self.mask = mask
        self._shape = logits.shape
        self._target = target.flatten(2)
        self._ignored = None if mask is None else ~mask.flatten(2)
        if self._ignored is not None:
            self._target = self._target.masked_fill(self._ignored, 0)
        self._computed: dict[str, Any] = {}

    @property
    def binary(self) -> bool:
        """Whether each channel, or the difference of the only two, decides by itself."""
        return self.sigmoid or self._shape[1] == 2

    @once
    def _binary(self) -> BinaryCounts:
        pair = not self.sigmoid
        return binary_counts(self.logits.flatten(2), self._foreground, self._ignored, pair)

    @once
    def _softmax(self) -> SoftmaxCounts:
        target = self._target.long()
        _check_labels(target, self._shape[1])
        return softmax_counts(self.logits.flatten(2), target, self._ignored)

    @once
    def _foreground(self) -> Tensor:
        """0/1 truth of every binary channel, ``[B, R, P]``, zero where ignored."""
        if self.sigmoid:
            return (self._target != 0).to(self.logits.dtype)
        _check_labels(self._target, 2)
        return self._target.to(self.logits.dtype)

    @once
    def _nll(self) -> Tensor:
        """Minus log-probability of the true class, ``[B, R, P]``, zero where ignored."""
        return (self._binary if self.binary else self._softmax).nll

    @once
    def _labelled(self) -> Tensor:
        """Labelled pixels of each image and group, ``[B, R]``."""
        groups = self._shape[1] if self.sigmoid else 1
        if self._ignored is None:
            pixels = self.logits[0, 0].numel()
            return self.logits.new_full((self._shape[0], groups), pixels)
        return (~self._ignored).sum(dim=-1).to(self.logits.dtype).expand(-1, groups)

    @once
    def num_labelled(self) -> Tensor:
        """Labelled pixels, counted once for each group; 0-d."""
        return self._labelled.sum()

    @property
    def any_labelled(self) -> Tensor | None:
        """0-d bool, False when the whole batch is ignored; None when nothing can be ignored."""
        return None if self.mask is None else self.num_labelled > 0

    @once
    def nll_sum(self) -> Tensor:
        """Sum of the negative log-likelihood over labelled pixels and groups, 0-d."""
        return self._nll.sum()

    def focal_sum(self, gamma: float) -> Tensor:
        """Sum of ``(1 - p)^gamma * -log p`` of the true class, by true class, ``[B, R, K]``."""
        nll = self._nll
        # below the floor the term is zero to any precision, and for gamma < 1 its slope infinite
        miss = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)
        pixels = miss.pow(gamma) * nll
        if self.binary:
            foreground = (pixels * self._foreground).sum(dim=-1)
            return torch.stack((pixels.sum(dim=-1) - foreground, foreground), dim=-1)
        classes = torch.arange(self._shape[1], device=nll.device)[:, None]
        by_class = torch.where(self._target == classes, pixels, 0.0)
        return by_class.sum(dim=-1)[:, None]

    @once
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """True positives, predicted mass and true pixels, each ``[B, R, K]``.

        ``TP = sum p y``, ``predicted = sum p = TP + FP``, ``true = sum y = TP + FN``.
        """
        if not self.binary:
            found = self._softmax
            return found.hits[:, None], found.predicted[:, None], found.true[:, None]
        pair = self._binary
        background = self._labelled - pair.true
        background_hits = (background - pair.false_alarms).clamp_min(0)
        return (
            torch.stack((background_hits, pair.hits), dim=-1),
            torch.stack((background_hits + pair.misses, pair.hits + pair.false_alarms), dim=-1),
            torch.stack((background, pair.true), dim=-1),
        )

    def pooled(self, over_batch: bool, include_background: bool) -> tuple[Tensor, ...]:
        """:attr:`counts` ``[1 or B, R, K]``, summed over the batch or not, of the classes asked for."""
        key = f"pooled {over_batch} {include_background}"
        if key not in self._computed:
            counts = self.counts
            if not include_background:
                counts = tuple(count[..., 1:] for count in counts)
            if over_batch:
                counts = tuple(count.sum(dim=0, keepdim=True) for count in counts)
            self._computed[key] = counts
        return self._computed[key]

    def presence(self, over_batch: bool, include_background: bool) -> Tensor:
        """Weights of the mean over the classes that occur in the target, ``[1 or B, R, K]``."""
        key = f"presence {over_batch} {include_background}"
        if key not in self._computed:
            true = self.pooled(over_batch, include_background)[2]
            self._computed[key] = class_mean_weights((true > 0).to(true.dtype))
        return self._computed[key]


def class_mean_weights(weight: Tensor) -> Tensor:
    """Weights of a mean over classes within a group, then over the groups with any weight.

    Args:
        weight: ``[G, R, K]``, not negative, need not be normalised.

    Returns:
        ``[G, R, K]``, of sum 1; all zero when ``weight`` is.
    """
    total = weight.sum(dim=-1, keepdim=True)
    groups = (total > 0).sum().clamp_min(1)
    return weight / (total.clamp_min(torch.finfo(total.dtype).tiny) * groups)


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


def _check_labels(target: Tensor, classes: int) -> None:
    """Raise ``ValueError`` on a label outside ``0..classes-1``.

    On the CPU at once; on a GPU, where a look would stop the pipeline, by an assertion on the device,
    as indexing with the label would.
    """
    if torch.compiler.is_compiling() or target.dtype == torch.bool:
        return
    if target.device.type != "cpu":
        torch._assert_async(((target >= 0) & (target < classes)).all())
        return
    low, high = (int(value) for value in target.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(
            f"target holds labels from {low} to {high}, but the logits have {classes} channels; "
            f"relabel to 0..{classes - 1}, or name the label to leave out as ignore_index"
        )
