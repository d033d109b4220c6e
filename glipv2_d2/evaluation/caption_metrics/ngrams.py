"""Runs of consecutive words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...errors import InputError

# The longest run that BLEU and CIDEr look at.
MAX_ORDER = 4


def count_ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Count the runs of ``order`` words; there are none in a shorter sentence."""
    # The last words begin no run.
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def check_pairs(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> None:
    """Check that there is something to compare with.

    Args:
        candidates: For each of N >= 1 images the words of its caption, possibly none.
        references: For each image the words of its references, at least one.

    Raises:
        InputError: There is no image, the two are not equally many, or an image has no reference.
    """
    if not candidates or len(candidates) != len(references):
        raise InputError(
            f"references: expected those of each of {len(candidates)} captions, at least one, found {len(references)}"
        )
    for row, sentences in enumerate(references):
        if not sentences:
            raise InputError(f"references[{row}]: expected at least one, found none")
