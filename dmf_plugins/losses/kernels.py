"""Likelihoods and soft counts of a batch, with a hand-derived gradient.

Every region term is a function of a few sums over pixels, so the gradient with respect to a
probability is one coefficient for each class plus one for the true class. ``FusedBinary`` and
``FusedSoftmax`` use that: one pass forward that keeps the probabilities, one pass backward. The plain
functions beside them say the same in ordinary operations; they serve ``torch.compile``, which fuses
them itself, and as the oracle of the fused ones.

Shapes: B images, R groups, K classes, P pixels. ``ignored`` is True for pixels to leave out; their
truth must be 0 already, and their logits may be anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class BinaryCounts(NamedTuple):
    """Of foreground logits ``[B, R, P]``.

    Attributes:
        nll: ``[B, R, P]`` minus log-probability of the truth.
        hits, false_alarms, misses: ``[B, R]``, sums of ``p y``, ``p (1 - y)`` and ``(1 - p) y``.
        true: ``[B, R]``, sum of ``y``.
    """

    nll: Tensor
    hits: Tensor
    false_alarms: Tensor
    misses: Tensor
    true: Tensor


class SoftmaxCounts(NamedTuple):
    """Of logits ``[B, K, P]``.

    Attributes:
        nll: ``[B, 1, P]`` minus log-probability of the true class.
        hits, predicted, true: ``[B, K]``, sums of ``p y``, ``p`` and ``y``.
    """

    nll: Tensor
    hits: Tensor
    predicted: Tensor
    true: Tensor


def plain_binary(
    logits: Tensor, truth: Tensor, ignored: Tensor | None, pair: bool = False
) -> BinaryCounts:
    """Counts from ordinary operations.

    Args:
        logits: ``[B, R, P]``; with ``pair`` the two channels ``[B, 2, P]`` of a softmax, whose
            difference is the foreground logit: ``softmax(z)_1 = sigmoid(z_1 - z_0)``.
        truth: ``[B, R, P]`` 0/1 in the dtype of ``logits``.
        ignored: ``[B, 1, P]`` bool or None.
        pair: see ``logits``.
    """
    if pair:
        logits = logits[:, 1:] - logits[:, :1]
    nll = functional.softplus(torch.where(truth > 0, -logits, logits))
    prob = logits.sigmoid()
    if ignored is not None:
        nll, prob = torch.where(ignored, 0.0, nll), torch.where(ignored, 0.0, prob)
    sums = (prob * truth, prob * (1 - truth), truth - prob * truth, truth)
    return BinaryCounts(nll, *(pixels.sum(dim=-1) for pixels in sums))


def plain_softmax(logits: Tensor, target: Tensor, ignored: Tensor | None) -> SoftmaxCounts:
    """Counts from ordinary operations; ``target`` is ``[B, 1, P]`` int64."""
    log_prob = logits.log_softmax(dim=1)
    nll, prob = -log_prob.gather(1, target), log_prob.exp()
    truth = torch.zeros_like(prob, requires_grad=False)
    if ignored is None:
        truth.scatter_(1, target, 1.0)
    else:
        truth.scatter_(1, target, (~ignored).to(truth.dtype))
        nll, prob = torch.where(ignored, 0.0, nll), torch.where(ignored, 0.0, prob)
    return SoftmaxCounts(nll, (prob * truth).sum(-1), prob.sum(-1), truth.sum(-1))


class FusedBinary(torch.autograd.Function):
    """:func:`plain_binary` in one pass each way.

    Everything follows from the sign of the truth, ``e = 2 y - 1``, and the misplaced probability
    ``r = 1 - sigmoid(e z)``: hits are ``y (1 - r)``, misses ``y r``, false alarms ``(1 - y) r``. With
    ``g`` the gradient of each output and ``a`` that of a probability, ``g_hits - g_misses`` where y
    is 1 and ``g_false`` where it is 0, ``dL/dz = r ((1 - r) a - e g_nll)``.

    A fresh buffer costs a CPU more than the arithmetic in it, hence the reuse.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, truth: Tensor, ignored: Tensor | None, pair: bool
    ) -> tuple[Tensor, ...]:
        scratch = torch.mul(truth, 2).sub_(1)
        margin = torch.sub(logits[:, 1:], logits[:, :1]).mul_(scratch) if pair else logits * scratch
        right = torch.sigmoid(margin)
        # -log(right) is good to rounding, and where right underflows the margin itself is
        nll = right.clamp_min(torch.finfo(right.dtype).tiny).log_().neg_()
        torch.maximum(nll, margin.neg_(), out=nll)
        wrong = torch.sub(1, right, out=right)
        if ignored is not None:
            nll.masked_fill_(ignored, 0.0)
            wrong.masked_fill_(ignored, 0.0)
        missed = torch.mul(truth, wrong, out=margin)
        misses = missed.sum(dim=-1)
        hits = torch.sub(truth, missed, out=scratch).sum(dim=-1)
        false_alarms = torch.sub(wrong, missed, out=scratch).sum(dim=-1)
        true = truth.sum(dim=-1)
        ctx.save_for_backward(truth, wrong)
        ctx.pair = pair
        ctx.mark_non_differentiable(true)
        return nll, hits, false_alarms, misses, true

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_nll: Tensor, g_hits: Tensor, g_false: Tensor, g_misses: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None, None]:
        truth, wrong = ctx.saved_tensors
        outside = g_false.unsqueeze(-1)
        slope = torch.addcmul(outside, truth, (g_hits - g_misses).unsqueeze(-1) - outside)
        slope.addcmul_(slope, wrong, value=-1).addcmul_(truth, g_nll, value=-2).add_(g_nll)
        if not ctx.pair:
            return slope.mul_(wrong), None, None, None
        both = slope.new_empty(slope.shape[0], 2, slope.shape[2])
        torch.mul(slope, wrong, out=both[:, 1:])
        torch.neg(both[:, 1:], out=both[:, :1])
        return both, None, None, None


