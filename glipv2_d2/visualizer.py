"""Draw what was found: boxes with their phrases and scores, and the caption with its phrases in the same colours.

detectron2's ``Visualizer`` writes in the colour of the box on black. Here writing stands on the colour of its phrase,
in one size in the picture and below it.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from .prompts.phrase_search import find_phrase
from .structures import CharSpan

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

# Smaller pictures are enlarged, so that the writing on them can be read.
MIN_LONG_SIDE = 800
# The golden section of the colour circle never comes back to a hue it has used.
_GOLDEN_SECTION = 0.618034


class GroundingVisualizer:
    """Draw detections into a picture.

    Args:
        image: (H, W, 3) uint8 in RGB order, as for detectron2's ``Visualizer``.
        min_long_side: Pictures with a shorter long side are enlarged to it, pixels.
    """

    def __init__(self, image: np.ndarray, min_long_side: int = MIN_LONG_SIDE) -> None:
        height, width = image.shape[:2]
        self._scale = max(1.0, min_long_side / max(height, width))
        picture = Image.fromarray(np.ascontiguousarray(image))
        if self._scale > 1:
            size = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        self._picture = picture

    def draw_predictions(self, instances: Instances, phrases: Sequence[str], caption: str | None = None) -> np.ndarray:
        """Draw the detections of one image.

        Args:
            instances: ``pred_boxes`` XYXY in pixels of the image, ``scores`` in [0, 1], ``pred_classes``, rows of
                ``phrases``; may be empty.
            phrases: P strings.
            caption: Written under the picture, if there is one.

        Returns:
            (H', W', 3) uint8 in RGB order. Its size depends on the image, the caption and the phrases alone.
        """
        picture = self._picture.copy()
        pen = ImageDraw.Draw(picture)
        font = _font(picture.size)
        boxes = instances.pred_boxes.tensor.cpu() * self._scale
        rows = instances.pred_classes.tolist()
        line_width = max(2, int(font.size) // 5)
        for row, box in zip(rows, boxes.tolist()):
            pen.rectangle(_drawable(box), outline=phrase_color(row), width=line_width)
        taken: list[Rectangle] = []
        # The best detections get the first choice of places.
        for k in instances.scores.argsort(descending=True, stable=True).tolist():
            text = f"{phrases[rows[k]]} {float(instances.scores[k]):.0%}"
            chip = place_label(
                boxes[k].tolist(), (font.getlength(text) + font.size, 1.4 * font.size), picture.size, taken
            )
            taken.append(chip)
            pen.rectangle(chip, fill=phrase_color(rows[k]))
            pen.text((chip[0] + font.size / 2, chip[1] + 0.1 * font.size), text, text_color(rows[k]), font)
        drawn = np.asarray(picture)
        if caption is not None:
            drawn = np.concatenate([drawn, draw_caption(caption, phrases, font, picture.width)])
        return drawn


def phrase_color(row: int) -> Color:
    """Return the colour of phrase ``row``, RGB in 0..255; neighbouring rows differ well."""
    red, green, blue = colorsys.hsv_to_rgb((row * _GOLDEN_SECTION) % 1.0, 0.85, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(row: int) -> Color:
    """Return black or white, whichever can be read on the colour of phrase ``row``."""
    red, green, blue = phrase_color(row)
    # Luma of Rec. 601.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def place_label(
    box: Sequence[float], size: tuple[float, float], picture_size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Find a place for the label of a box.

    Args:
        box: XYXY in pixels.
        size: Width and height of the label.
        picture_size: Width and height of the picture, which holds the label where it is large enough.
        taken: Labels that are already placed.

    Returns:
        XYXY: above the box, else inside its upper edge, else the first free place further down; if there is none, the
        first of these.
    """
    width, height = size
    left = max(0.0, min(box[0], picture_size[0] - width))
    tops = [box[1] - height, box[1]]
    tops += [box[1] + step * height for step in range(1, int(picture_size[1] / height) + 1)]
    places = [(left, top, left + width, top + height) for top in tops if 0 <= top <= picture_size[1] - height]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    bottom = max(0.0, picture_size[1] - height)
    return next(free, places[0] if places else (left, bottom, left + width, bottom + height))


def draw_caption(caption: str, phrases: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> np.ndarray:
    """Write a caption, each of its phrases on the colour of the phrase.

    Returns:
        (H, width, 3) uint8 RGB, as high as the lines need.
    """
    size = int(font.size)
    words = _wrap(split_caption(caption, phrases), font, width - 2 * size)
    num_lines = 1 + max((word.line for word in words), default=0)
    canvas = Image.new("RGB", (width, 2 * size * num_lines + size), "white")
    pen = ImageDraw.Draw(canvas)
    for (line, row), group in itertools.groupby(words, key=lambda word: (word.line, word.row)):
        run = list(group)
        top = 2 * size * line + size
        if row is not None:
            margin = size // 6
            chip = (size + run[0].left - margin, top - margin, size + run[-1].right + margin, top + size + 2 * margin)
            pen.rounded_rectangle(chip, margin, fill=phrase_color(row))
        for word in run:
            pen.text((size + word.left, top), word.text, (0, 0, 0) if row is None else text_color(row), font)
    return np.asarray(canvas)


def split_caption(caption: str, phrases: Sequence[str]) -> list[tuple[str, int | None]]:
    """Cut a caption into words with the space after them, each with the row of its phrase, or None.

    Where phrases overlap the longer one has the word.
    """
    owners: list[int | None] = [None] * len(caption)
    # Short phrases first: long ones then write over them.
    for row in sorted(range(len(phrases)), key=lambda row: len(phrases[row])):
        for begin, end in _spans(caption, phrases[row]):
            owners[begin:end] = [row] * (end - begin)
    words: list[tuple[str, int | None]] = []
    begin = 0
    for end in range(1, len(caption) + 1):
        if end == len(caption) or owners[end] != owners[begin] or caption[end - 1].isspace():
            words.append((caption[begin:end], owners[begin]))
            begin = end
    return words


class _Word(NamedTuple):
    """A word at its place: line, left and right edge in pixels of the line, and the phrase it belongs to, or None."""

    line: int
    left: float
    right: float
    text: str
    row: int | None


def _wrap(words: list[tuple[str, int | None]], font: ImageFont.FreeTypeFont, width: int) -> list[_Word]:
    """Lay words out in lines."""
    placed = []
    line, left = 0, 0.0
    for word, row in words:
        text = word.rstrip()
        if left > 0 and left + font.getlength(text) > width:
            line, left = line + 1, 0.0
        placed.append(_Word(line, left, left + font.getlength(text), text, row))
        left += font.getlength(word)
    return placed


def _spans(caption: str, phrase: str) -> list[CharSpan]:
    try:
        return find_phrase(caption, phrase)[1]
    except ValueError:
        # The phrase joins words that stand apart in the caption.
        return []


def _font(picture_size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    # matplotlib brings this font along.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), max(14, max(picture_size) // 50))


def _drawable(box: Sequence[float]) -> Rectangle:
    """Return the corner pixels of a half-open box; a box without area is drawn as a point."""
    left, top, right, bottom = box
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
