"""Which known names a mistyped one may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

# Likeness from 0 to 1 below which a name is no help.
_LEAST = 0.6


def likeliest(word: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names in order of their likeness to a word; none that is very different.

    The last part of a name with dots or slashes may stand for the whole: "MAX_ITER" is like "SOLVER.MAX_ITER".
    """
    rated = sorted((-_likeness(word.casefold(), name.casefold()), name) for name in known)
    return [name for score, name in rated[:3] if -score >= _LEAST]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message: "; did you mean A or B?", empty if no known name is like the word."""
    near = likeliest(word, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _likeness(word: str, name: str) -> float:
    whole = SequenceMatcher(None, word, name).ratio()
    last = SequenceMatcher(None, re.split(r"[./]", word)[-1], re.split(r"[./]", name)[-1]).ratio()
    # A name that is alike as a whole comes first.
    return max(whole, 0.9 * last)
