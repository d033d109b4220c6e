"""Draw what was found: masks, boxes with phrases and scores, and the caption with its phrases in the same colours.

detectron2's ``Visualizer`` writes in the colour of the box on black. Here writing stands on the colour of its phrase,
in one size in the picture and below it.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Iterable, Sequence
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
# Share of the phrase's colour inside a mask: what is below stays visible.
_MASK_OPACITY = 0.45
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
        self._shape = (height, width)
        picture = Image.fromarray(np.ascontiguousarray(image))
        if self._scale > 1:
            size = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        self._picture = picture

    def draw_predictions(self, instances: Instances, phrases: Sequence[str], caption: str | None = None) -> np.ndarray:
        """Draw the detections of one image.

        Args:
            instances: ``pred_boxes`` XYXY in pixels of the image, ``scores`` in [0, 1], ``pred_classes``, rows of
                ``phrases``, and ``pred_masks`` (K, H, W) bool, if there are masks; may be empty.
            phrases: P strings.
            caption: Written under the picture, if there is one.

        Returns:
            (H', W', 3) uint8 in RGB order. Its size depends on the image, the caption and the phrases alone.

        Raises:
            ValueError: The masks do not have the size of the image.
        """
        font = _font(self._picture.size)
        picture = self._picture.copy()
        if instances.has("pred_masks"):
            masks = instances.pred_masks.cpu().numpy()
            picture = self._with_masks(masks, instances.pred_classes.tolist(), "pred_masks")
        pen = ImageDraw.Draw(picture)
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

    def draw_referred(self, mask: np.ndarray, phrase: str) -> np.ndarray:
        """Draw what a phrase refers to, and write the phrase under the picture.

        Args:
            mask: (H, W) bool; where it is empty, the phrase stands below without its colour.
            phrase: All of it names what is drawn.

        Returns:
            (H', W', 3) uint8 in RGB order. Its size depends on the image and the phrase alone.

        Raises:
            ValueError: The mask does not have the size of the image.
        """
        picture = self._with_masks(mask[None], [0], "mask")
        marked = [phrase] if mask.any() else []
        strip = draw_caption(phrase, marked, _font(picture.size), picture.width)
        return np.concatenate([np.asarray(picture), strip])

    def _with_masks(self, masks: np.ndarray, rows: Sequence[int], name: str) -> Image.Image:
        """Return the picture with masks (K, H, W) in the colours of their phrases."""
        if masks.shape[1:] != self._shape:
            raise ValueError(f"{name}: expected masks of the image's size {self._shape}, found {masks.shape[1:]}")
        # Small masks lie on large ones, so that no mask hides another.
        order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist()
        size = self._picture.size
        enlarged = ((rows[k], masks[k] if self._scale == 1 else enlarge_mask(masks[k], size)) for k in order)
        line_width = max(2, int(_font(size).size) // 8)
        return Image.fromarray(paint_masks(np.asarray(self._picture), enlarged, line_width))


def phrase_color(row: int) -> Color:
    """Return the colour of phrase ``row``, RGB in 0..255; neighbouring rows differ well."""
    red, green, blue = colorsys.hsv_to_rgb((row * _GOLDEN_SECTION) % 1.0, 0.85, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(row: int) -> Color:
    """Return black or white, whichever can be read on the colour of phrase ``row``."""
    red, green, blue = phrase_color(row)
    # Luma of Rec. 601.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a mask (H, W) bool to a width and a height, with an edge that is smooth and not made of squares."""
    gray = Image.fromarray(255 * mask.astype(np.uint8))
    return np.asarray(gray.resize(size, Image.Resampling.BILINEAR)) >= 128


def paint_masks(picture: np.ndarray, masks: Iterable[tuple[int, np.ndarray]], line_width: int) -> np.ndarray:
    """Tint what masks cover in the colours of their phrases, and draw the edge of each mask.

    Args:
        picture: (H, W, 3) uint8 RGB.
        masks: Row of the phrase and (H, W) bool of each mask. Later ones are above earlier ones; a pixel is tinted
            once, so that the picture can be seen through any number of masks. No tint covers an edge.
        line_width: Of the edges, pixels; they lie inside the masks.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    tinted = picture.copy()
    lines: list[tuple[Color, np.ndarray, np.ndarray]] = []
    for row, mask in masks:
        ys, xs = np.nonzero(mask)
        color = phrase_color(row)
        tinted[ys, xs] = np.rint(_MASK_OPACITY * np.array(color) + (1 - _MASK_OPACITY) * picture[ys, xs])
        if len(ys):
            top, left = ys.min(), xs.min()
            ys, xs = np.nonzero(_edge(mask[top : ys.max() + 1, left : xs.max() + 1], line_width))
            lines.append((color, ys + top, xs + left))
    for color, ys, xs in lines:
        tinted[ys, xs] = color
    return tinted


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """Mark the pixels of a mask (H, W) that are at most ``width`` steps from what lies outside it."""
    inner = np.pad(mask, 1)
    for _ in range(width):
        sides = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner[1:-1, 1:-1] &= sides
    return mask & ~inner[1:-1, 1:-1]


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
