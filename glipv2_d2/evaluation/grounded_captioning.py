"""Whether the objects that generated captions name are found where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from ..errors import InputError
from ..modeling.phrase_results import phrase_boxes, tokens_of_span
from ..prompts.decoding import DecodedText
from .captioning import CaptionedImage, CaptioningEvaluator, CaptionResult
from .named_objects import Mention
from .sample_evaluator import RECALL_LIMITS, recalls

_BOX_THRESHOLD = 0.5


class GroundedCaptioningEvaluator(CaptioningEvaluator):
    """Scores of captions, and the recall of the boxes of the objects that they name correctly.

    Results have the task ``captioning`` of ``CaptioningEvaluator`` and ``grounding``: ``objects``, the number of
    correctly named objects, and ``R@1``, ``R@5`` and ``R@10``, the share of these, in 0..100, of which one of the best
    1, 5 or 10 boxes has an IoU of at least 0.5 with a box that is annotated under that name; NaN without such objects.
    An object is correctly named if a caption mentions a name that is annotated in its image; each mention counts.

    The file of predictions also has ``phrases`` of each caption: all names that it mentions, with ``span``, characters
    of the caption, ``boxes``, up to 10, XYXY in pixels of the original image, and their ``scores``, the best first.

    Model outputs have ``token_boxes`` (T, k, 4), XYXY in pixels of the original image, and ``token_scores`` (T, k) in
    [0, 1], the best boxes of each of ``caption_ids``.

    Source: GLIPv2, Sec. D.2 and G; recall as in Flickr30K Entities, protocol "any box". There the phrases are given;
    here the model writes them, so the two numbers cannot be compared.
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
            boxes, scores = boxes[: max(RECALL_LIMITS)], scores[: max(RECALL_LIMITS)]
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
        hits = [rank for result in results for rank in result.hits]
        return {"grounding": {"objects": float(len(hits)), **recalls(hits)}}

    def _prediction(self, image_id: int, result: CaptionResult) -> dict[str, Any]:
        return {**super()._prediction(image_id, result), "phrases": result.phrases}


def _of_tokens(output: dict[str, Any], key: str) -> Tensor:
    """Return a tensor of a model output that has one row for each token, as float32 on the CPU.

    Raises:
        InputError: The output has no such tensor, or one with another number of rows.
    """
    num_tokens = len(output["caption_ids"])
    found = f"{len(output[key])} rows" if key in output else "none"
    if key not in output or len(output[key]) != num_tokens:
        raise InputError(
            f"{key}: expected one row for each of {num_tokens} tokens of a grounded caption, found {found}"
        )
    return output[key].detach().float().cpu()
