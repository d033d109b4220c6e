"""All scores of captions at once, by pycocoevalcap or without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ...errors import InputError
from .java_metrics import JavaMetricsError, score_with_java
from .tokenization import tokenize_caption
from .word_metrics import bleu_scores, cider_scores, rouge_l_scores

IMPLEMENTATIONS = ("auto", "pycocoevalcap", "python")


class CaptionScores(NamedTuple):
    """Scores of the captions of N images.

    Attributes:
        values: ``BLEU1`` to ``BLEU4`` and ``ROUGE_L`` in 0..100 and ``CIDEr`` in 0..1000, as papers print them; with
            pycocoevalcap, where their models are there, also ``METEOR`` and ``SPICE`` in 0..100.
        implementation: The one that computed them, "pycocoevalcap" or "python".
    """

    values: dict[str, float]
    implementation: str


def score_captions(
    captions: Sequence[str], references: Sequence[Sequence[str]], implementation: str = "auto"
) -> CaptionScores:
    """Score captions against references; both are tokenized first.

    The two implementations agree on the same words; their tokenizers differ, rarely, as ``tokenize_caption`` says.

    Args:
        captions: Captions of N >= 1 images; an empty caption scores 0.
        references: For each image its references, at least one.
        implementation: "pycocoevalcap", with Java; "python", without; "auto": the first if it works here, else the
            second, and the log says why.

    Raises:
        InputError: The implementation is unknown, or "pycocoevalcap" and does not work here; there is no image, or one
            has no references.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"implementation: expected one of {', '.join(IMPLEMENTATIONS)}, found {implementation!r}")
    if not captions or len(captions) != len(references) or not all(references):
        raise InputError(
            f"references: expected at least one for each of {len(captions)} captions, "
            f"found some for {sum(map(bool, references))}"
        )
    if implementation != "python":
        try:
            values = score_with_java(captions, references)
        except JavaMetricsError as error:
            if implementation == "pycocoevalcap":
                raise InputError(
                    f"implementation 'pycocoevalcap': expected the package and Java, found: {error}"
                ) from error
            logging.getLogger(__name__).info("captions are scored without pycocoevalcap: %s", error)
        else:
            return CaptionScores({name: 100.0 * value for name, value in values.items()}, "pycocoevalcap")
    found = [tokenize_caption(caption) for caption in captions]
    wanted = [[tokenize_caption(reference) for reference in texts] for texts in references]
    values = {f"BLEU{order}": 100.0 * score for order, score in enumerate(bleu_scores(found, wanted), 1)}
    values["ROUGE_L"] = 100.0 * float(rouge_l_scores(found, wanted).mean())
    values["CIDEr"] = float((100.0 * cider_scores(found, wanted)).mean())
    return CaptionScores(values, "python")
