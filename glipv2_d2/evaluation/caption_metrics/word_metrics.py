"""BLEU, CIDEr-D and ROUGE-L of captions, from their words. Each image has a reference, as ``score_captions`` checks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# The longest run that BLEU and CIDEr look at.
MAX_ORDER = 4
# The reference implementation adds these to numerator and denominator. A caption without any run of n words then scores
# almost 0 instead of failing. All other scores change in the ninth digit.
_TINY, _SMALL = 1e-15, 1e-9
# Difference in length, in words, that lowers the score by the factor exp(-1/2).
_SIGMA = 6.0
_SCALE = 10.0
# How much more recall counts than precision.
_BETA = 1.2


def count_ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Count the runs of ``order`` words; there are none in a shorter sentence."""
    # The last words begin no run.
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu_scores(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Return BLEU-1, BLEU-2, BLEU-3 and BLEU-4 of a corpus, in [0, 1].

    BLEU-n is the geometric mean of the precisions of runs of 1 to n words, times the brevity penalty. Matches, runs and
    lengths are summed over all images first. A run counts as often as the reference that has it most often; the length
    to reach is that of the reference that is closest, the shorter of two.

    Args:
        candidates: For each of N >= 1 images the words of its caption.
        references: For each image the words of its references.

    Source: Papineni et al., 2002; ``Bleu(4)`` of pycocoevalcap, option "closest", whose first result this equals.
    """
    matched, possible = [0] * MAX_ORDER, [0] * MAX_ORDER
    length = wanted_length = 0
    for words, sentences in zip(candidates, references, strict=True):
        length += len(words)
        wanted_length += min((abs(len(sentence) - len(words)), len(sentence)) for sentence in sentences)[1]
        for row in range(MAX_ORDER):
            most: Counter[tuple[str, ...]] = Counter()
            for sentence in sentences:
                most |= count_ngrams(sentence, row + 1)
            found = count_ngrams(words, row + 1)
            matched[row] += (found & most).total()
            possible[row] += found.total()
    ratio = (length + _TINY) / (wanted_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for row in range(MAX_ORDER):
        product *= (matched[row] + _TINY) / (possible[row] + _SMALL)
        scores.append(product ** (1 / (row + 1)) * brevity)
    return scores


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

    Source: Vedantam et al., 2015; ``Cider`` of pycocoevalcap, which computes CIDEr-D and measures length in pairs of
    words.
    """
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


def rouge_l_scores(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """Return ROUGE-L of each image, (N,) in [0, 1]; that of a corpus is the mean.

    It is the F-measure of precision and recall of the longest common subsequence of words. Both are the best over the
    references, and may come from different ones. They are 0 for a caption or a reference without words.

    Args:
        candidates: For each of N >= 1 images the words of its caption.
        references: For each image the words of its references.

    Source: Lin, 2004, with beta = 1.2; ``Rouge`` of pycocoevalcap, which gives 1 where caption and a reference are both
    without words.
    """
    scores = np.zeros(len(candidates))
    for row, (words, sentences) in enumerate(zip(candidates, references, strict=True)):
        common = [common_subsequence_length(words, sentence) for sentence in sentences]
        if not max(common):
            continue
        precision = max(common) / len(words)
        recall = max(shared / len(sentence) for shared, sentence in zip(common, sentences, strict=True) if sentence)
        scores[row] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return scores


def common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of words of the longest sequence that is in both, in order, with gaps allowed."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = lengths
        lengths = [0]
        for column, other in enumerate(second):
            lengths.append(before[column] + 1 if word == other else max(before[column + 1], lengths[column]))
    return lengths[-1]
