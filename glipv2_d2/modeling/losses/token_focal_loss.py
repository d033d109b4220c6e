"""The sigmoid focal loss between anchors and tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_focal_loss(token_logits: Tensor, targets: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum the focal loss over all pairs of an anchor and a real token.

    The loss of a pair is alpha_t * (1 - p)^gamma * -log(p), where p is the probability that the model gives to the
    target, and alpha_t is ``alpha`` for a target of 1 and ``1 - alpha`` for 0. Half precision logits are computed with
    in single precision.

    Only the inputs are kept for the backward pass.

    Args:
        token_logits: (N, R, T).
        targets: (N, R, T) bool.
        mask: (N, T) bool, False at padding, whose columns are ignored whatever they hold.
        alpha: Weight of the positive pairs, in [0, 1].
        gamma: Focusing exponent, at least 0.

    Returns:
        A scalar, not normalized; 0 if all tokens are masked.

    Source: RetinaNet (arXiv 1708.02002), Eq. 5; GLIP, Sec. 3.1, and the official ``token_sigmoid_binary_focal_loss``.
    """
    return _TokenFocalLoss.apply(token_logits, targets, mask, alpha, gamma)


class _TokenFocalLoss(torch.autograd.Function):
    """``token_focal_loss`` with a backward pass that recomputes instead of keeping six (N, R, T) tensors.

    Nearly all targets are 0, so on a CPU the few positive pairs are taken out and computed separately. On a device that
    would wait for their number, and all pairs are computed alike. A logit that is taken out or masked becomes minus
    infinity, where value and slope of the loss are 0.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.alpha, ctx.gamma = alpha, gamma
        if logits.device.type != "cpu":
            ctx.save_for_backward(logits, mask, targets)
            values = _value(_wrong(logits, targets, mask), gamma)
            return values.mul_(_weights(targets, alpha, 1 - alpha, values.dtype)).sum()
        positive = (targets & mask[:, None]).nonzero(as_tuple=True)
        ctx.save_for_backward(logits, mask, *positive)
        negatives, positives = _split(logits, mask, positive)
        return (1 - alpha) * _value(negatives, gamma).sum() + alpha * _value(-positives, gamma).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, mask, *positive = ctx.saved_tensors
        if logits.device.type != "cpu":
            slope = _slope(_wrong(logits, positive[0], mask), ctx.gamma)
            grad = slope.mul_(_weights(positive[0], -ctx.alpha, 1 - ctx.alpha, slope.dtype)).mul_(grad_loss)
            return grad.to(logits.dtype), None, None, None, None
        negatives, positives = _split(logits, mask, tuple(positive))
        grad = _slope(negatives, ctx.gamma).mul_((1 - ctx.alpha) * grad_loss)
        grad[tuple(positive)] = _slope(-positives, ctx.gamma) * (-ctx.alpha * grad_loss)
        return grad.to(logits.dtype), None, None, None, None


def _split(logits: Tensor, mask: Tensor, positive: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return new (N, R, T) logits of the negative pairs, minus infinity elsewhere, and those of the positive pairs."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    negatives = logits.masked_fill(~mask[:, None], -torch.inf)
    positives = negatives[positive]
    negatives[positive] = -torch.inf
    return negatives, positives


def _wrong(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the logit of being wrong for all pairs, (N, R, T), minus infinity in the padding."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.where(targets, -logits, logits).masked_fill_(~mask[:, None], -torch.inf)


def _weights(targets: Tensor, positive: float, negative: float, dtype: torch.dtype) -> Tensor:
    """Return one number for the positive pairs and another for all others."""
    return torch.full(targets.shape, negative, dtype=dtype, device=targets.device).masked_fill_(targets, positive)


def _value(wrong: Tensor, gamma: float) -> Tensor:
    """Return m^gamma * -log(1 - m), where m is the probability of being wrong, from the logit of m."""
    return F.softplus(wrong).mul_(wrong.sigmoid().pow_(gamma))


def _slope(wrong: Tensor, gamma: float) -> Tensor:
    """Return the derivative of ``_value``: m^gamma * (m + gamma * (1 - m) * -log(1 - m))."""
    miss = wrong.sigmoid()
    slope = F.softplus(wrong).mul_(1 - miss).mul_(gamma).add_(miss)
    return slope.mul_(miss.pow_(gamma))
