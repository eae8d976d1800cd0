"""What every loss term needs, from one softmax (or sigmoid) over the logits.

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
from torch.nn import functional

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
        self.target = target if mask is None else torch.where(mask, target, 0)
        self._axes = tuple(range(2, logits.ndim))
        self._computed: dict[str, Any] = {}

    @once
    def _nll(self) -> Tensor:
        """Minus log-probability of the true class, ``[B, R, *spatial]``, zero where ignored."""
        if self.sigmoid:
            nll = functional.softplus(torch.where(self.target != 0, -self.logits, self.logits))
        else:
            nll = -_gather(self._log_prob, self.target.long())
        return nll if self.mask is None else torch.where(self.mask, nll, 0.0)

    @once
    def _log_prob(self) -> Tensor:
        return self.logits.log_softmax(dim=1)

    @once
    def _truth(self) -> Tensor:
        """One-hot truth ``[B, C, *spatial]``, zero where ignored; the foreground in sigmoid mode."""
        if self.sigmoid:
            return (self.target != 0).to(self.logits.dtype)
        truth = torch.zeros_like(self.logits, requires_grad=False)
        index = self.target.long()
        if self.mask is None:
            return truth.scatter_(1, index, 1.0)
        return truth.scatter_(1, index, self.mask.to(truth.dtype))

    def _sum(self, pixels: Tensor) -> Tensor:
        return pixels.sum(dim=self._axes)

    def _pairs(self, foreground: Tensor, both: Tensor) -> Tensor:
        """``[B, C]`` sums of the foreground and of everything -> ``[B, C, 2]``, background first."""
        return torch.stack((both - foreground, foreground), dim=-1)

    @once
    def _labelled(self) -> Tensor:
        """Labelled pixels of each image and channel, ``[B, C]`` or ``[B, 1]``."""
        channels = self.logits.shape[1] if self.sigmoid else 1
        if self.mask is None:
            pixels = self.logits[0, 0].numel()
            return self.logits.new_full((self.logits.shape[0], channels), pixels)
        return self._sum(self.mask.to(self.logits.dtype)).expand(-1, channels)

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
        by_class = self._sum(pixels * self._truth)
        if self.sigmoid:
            return self._pairs(by_class, self._sum(pixels))
        return by_class[:, None]

    @once
    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """True positives, predicted mass and true pixels, each ``[B, R, K]``.

        ``TP = sum p y``, ``predicted = sum p = TP + FP``, ``true = sum y = TP + FN``.
        """
        prob = self.logits.sigmoid() if self.sigmoid else self._log_prob.exp()
        if self.mask is not None:
            prob = torch.where(self.mask, prob, 0.0)
        hits, predicted, true = (
            self._sum(prob * self._truth),
            self._sum(prob),
            self._sum(self._truth),
        )
        if not self.sigmoid:
            return hits[:, None], predicted[:, None], true[:, None]
        rest = self._labelled
        # of the background: sum (1-p)(1-y) = all - predicted - true + hits
        background_hits = (rest - predicted - true + hits).clamp_min(0)
        return (
            torch.stack((background_hits, hits), dim=-1),
            self._pairs(predicted, rest),
            self._pairs(true, rest),
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


def _gather(log_prob: Tensor, index: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return log_prob.gather(1, index)
    try:
        return log_prob.gather(1, index)
    except RuntimeError as error:  # the CPU kernel checks its indices anyway
        if "out of bounds" not in str(error):
            raise
        raise ValueError(
            f"target holds labels from {int(index.min())} to {int(index.max())}, but the logits have "
            f"{log_prob.shape[1]} channels; relabel to 0..{log_prob.shape[1] - 1}, or name the label "
            "to leave out as ignore_index"
        ) from error
