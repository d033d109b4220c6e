"""Text in a strip below an image. The words of each phrase stand on the colour of the phrase."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import InputError
from .fonts import legible
from .prompts.noun_phrases import find_phrase
from .structures import CharSpan

Color = tuple[int, int, int]

# A word with the space after it, and the row of its phrase; None for a word without a phrase.
Word = tuple[str, int | None]

# Steps of the golden section around the colour circle never return to an earlier hue.
_GOLDEN_SECTION = 0.618034


def phrase_color(row: int) -> Color:
    """Return the colour of phrase ``row``, RGB in 0..255; neighbouring rows differ well."""
    red, green, blue = colorsys.hsv_to_rgb((row * _GOLDEN_SECTION) % 1.0, 0.85, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(row: int) -> Color:
    """Return black or white, whichever can be read on the colour of phrase ``row``."""
    red, green, blue = phrase_color(row)
    # Luma of Rec. 601.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def split_caption(caption: str, phrases: Sequence[str]) -> list[Word]:
    """Cut a caption into words, each with the row of its phrase. A phrase is marked wherever it occurs.

    A word of overlapping phrases belongs to the longer one.
    """
    return split_words(caption, [_find(caption, phrase) for phrase in phrases])


def split_words(text: str, phrase_spans: Sequence[Sequence[CharSpan]]) -> list[Word]:
    """Cut a text into words, each with the row of its phrase.

    Args:
        text: A text; it may be empty.
        phrase_spans: For each of P phrases its half-open character ranges of the text; empty for a phrase that is not
            marked. A word of overlapping ranges belongs to the longer one.
    """
    owners: list[int | None] = [None] * len(text)
    ranges = [(end - begin, row, begin, end) for row, spans in enumerate(phrase_spans) for begin, end in spans]
    # Long ranges come last and overwrite short ones.
    for _, row, begin, end in sorted(ranges):
        owners[begin:end] = [row] * len(owners[begin:end])
    words: list[Word] = []
    begin = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or owners[end] != owners[begin] or text[end - 1].isspace():
            words.append((text[begin:end], owners[begin]))
            begin = end
    return words


def draw_words(words: Sequence[Word], font: ImageFont.FreeTypeFont, width: int) -> np.ndarray:
    """Write words in lines, those of a phrase on the colour of the phrase.

    Args:
        words: Words with the rows of their phrases.
        font: Font of all words whose letters it has; another one of its size, or spelled out, otherwise.
        width: Width of the strip in pixels.

    Returns:
        (H, width, 3) uint8 RGB. H follows the number of lines.
    """
    size = int(font.size)
    placed = _wrap(words, font, width - 2 * size)
    num_lines = 1 + max((word.line for word in placed), default=0)
    canvas = Image.new("RGB", (width, 2 * size * num_lines + size), "white")
    pen = ImageDraw.Draw(canvas)
    for (line, row), group in itertools.groupby(placed, key=lambda word: (word.line, word.row)):
        run = list(group)
        top = 2 * size * line + size
        if row is not None:
            margin = size // 6
            chip = (size + run[0].left - margin, top - margin, size + run[-1].right + margin, top + size + 2 * margin)
            pen.rounded_rectangle(chip, margin, fill=phrase_color(row))
        for word in run:
            pen.text((size + word.left, top), word.text, (0, 0, 0) if row is None else text_color(row), word.font)
    return np.asarray(canvas)


class _PlacedWord(NamedTuple):
    """A word with its line, its left and right edge in pixels, the row of its phrase or None, and its font."""

    line: int
    left: float
    right: float
    text: str
    row: int | None
    font: ImageFont.FreeTypeFont


def _wrap(words: Sequence[Word], font: ImageFont.FreeTypeFont, width: int) -> list[_PlacedWord]:
    """Lay words out in lines."""
    placed = []
    line, left = 0, 0.0
    for word, row in words:
        space = word[len(word.rstrip()) :]
        text, face = legible(word.rstrip(), font)
        if left > 0 and left + face.getlength(text) > width:
            line, left = line + 1, 0.0
        placed.append(_PlacedWord(line, left, left + face.getlength(text), text, row, face))
        left += face.getlength(text + space)
    return placed


def _find(caption: str, phrase: str) -> list[CharSpan]:
    try:
        return find_phrase(caption, phrase)[1]
    except InputError:
        # The phrase joins words that stand apart in the caption.
        return []
