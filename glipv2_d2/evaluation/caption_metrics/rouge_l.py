"""ROUGE-L: how long a subsequence caption and reference share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ngrams import check_pairs

# How much more recall counts than precision.
_BETA = 1.2


def rouge_l_scores(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """Return ROUGE-L of each image, (N,) in [0, 1]; that of a corpus is the mean.

    It is the F-measure of precision and recall of the longest common subsequence of words. Both are the best over the
    references, and may come from different ones. They are 0 for a caption or a reference without words.

    Args:
        candidates: For each of N >= 1 images the words of its caption.
        references: For each image the words of its references.

    Raises:
        ValueError: As ``check_pairs``.

    Source: Lin, 2004, with beta = 1.2; ``Rouge`` of pycocoevalcap, which gives 1 where caption and a reference are both
    without words.
    """
    check_pairs(candidates, references)
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
