"""Choose the pairs of an anchor and a phrase that become detections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

from ...errors import InputError
from ...structures import GroundingPredictions, TokenizedPrompt
from ..box_regression import clip_boxes_legacy
from ..token_scoring import SCORE_AGGREGATIONS, token_to_phrase_scores


@dataclass(frozen=True)
class DetectionSelector:
    """Select the detections of one image.

    1. The candidates of a level are the pairs whose phrase score passes the threshold. The best ``topk_candidates`` by
       phrase score times centerness are kept.
    2. Their boxes are decoded and clipped. The final score is the square root of this product.
    3. Non-maximum suppression for each phrase, over all levels.
    4. The best detections are kept, with all that tie with the last of them.

    Args:
        box2box_transform: Decodes boxes relative to anchors.
        score_thresh: A phrase score must exceed it; in [0, 1].
        topk_candidates: Number of pairs kept of each level.
        nms_thresh: A box that overlaps a better one of its phrase by more than this IoU is suppressed.
        score_aggregation: See ``token_to_phrase_scores``.
        detections_per_image: Detections to keep; 0 keeps all.

    Raises:
        InputError: ``score_thresh`` or ``score_aggregation`` is out of range.

    Source: ``ATSSPostProcessor`` of the official code.
    """

    box2box_transform: Box2BoxTransform
    score_thresh: float
    topk_candidates: int
    nms_thresh: float
    score_aggregation: str
    detections_per_image: int

    def __post_init__(self) -> None:
        if not 0 <= self.score_thresh <= 1:
            raise InputError(f"MODEL.GLIPV2.TEST.SCORE_THRESH: expected a number in [0, 1], found {self.score_thresh}")
        if self.score_aggregation not in SCORE_AGGREGATIONS:
            raise InputError(
                f"MODEL.GLIPV2.TEST.SCORE_AGGREGATION: expected one of {', '.join(SCORE_AGGREGATIONS)}, "
                f"found {self.score_aggregation!r}"
            )

    @torch.no_grad()
    def __call__(
        self,
        predictions: GroundingPredictions,
        anchors: list[Boxes],
        image_size: tuple[int, int],
        prompt: TokenizedPrompt,
        limit: int | None = None,
    ) -> Instances:
        """Select from the predictions for one image, whose tensors lack the first dimension, N.

        Args:
            predictions: An anchor with a centerness that is NaN, or with box deltas that are not finite, is never
                detected, nor is a phrase with a score of NaN.
            anchors: L sets of anchors.
            image_size: Height and width of the image without padding, pixels.
            prompt: Its tokens are the first columns of the token logits; further columns are padding.
            limit: Detections to keep, 0 for all; None: ``detections_per_image``.

        Returns:
            ``pred_boxes`` half-open, in the frame of the anchors, clipped to the image; ``scores`` in [0, 1],
            descending; ``pred_classes``, the ``category_ids`` of the phrases; ``phrase_ids``, rows of the prompt.
        """
        anchor, phrase, scores = self._candidates(predictions, prompt)
        deltas = torch.cat(predictions.box_deltas)[anchor]
        boxes = self.box2box_transform.apply_deltas(deltas, Boxes.cat(anchors).tensor[anchor])
        boxes = clip_boxes_legacy(boxes, image_size)
        # The suppression moves the boxes of each phrase far apart; single precision would round them there.
        keep = batched_nms(boxes.double(), scores.double(), phrase, self.nms_thresh)
        limit = self.detections_per_image if limit is None else limit
        if 0 < limit < len(keep):
            last = scores[keep[limit - 1]]
            keep = keep[scores[keep] >= last]
        result = Instances(image_size)
        result.pred_boxes = Boxes(boxes[keep])
        result.scores = scores[keep]
        result.phrase_ids = phrase[keep]
        result.pred_classes = prompt.category_ids.to(phrase.device)[result.phrase_ids]
        return result

    def _candidates(self, predictions: GroundingPredictions, prompt: TokenizedPrompt) -> tuple[Tensor, Tensor, Tensor]:
        """Return anchor, phrase and final score of the best pairs of each level."""
        token_map = prompt.phrase_token_map.to(predictions.token_logits[0].device)
        # Only tokens of phrases are used: predictions for other tokens or for padding must not have an effect.
        used = token_map.any(dim=0).nonzero().squeeze(1)
        anchors, phrases, scores = [], [], []
        offset = 0
        for logits, deltas, centerness_logits in zip(*predictions, strict=True):
            token_scores = logits[:, used].float().sigmoid()
            phrase_scores = token_to_phrase_scores(token_scores, token_map[:, used], self.score_aggregation)
            centerness = centerness_logits.float().sigmoid()
            valid = deltas.isfinite().all(dim=1) & ~centerness.isnan()
            candidate = (phrase_scores > self.score_thresh) & valid[:, None]  # False for NaN
            anchor, phrase = candidate.nonzero(as_tuple=True)
            products = phrase_scores[anchor, phrase] * centerness[anchor]
            products, best = products.topk(min(self.topk_candidates, len(products)))
            anchors.append(anchor[best] + offset)
            phrases.append(phrase[best])
            scores.append(products.sqrt())
            offset += len(logits)
        return torch.cat(anchors), torch.cat(phrases), torch.cat(scores)
