"""CIDEr-D: the consensus of a caption with its references, by runs of words that are rare over the images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .ngrams import MAX_ORDER, check_pairs, count_ngrams

# Difference in length, in words, that lowers the score by the factor exp(-1/2).
_SIGMA = 6.0
_SCALE = 10.0


class _WeightedSentence(NamedTuple):
    """A sentence as TF-IDF vectors, one for each length of runs.

    Attributes:
        vectors: From each run of words to its frequency in the sentence, times its rarity over the images.
        norms: Norm of each vector.
        length: Number of pairs of neighbouring words.
    """

    vectors: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def cider_scores(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """Return CIDEr of each image, (N,) in [0, 10]; that of a corpus is the mean.

    The score of a caption and a reference is the mean over runs of 1 to 4 words of the clipped cosine of their TF-IDF
    vectors, lowered for different lengths. The score of an image is ten times the mean over its references. The fewer
    images have a run in a reference, the rarer it is. A run of all images weighs 0, so that a single image scores 0.

    Args:
        candidates: For each of N >= 1 images the words of its caption.
        references: For each image the words of its references; over these the frequencies of documents are counted.

    Raises:
        ValueError: As ``check_pairs``.

    Source: Vedantam et al., 2015; ``Cider`` of pycocoevalcap, which computes CIDEr-D and measures length in pairs of
    words.
    """
    check_pairs(candidates, references)
    frequencies: Counter[tuple[str, ...]] = Counter()
    for sentences in references:
        frequencies.update({run for sentence in sentences for run in _runs(sentence)})
    num_images = math.log(len(references))
    scores = np.zeros(len(candidates))
    for row, (words, sentences) in enumerate(zip(candidates, references, strict=True)):
        weighted = _weigh(words, frequencies, num_images)
        similarities = [_similarity(weighted, _weigh(sentence, frequencies, num_images)) for sentence in sentences]
        scores[row] = _SCALE * sum(similarities) / len(sentences)
    return scores


def _runs(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return (run for order in range(1, MAX_ORDER + 1) for run in count_ngrams(words, order))


def _weigh(words: Sequence[str], frequencies: Counter[tuple[str, ...]], num_images: float) -> _WeightedSentence:
    vectors = [
        # A run without a reference is as rare as a run of one image.
        {
            run: count * (num_images - math.log(max(1, frequencies[run])))
            for run, count in count_ngrams(words, order).items()
        }
        for order in range(1, MAX_ORDER + 1)
    ]
    norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
    return _WeightedSentence(vectors, norms, max(len(words) - 1, 0))


def _similarity(caption: _WeightedSentence, reference: _WeightedSentence) -> float:
    total = 0.0
    pairs = zip(caption.vectors, reference.vectors, caption.norms, reference.norms, strict=True)
    for found, wanted, norm, wanted_norm in pairs:
        if norm and wanted_norm:
            shared = sum(min(found[run], wanted[run]) * wanted[run] for run in found if run in wanted)
            total += shared / (norm * wanted_norm)
    difference = caption.length - reference.length
    return total / MAX_ORDER * math.exp(-(difference**2) / (2 * _SIGMA**2))