class FusedSoftmax(torch.autograd.Function):
    """:func:`plain_softmax` in one pass each way.

    With ``g`` the gradient of each output and y the one-hot truth, let ``v_k`` be
    ``p_k (g_predicted_k + y_k g_hits_k) - y_k g_nll``; then ``dL/dz_k = v_k - p_k sum_j v_j``.

    A fresh buffer costs a CPU more than the arithmetic in it, so classes are taken one by one through
    buffers of one channel. Comparing labels of one byte straight into floats, and multiplying by
    them, is several times as fast there as indexing, masks of bools, or labels of eight bytes.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, ignored: Tensor | None
    ) -> tuple[Tensor, ...]:
        prob = logits.log_softmax(dim=1)
        keep = None
        if ignored is not None:
            prob.masked_fill_(ignored, 0.0)
            keep = (~ignored).to(prob.dtype)
        prob.clamp_min_(torch.finfo(prob.dtype).min)  # 0 times -inf would be NaN
        target = target.to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)
        nll = prob.new_empty(target.shape)
        truth, scratch = torch.empty_like(nll), torch.empty_like(nll)
        sums = []
        for k, channel in enumerate(prob.split(1, dim=1)):
            torch.eq(target, k, out=truth)
            if keep is not None:
                truth.mul_(keep)
            if k == 0:
                torch.mul(truth, channel, out=nll)
            else:
                nll.addcmul_(truth, channel)
            channel.exp_()
            if keep is not None:
                channel.mul_(keep)
            hits = torch.mul(truth, channel, out=scratch).sum(dim=(1, 2))
            sums.append(torch.stack((hits, channel.sum(dim=(1, 2)), truth.sum(dim=(1, 2)))))
        hits, predicted, true = torch.stack(sums, dim=2).unbind()
        ctx.save_for_backward(prob, target, keep)
        ctx.mark_non_differentiable(true)
        return nll.neg_(), hits, predicted, true

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_nll: Tensor, g_hits: Tensor, g_predicted: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None]:
        prob, target, keep = ctx.saved_tensors
        if keep is not None:  # where it is 0, so are the probabilities
            g_nll = g_nll * keep
        grad = torch.empty_like(prob)
        truth, slope = (prob.new_empty(target.shape) for _ in range(2))
        total = torch.zeros_like(truth)
        slopes = torch.stack((g_hits, g_predicted))[..., None, None].unbind(dim=2)
        for k, (p, v) in enumerate(zip(prob.split(1, dim=1), grad.split(1, dim=1), strict=True)):
            torch.eq(target, k, out=truth)
            on_hit, always = slopes[k]
            torch.addcmul(always, truth, on_hit, out=slope)
            torch.mul(p, slope, out=v)
            total.add_(v.addcmul_(truth, g_nll, value=-1))
        return grad.addcmul_(prob, total, value=-1), None, None


def binary_counts(
    logits: Tensor, truth: Tensor, ignored: Tensor | None, pair: bool = False
) -> BinaryCounts:
    """:func:`plain_binary` by the fastest way that works here."""
    if torch.compiler.is_compiling():
        return plain_binary(logits, truth, ignored, pair)
    return BinaryCounts(*FusedBinary.apply(logits, truth, ignored, pair))


def softmax_counts(logits: Tensor, target: Tensor, ignored: Tensor | None) -> SoftmaxCounts:
    """:func:`plain_softmax` by the fastest way that works here."""
    if torch.compiler.is_compiling():
        return plain_softmax(logits, target, ignored)
    return SoftmaxCounts(*FusedSoftmax.apply(logits, target, ignored))
