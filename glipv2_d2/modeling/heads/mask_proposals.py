"""The predicted boxes that the mask head trains on."""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...structures import GroundingPredictions, TokenizedPrompt
from .batched_selection import find_candidates, select_together
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
        instances: N images with ``gt_classes``, rows of the prompt's ``phrase_token_map``, and ``gt_has_mask``; on the
            CPU.
        selector: The selector of test time; its threshold and numbers of boxes are not used here.

    Returns:
        N sets of boxes on the CPU, half-open, in the frame of the anchors, best first. An image without masks has none.

    Source: the ``box_selector_train`` of the official code, which selects for each box of the image anew, though
    boxes of one phrase have the same candidates.
    """
    selector = replace(
        selector, score_thresh=_SCORE_THRESH, topk_candidates=_TOPK_CANDIDATES, detections_per_image=_MAX_PROPOSALS
    )
    prompts = [
        _with_masks(prompt, image.gt_classes[image.gt_has_mask].unique())
        for prompt, image in zip(prompts, instances, strict=True)
    ]
    if predictions.box_deltas[0].device.type != "cpu":
        candidates = find_candidates(selector, predictions, anchors, image_sizes, prompts)
        return [found.pred_boxes for found in select_together(selector, [(candidates, prompts)])[0]]
    pairs = enumerate(zip(image_sizes, prompts, strict=True))
    return [selector(predictions.of_image(i), anchors, size, prompt).pred_boxes for i, (size, prompt) in pairs]


def _with_masks(prompt: TokenizedPrompt, phrases: Tensor) -> TokenizedPrompt:
    """Return a prompt with the given phrases alone."""
    return TokenizedPrompt(
        prompt.input_ids,
        prompt.phrase_token_map[phrases],
        prompt.category_ids[phrases],
        tuple(prompt.phrases[phrase] for phrase in phrases.tolist()),
    )
