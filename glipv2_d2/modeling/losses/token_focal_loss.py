"""The sigmoid focal loss between anchors and tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_focal_loss(token_logits: Tensor, targets: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum the focal loss over all pairs of an anchor and a real token.

    With p the probability that the model gives to the target: alpha_t * (1 - p)^gamma * -log(p), where alpha_t is
    ``alpha`` for a target of 1 and ``1 - alpha`` for 0. Computed in single precision also for half precision logits.

    Only the inputs are kept for the backward pass, and the temporary tensors are those of one image, so that the loss
    stays small beside the logits themselves.

    Args:
        token_logits: (N, R, T).
        targets: (N, R, T) bool.
        mask: (N, T) bool, False at padding: such a column takes no part, whatever it holds.
        alpha: Weight of the positive pairs, in [0, 1].
        gamma: Focusing exponent, at least 0.

    Returns:
        A scalar, not normalized; 0 if nothing is unmasked.

    Source: RetinaNet (arXiv 1708.02002), Eq. 5; GLIP, Sec. 3.1, and the official ``token_sigmoid_binary_focal_loss``.
    """
    return _TokenFocalLoss.apply(token_logits, targets, mask, alpha, gamma)


class _TokenFocalLoss(torch.autograd.Function):
    """The loss above with its own backward pass, which recomputes instead of keeping six (N, R, T) tensors."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, mask: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.columns, ctx.alpha, ctx.gamma = _real_columns(mask), alpha, gamma
        loss = logits.new_zeros((), dtype=_loss_dtype(logits))
        for image_logits, image_targets, columns in zip(logits, targets, ctx.columns, strict=True):
            margin, weight = _margins(image_logits[:, columns], image_targets[:, columns], alpha)
            loss += F.softplus(-margin).mul_((-margin).sigmoid_().pow_(gamma)).mul_(weight).sum()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, targets = ctx.saved_tensors
        grad = torch.zeros_like(logits)
        for i, columns in enumerate(ctx.columns):
            image_targets = targets[i][:, columns]
            margin, weight = _margins(logits[i][:, columns], image_targets, ctx.alpha)
            miss = (-margin).sigmoid_()  # 1 - p
            slope = F.softplus(-margin).mul_(1 - miss).mul_(ctx.gamma).add_(miss)
            slope.mul_(miss.pow_(ctx.gamma)).mul_(weight)
            # The loss falls as the margin grows, and the margin falls with the logit where the target is 0.
            grad[i][:, columns] = (torch.where(image_targets, -slope, slope) * grad_loss).to(grad.dtype)
        return grad, None, None, None, None


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _real_columns(mask: Tensor) -> list[Tensor | slice]:
    """Return, per image, what selects its real tokens: no copy is needed where all are real."""
    full = mask.all(dim=1).tolist()
    return [slice(None) if full[i] else row.nonzero().squeeze(1) for i, row in enumerate(mask)]


def _margins(logits: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the logit of being right, and the weight alpha_t, of each pair."""
    logits = logits.to(_loss_dtype(logits))
    weight = torch.where(targets, alpha, 1 - alpha).to(logits.dtype)
    return torch.where(targets, logits, -logits), weight
