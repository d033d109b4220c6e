"""BLEU-1 to BLEU-4 of a set of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from .ngrams import MAX_ORDER, check_pairs, count_ngrams

# The reference implementation adds these to numerator and denominator. A caption without any run of n words then scores
# almost 0 instead of failing. All other scores change in the ninth digit.
_TINY, _SMALL = 1e-15, 1e-9


def bleu_scores(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Return BLEU-1, BLEU-2, BLEU-3 and BLEU-4 of a corpus, in [0, 1].

    BLEU-n is the geometric mean of the precisions of runs of 1 to n words, times the brevity penalty. Matches, runs and
    lengths are summed over all images first. A run counts as often as the reference that has it most often; the length
    to reach is that of the reference that is closest, the shorter of two.

    Args:
        candidates: For each of N >= 1 images the words of its caption.
        references: For each image the words of its references.

    Raises:
        ValueError: As ``check_pairs``.

    Source: Papineni et al., 2002; ``Bleu(4)`` of pycocoevalcap, option "closest", whose first result this equals.
    """
    check_pairs(candidates, references)
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
