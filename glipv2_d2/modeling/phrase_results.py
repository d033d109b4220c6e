"""What a phrase gets: of a written caption the boxes of its tokens together, of a referring phrase one mask, and how
well every location of an image fits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torchvision.ops import nms

from ..device_copies import to_device
from ..errors import InputError
from ..structures import CharSpan, PhraseMaps
from .meta_arch.glipv2 import GLIPv2
from .tasks.detection import Detection
from .token_scoring import token_to_phrase_scores

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


@torch.no_grad()
def find_phrase_maps(model: nn.Module, inputs: dict[str, Any]) -> dict[str, PhraseMaps]:
    """Compare every location of an image with every phrase of its prompts; no name is left out by a shortlist.

    On a device the CPU waits once for each kind of maps.

    Args:
        model: A ``GLIPv2`` in eval mode; of one with ``by_name`` the tuned weights alone are asked.
        inputs: A model input.

    Returns:
        ``after``: probabilities in [0, 1] after fusion, of which detections are made, without centerness; phrases are
        scored as those are. With a contrastive head also ``before``: the mean cosine, in [-1, 1], of a location before
        fusion and the words of the phrase, in the space of that head. A phrase without tokens has 0.

    Raises:
        InputError: The model reads no text.
    """
    if not isinstance(model, GLIPv2):
        raise InputError(f"phrase maps: expected a model that reads text, GLIPv2, found {type(model).__name__}")
    detection = cast(Detection, model.tasks[Detection.name])
    prompts = [model.prompts_of(inputs)]
    images = model.preprocess_image([inputs])
    features = model.visual_features(images)
    head, aggregation = model.contrastive_head, model.head.selector.score_aggregation
    regions = None if head is None else head.regions_of(features)[0]  # (R, E)
    found: dict[str, dict[int, Tensor]] = {"after": {}} if head is None else {"before": {}, "after": {}}
    for pairs, (fused, predictions) in detection.passes(model, images, features, prompts):
        for number, (rank, prompt) in enumerate(zip(pairs.ranks, pairs.prompts, strict=True)):
            (spelled,) = to_device([prompt.phrase_token_map], model.device)
            longest = max([0, *prompt.phrase_token_map.sum(dim=1).tolist()])
            logits = torch.cat([level[number, :, : len(prompt)] for level in predictions.token_logits])  # (R, T)
            scores = token_to_phrase_scores(logits.float().sigmoid(), spelled, aggregation, longest)
            found["after"][rank] = scores  # (R, P)
            if regions is not None:
                words = F.normalize(head.project_words(fused.language.embedded[number, : len(prompt)]), dim=-1)
                found["before"][rank] = token_to_phrase_scores(regions @ words.T, spelled)
    sizes = [level.shape[-2:] for level in features]
    strides = [int(stride) for stride in model.anchor_generator.strides]
    maps = {}
    for kind, by_rank in found.items():
        together = torch.cat([by_rank[rank] for rank in range(len(prompts[0]))], dim=1).T.cpu()  # (P, R)
        parts = together.split([height * width for height, width in sizes], dim=1)
        levels = [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]
        maps[kind] = PhraseMaps(levels, strides, images.image_sizes[0])
    return maps
