"""Find the words of a text in the image: for each token the boxes that it is aligned with best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor

from ...device_copies import to_device
from ...structures import GroundingPredictions, TokenizedPrompt
from ..box_regression import pixel_bounds
from ..heads.batched_selection import Candidates, suppress

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
    image_sizes: list[tuple[int, int]],
    num_tokens: Sequence[int],
    box2box_transform: Box2BoxTransform,
    nms_thresh: float,
) -> list[TokenBoxes]:
    """Choose the boxes of each token of N texts; on a device the CPU waits for it once.

    The score of a box is its alignment with the token, without the centerness. A box that overlaps a better one of the
    same token is left out.

    Args:
        predictions: Predictions for N images.
        anchors: L sets of anchors.
        image_sizes: N pairs of height and width without padding, pixels.
        num_tokens: For each text the number of its tokens, which are the first columns of the predictions.
        box2box_transform: Decodes boxes relative to anchors.
        nms_thresh: IoU from which on two boxes of a token are the same.

    Returns:
        N sets of boxes, on the CPU.

    Source: GLIPv2, App. D.2: the region with the largest dot product.
    """
    longest = max(num_tokens)
    scores = torch.cat(predictions.token_logits, dim=1)[..., :longest].float().sigmoid()  # (N, R, T)
    deltas = torch.cat(predictions.box_deltas, dim=1)
    scores = scores.masked_fill(~deltas.isfinite().all(dim=2, keepdim=True), 0).nan_to_num(0)
    is_token = torch.arange(longest) < torch.tensor(num_tokens)[:, None]
    is_token, bounds = to_device([is_token, pixel_bounds(image_sizes)], scores.device)
    # A negative score is none.
    scores = scores.where(is_token[:, None], -1.0)
    best, rows = scores.topk(min(_ANCHORS_PER_TOKEN, scores.shape[1]), dim=1)  # (N, k', T)
    best, rows = (one.transpose(1, 2).flatten(1) for one in (best, rows))  # (N, T * k')
    tokens = torch.arange(longest, device=rows.device).repeat_interleave(rows.shape[1] // max(longest, 1))
    deltas = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).nan_to_num(0).flatten(0, 1)
    boxes = box2box_transform.apply_deltas(deltas, Boxes.cat(anchors).tensor[rows.flatten()])
    boxes = boxes.view(*rows.shape, 4).maximum(bounds[:, :1]).minimum(bounds[:, 1:])
    of_images = suppress([Candidates(boxes, best, tokens.expand_as(rows), image_sizes)], nms_thresh)
    return [_best_boxes(one, count) for one, count in zip(of_images, num_tokens, strict=True)]


def _best_boxes(rows: Tensor, num_tokens: int) -> TokenBoxes:
    """Return the best boxes of each token, from rows of ``suppress``."""
    result = TokenBoxes(torch.zeros(num_tokens, BOXES_PER_TOKEN, 4), torch.zeros(num_tokens, BOXES_PER_TOKEN))
    for token in range(num_tokens):
        own = rows[rows[:, 5] == token][:BOXES_PER_TOKEN].float()
        result.boxes[token, : len(own)] = own[:, :4]
        result.scores[token, : len(own)] = own[:, 4]
    return result


def caption_prompt(token_ids: Tensor, start_id: int, end_id: int) -> TokenizedPrompt:
    """Return the (T,) tokens of a caption, between start and end, as a prompt without phrases."""
    ids = [start_id, *token_ids.tolist(), end_id]
    return TokenizedPrompt(
        torch.tensor(ids), torch.zeros(0, len(ids), dtype=torch.bool), torch.zeros(0, dtype=torch.int64), ()
    )
