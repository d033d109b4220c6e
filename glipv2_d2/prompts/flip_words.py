"""Exchange "left" and "right" in the caption of a mirrored image."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..structures import CharSpan

# A word in mixed case, such as "LeFt", has no counterpart and stays.
_COUNTERPARTS = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_COUNTERPARTS |= {right: left for left, right in _COUNTERPARTS.items()}

# The word alone, or at the beginning of one of its compounds. "_" and "-" are borders of a word, as in "right-hand".
_PATTERN = re.compile(
    rf"(?<![^\W_])(?:{'|'.join(_COUNTERPARTS)})(?=(?i:most|hand|handed|hander|side|ward|wards)?(?![^\W_]))"
)


def swap_left_right(caption: str, spans: Sequence[Sequence[CharSpan]]) -> tuple[str, list[list[CharSpan]]]:
    """Exchange the words "left" and "right" of a caption, and move its phrases along.

    Compounds such as "leftmost", "right-hand" and "lefthanded" are exchanged too, in small letters, capitalised and in
    capitals. The meaning is not looked at: "right behind" becomes "left behind". Nothing else changes, and a second
    call restores the original.

    Args:
        caption: Any text.
        spans: For each of P phrases its half-open character ranges of ``caption``.

    Returns:
        The new caption, and for each phrase the ranges of the same words in it. A range that begins or ends inside an
        exchanged word is extended to all of it.

    Source: none. The official GLIP code mirrors images without changing their captions; this is a departure from it.
    """
    pieces: list[str] = []
    # For each character of the caption its range in the new one; the characters of an exchanged word share one range.
    begins: list[int] = []
    ends: list[int] = []
    length = last = 0
    for match in [*_PATTERN.finditer(caption), None]:
        begin, end = match.span() if match else (len(caption), len(caption))
        begins += range(length, length + begin - last)
        ends += range(length + 1, length + begin - last + 1)
        word = _COUNTERPARTS[match[0]] if match else ""
        pieces += [caption[last:begin], word]
        length += begin - last
        begins += [length] * (end - begin)
        length += len(word)
        ends += [length] * (end - begin)
        last = end
    return "".join(pieces), [[(begins[begin], ends[end - 1]) for begin, end in phrase] for phrase in spans]
