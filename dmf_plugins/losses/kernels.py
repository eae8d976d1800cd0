"""Log-likelihoods and soft counts of a batch, with a hand-derived gradient.

Every region term is a function of three sums over pixels per image and class, so the gradient with
respect to a probability is one coefficient per class plus one for the true class. ``FusedSoftmax`` and
``FusedSigmoid`` use that: few operations each way, and little memory. The plain functions beside them
say the same in ordinary operations; they serve ``torch.compile``, which fuses them itself, and as the
oracle of the fused ones.

Shapes: B images, K classes or independent channels, P pixels. ``ignored`` is True for pixels to leave
out, whose logits may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dmf_plugins.core.constants import constant


class SoftmaxCounts(NamedTuple):
    """Of classes that exclude each other.

    Attributes:
        loglik: ``[B, 1, P]`` log-probability of the true class, zero where ignored.
        tp, predicted, true: ``[B, K]``, sums of ``p y``, ``p`` and ``y``.
    """

    loglik: Tensor
    tp: Tensor
    predicted: Tensor
    true: Tensor


class SigmoidCounts(NamedTuple):
    """Of channels that each decide by themselves.

    Attributes:
        loglik: ``[B, K, P]`` log-probability of the truth, zero where ignored.
        fn, wrong, true: ``[B, K]``, sums of ``(1 - p) y``, of ``(1 - p) y + p (1 - y)`` and of ``y``.
    """

    loglik: Tensor
    fn: Tensor
    wrong: Tensor
    true: Tensor


def plain_softmax(logits: Tensor, target: Tensor, ignored: Tensor | None) -> SoftmaxCounts:
    """SoftmaxCounts of classes that exclude each other, from ordinary operations.

    Args:
        logits: ``[B, K, P]``.
        target: ``[B, 1, P]`` labels 0..K-1 in the dtype of ``logits``, -1 where ignored.
        ignored: ``[B, 1, P]`` bool or None.
    """
    truth = (target == _classes(logits)).to(logits.dtype)
    if ignored is not None:
        logits = torch.where(ignored, 0.0, logits)
    log_prob = logits.log_softmax(dim=1)
    loglik, prob = (truth * log_prob).sum(dim=1, keepdim=True), log_prob.exp()
    if ignored is not None:
        prob = torch.where(ignored, 0.0, prob)
    return SoftmaxCounts(loglik, (prob * truth).sum(-1), prob.sum(-1), truth.sum(-1))


def plain_sigmoid(
    logits: Tensor, truth: Tensor, ignored: Tensor | None, pair: bool = False
) -> SigmoidCounts:
    """SigmoidCounts of independent channels, from ordinary operations.

    Args:
        logits: ``[B, K, P]``; with ``pair`` the two channels ``[B, 2, P]`` of a softmax, whose
            difference is the logit of the second: ``softmax(z)_1 = sigmoid(z_1 - z_0)``.
        truth: ``[B, K, P]``, or ``[B, 1, P]`` with ``pair``; 0/1 in the dtype of ``logits``, 0 where
            ignored.
        ignored: ``[B, 1, P]`` bool or None.
        pair: see ``logits``.
    """
    if pair:
        logits = logits[:, 1:] - logits[:, :1]
    margin = torch.where(truth > 0, logits, -logits)
    if ignored is not None:  # or NaN would reach the gradient through a factor of zero
        margin = torch.where(ignored, 0.0, margin)
    loglik, wrong = functional.logsigmoid(margin), (-margin).sigmoid()
    if ignored is not None:
        loglik, wrong = torch.where(ignored, 0.0, loglik), torch.where(ignored, 0.0, wrong)
    return SigmoidCounts(loglik, (wrong * truth).sum(-1), wrong.sum(-1), truth.sum(-1))


class FusedSoftmax(torch.autograd.Function):
    """:func:`plain_softmax` by hand.

    With ``g`` the gradient of each output and y the one-hot truth, let ``v_k`` be
    ``p_k (g_predicted_k + y_k g_tp_k) + y_k g_loglik``; then ``dL/dz_k = v_k - p_k sum_j v_j``.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, ignored: Tensor | None
    ) -> tuple[Tensor, ...]:
        # compared straight into floats: a mask of bools is several times as slow on a CPU
        truth = torch.eq(target, _classes(logits), out=torch.empty_like(logits))
        scratch = truth * logits
        loglik = scratch.sum(dim=1, keepdim=True)
        prob = torch.softmax(logits, 1, out=scratch)
        # log p = z - max z + log max p, exact however small p is
        loglik.sub_(logits.amax(dim=1, keepdim=True)).add_(prob.amax(dim=1, keepdim=True).log_())
        if ignored is not None:
            loglik.masked_fill_(ignored, 0.0)
            prob.masked_fill_(ignored, 0.0)
        true = truth.sum(dim=-1)
        ctx.save_for_backward(prob, truth)
        ctx.mark_non_differentiable(true)
        ctx.set_materialize_grads(False)
        return loglik, _dot(prob, truth), prob.sum(dim=-1), true

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_loglik: Tensor | None, *g_counts: Tensor | None
    ) -> tuple[Tensor, None, None]:
        prob, truth = ctx.saved_tensors
        g_tp, g_predicted = _present(g_counts[:2], prob)
        grad = torch.addcmul(g_predicted[..., None], truth, g_tp[..., None]).mul_(prob)
        if g_loglik is not None:
            grad.addcmul_(truth, g_loglik)
        return grad.addcmul_(prob, grad.sum(dim=1, keepdim=True), value=-1), None, None


