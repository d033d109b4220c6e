"""Find the words of a text in the image: for each token the boxes that it is aligned with best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import batched_nms

from ...structures import GroundingPredictions, TokenizedPrompt
from ..box_regression import clip_boxes_legacy

# Number of boxes kept for a token, and number of best anchors that they are chosen from.
BOXES_PER_TOKEN = 10
_ANCHORS_PER_TOKEN = 100


class TokenBoxes(NamedTuple):
    """The best boxes of the T tokens of a text, best first.

    Attributes:
        boxes: (T, k, 4) XYXY; 0 where a token has fewer than k boxes.
        scores: (T, k) in [0, 1], 0 for missing boxes.
    """

    boxes: Tensor
    scores: Tensor


@torch.no_grad()
def ground_tokens(
    predictions: GroundingPredictions,
    anchors: list[Boxes],
    image_size: tuple[int, int],
    box2box_transform: Box2BoxTransform,
    nms_thresh: float,
) -> TokenBoxes:
    """Choose the boxes of each token of one image.

    The score of a box is its alignment with the token, without the centerness. A box that overlaps a better one of the
    same token is left out.

    Args:
        predictions: Predictions for one image, whose tensors lack the first dimension, N.
        anchors: L sets of anchors.
        image_size: Height and width of the image without padding, pixels.
        box2box_transform: Decodes boxes relative to anchors.
        nms_thresh: IoU from which on two boxes of a token are the same.

    Source: GLIPv2, App. D.2: the region with the largest dot product.
    """
    scores = torch.cat(predictions.token_logits).float().sigmoid()  # (R, T)
    deltas = torch.cat(predictions.box_deltas)
    scores = scores.masked_fill(~deltas.isfinite().all(dim=1, keepdim=True), 0).nan_to_num(0)
    num_tokens = scores.shape[1]
    best, rows = scores.topk(min(_ANCHORS_PER_TOKEN, len(scores)), dim=0)  # (k', T)
    best, rows = best.T.flatten(), rows.T.flatten()
    tokens = torch.arange(num_tokens, device=rows.device).repeat_interleave(len(rows) // max(num_tokens, 1))
    boxes = box2box_transform.apply_deltas(deltas[rows].nan_to_num(0), Boxes.cat(anchors).tensor[rows])
    boxes = clip_boxes_legacy(boxes, image_size)
    # In double precision, as the detections are suppressed; what is kept comes best first.
    kept = batched_nms(boxes.double(), best.double(), tokens, nms_thresh)
    result = TokenBoxes(boxes.new_zeros(num_tokens, BOXES_PER_TOKEN, 4), boxes.new_zeros(num_tokens, BOXES_PER_TOKEN))
    for token in range(num_tokens):
        own = kept[tokens[kept] == token][:BOXES_PER_TOKEN]
        result.boxes[token, : len(own)] = boxes[own]
        result.scores[token, : len(own)] = best[own]
    return result


def caption_prompt(token_ids: Tensor, start_id: int, end_id: int) -> TokenizedPrompt:
    """Return the (T,) tokens of a caption, between start and end, as a prompt without phrases."""
    ids = [start_id, *token_ids.tolist(), end_id]
    return TokenizedPrompt(
        torch.tensor(ids), torch.zeros(0, len(ids), dtype=torch.bool), torch.zeros(0, dtype=torch.int64), ()
    )
