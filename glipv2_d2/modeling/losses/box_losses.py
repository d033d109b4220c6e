"""GIoU loss and centerness targets in the pixel convention of the official weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..box_regression import center_to_edges_legacy

# Added to both areas that the GIoU divides by, to avoid a division by 0.
AREA_EPS = 1e-7


def giou_loss_legacy(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Compute 1 - GIoU of pairs of boxes, with sides one pixel shorter than half-open boxes have.

    Args:
        pred_boxes: (M, 4) XYXY, half-open, pixels. A box less than a pixel wide counts as zero wide.
        gt_boxes: (M, 4), in the same form.

    Returns:
        (M,) in [0, 2].

    Source: GIoU (arXiv 1902.09630); ``GIOULoss`` of the official ATSS loss, which takes x2 - x1 of inclusive boxes.
    """
    pred_first, gt_first = pred_boxes[..., :2], gt_boxes[..., :2]
    pred_last, gt_last = torch.maximum(pred_first, pred_boxes[..., 2:] - 1), gt_boxes[..., 2:] - 1

    intersection = _area((torch.minimum(pred_last, gt_last) - torch.maximum(pred_first, gt_first)).clamp(min=0))
    union = _area(pred_last - pred_first) + _area(gt_last - gt_first) - intersection + AREA_EPS
    enclosure = _area(torch.maximum(pred_last, gt_last) - torch.minimum(pred_first, gt_first)) + AREA_EPS
    giou = intersection / union - (enclosure - union) / enclosure
    return 1 - giou


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def centerness_targets(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Rate how central the centre of an anchor is in its box.

    Args:
        anchors: (M, 4) XYXY, half-open, pixels.
        gt_boxes: (M, 4) the matched boxes.

    Returns:
        (M,) in [0, 1]: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the distances to the four edges. 0
        where the centre is outside, which happens for matched boxes so large that their encoding is clamped.

    Source: FCOS (arXiv 1904.01355), Eq. 3; ``compute_centerness_targets`` of the official code.
    """
    near, far = center_to_edges_legacy(anchors, gt_boxes).unflatten(-1, (2, 2)).aminmax(dim=-2)  # (M, 2) each
    return (near.clamp(min=0) / far).prod(dim=-1).sqrt()
