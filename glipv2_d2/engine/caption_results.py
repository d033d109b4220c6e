"""What a written caption names: its noun phrases and words, each with its best box."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..modeling.phrase_results import phrase_boxes, tokens_of_span
from ..prompts.decoding import DecodedText
from ..prompts.noun_phrases import noun_phrases, without_determiner
from ..structures import CharSpan

# A word of a written caption, without the marks around it.
_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+(?:['’-][^\W_]+)*")


def ground_caption(decoded: DecodedText, output: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Find the best box of each noun phrase and each word of a caption.

    Args:
        decoded: The caption, of T tokens.
        output: Output of the model for its image: ``token_boxes`` (T, k, 4) and ``token_scores`` (T, k); a caption
            without them gets no boxes.
        image_size: Height and width of the image, pixels.

    Returns:
        ``instances``, ``phrases``, ``phrase_spans`` and ``words``, see ``GLIPv2Predictor.caption``.
    """
    is_grounded = "token_boxes" in output
    found = noun_phrases(decoded.text) if is_grounded else []
    # Boxes of articles are not learned: training grounds names without an article.
    named = [[without_determiner(decoded.text, span) for span in spans] for _, spans in found]
    ranked = [_ranked_boxes(decoded, output, spans) for spans in named]
    boxed = [row for row, (_, scores) in enumerate(ranked) if len(scores)]
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(torch.cat([torch.zeros(0, 4), *(ranked[row][0][:1] for row in boxed)]))
    instances.scores = torch.cat([torch.zeros(0), *(ranked[row][1][:1] for row in boxed)])
    instances.pred_classes = torch.tensor(boxed, dtype=torch.int64)
    words = []
    for match in _WORD.finditer(decoded.text) if is_grounded else ():
        boxes, scores = _ranked_boxes(decoded, output, [match.span()])
        best = {"box": boxes[0].tolist(), "score": scores[0].item()} if len(scores) else {"box": None, "score": 0.0}
        words.append({"word": match.group(), "span": match.span(), **best})
    return {
        "instances": instances,
        "phrases": [phrase for phrase, _ in found],
        "phrase_spans": [list(spans) for _, spans in found],
        "words": words,
    }


def _ranked_boxes(decoded: DecodedText, output: dict[str, Any], spans: Sequence[CharSpan]) -> tuple[Tensor, Tensor]:
    """Return the boxes (K, 4) of some ranges of a caption and their scores (K,), the best first."""
    rows = sorted({row for span in spans for row in tokens_of_span(decoded.token_spans, span)})
    return phrase_boxes(output["token_boxes"][rows].float().cpu(), output["token_scores"][rows].float().cpu())
