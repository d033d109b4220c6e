"""Whether the objects that generated captions name are found where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

from ..errors import InputError
from ..prompts.decoding import DecodedText
from ..structures import CharSpan
from .captioning import CaptionedImage, CaptioningEvaluator, CaptionResult
from .named_objects import Mention

_BOX_THRESHOLD = 0.5
# From here on boxes of two tokens are one, as the detector has it for two boxes of a phrase unless its config differs.
_SAME_BOX_IOU = 0.6
_RECALLS = (1, 5, 10)


def phrase_boxes(token_boxes: Tensor, token_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Join the boxes of the tokens of a phrase.

    Tokens that are aligned with the same thing best need not choose the same box: one may have left out the other's
    for a better one beside it. The score of a box is therefore the mean, over all tokens, of the score of the token's
    own box that overlaps it most; a token whose boxes all have an IoU below 0.6 with it counts as 0. Of boxes with an
    IoU above that the best one stays.

    Args:
        token_boxes: (T, k, 4), the best k boxes of each of T >= 1 tokens, XYXY.
        token_scores: (T, k), their scores; boxes with the score 0 are none.

    Returns:
        Boxes (K, 4) and scores (K,), all above 0, the best first. Equally good ones are sorted by their coordinates.
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
    """Return the tokens, by index, that spell a part of a half-open character range."""
    begin, end = span
    return [row for row, own in enumerate(token_spans) if own is not None and own[0] < end and begin < own[1]]


class GroundedCaptioningEvaluator(CaptioningEvaluator):
    """Scores of captions, and the recall of the boxes of what they name correctly.

    Results have the task ``captioning`` of ``CaptioningEvaluator`` and ``grounding``: ``R@1``, ``R@5`` and ``R@10``,
    the share, in 0..100, of correctly named objects of which one of the best 1, 5 or 10 boxes has an IoU of at least
    0.5 with any of the boxes that are annotated under that name; NaN if there are none; and ``objects``, their number.
    An object is correctly named where a caption mentions what is annotated in its image; each mention counts.

    The file of predictions also has ``phrases`` of each caption: all names that it mentions, with ``span``, characters
    of the caption, ``boxes``, up to 10, XYXY in pixels of the original image, and their ``scores``, the best first.

    Model outputs have ``token_boxes`` (T, k, 4), XYXY in pixels of the original image, and ``token_scores`` (T, k),
    the best boxes of each of ``caption_ids``.

    Source: GLIPv2, Sec. D.2 and G; recall as in Flickr30K Entities, protocol "any box". There the phrases are given;
    here they are those that the model wrote.
    """

    def _ground(
        self, image: CaptionedImage, mentions: Sequence[Mention], decoded: DecodedText, output: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[int | None]]:
        """Rank the boxes of each mention.

        Raises:
            InputError: The model returned no boxes, or not for each token.
        """
        token_boxes, token_scores = (_of_tokens(output, key) for key in ("token_boxes", "token_scores"))
        phrases: list[dict[str, Any]] = []
        hits: list[int | None] = []
        for mention in mentions:
            rows = tokens_of_span(decoded.token_spans, mention.span)
            boxes, scores = phrase_boxes(token_boxes[rows], token_scores[rows])
            boxes, scores = boxes[: max(_RECALLS)], scores[: max(_RECALLS)]
            if mention.name in image.boxes:
                annotated = Boxes(torch.tensor(image.boxes[mention.name], dtype=torch.float32))
                fits = (pairwise_iou(Boxes(boxes), annotated) >= _BOX_THRESHOLD).any(dim=1).nonzero()
                hits.append(int(fits[0]) if len(fits) else None)
            if self._output_folder:
                begin, end = mention.span
                phrase = {"phrase": decoded.text[begin:end], "span": [begin, end]}
                phrases.append({**phrase, "boxes": boxes.tolist(), "scores": scores.tolist()})
        return phrases, hits

    def _grounding_scores(self, results: Sequence[CaptionResult]) -> dict[str, dict[str, float]]:
        hits = [place for result in results for place in result.hits]
        scores = {"objects": float(len(hits))}
        for limit in _RECALLS:
            found = sum(place is not None and place < limit for place in hits)
            scores[f"R@{limit}"] = 100.0 * found / len(hits) if hits else float("nan")
        return {"grounding": scores}

    def _prediction(self, result: CaptionResult) -> dict[str, Any]:
        return {**super()._prediction(result), "phrases": result.phrases}


def _of_tokens(output: dict[str, Any], key: str) -> Tensor:
    """Return a tensor of a model output that has one row for each token, as float32 on the CPU.

    Raises:
        InputError: It is not there, or has another number of rows.
    """
    num_tokens = len(output["caption_ids"])
    found = f"{len(output[key])} rows" if key in output else "none"
    if key not in output or len(output[key]) != num_tokens:
        raise InputError(f"{key}: found {found} for a caption of {num_tokens} tokens, expected a grounded caption")
    return output[key].detach().float().cpu()
