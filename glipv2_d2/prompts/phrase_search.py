"""Find the phrases of a caption that a user names."""

from __future__ import annotations

import re

from ..errors import InputError
from ..structures import CharSpan


def find_phrase(caption: str, phrase: str | CharSpan) -> tuple[str, list[CharSpan]]:
    """Return a phrase of a caption with all the half-open character ranges where it stands.

    Args:
        phrase: A string, found as whole words in any case; or one half-open character range.

    Raises:
        InputError: The caption does not hold it.
    """
    if isinstance(phrase, str):
        words = phrase.strip()
        pattern = rf"(?<!\w){re.escape(words)}(?!\w)"
        spans = [match.span() for match in re.finditer(pattern, caption, re.IGNORECASE)] if words else []
        if not spans:
            raise InputError(f"phrases: expected words of the caption {caption!r}, found {phrase!r}")
        return phrase, spans
    begin, end = phrase
    if not 0 <= begin < end <= len(caption):
        raise InputError(
            f"phrases: expected ranges inside the caption of {len(caption)} characters, found ({begin}, {end})"
        )
    return caption[begin:end], [(begin, end)]
