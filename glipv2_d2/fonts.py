"""Fonts for drawings: one that has all letters of a text, else a text whose letters are spelled out."""

from __future__ import annotations

import functools
import unicodedata

from matplotlib import font_manager
from PIL import ImageFont

# It comes with matplotlib and has the letters of Europe and its neighbours.
_FIRST_FAMILY = "DejaVu Sans"


def legible(text: str, font: ImageFont.FreeTypeFont) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text as it can be drawn, and a font that has all its letters.

    Args:
        text: A text in any script.
        font: The font of plain letters, and the size of all fonts.

    Returns:
        The text itself, if a font of this machine has its letters. Otherwise a letter that the first font lacks is
        spelled out by its name in Unicode: "ka" for a letter of katakana, "[dog face]" for a pictograph, "U+4E4C" for
        a Chinese character.
    """
    if text.isascii():
        return text, font
    size = int(font.size)
    for path in (first := _first_path(), *_other_paths()):
        if all(ord(letter) in _letters(path) for letter in text if not letter.isspace()):
            try:
                return text, _font(path, size)
            except OSError:  # A font of bitmaps has sizes of its own.
                continue
    known = _letters(first)
    spelled = (
        one if ord(one) in known or one.isspace() else _spelled(one) for one in unicodedata.normalize("NFKC", text)
    )
    return "".join(spelled).strip(), _font(first, size)


@functools.cache
def _first_path() -> str:
    return font_manager.findfont(_FIRST_FAMILY)


@functools.cache
def _other_paths() -> tuple[str, ...]:
    return tuple(sorted({entry.fname for entry in font_manager.fontManager.ttflist} - {_first_path()}))


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _spelled(letter: str) -> str:
    name = unicodedata.name(letter, "").lower()
    if not name or "ideograph" in name:
        return f" U+{ord(letter):04X} "
    return name.split()[-1] if unicodedata.category(letter).startswith("L") else f"[{name}]"