class FusedSigmoid(torch.autograd.Function):
    """:func:`plain_sigmoid` by hand.

    With ``e = 2 y - 1`` the misplaced probability is ``r = 1 - sigmoid(e z)``. It falls with p where y
    is 1 and grows with it where y is 0, so with ``a = g_wrong - y (2 g_wrong + g_fn)``, the gradient
    of p, ``dL/dz = r ((1 - r) a + e g_loglik)``.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, truth: Tensor, ignored: Tensor | None, pair: bool
    ) -> tuple[Tensor, ...]:
        sign = torch.add(constant(-1, truth), truth, alpha=2)
        margin = torch.sub(logits[:, 1:], logits[:, :1]).mul_(sign) if pair else sign.mul_(logits)
        right = margin.sigmoid()
        # log(right) is good to rounding, and where right underflows the margin itself is
        loglik = right.clamp_min(torch.finfo(right.dtype).tiny).log_()
        torch.minimum(loglik, margin, out=loglik)
        wrong = torch.sub(1, right, out=right)
        if ignored is not None:
            loglik.masked_fill_(ignored, 0.0)
            wrong.masked_fill_(ignored, 0.0)
        true = truth.sum(dim=-1)
        ctx.save_for_backward(truth, wrong)
        ctx.pair = pair
        ctx.mark_non_differentiable(true)
        ctx.set_materialize_grads(False)
        return loglik, _dot(wrong, truth), wrong.sum(dim=-1), true

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_loglik: Tensor | None, *g_counts: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        truth, wrong = ctx.saved_tensors
        g_fn, g_wrong = _present(g_counts[:2], wrong)
        slope = torch.addcmul(
            g_wrong[..., None], truth, torch.add(g_fn, g_wrong, alpha=2)[..., None], value=-1
        )
        slope.addcmul_(slope, wrong, value=-1)
        if g_loglik is not None:
            slope.addcmul_(truth, g_loglik, value=2).sub_(g_loglik)
        slope.mul_(wrong)
        if ctx.pair:
            slope = slope * constant((-1, 1), slope)[:, None]
        return slope, None, None, None


def softmax_counts(logits: Tensor, target: Tensor, ignored: Tensor | None) -> SoftmaxCounts:
    """:func:`plain_softmax` by the fastest way that works here."""
    if torch.compiler.is_compiling():
        return plain_softmax(logits, target, ignored)
    return SoftmaxCounts(*FusedSoftmax.apply(logits, target, ignored))


def sigmoid_counts(
    logits: Tensor, truth: Tensor, ignored: Tensor | None, pair: bool = False
) -> SigmoidCounts:
    """:func:`plain_sigmoid` by the fastest way that works here."""
    if torch.compiler.is_compiling():
        return plain_sigmoid(logits, truth, ignored, pair)
    return SigmoidCounts(*FusedSigmoid.apply(logits, truth, ignored, pair))


def _classes(logits: Tensor) -> Tensor:
    return constant(tuple(range(logits.shape[1])), logits)[:, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of ``a b`` over the last axis, ``[B, K]``; einsum is slower here, and rounds ten times as much."""
    return torch.linalg.vecdot(a, b)


def _present(gradients: Sequence[Tensor | None], pixels: Tensor) -> list[Tensor]:
    """Gradients of sums over ``pixels``, zero where a sum was not used."""
    return [pixels.new_zeros(pixels.shape[:2]) if g is None else g for g in gradients]
