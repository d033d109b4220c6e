"""The predicted boxes that the mask head trains on."""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances

from ...structures import GroundingPredictions, TokenizedPrompt
from .detection_selector import DetectionSelector

# The settings of the official selection in training: every pair is a candidate.
_SCORE_THRESH = 0.0
_TOPK_CANDIDATES = 3000
_MAX_PROPOSALS = 1000


@torch.no_grad()
def select_proposals(
    predictions: GroundingPredictions,
    anchors: list[Boxes],
    image_sizes: list[tuple[int, int]],
    prompts: list[TokenizedPrompt],
    instances: list[Instances],
    selector: DetectionSelector,
) -> list[Boxes]:
    """Select boxes as at test time, but more of them, and only of phrases that have a mask in the image.

    Args:
        predictions: Output of the grounding head for N images.
        anchors: L sets of anchors.
        image_sizes: N pairs of height and width without padding, pixels.
        prompts: N prompts.
        instances: N images with ``gt_classes``, rows of the prompt's ``phrase_token_map``, and ``gt_has_mask``.
        selector: The selector of test time; its threshold and numbers of boxes are not used here.

    Returns:
        N sets of boxes, half-open, in the frame of the anchors, best first. An image without masks has none.

    Source: the ``box_selector_train`` of the official code, which selects for each box of the image anew, though
    boxes of one phrase have the same candidates.
    """
    selector = replace(
        selector, score_thresh=_SCORE_THRESH, topk_candidates=_TOPK_CANDIDATES, detections_per_image=_MAX_PROPOSALS
    )
    proposals = []
    for i, (image_size, prompt, image) in enumerate(zip(image_sizes, prompts, instances, strict=True)):
        phrases = image.gt_classes[image.gt_has_mask].unique().cpu()
        prompt = TokenizedPrompt(
            prompt.input_ids,
            prompt.phrase_token_map[phrases],
            prompt.category_ids[phrases],
            tuple(prompt.phrases[phrase] for phrase in phrases.tolist()),
        )
        proposals.append(selector(predictions.of_image(i), anchors, image_size, prompt).pred_boxes)
    return proposals
