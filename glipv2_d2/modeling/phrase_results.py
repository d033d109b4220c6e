"""What a phrase gets: of a written caption the boxes of its tokens together, of a referring phrase one mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

from ..device_copies import to_device
from ..structures import CharSpan

# From this IoU on, boxes of two tokens are the same box. It is the default threshold of the detector's suppression.
_SAME_BOX_IOU = 0.6


def phrase_boxes(token_boxes: Tensor, token_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Join the boxes of the tokens of a phrase.

    Tokens that are aligned with the same thing may choose slightly different boxes for it. The score of a box is
    therefore a mean over all tokens: each token gives the score of the one of its own boxes that overlaps the box most,
    or 0 if their IoU is below 0.6. Of boxes that overlap more than that, the best one stays.

    Args:
        token_boxes: (T, k, 4), the best k boxes of each of T >= 1 tokens, XYXY in pixels.
        token_scores: (T, k) in [0, 1]. A score of 0 marks a missing box.

    Returns:
        Boxes (K, 4) and scores (K,) above 0, the best first. Equally good boxes are sorted by their coordinates.
        K may be 0.
    """
    boxes = torch.unique(token_boxes[token_scores > 0], dim=0)
    overlaps = pairwise_iou(Boxes(boxes), Boxes(token_boxes.flatten(0, 1))).view(-1, *token_scores.shape)  # (K, T, k)
    overlaps = overlaps.masked_fill(token_scores <= 0, 0)
    is_own = (overlaps == overlaps.amax(dim=2, keepdim=True)) & (overlaps >= _SAME_BOX_IOU)
    scores = torch.where(is_own, token_scores, 0).amax(dim=2).mean(dim=1)
    kept = nms(boxes.double(), scores.double(), _SAME_BOX_IOU)
    return boxes[kept], scores[kept]


def tokens_of_span(token_spans: Sequence[CharSpan | None], span: CharSpan) -> list[int]:
    """Return the indices of the tokens that spell a part of a half-open character range.

    Args:
        token_spans: Half-open character range of each of T tokens; None for a special token.
        span: The range.
    """
    begin, end = span
    return [row for row, own in enumerate(token_spans) if own is not None and own[0] < end and begin < own[1]]


def referred_mask(instances: Instances, score_thresh: float) -> Tensor:
    """Unite the masks of what a phrase refers to.

    Args:
        instances: Detections of one phrase, with ``pred_masks`` (K, H, W) bool and ``scores`` (K,) in [0, 1].
        score_thresh: Detections with at least this score are united. If there are none, the mask of the best detection
            alone is taken.

    Returns:
        (H, W) bool, the union. It is empty if K is 0.
    """
    if not len(instances):
        return torch.zeros(instances.image_size, dtype=torch.bool, device=instances.scores.device)
    scores = instances.scores.cpu()
    rows = (scores >= score_thresh).nonzero().squeeze(1)
    if not len(rows):
        rows = (scores == scores.max()).nonzero()[0]
    (rows,) = to_device([rows], instances.pred_masks.device)
    return instances.pred_masks[rows].any(dim=0)


def best_detection(instances: Instances) -> int:
    """Return the index of the highest of K >= 1 scores; of equal scores, the first."""
    return int((instances.scores == instances.scores.max()).nonzero()[0])
